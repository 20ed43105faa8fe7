//! Cluster IPs and node ports.

use super::*;

fn cluster_ips(bench: &mut Bench, name: &str) -> Vec<String> {
    texts(&bench.service(name).cluster_ips)
}

fn node_ports(bench: &mut Bench, name: &str) -> Vec<Option<u16>> {
    bench.service(name).ports.iter().map(|p| p.node_port).collect()
}

/// SVC-210: the families that the Service asks for.
#[test]
fn families_follow_the_policy() {
    let of = |spec: &str| {
        let ips = Bench::new(&[&service("web", spec)]).service("web").cluster_ips;
        ips.iter().map(|a| if a.is_ipv4() { '4' } else { '6' }).collect::<String>()
    };
    assert_eq!(of(""), "4");
    assert_eq!(of("ipFamilies: [IPv6]"), "6");
    assert_eq!(of("ipFamilyPolicy: SingleStack, ipFamilies: [IPv6, IPv4]"), "6");
    assert_eq!(of("ipFamilyPolicy: PreferDualStack"), "46");
    assert_eq!(of("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]"), "64");
    assert_eq!(of("ipFamilyPolicy: PreferDualStack, clusterIP: \"fd00:10:96::7\""), "64");
    assert_eq!(of("ipFamilyPolicy: SingleStack, clusterIPs: [10.96.0.7, \"fd00:10:96::7\"]"), "46");
}

/// SVC-210, SVC-213: one family is enough for those who do not require two.
#[test]
fn fabric_of_one_family() {
    let mut bench = Bench::new(&[
        &service("prefers", "ipFamilyPolicy: PreferDualStack"),
        &service("requires", "ipFamilyPolicy: RequireDualStack"),
        &service("v4", "ipFamilies: [IPv4]"),
    ]);
    bench.cluster.service_cidrs.remove(0);
    assert_eq!(bench.names(), ["prefers"]);
    assert!(cluster_ips(&mut bench, "prefers")[0].starts_with("fd00:10:96::"));
    let problems = bench.problems();
    assert!(
        problems.iter().any(|p| p.contains("default/requires: it requires two")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|p| p.contains("default/v4: IPv4 is not served")), "{problems:?}");
}

/// SVC-211: the second family comes and goes, the first stays.
#[test]
fn second_family_does_not_touch_the_first() {
    let mut bench = Bench::new(&[&service("web", "")]);
    let first = cluster_ips(&mut bench, "web");
    bench.set(0, &service("web", "ipFamilyPolicy: RequireDualStack"));
    let both = cluster_ips(&mut bench, "web");
    assert_eq!((both.len(), &both[..1]), (2, &first[..]));
    bench.set(0, &service("web", "ipFamilyPolicy: SingleStack"));
    assert_eq!(cluster_ips(&mut bench, "web"), first);
}

#[test]
fn first_and_last_address_are_never_given() {
    let names = ["a", "b", "c"];
    let all: String = names.iter().map(|n| service(n, "")).collect();
    let mut bench = Bench::new(&[&all]);
    bench.cluster.service_cidrs = vec!["10.96.0.0/30".parse().unwrap()];
    assert_eq!(bench.names(), ["a", "b"]);
    assert_eq!(cluster_ips(&mut bench, "a"), ["10.96.0.1"]);
    assert_eq!(cluster_ips(&mut bench, "b"), ["10.96.0.2"]);
    assert!(bench.problems()[0].contains("default/c: no cluster IP is left in 10.96.0.0/30"));
    bench.set(1, &service("d", "clusterIP: 10.96.0.3"));
    assert!(
        bench.problems().iter().any(|p| p.contains("default/d: cluster IP 10.96.0.3 is none of"))
    );
}

/// The lower ones are left to those who ask.
#[test]
fn lower_addresses_are_given_last() {
    let mut bench = Bench::new(&[&service("web", "ipFamilyPolicy: RequireDualStack")]);
    assert_eq!(cluster_ips(&mut bench, "web"), ["10.96.1.0", "fd00:10:96::100"]);
}

#[test]
fn explicit_cluster_ips_are_reserved() {
    let mut bench = Bench::new(&[
        &service("a", "clusterIP: 10.96.1.0"),
        &service("b", ""),
        &service("c", "clusterIP: 10.96.1.0"),
        &service("d", "clusterIP: 10.0.0.1"),
    ]);
    assert_eq!(bench.names(), ["a", "b"]);
    assert_eq!(cluster_ips(&mut bench, "b"), ["10.96.1.1"]);
    let problems = bench.problems();
    assert!(
        problems[0].contains("default/c: 10.96.1.0 is Service default/a's already"),
        "{problems:?}"
    );
    assert!(problems[1].contains("default/d: cluster IP 10.0.0.1 is none of"), "{problems:?}");
    // What somebody has is not taken away from them.
    bench.set(0, &service("a", "clusterIP: 10.96.1.1"));
    assert!(bench.problems()[0].contains("default/a: 10.96.1.1 is Service default/b's already"));
    assert_eq!(bench.names(), ["b", "c"]);
}

/// SVC-030, SVC-069: what a Service had is free when it is gone.
#[test]
fn allocations_are_kept_while_the_service_is_there() {
    let mut bench = Bench::new(&[&service("a", "type: NodePort"), &service("b", "type: NodePort")]);
    let (ip, port) = (cluster_ips(&mut bench, "b"), node_ports(&mut bench, "b"));
    let first = (cluster_ips(&mut bench, "a"), node_ports(&mut bench, "a"));
    bench.remove(0);
    assert_eq!((cluster_ips(&mut bench, "b"), node_ports(&mut bench, "b")), (ip, port));
    bench.set(2, &service("c", "type: NodePort"));
    assert_eq!((cluster_ips(&mut bench, "c"), node_ports(&mut bench, "c")), first);
}

/// A document that cannot be read may be a Service's: nobody else gets what that had.
#[test]
fn nothing_is_released_while_a_document_cannot_be_read() {
    let mut bench = Bench::new(&[&service("a", "")]);
    let had = cluster_ips(&mut bench, "a");
    bench.remove(0);
    bench.set(1, "kind: [\n");
    bench.set(2, &service("b", ""));
    assert_ne!(cluster_ips(&mut bench, "b"), had);
    bench.set(1, "");
    bench.set(0, &service("a", "ipFamilyPolicy: RequireDualStack"));
    bench.cluster.service_cidrs.truncate(1);
    assert_eq!(bench.names(), ["b"]);
    // Nor while the Service itself is bad.
    bench.set(3, &service("c", ""));
    assert_ne!(cluster_ips(&mut bench, "c"), had);
    bench.set(0, &service("a", ""));
    assert_eq!(cluster_ips(&mut bench, "a"), had);
}

/// SVC-060, SVC-062, SVC-061.
#[test]
fn node_ports_are_given_and_those_asked_for_are_kept() {
    let two = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec: {type: NodePort, ports: [{name: a, port: 53, nodePort: 30053}, {name: b, port: 53, protocol: UDP, nodePort: 30053}]}\n";
    let mut bench = Bench::new(&[&service("a", "type: NodePort"), two, &service("c", "")]);
    assert_eq!(node_ports(&mut bench, "a"), [Some(30_086)]);
    assert_eq!(node_ports(&mut bench, "dns"), [Some(30_053), Some(30_053)]);
    assert_eq!(node_ports(&mut bench, "c"), [None]);
    assert_eq!(bench.problems(), [] as [String; 0]);
}

#[test]
fn node_port_of_another_is_not_served() {
    let asks = |name: &str, port: u16| {
        service(name, "type: NodePort").replace("port: 80", &format!("port: 80, nodePort: {port}"))
    };
    let mut bench = Bench::new(&[&asks("a", 30_001), &asks("b", 30_001), &asks("c", 80)]);
    assert_eq!(node_ports(&mut bench, "a"), [Some(30_001)]);
    assert_eq!(node_ports(&mut bench, "b"), [None]);
    let problems = bench.problems();
    assert!(
        problems[0].contains("default/b: node port 30001 (TCP) is Service default/a's"),
        "{problems:?}"
    );
    assert!(
        problems[1].contains("default/c: node port 80 (TCP) is not from 30000"),
        "{problems:?}"
    );
    bench.remove(0);
    assert_eq!(node_ports(&mut bench, "b"), [Some(30_001)]);
}

/// SVC-033: another type gives node ports up and gets them.
#[test]
fn type_changes_take_effect() {
    let mut bench = Bench::new(&[&service("web", "type: NodePort")]);
    let ip = cluster_ips(&mut bench, "web");
    bench.set(0, &service("web", "type: ClusterIP"));
    assert_eq!(node_ports(&mut bench, "web"), [None]);
    bench.set(0, &service("web", "type: LoadBalancer"));
    assert!(node_ports(&mut bench, "web")[0].is_some());
    assert_eq!(cluster_ips(&mut bench, "web"), ip);
}

/// SVC-013, SVC-030: a document that cannot be read keeps what a Service had that is gone, which may be its
/// own, but not from who asks for it.
#[test]
fn what_is_kept_for_a_service_that_is_gone_goes_to_who_asks() {
    let asks = "clusterIP: 10.96.200.1, type: NodePort";
    let mut bench = Bench::new(&[&service("first", asks)]);
    bench.service("first");
    bench.set(1, "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: what}");
    bench.set(0, "");
    assert_eq!(bench.merge().allocations.len(), 1);
    bench.set(0, &service("any", ""));
    assert_ne!(texts(&bench.service("any").cluster_ips), ["10.96.200.1"]);
    bench.set(0, &service("second", asks));
    assert_eq!(texts(&bench.service("second").cluster_ips), ["10.96.200.1"]);
    // It has it now, and whoever comes back does not.
    bench.set(2, &service("first", asks));
    let merged = bench.merge();
    assert!(!merged.services.contains_key(&named("first")));
    assert!(merged.services.contains_key(&named("second")));
}

/// What is built in takes nothing from a Service that somebody wrote, whichever comes first.
#[test]
fn built_in_service_gives_way() {
    let mut bench = Bench::new(&[]);
    let stand = crate::dns::Stand::new(&named("dns"), &bench.cluster.service_cidrs);
    let merged = |bench: &mut Bench| {
        bench.read();
        stand.stand_in(&mut bench.state.source);
        let merged = merge(&bench.cluster, bench.allow_external_ips, &bench.state);
        bench.state.allocations.clone_from(&merged.allocations);
        let address = |name| texts(&merged.services[&named(name)].cluster_ips).remove(0);
        let misfits: Vec<String> = merged.misfits.iter().map(|p| p.reason.clone()).collect();
        (address("dns"), misfits)
    };
    assert_eq!(merged(&mut bench), ("10.96.0.10".into(), vec![]));
    bench.set(0, &service("web", "clusterIP: 10.96.0.10"));
    let (given, misfits) = merged(&mut bench);
    assert_eq!(
        misfits,
        ["Service default/dns: 10.96.0.10 is Service default/web's, so it has another"]
    );
    assert_eq!(given, "10.96.1.0");
    assert_eq!(texts(&bench.state.allocations[&named("web")].cluster_ips), ["10.96.0.10"]);
    // What it has now it keeps, and gives away again.
    bench.set(1, &service("also", ""));
    assert_eq!(merged(&mut bench).0, "10.96.1.0");
    bench.set(2, &service("third", "clusterIP: 10.96.1.0"));
    assert_eq!(merged(&mut bench).0, "10.96.1.2");
    bench.set(0, "");
    assert_eq!(merged(&mut bench), ("10.96.0.10".into(), vec![]));
}
