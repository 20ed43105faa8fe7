//! Services, from a manifest to what a node is told.

use weft_control::convert::texts;
use weft_model::{Service, ServiceName};

use super::*;

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
    )
}

fn pod(name: &str, app: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nstatus: {{podIP: {address}}}\n"
    )
}

fn get<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Service> {
    let key = ServiceName { namespace: "default".into(), name: name.into() };
    snapshot.services.get(&key).map(AsRef::as_ref)
}

#[tokio::test]
async fn service_manifest_reaches_the_nodes_and_a_new_endpoint_is_one_service() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    assert_eq!(texts(&snapshot.cluster.service_cidrs), ["10.96.0.0/16", "fd00:10:96::/112"]);
    fs::write(bench.manifest("web.yaml"), service("web")).unwrap();
    fs::write(bench.manifest("db.yaml"), service("db")).unwrap();
    until(&mut stream, &mut snapshot, |s| s.services.len() == 2).await;
    let web = get(&snapshot, "web").unwrap();
    assert_eq!((web.cluster_ips.len(), web.endpoints.len()), (1, 0));
    assert!(web.ports[0].node_port.is_some());
    fs::write(bench.manifest("pod.yaml"), pod("web-1", "web", "10.42.0.9")).unwrap();
    let UpdateBody::Delta(delta) = next(&mut stream).await.body else { panic!("no delta") };
    let changed: Vec<_> = delta.services.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(changed, ["default/web"]);
    assert_eq!((delta.pods.len(), delta.nodes.len(), delta.cluster.is_none()), (1, 0, true));
    assert_eq!(texts(&[delta.services[0].endpoints[0].address]), ["10.42.0.9"]);
    snapshot.apply(delta).unwrap();
    fs::remove_file(bench.manifest("db.yaml")).unwrap();
    until(&mut stream, &mut snapshot, |s| get(s, "db").is_none()).await;
    // What was given up is not the other's.
    assert_eq!(get(&snapshot, "web").unwrap().endpoints.len(), 1);
}

/// SVC-223: what changes within a moment is told at once, with what changes for others.
#[tokio::test(flavor = "multi_thread")]
async fn burst_of_changes_is_few_updates() {
    const PODS: usize = 500;
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let web = |n: usize| bench.manifest(&format!("web-{n}.yaml"));
    for n in 0..PODS {
        let address = format!("10.42.{}.{}", n / 200, n % 200 + 1);
        fs::write(web(n), pod(&format!("web-{n}"), "web", &address)).unwrap();
    }
    for name in ["web", "other"] {
        fs::write(bench.manifest(&format!("{name}.yaml")), service(name)).unwrap();
    }
    let endpoints = |s: &Snapshot, name: &str| get(s, name).map_or(0, |s| s.endpoints.len());
    until(&mut stream, &mut snapshot, |s| endpoints(s, "web") == PODS).await;
    for n in 0..PODS {
        fs::remove_file(web(n)).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        if n == PODS / 2 {
            fs::write(bench.manifest("pod.yaml"), pod("one", "other", "10.42.9.1")).unwrap();
        }
    }
    let mut updates = 0;
    while endpoints(&snapshot, "web") > 0 || endpoints(&snapshot, "other") == 0 {
        let UpdateBody::Delta(delta) = next(&mut stream).await.body else { panic!("no delta") };
        snapshot.apply(delta).unwrap();
        updates += 1;
    }
    assert!(updates < PODS / 10, "{updates} updates");
}

/// SVC-082.
#[tokio::test]
async fn services_have_the_same_addresses_and_ports_after_a_kill() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    let pool = "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: lan}\nspec: {addresses: [192.0.2.16/28]}\n";
    fs::write(bench.manifest("pool.yaml"), pool).unwrap();
    // The other one has the first addresses and ports, and leaves.
    fs::write(bench.manifest("early.yaml"), service("early")).unwrap();
    fs::write(bench.manifest("web.yaml"), service("web")).unwrap();
    let settled = |s: &Snapshot| get(s, "web").is_some_and(|w| !w.load_balancer_ips.is_empty());
    until(&mut stream, &mut snapshot, settled).await;
    fs::remove_file(bench.manifest("early.yaml")).unwrap();
    until(&mut stream, &mut snapshot, |s| s.services.len() == 1).await;
    let before = get(&snapshot, "web").unwrap().clone();
    let second = bench.after_a_kill().await;
    let mut stream = watch_from(&mut second.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    assert_eq!(get(&snapshot, "web"), Some(&before));
    // The one that left has left its own to others.
    fs::write(second.manifest("late.yaml"), service("late")).unwrap();
    until(&mut stream, &mut snapshot, |s| s.services.len() == 2).await;
    assert_eq!(texts(&get(&snapshot, "late").unwrap().cluster_ips), ["10.96.1.0"]);
}

/// SVC-071: what a node has noticed of a node port stands in the fabric's status, as long as it is there.
#[tokio::test]
async fn what_a_node_notices_of_services_is_shown_to_the_operator() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let mut client = bench.node(&a).await;
    let problems = async || {
        let status = bench.control().await.get_status(v1::GetStatusRequest {}).await.unwrap();
        let problems = status.into_inner().problems.into_iter();
        problems.map(|p| format!("{}: {}", p.file, p.reason)).collect::<Vec<_>>()
    };
    let noticed =
        v1::ReportRequest { problems: vec!["30080 is taken".into()], ..Default::default() };
    client.report(noticed).await.unwrap();
    assert_eq!(problems().await, [""; 0], "of one that is away nobody knows");
    let mut stream = watch_from(&mut client, vec![]).await;
    first(&mut stream).await;
    assert_eq!(problems().await, ["node node-a: 30080 is taken"]);
    client.report(v1::ReportRequest::default()).await.unwrap();
    assert_eq!(problems().await, [""; 0]);
}

#[tokio::test]
async fn node_whose_address_is_a_cluster_ip_is_told() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let addresses = vec!["10.96.0.9".into()];
    let report = v1::ReportRequest { addresses, ..v1::ReportRequest::default() };
    let status = bench.node(&a).await.report(report).await.unwrap_err();
    assert!(status.message().contains("--service-cidr"), "{status:?}");
}
