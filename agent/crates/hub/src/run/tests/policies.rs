//! Policies, from a manifest to what a node is told.

use weft_model::{PolicyName, ServiceProtocol};

use super::*;

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {ingress: [{from: [{ipBlock: {cidr: junk}}]}]}\n";

fn pod(labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: x, labels: {labels}}}\nspec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 80}}]}}]}}\nstatus: {{podIP: 10.42.0.9}}\n"
    )
}

/// NP-144: what is not enforced does not pass in silence.
#[tokio::test]
async fn policies_of_older_kinds_are_problems() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let old = |kind: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\nspec: {{subject: {{namespaces: {{}}}}}}\n---\n"
        )
    };
    let all = [old("AdminNetworkPolicy"), old("BaselineAdminNetworkPolicy"), POLICY.to_owned()];
    fs::write(bench.manifest("old.yaml"), all.concat()).unwrap();
    until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
    let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
    let problems = status.into_inner().problems;
    let said = |line: u32, kind: &str| {
        let at = problems.iter().filter(|p| p.line == line && p.file.ends_with("old.yaml"));
        at.filter(|p| p.reason.starts_with(&format!("{kind} default: nothing of it is enforced")))
            .count()
    };
    assert_eq!((said(1, "AdminNetworkPolicy"), said(6, "BaselineAdminNetworkPolicy")), (1, 1));
}

/// NP-090, NP-110: what changes is told and nothing else, and what is wrong with it is in the status.
#[tokio::test]
async fn policy_manifest_reaches_the_nodes_and_its_problem_the_status() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    fs::write(bench.manifest("policy.yaml"), POLICY).unwrap();
    until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
    assert!(snapshot.namespaces.is_empty());
    let name = PolicyName { namespace: "x".into(), name: "p".into(), ..PolicyName::default() };
    let ingress = snapshot.policies[&name].ingress.clone().unwrap();
    assert_eq!(ingress[0].peers, Some(vec![]));
    let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
    let [problem] = status.into_inner().problems.try_into().unwrap();
    assert!(problem.file.ends_with("policy.yaml") && problem.line == 1, "{problem:?}");
    assert!(problem.reason.starts_with("NetworkPolicy x/p: "), "{problem:?}");
    fs::write(bench.manifest("pod.yaml"), pod("{app: a}")).unwrap();
    let UpdateBody::Delta(delta) = next(&mut stream).await.body else { panic!("no delta") };
    assert_eq!((delta.pods.len(), delta.namespaces.len(), delta.policies.len()), (1, 1, 0));
    let port = &delta.pods[0].ports[0];
    assert_eq!(
        (port.name.as_str(), port.protocol, port.number),
        ("http", ServiceProtocol::Tcp, 80)
    );
    snapshot.apply(delta).unwrap();
    fs::write(bench.manifest("pod.yaml"), pod("{app: b}")).unwrap();
    let UpdateBody::Delta(delta) = next(&mut stream).await.body else { panic!("no delta") };
    assert_eq!((delta.pods.len(), delta.namespaces.len(), delta.policies.len()), (1, 0, 0));
    snapshot.apply(delta).unwrap();
    fs::remove_file(bench.manifest("policy.yaml")).unwrap();
    fs::remove_file(bench.manifest("pod.yaml")).unwrap();
    until(&mut stream, &mut snapshot, |s| s.policies.is_empty() && s.namespaces.is_empty()).await;
}

/// NP-103, NP-110: a hub that starts with what it cannot read keeps what was in force, and no longer than
/// until everything can be read.
#[tokio::test]
async fn policy_survives_a_kill_while_its_document_cannot_be_read() {
    let before = Bench::new().await;
    let a = before.join("node-a").await;
    let mut stream = watch_from(&mut before.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let text = POLICY.replace("junk", "10.0.0.0/8");
    fs::write(before.manifest("policy.yaml"), &text).unwrap();
    until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
    let good = snapshot.policies.clone();
    for broken in
        [text.replace("}]}]", "}]}"), text.replace("[{from", "{from").replace("}]}]}", "}]}}")]
    {
        fs::write(before.manifest("policy.yaml"), broken).unwrap();
        let after = before.after_a_kill().await;
        let mut stream = watch_from(&mut after.node(&a).await, vec![]).await;
        let (mut snapshot, _) = first(&mut stream).await;
        assert_eq!(snapshot.policies, good);
        fs::write(after.manifest("other.yaml"), text.replace("name: p", "name: q")).unwrap();
        until(&mut stream, &mut snapshot, |s| s.policies.len() == 2).await;
        assert!(good.iter().all(|(name, policy)| snapshot.policies.get(name) == Some(policy)));
        fs::remove_file(after.manifest("policy.yaml")).unwrap();
        until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
        assert!(good.keys().all(|name| !snapshot.policies.contains_key(name)));
    }
}

/// NP-096: what selects a pod holds until its end, though nobody declares it any more.
#[tokio::test]
async fn pod_keeps_its_labels_until_its_end() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let pod_name = v1::PodName { namespace: "x".into(), name: "a".into() };
    let address = a.subnets[0].split('/').next().unwrap().replace(".0.0", ".0.9");
    let of = |pods: Vec<v1::Pod>| v1::ReportRequest { pods, ..v1::ReportRequest::default() };
    let attached = v1::Pod { name: Some(pod_name), addresses: vec![address], ..v1::Pod::default() };
    fs::write(bench.manifest("pod.yaml"), pod("{app: a}")).unwrap();
    client.report(of(vec![attached])).await.unwrap();
    let labels = |s: &Snapshot| s.pods.values().next().map(|p| p.labels.len());
    until(&mut stream, &mut snapshot, |s| labels(s) == Some(1)).await;
    fs::remove_file(bench.manifest("pod.yaml")).unwrap();
    fs::write(bench.manifest("policy.yaml"), POLICY).unwrap();
    until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
    assert_eq!(labels(&snapshot), Some(1));
    client.report(of(vec![])).await.unwrap();
    until(&mut stream, &mut snapshot, |s| s.pods.is_empty()).await;
}

/// NP-096, NP-103: a hub that starts while a pod's document is gone, or is no YAML, has the pod's labels all
/// the same, and no longer than the pod is there.
#[tokio::test]
async fn labels_of_a_pod_survive_a_kill_without_its_document() {
    let mut bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let report = |names: &[&str]| {
        let pods = names.iter().map(|name| v1::Pod {
            name: Some(v1::PodName { namespace: "x".into(), name: (*name).into() }),
            addresses: vec![format!("10.42.0.{}", name.len())],
            ..v1::Pod::default()
        });
        v1::ReportRequest { pods: pods.collect(), ..v1::ReportRequest::default() }
    };
    let text = |name: &str| pod("{app: a}").replace("name: a,", &format!("name: {name},"));
    let labelled = |s: &Snapshot| s.pods.values().filter(|p| p.labels.len() == 1).count();
    for name in ["a", "bb"] {
        fs::write(bench.manifest(&format!("{name}.yaml")), text(name)).unwrap();
    }
    let mut client = bench.node(&a).await;
    client.report(report(&["a", "bb"])).await.unwrap();
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    until(&mut stream, &mut snapshot, |s| labelled(s) == 2).await;
    fs::remove_file(bench.manifest("a.yaml")).unwrap();
    fs::write(bench.manifest("bb.yaml"), text("bb").replace("metadata: {", "metadata: {{"))
        .unwrap();
    for _ in 0..2 {
        bench = bench.after_a_kill().await;
        let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
        let (mut snapshot, _) = first(&mut stream).await;
        assert_eq!(labelled(&snapshot), 2, "{:?}", snapshot.pods);
        // And when everything there is has been read.
        fs::write(bench.manifest("policy.yaml"), POLICY).unwrap();
        until(&mut stream, &mut snapshot, |s| s.policies.len() == 1).await;
        assert_eq!(labelled(&snapshot), 2, "{:?}", snapshot.pods);
        assert_eq!(snapshot.pods.values().map(|p| p.addresses.len()).sum::<usize>(), 2);
    }
    // Another one of that name has nothing of it.
    let mut client = bench.node(&a).await;
    client.report(report(&["bb"])).await.unwrap();
    let bench = bench.after_a_kill().await;
    let mut client = bench.node(&a).await;
    client.report(report(&["a", "bb"])).await.unwrap();
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    until(&mut stream, &mut snapshot, |s| s.pods.len() == 2 && labelled(s) == 1).await;
}

/// NP-095: a pod that has finished is told as such, also while it is still attached.
#[tokio::test]
async fn finished_pod_is_told_though_it_is_attached() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let mut stream = watch_from(&mut client, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let attached = v1::Pod {
        name: Some(v1::PodName { namespace: "x".into(), name: "a".into() }),
        addresses: vec!["10.42.0.9".into()],
        ..v1::Pod::default()
    };
    let report = v1::ReportRequest { pods: vec![attached], ..v1::ReportRequest::default() };
    client.report(report).await.unwrap();
    fs::write(bench.manifest("pod.yaml"), pod("{app: a}")).unwrap();
    let of = |s: &Snapshot| s.pods.values().next().cloned();
    let labelled = |s: &Snapshot| of(s).is_some_and(|p| !p.labels.is_empty() && !p.finished);
    until(&mut stream, &mut snapshot, labelled).await;
    let done = pod("{app: a}").replace("status: {", "status: {phase: Succeeded, ");
    fs::write(bench.manifest("pod.yaml"), done).unwrap();
    until(&mut stream, &mut snapshot, |s| of(s).is_some_and(|p| p.finished)).await;
    assert_eq!(of(&snapshot).unwrap().addresses.len(), 1);
}
