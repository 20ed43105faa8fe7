//! Who answers.

use super::*;

/// One endpoint at each address, on port 8080.
fn plain(name: &str, of: &str, addresses: &str) -> String {
    slice(
        name,
        of,
        &format!(
            "addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints: [{{addresses: [{addresses}]}}]"
        ),
    )
}

/// SVC-004, SVC-011: slices are found by label and united, whatever the order.
#[test]
fn slices_are_united() {
    let web = service("web", "");
    let (a, b) = (plain("a", "web", "10.42.0.1"), plain("b", "web", "10.42.0.2"));
    let stray = plain("c", "other", "10.42.0.3");
    let unlabelled = plain("d", "web", "10.42.0.4").replace("kubernetes.io/service-name", "x");
    let elsewhere =
        plain("e", "web", "10.42.0.5").replace("name: e,", "name: e, namespace: other,");
    let parts = [web, a, b, stray, unlabelled, elsewhere];
    let forward = Bench::new(&[&parts.concat()]).service("web");
    assert_eq!(addresses(&forward.endpoints), ["10.42.0.1", "10.42.0.2"]);
    assert_eq!(forward.endpoints[0].targets, [8080]);
    let backward: String = parts.into_iter().rev().collect();
    assert_eq!(Bench::new(&[&backward]).service("web"), forward);
}

/// SVC-005: once, with the ports of both; what is ready wins.
#[test]
fn address_in_two_slices_counts_once() {
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: a, port: 1}, {name: b, port: 2}]}\n---\n";
    let at = |name: &str, port: &str, conditions: &str| {
        let rest = format!(
            "addressType: IPv4\nports: [{port}]\nendpoints: [{{addresses: [10.42.0.1], nodeName: {name}, conditions: {{{conditions}}}}}]"
        );
        slice(name, "web", &rest)
    };
    let old = at(
        "a",
        "{name: a, port: 11}, {name: b, port: 12}",
        "ready: false, serving: false, terminating: true",
    );
    let new = at("b", "{name: a, port: 21}", "ready: true");
    for text in
        [format!("{web}{old}{new}"), format!("{web}{}{}", old.replace("name: a,", "name: z,"), new)]
    {
        let endpoints = Bench::new(&[&text]).service("web").endpoints;
        assert_eq!(addresses(&endpoints), ["10.42.0.1"]);
        let one = &endpoints[0];
        assert!(one.ready && one.serving && !one.terminating, "{one:?}");
        assert_eq!(
            (one.targets.as_slice(), one.node.as_ref().unwrap().as_str()),
            ([21, 12].as_slice(), "b")
        );
    }
}

/// SVC-002, SVC-006, SVC-007.
#[test]
fn only_first_addresses_of_the_right_family_count() {
    let web = service("web", "ipFamilyPolicy: PreferDualStack");
    let v6 = slice(
        "v6",
        "web",
        "addressType: IPv6\nports: [{port: 1}]\nendpoints: [{addresses: [\"fd42::1\", \"fd42::2\"]}, {addresses: [10.42.0.9]}]",
    );
    let name = slice(
        "name",
        "web",
        "addressType: FQDN\nports: [{port: 1}]\nendpoints: [{addresses: [example.com]}]",
    );
    let headless = plain("h", "web", "10.42.0.7")
        .replace("labels: {", "labels: {service.kubernetes.io/headless: \"\", ");
    let v4 = plain("v4", "web", "10.42.0.1, 10.42.0.2");
    let mut bench = Bench::new(&[&[web, v6, name, headless, v4].concat()]);
    assert_eq!(addresses(&bench.service("web").endpoints), ["10.42.0.1", "fd42::1"]);
    let problems = bench.problems();
    assert!(problems.len() == 1 && problems[0].contains("`10.42.0.9`"), "{problems:?}");
}

/// SVC-008, SVC-009, SVC-200: by name and protocol; a port without a number is none.
#[test]
fn ports_are_matched_by_name_and_protocol() {
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: a, port: 80}, {name: b, port: 81}, {name: c, port: 82, protocol: UDP}, {name: d, port: 83}]}\n---\n";
    let ports = "{name: b, port: 80}, {name: a, port: 81}, {name: c, port: 82}, {name: c, port: 5, protocol: UDP}, {name: d}";
    let rest =
        format!("addressType: IPv4\nports: [{ports}]\nendpoints: [{{addresses: [10.42.0.1]}}]");
    let mut bench = Bench::new(&[&(web.to_owned() + &slice("s", "web", &rest))]);
    assert_eq!(bench.service("web").endpoints[0].targets, [81, 80, 5, 0]);
    let none = "addressType: IPv4\nports: [{name: a}]\nendpoints: [{addresses: [10.42.0.1]}]";
    bench.set(0, &(web.to_owned() + &slice("s", "web", none)));
    assert!(bench.service("web").endpoints.is_empty());
}

/// Terms of section 1, SVC-151, SVC-152, SVC-163.
#[test]
fn conditions_hints_and_nodes_are_taken() {
    let rest = "addressType: IPv4\nports: [{port: 1}]\nendpoints:\n- {addresses: [10.42.0.1]}\n- {addresses: [10.42.0.2], nodeName: node-a, conditions: {ready: false, serving: true, terminating: true}, hints: {forZones: [{name: z}], forNodes: [{name: node-b}]}}\n- {addresses: [10.42.0.3], conditions: {ready: false, serving: false}}";
    let mut bench = Bench::new(&[&(service("web", "") + &slice("s", "web", rest))]);
    let endpoints = bench.service("web").endpoints;
    let states: Vec<_> = endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, true, true), (false, false, false)]);
    assert_eq!(endpoints[0].node, None);
    assert_eq!(endpoints[1].node.as_ref().unwrap().as_str(), "node-a");
    assert_eq!(
        (texts(&endpoints[1].for_nodes), &endpoints[1].for_zones),
        (vec!["node-b".into()], &vec!["z".into()])
    );
}

/// SVC-162, SVC-165: any address that can be reached; the others are said with the slice's place.
#[test]
fn addresses_that_reach_nobody_are_ignored() {
    let bad = ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "x"];
    let list: String = bad.iter().map(|a| format!("{{addresses: [{a}]}}, ")).collect();
    let rest = format!(
        "addressType: IPv4\nports: [{{port: 1}}]\nendpoints: [{list}{{addresses: [198.51.100.1]}}]"
    );
    let mut bench = Bench::new(&[&service("web", ""), &slice("s", "web", &rest)]);
    let merged = bench.merge();
    assert_eq!(addresses(&merged.services[&named("web")].endpoints), ["198.51.100.1"]);
    let problems: Vec<_> = merged.service_problems.into_values().flatten().collect();
    assert_eq!(problems.len(), bad.len());
    assert!(problems.iter().all(|p| p.file == Path::new("1.yaml") && p.line == 1));
}

/// SVC-015, SVC-016.
#[test]
fn old_and_mapped_addresses_are_ipv4() {
    let web = service("web", "clusterIP: 010.096.000.007");
    let slice = plain("s", "web", "010.042.000.001")
        .replace("]}]", "]}, {addresses: [\"::ffff:10.42.0.2\"]}]");
    let web = Bench::new(&[&(web + &slice)]).service("web");
    assert_eq!(texts(&web.cluster_ips), ["10.96.0.7"]);
    assert_eq!(addresses(&web.endpoints), ["10.42.0.1", "10.42.0.2"]);
}

const SELECTS: &str = "selector: {app: web}";

/// A pod of its own network with an address of each family.
fn at(name: &str, last: u8, more: &str) -> String {
    pod(
        name,
        &format!(
            "spec: {{nodeName: node-a}}\nstatus: {{podIPs: [{{ip: 10.42.0.{last}}}, {{ip: \"fd42::{last}\"}}], {more}}}"
        ),
    )
}

#[test]
fn pods_that_the_selector_matches_are_endpoints() {
    let other = at("other", 9, "").replace("app: web", "app: x");
    let elsewhere = at("e", 8, "").replace("name: e,", "name: e, namespace: n,");
    let nowhere = pod("nowhere", "spec: {}");
    let ended = at("ended", 7, "phase: Succeeded");
    let pods = [at("a", 1, ""), at("b", 2, ""), other, elsewhere, nowhere, ended].concat();
    let mut bench = Bench::new(&[&service("web", SELECTS), &pods]);
    let web = bench.service("web");
    assert_eq!(addresses(&web.endpoints), ["10.42.0.1", "10.42.0.2"]);
    assert_eq!(web.endpoints[0].targets, [80]);
    assert_eq!(web.endpoints[0].node.as_ref().unwrap().as_str(), "node-a");
    bench.set(0, &service("web", "selector: {app: web, pod: b}, ipFamilyPolicy: RequireDualStack"));
    assert_eq!(addresses(&bench.service("web").endpoints), ["10.42.0.2", "fd42::2"]);
    bench.set(0, &service("web", "selector: {}"));
    assert!(bench.service("web").endpoints.is_empty());
}

/// A pod that CNI made is where the agent says; the manifest says the rest.
#[test]
fn reported_pods_are_joined_by_name() {
    let web = service("web", SELECTS);
    let manifest = pod(
        "a",
        "spec: {nodeName: node-a}\nstatus: {conditions: [{type: Ready, status: \"False\"}]}",
    );
    let mut bench = Bench::new(&[&(web + &manifest)]);
    assert!(bench.service("web").endpoints.is_empty());
    let reported = weft_model::Pod {
        name: PodName { namespace: "default".into(), name: "a".into() },
        node: None,
        addresses: vec!["10.42.1.5".parse().unwrap()],
        labels: BTreeMap::new(),
        ports: vec![],
        finished: false,
        own_search: false,
    };
    bench.node("node-b", &["192.0.2.2"]).reported.pods = vec![reported];
    let endpoints = bench.service("web").endpoints;
    assert_eq!(addresses(&endpoints), ["10.42.1.5"]);
    assert_eq!(endpoints[0].node.as_ref().unwrap().as_str(), "node-b");
    assert!(!endpoints[0].ready && !endpoints[0].serving);
}

/// SVC-201: each pod's own port of that name and protocol.
#[test]
fn named_target_ports_are_each_pods_own() {
    let web = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: x, port: 80, targetPort: http}, {name: y, port: 81, targetPort: 9000}]}\n---\n";
    let named = |name, last, port: &str| {
        at(name, last, "").replace(
            "{nodeName: node-a}",
            &format!("{{containers: [{{name: c, ports: [{port}]}}]}}"),
        )
    };
    let a = named("a", 1, "{name: http, containerPort: 8080}");
    let b = named("b", 2, "{name: http, containerPort: 8081}");
    let c = named("c", 3, "{name: http, containerPort: 8082, protocol: UDP}");
    let endpoints = Bench::new(&[&[web.into(), a, b, c].concat()]).service("web").endpoints;
    let targets: Vec<_> = endpoints.into_iter().map(|e| e.targets).collect();
    assert_eq!(targets, [[8080, 9000], [8081, 9000], [0, 9000]]);
}

/// SVC-045, SVC-140, SVC-143: as the controller of Kubernetes makes conditions.
#[test]
fn conditions_of_pods() {
    let unready = "conditions: [{type: Ready, status: \"False\"}]";
    let going = at("c", 3, "")
        .replace("metadata: {", "metadata: {deletionTimestamp: \"2026-01-01T00:00:00Z\", ");
    let pods = [at("a", 1, ""), at("b", 2, unready), going].concat();
    let states = |spec: &str| {
        let endpoints = Bench::new(&[&service("web", spec), &pods]).service("web").endpoints;
        endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect::<Vec<_>>()
    };
    let usual = [(true, true, false), (false, false, false), (false, true, true)];
    assert_eq!(states(SELECTS), usual);
    let published = states("selector: {app: web}, publishNotReadyAddresses: true");
    assert_eq!(published, [(true, true, false), (true, false, false), (true, true, true)]);
}

/// SVC-160, SVC-124: the host network's addresses are the node's.
#[test]
fn host_network_pods_are_endpoints() {
    let said = pod("a", "spec: {hostNetwork: true, nodeName: node-a}\nstatus: {hostIP: 192.0.2.1}");
    let silent = pod("b", "spec: {hostNetwork: true, nodeName: node-b}");
    let lost = pod("c", "spec: {hostNetwork: true, nodeName: node-c}");
    let mut bench = Bench::new(&[&service("web", SELECTS), &[said, silent, lost].concat()]);
    bench.node("node-b", &["192.0.2.2", "192.0.2.22"]);
    let endpoints = bench.service("web").endpoints;
    assert_eq!(addresses(&endpoints), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(endpoints[1].node.as_ref().unwrap().as_str(), "node-b");
}

/// SVC-004: slices of the same Service come on top of its pods.
#[test]
fn slices_and_pods_are_united() {
    let text =
        [service("web", SELECTS), at("a", 1, ""), plain("s", "web", "198.51.100.1")].concat();
    let endpoints = Bench::new(&[&text]).service("web").endpoints;
    assert_eq!(addresses(&endpoints), ["10.42.0.1", "198.51.100.1"]);
}

/// SVC-045, SVC-183: of a node that nothing is heard of for long, pods are neither ready nor serving, those
/// in its own network too; what slices say is left to who writes them.
#[test]
fn pods_of_a_lost_node_are_not_ready() {
    let at = |name: &str, ip: &str, more: &str| {
        pod(name, &format!("spec: {{nodeName: a{more}}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}"))
    };
    let text = service("web", "selector: {app: web}")
        + &at("one", "10.42.0.1", "")
        + &at("two", "192.0.2.1", ", hostNetwork: true")
        + &at("far", "10.42.1.1", "").replace("nodeName: a", "nodeName: b")
        + &plain("web-1", "web", "198.51.100.1");
    let mut bench = Bench::new(&[&text]);
    bench.node("a", &["192.0.2.1"]);
    bench.node("b", &["192.0.2.2"]);
    let ready = |bench: &mut Bench| {
        let endpoints = bench.service("web").endpoints;
        let served = endpoints.into_iter().filter(|e| e.ready && e.serving);
        texts(&served.map(|e| e.address).collect::<Vec<_>>())
    };
    assert_eq!(ready(&mut bench), ["10.42.0.1", "10.42.1.1", "192.0.2.1", "198.51.100.1"]);
    bench.node("a", &[]).record.lost = true;
    assert_eq!(ready(&mut bench), ["10.42.1.1", "198.51.100.1"]);
    bench.node("a", &[]).record.lost = false;
    assert_eq!(ready(&mut bench).len(), 4);
    bench.node("a", &[]).record.lost = true;
    bench.set(0, &text.replace("selector", "publishNotReadyAddresses: true, selector"));
    assert!(bench.service("web").endpoints.iter().all(|e| e.ready));
}

/// SVC-010: the old kind of object says nothing.
#[test]
fn objects_of_kind_endpoints_are_not_read() {
    let old = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets: [{addresses: [{ip: 10.42.0.1}], ports: [{port: 8080}]}]\n---\n";
    let mut bench = Bench::new(&[&(service("web", "") + old)]);
    assert!(bench.service("web").endpoints.is_empty());
}

/// SVC-202: what is spoken at a port is nobody's business.
#[test]
fn application_protocol_changes_nothing() {
    let web = |more: &str| {
        let ports = format!("ports: [{{port: 80{more}}}]");
        let slice =
            plain("a", "web", "10.42.0.1").replace("port: 8080", &format!("port: 8080{more}"));
        Bench::new(&[&(service("web", "").replace("ports: [{port: 80}]", &ports) + &slice)])
            .service("web")
    };
    let bare = web("");
    assert_eq!(addresses(&bare.endpoints), ["10.42.0.1"]);
    for protocol in ["kubernetes.io/h2c", "http", "example.com/any"] {
        assert_eq!(web(&format!(", appProtocol: {protocol}")), bare);
    }
}

/// SVC-150, SVC-156: as the controller of Kubernetes gives hints; both old words mean one thing.
#[test]
fn endpoints_of_pods_have_the_hints_that_the_service_asks_for() {
    let hints = |distribution: &str| {
        let spec = format!("{SELECTS}{distribution}");
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a, labels: {topology.kubernetes.io/zone: z1}}\n";
        let mut bench = Bench::new(&[&service("web", &spec), &at("a", 1, ""), node]);
        bench.node("node-a", &["192.0.2.1"]);
        let endpoint = bench.service("web").endpoints.remove(0);
        (texts(&endpoint.for_nodes), endpoint.for_zones)
    };
    let (none, node) = (Vec::<String>::new(), vec!["node-a".to_owned()]);
    let z1 = vec!["z1".to_owned()];
    assert_eq!(hints(""), (none.clone(), none.clone()));
    for word in ["PreferClose", "PreferSameZone"] {
        assert_eq!(hints(&format!(", trafficDistribution: {word}")), (none.clone(), z1.clone()));
    }
    assert_eq!(hints(", trafficDistribution: PreferSameNode"), (node, z1));
    assert_eq!(hints(", trafficDistribution: Later"), (none.clone(), none));
}
