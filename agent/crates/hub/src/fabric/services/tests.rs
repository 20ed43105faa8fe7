//! Manifests in, Services out. The numbers are those of the checklist of Services' behaviour.

mod allocations;
mod balancers;
mod endpoints;
mod increments;
mod names;

use std::path::Path;

use weft_model::{Encapsulation, Endpoint, TrafficPolicy, Vni};

use super::*;
use crate::fabric::merge::{Merged, merge};
use crate::fabric::state::{Joined, Record, State};
use crate::source::index::Index;

/// A fabric of one hub, whose manifests are one file for each of the texts.
struct Bench {
    cluster: Cluster,
    index: Index,
    state: State,
    allow_external_ips: bool,
}

impl Bench {
    /// Both families.
    fn new(manifests: &[&str]) -> Self {
        let nets = |texts: [&str; 2]| texts.iter().map(|t| t.parse().unwrap()).collect();
        let cluster = Cluster {
            pod_cidrs: nets(["10.42.0.0/16", "fd42::/48"]),
            encapsulation: Encapsulation::WireGuard,
            port: 51820,
            vni: Vni::DEFAULT,
            mtu: None,
            service_cidrs: nets(["10.96.0.0/16", "fd00:10:96::/112"]),
            node_port_cidrs: vec![],
            dns: None,
        };
        let (index, state) = (Index::default(), State::default());
        let mut bench = Self { cluster, index, state, allow_external_ips: false };
        for (i, text) in manifests.iter().enumerate() {
            bench.set(i, text);
        }
        bench
    }

    fn set(&mut self, i: usize, text: &str) {
        self.index.set(Path::new(&format!("{i}.yaml")), text);
    }

    fn remove(&mut self, i: usize) {
        self.index.remove(Path::new(&format!("{i}.yaml")));
    }

    /// A node that joined and reported these addresses.
    fn node(&mut self, name: &str, addresses: &[&str]) -> &mut Joined {
        let record = Record {
            uid: name.into(),
            incarnation: Default::default(),
            key_epoch: 0,
            joined_unix: 0,
            lost: false,
            of_cluster: false,
        };
        let mut joined = Joined::new(record, vec![]);
        joined.reported.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.state.nodes.entry(name.parse().unwrap()).or_insert(joined)
    }

    fn read(&mut self) {
        let (objects, problems) = self.index.objects();
        let complete = self.index.is_complete();
        self.state.source = Objects { objects, problems, complete, ..Objects::default() };
    }

    /// Publishes, as the fabric does.
    fn merge(&mut self) -> Merged {
        self.read();
        let merged = merge(&self.cluster, self.allow_external_ips, &self.state);
        self.state.allocations.clone_from(&merged.allocations);
        merged
    }

    fn service(&mut self, name: &str) -> Service {
        let merged = self.merge();
        let found = merged.services.get(&named(name)).cloned();
        found.unwrap_or_else(|| panic!("no {name}: {:?}", merged.misfits))
    }

    fn names(&mut self) -> Vec<String> {
        self.merge().services.keys().map(|n| n.name.clone()).collect()
    }

    fn problems(&mut self) -> Vec<String> {
        let merged = self.merge();
        let of_services = merged.service_problems.into_values().flatten();
        merged.misfits.into_iter().chain(of_services).map(|p| p.reason).collect()
    }
}

fn named(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

/// A Service with `more` in its metadata and `spec`.
fn with(name: &str, more: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, {more}}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    with(name, "", spec)
}

/// A slice of a Service with `rest` after its metadata.
fn slice(name: &str, of: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {of}}}}}\n{rest}\n---\n"
    )
}

/// A pod `app: web` with `more` after its metadata.
fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web, pod: {name}}}}}\n{more}\n---\n"
    )
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn addresses(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|e| e.address.to_string()).collect()
}

/// SVC-001, SVC-002: such a Service is left to somebody else, and served again, at the same address,
/// without the label.
#[test]
fn labels_leave_a_service_to_others() {
    for label in [PROXY_NAME, HEADLESS] {
        let mut bench = Bench::new(&[&service("web", "")]);
        let before = bench.service("web");
        bench.set(0, &with("web", &format!("labels: {{{label}: x}}"), ""));
        assert!(bench.names().is_empty());
        bench.set(0, &service("web", ""));
        assert_eq!(bench.service("web"), before);
    }
}

/// SVC-003, SVC-110: names for DNS have no state, and a Service that becomes one gives its address up.
#[test]
fn headless_and_external_names_are_not_served() {
    let mut bench = Bench::new(&[&service("a", ""), &service("b", "")]);
    assert_eq!(bench.names(), ["a", "b"]);
    bench.set(0, &service("a", "clusterIP: None"));
    bench.set(1, &service("b", "type: ExternalName, externalName: example.com"));
    let merged = bench.merge();
    assert!(merged.services.is_empty() && merged.allocations.is_empty());
    bench.set(1, &service("b", "type: ClusterIP"));
    assert_eq!(bench.names(), ["b"]);
}

/// SVC-013: what is wrong is said with file and line, and the others work.
#[test]
fn bad_service_does_not_touch_another() {
    let bad = service("a", "") + &service("bad", "clusterIP: 10.96.0") + &service("c", "");
    let mut bench = Bench::new(&[&bad]);
    let merged = bench.merge();
    assert_eq!(merged.services.keys().map(|n| &n.name).collect::<Vec<_>>(), ["a", "c"]);
    let [problem] = merged.misfits.try_into().unwrap();
    assert_eq!((problem.file.to_str(), problem.line), (Some("0.yaml"), 6));
    assert!(problem.reason.contains("default/bad"), "{}", problem.reason);
    assert!(problem.reason.contains("`10.96.0` is no IP address"), "{}", problem.reason);
}

/// SVC-014: what a later Kubernetes may say is the default.
#[test]
fn unknown_values_fall_back() {
    let spec = "type: Later, internalTrafficPolicy: Later, externalTrafficPolicy: Later, sessionAffinity: Later, ipFamilyPolicy: Later, trafficDistribution: Later";
    let mut bench = Bench::new(&[&service("web", spec)]);
    let web = bench.service("web");
    assert_eq!(web.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(web.external_policy, TrafficPolicy::Cluster);
    assert_eq!((web.affinity_s, web.cluster_ips.len()), (None, 1));
    let problems = bench.problems();
    let said = "Service default/web: `spec.sessionAffinity`: `Later` is none of None, ClientIP: it counts as None";
    assert!(problems.len() == 5 && problems.contains(&said.to_owned()), "{problems:?}");
}

/// SVC-120, SVC-130, SVC-134: the policies are independent.
#[test]
fn policies_are_taken() {
    let spec = "internalTrafficPolicy: Local, type: NodePort";
    let mut bench = Bench::new(&[&service("web", spec)]);
    let web = bench.service("web");
    assert_eq!(web.internal_policy, TrafficPolicy::Local);
    assert_eq!(web.external_policy, TrafficPolicy::Cluster);
    bench.set(0, &service("web", "externalTrafficPolicy: Local, type: NodePort"));
    let web = bench.service("web");
    assert_eq!(web.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(web.external_policy, TrafficPolicy::Local);
}

/// SVC-051.
#[test]
fn affinity_has_its_timeout() {
    let of = |config: &str| {
        let spec = format!("sessionAffinity: ClientIP, {config}");
        let mut bench = Bench::new(&[&service("web", &spec)]);
        (bench.service("web").affinity_s, bench.problems().len())
    };
    let timeout = |s: i32| format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {s}}}}}");
    assert_eq!(of(""), (Some(10_800), 0));
    assert_eq!(of(&timeout(1)), (Some(1), 0));
    assert_eq!(of(&timeout(86_400)), (Some(86_400), 0));
    assert_eq!(of(&timeout(86_401)), (Some(10_800), 1));
    assert_eq!(of(&timeout(0)), (Some(10_800), 1));
}

/// SVC-021, SVC-061: a port is its protocol and number. SVC-013: one that is bad is left out.
#[test]
fn ports_are_told_apart_by_protocol() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec:\n  ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 53}, {name: c, port: 53}, {name: d, port: 9, protocol: QUIC}]\n";
    let mut bench = Bench::new(&[text]);
    let ports = bench.service("dns").ports;
    let ports: Vec<_> =
        ports.iter().map(|p| format!("{} {}/{}", p.name, p.port, p.protocol)).collect();
    assert_eq!(ports, ["a 53/UDP", "b 53/TCP"]);
    let problems = bench.problems();
    assert!(problems[0].contains("TCP port 53 is there twice"), "{problems:?}");
    assert!(problems[1].contains("`QUIC` is no protocol"), "{problems:?}");
}

#[test]
fn ports_of_one_name_are_noted() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: a, port: 80}, {name: a, port: 81}]}\n";
    let mut bench = Bench::new(&[text]);
    assert_eq!(bench.service("web").ports.len(), 2);
    let problems = bench.problems();
    assert!(problems.len() == 1 && problems[0].contains("the name `a`"), "{problems:?}");
}

/// SVC-164: nobody answers at a Service's address but the fabric itself.
#[test]
fn endpoint_that_is_a_services_address_is_ignored() {
    let endpoints = "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.96.0.7]}, {addresses: [198.51.100.7]}]";
    let mut bench = Bench::new(&[&(service("web", "") + &slice("web-1", "web", endpoints))]);
    assert_eq!(addresses(&bench.service("web").endpoints), ["198.51.100.7"]);
    let problems = bench.problems();
    assert!(problems[0].contains("`10.96.0.7` is a Service's"), "{problems:?}");
}

/// SVC-111, SVC-113.
#[test]
fn external_ips_are_served_if_allowed_and_nobodys() {
    let spec = "externalIPs: [203.0.113.1, 10.42.0.1, 10.96.0.1, 192.0.2.1, 127.0.0.1]";
    let mut bench = Bench::new(&[&service("web", spec)]);
    bench.node("node-a", &["192.0.2.1"]);
    assert!(bench.service("web").external_ips.is_empty());
    assert!(bench.problems().iter().any(|p| p.contains("--allow-external-ips")));
    bench.allow_external_ips = true;
    assert_eq!(texts(&bench.service("web").external_ips), ["203.0.113.1"]);
    let problems = bench.problems();
    for said in ["pod CIDR 10.42.0.0/16", "service CIDR 10.96.0.0/16", "node node-a's", "127.0.0.1"]
    {
        assert!(problems.iter().any(|p| p.contains(said)), "{said}: {problems:?}");
    }
}

/// SVC-112, SVC-212: nothing is served in a family that the Service does not have.
#[test]
fn addresses_of_another_family_are_left_out() {
    let mut bench = Bench::new(&[&service("web", "externalIPs: [203.0.113.1, \"2001:db8::1\"]")]);
    bench.allow_external_ips = true;
    assert_eq!(texts(&bench.service("web").external_ips), ["203.0.113.1"]);
}
