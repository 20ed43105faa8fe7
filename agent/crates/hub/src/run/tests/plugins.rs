//! Plugins are put to the nodes, and kept only if none refuses.

use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_model::USER_PLUGINS_MAX;
use weft_proto::v1::plugin_status::State;

use super::*;

/// What no node takes.
const BAD: &[u8] = b"garbage";

fn status(name: &str, config: &[u8]) -> v1::PluginStatus {
    let (state, message) = match config {
        BAD => (State::Refused, "no such port; the version before stays"),
        _ => (State::Running, ""),
    };
    let (name, message) = (name.to_owned(), message.to_owned());
    v1::PluginStatus { name, state: state.into(), message, ..Default::default() }
}

/// A node that says of every snapshot what it thinks of the plugins in it.
async fn judging(bench: &Bench, name: &str) -> JoinHandle<()> {
    let node = bench.join(name).await;
    let mut client = bench.node(&node).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    tokio::spawn(async move {
        loop {
            let plugins = snapshot.plugins.values().map(|p| status(&p.name, &p.config)).collect();
            let generation = snapshot.generation.0;
            let report = v1::ReportRequest { generation, plugins, ..Default::default() };
            client.report(report).await.unwrap();
            match next(&mut stream).await.body {
                UpdateBody::Snapshot(newer) => snapshot = newer,
                UpdateBody::Delta(delta) => snapshot.apply(delta).unwrap(),
            }
        }
    })
}

fn load(name: &str, config: &[u8]) -> v1::LoadPluginRequest {
    let config = Some(config.to_vec());
    v1::LoadPluginRequest { module: module(name, EXPORTS), config, ..Default::default() }
}

async fn specs(bench: &Bench) -> Vec<v1::PluginSpec> {
    let list = bench.control().await.list_plugins(v1::ListPluginsRequest {}).await.unwrap();
    list.into_inner().plugins.into_iter().map(|p| p.spec.unwrap()).collect()
}

#[tokio::test]
async fn what_a_node_refuses_is_withdrawn_and_what_was_there_stays() {
    let bench = Bench::new().await;
    let (a, b) = (judging(&bench, "node-a").await, judging(&bench, "node-b").await);
    let mut control = bench.control().await;
    control.load_plugin(load("block", b"80")).await.unwrap();
    let before = specs(&bench).await;
    let refusal = " refused it: no such port; everything is as before";
    let config = v1::ConfigurePluginRequest { name: "block".into(), config: BAD.to_vec() };
    let status = control.configure_plugin(config).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    // Whoever says so first.
    assert!(status.message().starts_with("node-"), "{status:?}");
    assert!(status.message().ends_with(refusal), "{status:?}");
    let replace = v1::LoadPluginRequest { replace: true, ..load("block", BAD) };
    let status = control.load_plugin(replace).await.unwrap_err();
    assert!(status.message().ends_with(refusal), "{status:?}");
    let status = control.load_plugin(load("fresh", BAD)).await.unwrap_err();
    assert!(status.message().ends_with(refusal), "{status:?}");
    assert_eq!(specs(&bench).await, before);
    let after = bench.after_a_kill().await;
    assert_eq!(specs(&after).await, before);
    a.abort();
    b.abort();
}

#[tokio::test]
async fn hub_killed_while_nodes_judge_starts_with_what_was_good() {
    let bench = Bench::new().await;
    bench.control().await.load_plugin(load("block", b"80")).await.unwrap();
    let before = specs(&bench).await;
    // A node that says nothing.
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let mut control = bench.control().await;
    let config = v1::ConfigurePluginRequest { name: "block".into(), config: b"81".to_vec() };
    let asking = tokio::spawn(async move { control.configure_plugin(config).await });
    until(&mut stream, &mut snapshot, |s| s.plugins["block"].config == b"81").await;
    let after = bench.after_a_kill().await;
    assert_eq!(specs(&after).await, before);
    // Who leaves cannot refuse any more.
    drop((stream, client));
    asking.await.unwrap().unwrap();
    assert_eq!(specs(&bench).await[0].config, b"81");
}

#[tokio::test]
async fn name_of_a_built_in_plugin_is_not_to_be_had() {
    let bench = Bench::new().await;
    let status = bench.control().await.load_plugin(load("service", b"")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("every node has"), "{status}");
}

#[tokio::test]
async fn more_plugins_than_can_run_are_refused() {
    let bench = Bench::new().await;
    let mut control = bench.control().await;
    for i in 0..USER_PLUGINS_MAX {
        control.load_plugin(load(&format!("p{i}"), b"")).await.unwrap();
    }
    let status = control.load_plugin(load("more", b"")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(specs(&bench).await.len(), USER_PLUGINS_MAX);
    let replace = v1::LoadPluginRequest { replace: true, ..load("p0", b"") };
    control.load_plugin(replace).await.unwrap();
}

#[tokio::test]
async fn replacement_keeps_what_is_not_given() {
    let bench = Bench::new().await;
    let mut control = bench.control().await;
    let full = v1::LoadPluginRequest {
        priority: Some(7),
        position: v1::Position::Both.into(),
        on_fault: v1::OnFault::Skip.into(),
        deadline_us: Some(500),
        ..load("block", b"80")
    };
    control.load_plugin(full).await.unwrap();
    let before = specs(&bench).await;
    let bare = v1::LoadPluginRequest { config: None, replace: true, ..load("block", b"") };
    control.load_plugin(bare.clone()).await.unwrap();
    assert_eq!(specs(&bench).await, before);
    let other = v1::LoadPluginRequest { config: Some(vec![]), priority: Some(0), ..bare };
    control.load_plugin(other).await.unwrap();
    let spec = specs(&bench).await.remove(0);
    assert_eq!((spec.config.len(), spec.priority, spec.deadline_us), (0, 0, Some(500)));
}

/// What a manifest says is not tried first: the status says where it stands, and why it does not run.
#[tokio::test]
async fn plugin_that_does_not_run_is_a_problem_for_each_node_at_its_manifest() {
    let bench = Bench::new().await;
    let mut control = bench.control().await;
    let (a, b) = (judging(&bench, "node-a").await, judging(&bench, "node-b").await);
    fs::write(bench.manifest("block.wasm"), module("block", EXPORTS)).unwrap();
    let manifest = |config: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: PacketFilter\nmetadata: {{name: ports}}\nspec: {{module: block.wasm, config: {config}}}\n"
        )
    };
    let path = bench.manifest("filter.yaml");
    fs::write(&path, manifest("garbage")).unwrap();
    let mut becomes = async |expected: &[&str]| {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let status = control.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
            let lines =
                status.problems.iter().map(|p| format!("{}:{}: {}", p.file, p.line, p.reason));
            let lines: Vec<_> = lines.collect();
            if lines == expected {
                return;
            }
            assert!(Instant::now() < until, "{lines:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let line = |node: &str| {
        let file = path.display();
        format!(
            "{file}:1: plugin ports is refused on {node}: no such port; the version before stays"
        )
    };
    let (on_a, on_b) = (line("node-a"), line("node-b"));
    becomes(&[&on_a, &on_b]).await;
    fs::write(&path, manifest("fine")).unwrap();
    becomes(&[]).await;
    fs::write(&path, manifest("garbage")).unwrap();
    becomes(&[&on_a, &on_b]).await;
    fs::remove_file(&path).unwrap();
    becomes(&[]).await;
    a.abort();
    b.abort();
}
