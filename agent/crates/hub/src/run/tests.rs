//! A hub in this process, spoken to over real sockets.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::health_client::HealthClient;
use weft_control::{
    FromProto as _, JoinToken, TlsIdentity, Update, UpdateBody, connect_hub, connect_unix,
    operator_text,
};
use weft_model::Snapshot;
use weft_proto::v1;
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::hub_client::HubClient;

mod explain;
mod plugins;
mod policies;
mod services;

use super::*;
use crate::module::tests::{EXPORTS, module};
use crate::{issue_admin, show_token};

struct Bench {
    dir: TempDir,
    hub: RunningHub,
    token: JoinToken,
}

impl Bench {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut HubConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let hub = start(config).await.unwrap();
        let token = show_token(&dir.path().join("state")).unwrap();
        Self { dir, hub, token }
    }

    /// A hub with what a killed one leaves: its files at this moment, without a closing write.
    async fn after_a_kill(&self) -> Self {
        let after = tempfile::tempdir().unwrap();
        for sub in ["state", "manifests"] {
            let to = after.path().join(sub);
            fs::create_dir(&to).unwrap();
            for entry in fs::read_dir(self.dir.path().join(sub)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        let hub = start(config(after.path())).await.unwrap();
        Self { dir: after, hub, token: self.token.clone() }
    }

    fn address(&self) -> String {
        self.hub.address().to_string()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.path().join("manifests").join(name)
    }

    async fn anyone(&self) -> HubClient<Channel> {
        let ca = self.token.ca_pem();
        HubClient::new(connect_hub(&self.address(), &ca, None).await.unwrap())
    }

    async fn node(&self, node: &Node) -> HubClient<Channel> {
        let ca = self.token.ca_pem();
        HubClient::new(connect_hub(&self.address(), &ca, Some(&node.identity)).await.unwrap())
    }

    async fn control(&self) -> ControlClient<Channel> {
        let socket = self.dir.path().join("run").join(socket::HUB);
        ControlClient::new(connect_unix(socket).await.unwrap())
    }

    fn request(&self, name: &str, uid: &str) -> (KeyPair, v1::JoinRequest) {
        let key = KeyPair::generate().unwrap();
        let request = v1::JoinRequest {
            token: self.token.secret_text(),
            node: name.into(),
            uid: uid.into(),
            certificate_request: request_of(&key),
            unix_time: OffsetDateTime::now_utc().unix_timestamp(),
        };
        (key, request)
    }

    async fn join(&self, name: &str) -> Node {
        let (key, request) = self.request(name, &format!("uid-{name}"));
        let answer = self.anyone().await.join(request).await.unwrap().into_inner();
        let identity = TlsIdentity { certificate: answer.certificate, key: key.serialize_pem() };
        Node { identity, subnets: answer.subnets }
    }
}

struct Node {
    identity: TlsIdentity,
    subnets: Vec<String>,
}

fn config(dir: &Path) -> HubConfig {
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let cidrs = vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()];
    HubConfig::new(dir.join("manifests"), dir.join("state"), dir.join("run"), listen, cidrs)
}

fn request_of(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

async fn watch_from(client: &mut HubClient<Channel>, resume: Vec<u8>) -> Streaming<v1::Update> {
    client.watch(v1::WatchRequest { resume }).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<v1::Update>) -> Update {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
    Update::from_proto(message.await.unwrap().unwrap().unwrap()).unwrap()
}

async fn first(stream: &mut Streaming<v1::Update>) -> (Snapshot, Vec<u8>) {
    let update = next(stream).await;
    match update.body {
        UpdateBody::Snapshot(snapshot) => (snapshot, update.resume),
        UpdateBody::Delta(delta) => panic!("a delta: {delta:?}"),
    }
}

/// Follows deltas until the snapshot is as wanted.
async fn until(
    stream: &mut Streaming<v1::Update>,
    snapshot: &mut Snapshot,
    wanted: impl Fn(&Snapshot) -> bool,
) {
    while !wanted(snapshot) {
        match next(stream).await.body {
            UpdateBody::Snapshot(newer) => *snapshot = newer,
            UpdateBody::Delta(delta) => snapshot.apply(delta).unwrap(),
        }
    }
}

#[tokio::test]
async fn node_joins_with_the_token_and_then_needs_its_certificate() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    assert_eq!(a.subnets, ["10.42.0.0/24", "fd42::/64"]);
    let status = bench.anyone().await.watch(v1::WatchRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (snapshot, _) = first(&mut stream).await;
    assert_eq!(snapshot.nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["node-a"]);
    bench.hub.stop().await;
}

#[tokio::test]
async fn who_may_not_join_is_told_why() {
    let bench = Bench::new().await;
    bench.join("node-a").await;
    let refused = async |change: fn(&mut v1::JoinRequest)| {
        let (_, mut request) = bench.request("node-b", "uid-node-b");
        change(&mut request);
        bench.anyone().await.join(request).await.unwrap_err()
    };
    let status = refused(|r| r.token = "A".repeat(43)).await;
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(operator_text(&status).contains("weft token show"));
    let status = refused(|r| r.unix_time -= 301).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message().matches("Z").count(), 2, "{}", status.message());
    let status = refused(|r| r.node = "node-a".into()).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = refused(|r| r.uid = "uid-node-a".into()).await;
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = refused(|r| r.certificate_request = "x".into()).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    // None of them took a subnet.
    assert_eq!(bench.join("node-b").await.subnets[0], "10.42.1.0/24");
}

#[tokio::test]
async fn exhausted_range_is_an_error_that_names_it() {
    let one = |c: &mut HubConfig| {
        c.pod_cidrs = vec!["10.42.0.0/24".parse().unwrap()];
    };
    let bench = Bench::with(one).await;
    bench.join("node-a").await;
    let (_, request) = bench.request("node-b", "b");
    let status = bench.anyone().await.join(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("10.42.0.0/24"), "{}", status.message());
}

#[tokio::test]
async fn certificate_is_renewed_and_an_expired_one_is_refused() {
    let bench = Bench::with(|c| c.certificate_ttl = Duration::from_secs(6)).await;
    let a = bench.join("node-a").await;
    let mut open = bench.node(&a).await;
    let mut stream = watch_from(&mut open, vec![]).await;
    first(&mut stream).await;
    let key = KeyPair::from_pem(&a.identity.key).unwrap();
    let request = v1::RenewRequest { certificate_request: request_of(&key) };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let renewed = open.renew(request).await.unwrap().into_inner().certificate;
    tokio::time::sleep(Duration::from_millis(3300)).await;
    // The open connection, its stream, and a new connection with the old certificate.
    let status = open.report(v1::ReportRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unauthenticated);
    let late = connect_hub(&bench.address(), &bench.token.ca_pem(), Some(&a.identity)).await;
    if let Ok(channel) = late {
        HubClient::new(channel).watch(v1::WatchRequest::default()).await.unwrap_err();
    }
    let identity = TlsIdentity { certificate: renewed, key: a.identity.key.clone() };
    let fresh = Node { identity, subnets: vec![] };
    bench.node(&fresh).await.watch(v1::WatchRequest::default()).await.unwrap();
}

#[tokio::test]
async fn watcher_gets_deltas_and_resumes_where_it_was() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, resume) = first(&mut stream).await;
    let from = snapshot.generation;
    bench.join("node-b").await;
    until(&mut stream, &mut snapshot, |s| s.nodes.len() == 2).await;
    drop(stream);
    let mut stream = watch_from(&mut client, resume).await;
    let UpdateBody::Delta(delta) = next(&mut stream).await.body else { panic!("no delta") };
    assert_eq!((delta.from, delta.nodes.len()), (from, 1));
    let mut stream = watch_from(&mut client, b"unknown".to_vec()).await;
    assert_eq!(first(&mut stream).await.0, snapshot);
}

#[tokio::test]
async fn report_is_of_the_own_node_only() {
    let bench = Bench::new().await;
    let (a, b) = (bench.join("node-a").await, bench.join("node-b").await);
    let (mut a, mut b) = (bench.node(&a).await, bench.node(&b).await);
    let mut stream = watch_from(&mut a, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let pod = |name: &str, address: &str| v1::Pod {
        name: Some(v1::PodName { namespace: "default".into(), name: name.into() }),
        node: "node-b".into(),
        addresses: vec![address.into()],
        ..v1::Pod::default()
    };
    let report = v1::ReportRequest {
        endpoint: "192.0.2.1:51820".into(),
        addresses: vec!["192.0.2.1".into()],
        keys: vec![vec![1; 32]],
        pods: vec![pod("good", "10.42.0.9"), pod("bad", "10.42.1.9")],
        ..v1::ReportRequest::default()
    };
    a.report(report.clone()).await.unwrap();
    until(&mut stream, &mut snapshot, |s| s.pods.len() == 2).await;
    let pods: Vec<_> =
        snapshot.pods.values().map(|p| (p.node.clone(), p.addresses.len())).collect();
    let node_a = Some("node-a".parse().unwrap());
    assert_eq!(pods, [(node_a.clone(), 0), (node_a, 1)]);
    let status = b.report(report.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let keyless = v1::ReportRequest { keys: vec![], pods: vec![], ..report };
    let status = b.report(keyless).await.unwrap_err();
    assert!(status.message().contains("192.0.2.1 belongs to node node-a"), "{status:?}");
}

#[tokio::test]
async fn removed_node_is_cut_off_and_cannot_come_back() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    first(&mut stream).await;
    let remove = v1::RemoveNodeRequest { node: "node-a".into() };
    bench.control().await.remove_node(remove).await.unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::PermissionDenied);
    let status = client.report(v1::ReportRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let (_, again) = bench.request("node-a", "uid-node-a");
    let status = bench.anyone().await.join(again).await.unwrap_err();
    assert!(status.message().contains("weft uninstall"), "{status:?}");
    // Another machine may have the name; its subnet is another one, and the old certificate of
    // the name opens nothing.
    let (_, other) = bench.request("node-a", "another");
    let answer = bench.anyone().await.join(other).await.unwrap().into_inner();
    assert_eq!(answer.subnets[0], "10.42.1.0/24");
    let status = client.report(v1::ReportRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn key_rotation_reaches_the_node() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    first(&mut stream).await;
    let mut control = bench.control().await;
    let all = v1::RotateKeysRequest::default();
    let nodes = control.rotate_keys(all).await.unwrap().into_inner().nodes;
    assert_eq!(nodes, ["node-a"]);
    assert_eq!(next(&mut stream).await.key_epoch, 1);
    let status = control.rotate_keys(v1::RotateKeysRequest { node: "x".into() }).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn plugin_is_checked_loaded_configured_fetched_and_unloaded() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut control = bench.control().await;
    let bad = v1::LoadPluginRequest { module: b"no wasm".to_vec(), ..Default::default() };
    let status = control.load_plugin(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("no valid WebAssembly module"), "{status:?}");
    let good = v1::LoadPluginRequest { module: module("block", EXPORTS), ..Default::default() };
    control.load_plugin(good.clone()).await.unwrap();
    let status = control.load_plugin(good.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    control.load_plugin(v1::LoadPluginRequest { replace: true, ..good.clone() }).await.unwrap();
    let config = v1::ConfigurePluginRequest { name: "block".into(), config: b"80".to_vec() };
    control.configure_plugin(config).await.unwrap();
    let list = control.list_plugins(v1::ListPluginsRequest {}).await.unwrap().into_inner();
    let spec = list.plugins[0].spec.clone().unwrap();
    assert_eq!((spec.name.as_str(), spec.config.as_slice()), ("block", b"80".as_slice()));
    let mut client = bench.node(&a).await;
    let fetch = v1::FetchModuleRequest { digest: spec.digest };
    let mut parts = client.fetch_module(fetch.clone()).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend(part.bytes);
    }
    assert_eq!(bytes, good.module);
    let unload = v1::UnloadPluginRequest { name: "block".into() };
    control.unload_plugin(unload.clone()).await.unwrap();
    assert_eq!(control.unload_plugin(unload).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.fetch_module(fetch).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn control_on_tcp_is_for_operators_only() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let ca = bench.token.ca_pem();
    let ask = async |identity: Option<&TlsIdentity>| {
        let channel = connect_hub(&bench.address(), &ca, identity).await.unwrap();
        let status = ControlClient::new(channel).get_status(v1::GetStatusRequest {}).await;
        status.map_err(|s| s.code())
    };
    assert_eq!(ask(None).await.unwrap_err(), Code::Unauthenticated);
    assert_eq!(ask(Some(&a.identity)).await.unwrap_err(), Code::PermissionDenied);
    let state = bench.dir.path().join("state");
    let (admin, _) = issue_admin(&state, "ops", Duration::from_secs(60)).unwrap();
    assert_eq!(ask(Some(&admin)).await.unwrap().into_inner().nodes.len(), 1);
}

#[tokio::test]
async fn health_and_reflection_need_no_certificate() {
    let bench = Bench::new().await;
    let channel = connect_hub(&bench.address(), &bench.token.ca_pem(), None).await.unwrap();
    let request = tonic_health::pb::HealthCheckRequest { service: "weft.v1.Hub".into() };
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(
        health.status,
        tonic_health::pb::health_check_response::ServingStatus::Serving as i32
    );
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response};
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let ask = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers =
        client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"weft.v1.Hub") && names.contains(&"weft.v1.Control"), "{names:?}");
}

#[tokio::test]
async fn manifests_are_followed() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let peer = "apiVersion: v1\nkind: Node\nmetadata:\n  name: peer\n  annotations:\n    weft.dev/static-peer: \"true\"\n    weft.dev/public-key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nspec: {podCIDRs: [10.42.1.0/24]}\n---\nkind: [\n";
    fs::write(bench.manifest("peer.yaml"), peer).unwrap();
    until(&mut stream, &mut snapshot, |s| s.nodes.len() == 2).await;
    fs::write(bench.manifest("f.wasm"), module("f", EXPORTS)).unwrap();
    let filter = "apiVersion: weft.dev/v1alpha1\nkind: PacketFilter\nmetadata: {name: f}\nspec: {module: f.wasm, config: \"80\"}\n";
    fs::write(bench.manifest("filter.yaml"), filter).unwrap();
    until(&mut stream, &mut snapshot, |s| s.plugins.contains_key("f")).await;
    // The static peer's subnet is not leased.
    assert_eq!(bench.join("node-b").await.subnets[0], "10.42.2.0/24");
    let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
    assert!(status.problems[0].file.ends_with("peer.yaml") && status.problems[0].line >= 10);
    let peers: Vec<_> = status.nodes.iter().map(|n| (n.static_peer, n.connected)).collect();
    assert_eq!(peers, [(false, true), (false, false), (true, false)]);
    fs::remove_file(bench.manifest("peer.yaml")).unwrap();
    until(&mut stream, &mut snapshot, |s| !s.nodes.keys().any(|n| n.as_str() == "peer")).await;
}

#[tokio::test]
async fn static_peer_cannot_have_the_address_of_a_node_or_of_the_hub() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let report =
        v1::ReportRequest { addresses: vec!["192.0.2.7".into()], ..v1::ReportRequest::default() };
    client.report(report).await.unwrap();
    let peer = |name: &str, subnet: u8, address: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    weft.dev/static-peer: \"true\"\n    weft.dev/public-key: {key}\nspec: {{podCIDRs: [10.42.{subnet}.0/24]}}\nstatus: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n",
            key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [subnet; 32])
        )
    };
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let all = peer("of-node", 11, "192.0.2.7")
        + &peer("of-hub", 12, "127.0.0.1")
        + &peer("of-pods", 13, "10.42.13.1")
        + &peer("own", 14, "192.0.2.8");
    fs::write(bench.manifest("peers.yaml"), all).unwrap();
    until(&mut stream, &mut snapshot, |s| s.nodes.len() == 2).await;
    assert!(snapshot.nodes.keys().any(|n| n.as_str() == "own"));
    let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
    let reasons: Vec<_> = status.into_inner().problems.into_iter().map(|p| p.reason).collect();
    assert!(
        reasons.iter().any(|r| r == "address 192.0.2.7 is node node-a's already"),
        "{reasons:?}"
    );
    assert!(reasons.iter().any(|r| r == "address 127.0.0.1 is the hub's own"), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("in pod CIDR 10.42.0.0/16")), "{reasons:?}");
}

#[tokio::test]
async fn node_whose_address_is_in_the_pod_cidr_is_told_and_so_is_the_operator() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let report = |address: &str| v1::ReportRequest {
        addresses: vec![address.into()],
        ..v1::ReportRequest::default()
    };
    let status = client.report(report("10.42.9.9")).await.unwrap_err();
    assert!(status.message().contains("10.42.9.9"), "{status:?}");
    assert!(status.message().contains("10.42.0.0/16"), "{status:?}");
    let problems = async || {
        let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
        status.into_inner().problems
    };
    assert_eq!(problems().await[0].file, "node node-a");
    client.report(report("192.0.2.1")).await.unwrap();
    assert_eq!(problems().await, []);
}

#[tokio::test]
async fn everything_promised_survives_a_kill() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let report = v1::ReportRequest {
        endpoint: "192.0.2.1:51820".into(),
        keys: vec![vec![1; 32]],
        ..v1::ReportRequest::default()
    };
    client.report(report).await.unwrap();
    let mut control = bench.control().await;
    let load = v1::LoadPluginRequest { module: module("block", EXPORTS), ..Default::default() };
    control.load_plugin(load).await.unwrap();
    control.rotate_keys(v1::RotateKeysRequest::default()).await.unwrap();
    let mut stream = watch_from(&mut client, vec![]).await;
    let (before, resume) = first(&mut stream).await;
    let second = bench.after_a_kill().await;
    let mut client = second.node(&a).await;
    let mut stream = watch_from(&mut client, resume).await;
    let update = next(&mut stream).await;
    assert_eq!(update.key_epoch, 1);
    let UpdateBody::Snapshot(now) = update.body else { panic!("no snapshot") };
    assert!(now.generation > before.generation);
    assert_eq!(Snapshot { generation: before.generation, ..now }, before);
    assert_eq!(second.join("node-b").await.subnets[0], "10.42.1.0/24");
}

#[tokio::test]
async fn second_hub_on_one_port_or_state_is_refused() {
    let bench = Bench::new().await;
    let refused = async |change: fn(&mut HubConfig, SocketAddr)| {
        let mut config = config(bench.dir.path());
        change(&mut config, bench.hub.address());
        start(config).await.err().unwrap().to_string()
    };
    let text = refused(|c, address| c.listen = address).await;
    assert!(text.contains("choose another --listen"), "{text}");
    let text = refused(|_, _| {}).await;
    assert!(text.contains("hub.sock is served by another process"), "{text}");
    let text = refused(|c, _| c.run_dir.push("other")).await;
    assert!(text.contains("in use by another hub"), "{text}");
}
