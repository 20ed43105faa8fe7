//! Services of type LoadBalancer.

use super::*;

fn pool(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn balancer(name: &str, spec: &str) -> String {
    service(name, &format!("type: LoadBalancer, {spec}"))
}

/// A balancer that somebody else has set up.
fn standing(name: &str, spec: &str, ingress: &str) -> String {
    balancer(name, spec)
        .replace("---", &format!("status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n---"))
}

fn ips(bench: &mut Bench, name: &str) -> Vec<String> {
    texts(&bench.service(name).load_balancer_ips)
}

/// SVC-091, SVC-092, SVC-100: addresses that nodes answer for, whoever wrote them.
#[test]
fn addresses_of_the_status_are_served() {
    let all = "{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: VIP}, {ip: 198.51.100.3, ipMode: Proxy}, {ip: 198.51.100.4, ipMode: Later}, {hostname: lb.example.com}";
    let pool = pool("lan", "addresses: [192.0.2.16/28]");
    let mut bench = Bench::new(&[&standing("web", "loadBalancerClass: example.com/x", all), &pool]);
    assert_eq!(ips(&mut bench, "web"), ["198.51.100.1", "198.51.100.2", "198.51.100.4"]);
    // Only of this type.
    bench.set(0, &standing("web", "", all).replace("LoadBalancer, ", "ClusterIP, "));
    assert_eq!(ips(&mut bench, "web"), [] as [String; 0]);
    bench.set(0, &standing("web", "", "{ip: 198.51.100.3, ipMode: Proxy}"));
    assert_eq!(ips(&mut bench, "web"), [] as [String; 0]);
}

/// SVC-013, SVC-025: whoever writes a pod's, a node's or another Service's address into a status does
/// not cut it off.
#[test]
fn addresses_of_the_fabric_are_not_served_for_a_status() {
    let all = "{ip: 10.42.9.9}, {ip: 10.96.0.10}, {ip: 198.51.100.1}";
    let mut bench = Bench::new(&[&standing("web", "loadBalancerClass: example.com/x", all)]);
    assert_eq!(ips(&mut bench, "web"), ["198.51.100.1"]);
    let problems = bench.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("default/web: balancer address 10.42.9.9 is not served"));
}

/// SVC-080, SVC-081, SVC-082.
#[test]
fn pool_gives_one_address_for_each_family() {
    let mut bench = Bench::new(&[
        &pool("lan", "addresses: [192.0.2.16/31, \"2001:db8::10-2001:db8::1f\"]"),
        &balancer("a", "ipFamilyPolicy: RequireDualStack"),
        &balancer("b", "loadBalancerClass: weft.dev/l2"),
        &balancer("other", "loadBalancerClass: example.com/x"),
    ]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.16", "2001:db8::10"]);
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.17"]);
    assert_eq!(ips(&mut bench, "other"), [] as [String; 0]);
    assert_eq!(bench.problems(), [] as [String; 0]);
    // Another Service before them, another pool: they keep what they have.
    bench.set(4, &(balancer("0", "") + &pool("early", "addresses: [192.0.2.99/32]")));
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.17"]);
    assert_eq!(ips(&mut bench, "0"), ["192.0.2.99"]);
}

/// SVC-084: nobody else is disturbed, and what is given back is given out.
#[test]
fn exhausted_pool_is_said_and_tried_again() {
    let mut bench = Bench::new(&[
        &pool("lan", "addresses: [192.0.2.16/32]"),
        &balancer("a", ""),
        &balancer("b", ""),
    ]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.16"]);
    assert_eq!(ips(&mut bench, "b"), [] as [String; 0]);
    assert!(bench.problems()[0].contains("default/b: no IPv4 address is left"));
    let pending = bench.merge().pending;
    assert_eq!(pending.keys().collect::<Vec<_>>(), [&named("b")]);
    bench.set(1, &service("a", ""));
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.16"]);
    assert_eq!(ips(&mut bench, "a"), [] as [String; 0]);
}

/// SVC-082: while a pool is gone, its addresses are nobody's, and they are whose they were when it is back.
#[test]
fn pool_that_comes_back_has_its_addresses_where_they_were() {
    let both = "ipFamilyPolicy: RequireDualStack";
    let lan = pool("lan", "addresses: [192.0.2.16/31, \"2001:db8::10-2001:db8::1f\"]");
    let mut bench = Bench::new(&[&lan, &balancer("b", both), &balancer("c", "")]);
    let given = ["192.0.2.16", "2001:db8::10"];
    assert_eq!(ips(&mut bench, "b"), given);
    assert_eq!(ips(&mut bench, "c"), ["192.0.2.17"]);
    for another in ["", &pool("other", "addresses: [198.51.100.0/28]")] {
        bench.set(3, another);
        bench.remove(0);
        assert_eq!(ips(&mut bench, "b"), [] as [String; 0]);
        let said =
            "default/b: 192.0.2.16 is kept for it and not served: its AddressPool lan is gone";
        assert!(bench.problems().iter().any(|p| p.contains(said)), "{:?}", bench.problems());
        assert!(bench.merge().pending[&named("b")].contains("192.0.2.16 is kept"));
        // Who comes meanwhile, who asks for it, and who was refused before.
        bench.set(4, &balancer("a", "loadBalancerIP: 192.0.2.17"));
        bench.set(5, &balancer("a0", ""));
        assert_eq!(ips(&mut bench, "a"), [] as [String; 0]);
        bench.set(0, &lan);
        assert_eq!(ips(&mut bench, "b"), given);
        assert_eq!(ips(&mut bench, "c"), ["192.0.2.17"]);
        assert_eq!(ips(&mut bench, "a"), [] as [String; 0]);
        bench.remove(4);
        bench.remove(5);
    }
    // What is asked for now counts, and what is not asked for any more is given up.
    bench.remove(0);
    bench.set(2, &balancer("c", "loadBalancerIP: 198.51.100.7"));
    bench.set(1, &service("b", both));
    assert_eq!(ips(&mut bench, "c"), ["198.51.100.7"]);
    assert_eq!(bench.problems(), [] as [String; 0]);
    bench.set(0, &lan);
    bench.set(4, &balancer("late", ""));
    assert_eq!(ips(&mut bench, "late"), ["192.0.2.16"]);
}

/// A pool with other addresses is meant so.
#[test]
fn pool_that_was_changed_gives_other_addresses() {
    let mut bench = Bench::new(&[&pool("lan", "addresses: [192.0.2.16/31]"), &balancer("a", "")]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.16"]);
    bench.set(0, &pool("lan", "addresses: [192.0.2.32/31]"));
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.32"]);
    assert_eq!(bench.problems(), [] as [String; 0]);
    // Renamed, with the same: nothing changes.
    bench.set(0, &pool("net", "addresses: [192.0.2.32/31]"));
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.32"]);
    bench.remove(0);
    let said = "its AddressPool net is gone";
    assert!(bench.problems()[0].contains(said), "{:?}", bench.problems());
}

/// SVC-085: that address or none, and why.
#[test]
fn address_that_is_asked_for_is_given_or_none() {
    let lan = pool("lan", "addresses: [192.0.2.16/28, \"2001:db8::/120\"]")
        + &pool("named", "addresses: [192.0.2.40/29], autoAssign: false");
    let asks = "loadBalancerIP: 192.0.2.17";
    let annotated = with(
        "c",
        "annotations: {weft.dev/load-balancer-ips: \"192.0.2.41, 2001:db8::9\"}",
        "type: LoadBalancer, ipFamilyPolicy: RequireDualStack",
    );
    let mut bench = Bench::new(&[
        &lan,
        &balancer("a", asks),
        &balancer("b", asks),
        &annotated,
        &balancer("d", "loadBalancerIP: 192.0.2.1"),
        &balancer("e", "loadBalancerIP: x"),
        &balancer("f", "loadBalancerIP: \"2001:db8::7\""),
        &balancer("g", "loadBalancerIP: 192.0.2.20"),
    ]);
    bench.node("node-a", &["192.0.2.20", "192.0.2.16"]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.17"]);
    assert_eq!(ips(&mut bench, "c"), ["192.0.2.41", "2001:db8::9"]);
    for none in ["b", "d", "e", "f", "g"] {
        assert_eq!(ips(&mut bench, none), [] as [String; 0], "{none}");
    }
    let problems = bench.problems();
    for said in [
        "default/b: 192.0.2.17 is Service default/a's already",
        "default/d: address 192.0.2.1 is in no AddressPool",
        "default/e: `spec.loadBalancerIP`: `x` is no IP address",
        "default/f: no address is given: 2001:db8::7 is not one for each",
        "default/g: address 192.0.2.20 is not given: it is node node-a's",
    ] {
        assert!(problems.iter().any(|p| p.contains(said)), "{said}: {problems:?}");
    }
    // Who changes its mind gets the other one, not both.
    bench.set(1, &balancer("a", "loadBalancerIP: 192.0.2.18"));
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.18"]);
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.17"]);
}

/// SVC-082: never what somebody else has set up, or a machine's.
#[test]
fn address_in_use_is_not_given() {
    let mut bench = Bench::new(&[
        &pool("lan", "addresses: [192.0.2.16/30]"),
        &balancer("a", ""),
        &standing("b", "", "{ip: 192.0.2.17}"),
    ]);
    bench.node("node-a", &["192.0.2.16"]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.18"]);
}

/// SVC-082, SVC-113: an address that a pool has given stays with who has it, whatever others write.
#[test]
fn given_address_cannot_be_taken_away() {
    let mut bench = Bench::new(&[&pool("lan", "addresses: [192.0.2.16/30]"), &balancer("b", "")]);
    bench.allow_external_ips = true;
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.16"]);
    let external = service("a", "externalIPs: [192.0.2.16]");
    bench.set(2, &(external + &standing("c", "", "{ip: 192.0.2.16}")));
    assert_eq!(ips(&mut bench, "b"), ["192.0.2.16"]);
    assert!(bench.service("a").external_ips.is_empty());
    assert_eq!(ips(&mut bench, "c"), [] as [String; 0]);
    let problems = bench.problems();
    for said in ["default/a: 192.0.2.16 is not served", "default/c: 192.0.2.16 is not served"] {
        assert!(problems.iter().any(|p| p.contains(said)), "{said}: {problems:?}");
    }
}

/// SVC-081: without a pool an unset class is somebody else's; ours has a reason to wait.
#[test]
fn fabric_without_a_pool() {
    let mut bench =
        Bench::new(&[&balancer("a", ""), &balancer("b", "loadBalancerClass: weft.dev/l2")]);
    let problems = bench.problems();
    assert!(
        problems.len() == 1 && problems[0].contains("default/b: no AddressPool"),
        "{problems:?}"
    );
    let pending = bench.merge().pending;
    assert_eq!(pending[&named("a")], "no AddressPool");
    assert!(pending[&named("b")].starts_with("no AddressPool"));
}

#[test]
fn pool_of_the_fabrics_own_addresses_is_left_out() {
    let pool = pool("lan", "addresses: [10.42.9.0/24, 10.95.0.0-10.96.0.3, 192.0.2.16/32]");
    let mut bench = Bench::new(&[&pool, &balancer("a", "")]);
    assert_eq!(ips(&mut bench, "a"), ["192.0.2.16"]);
    let problems = bench.problems();
    assert!(problems[0].contains("lan: 10.42.9.0-10.42.9.255 is left out"), "{problems:?}");
    assert!(problems[1].contains("10.96.0.0/16"), "{problems:?}");
}

/// SVC-086.
#[test]
fn node_ports_can_be_declined() {
    let spec = "allocateLoadBalancerNodePorts: false";
    let mut bench = Bench::new(&[&balancer("a", spec), &balancer("b", "")]);
    assert_eq!(bench.service("a").ports[0].node_port, None);
    assert!(bench.service("b").ports[0].node_port.is_some());
    bench.set(0, &balancer("a", spec).replace("port: 80", "port: 80, nodePort: 30001"));
    assert_eq!(bench.service("a").ports[0].node_port, Some(30_001));
}

/// SVC-101, SVC-104: only with `externalTrafficPolicy: Local`.
#[test]
fn health_check_port_is_given_for_local_traffic() {
    let local = "externalTrafficPolicy: Local";
    let mut bench = Bench::new(&[&balancer("a", local)]);
    let port = bench.service("a").health_check_node_port;
    assert!(port.is_some_and(|p| (30_000..=32_767).contains(&p)), "{port:?}");
    assert_ne!(port, bench.service("a").ports[0].node_port);
    bench.set(0, &balancer("a", &format!("{local}, healthCheckNodePort: 32000")));
    assert_eq!(bench.service("a").health_check_node_port, Some(32_000));
    for none in [balancer("a", "healthCheckNodePort: 32000"), service("a", local)] {
        bench.set(0, &none);
        assert_eq!(bench.service("a").health_check_node_port, None);
    }
}

/// SVC-087, SVC-089.
#[test]
fn source_ranges_are_taken() {
    let ranges = "loadBalancerSourceRanges: [\" 198.51.100.0/24 \", 010.1.2.3/8]";
    let mut bench = Bench::new(&[&standing("a", ranges, "{ip: 192.0.2.1}")]);
    assert_eq!(texts(&bench.service("a").source_ranges), ["198.51.100.0/24", "10.0.0.0/8"]);
    assert_eq!(bench.problems(), [] as [String; 0]);
    let dual = format!("{ranges}, ipFamilyPolicy: RequireDualStack");
    bench.set(0, &standing("a", &dual, "{ip: 192.0.2.1}, {ip: \"2001:db8::1\"}"));
    assert_eq!(ips(&mut bench, "a").len(), 2);
    assert!(bench.problems()[0].contains("no IPv6 range"));
}

/// SVC-087: a range that cannot be read lets nobody in rather than everybody.
#[test]
fn bad_source_range_closes_the_balancer() {
    let ranges = "loadBalancerSourceRanges: [x, 198.51.100.0/24]";
    let mut bench = Bench::new(&[&standing("a", ranges, "{ip: 192.0.2.1}")]);
    assert_eq!(ips(&mut bench, "a"), [] as [String; 0]);
    assert!(bench.problems()[0].contains("`x` is no subnet"));
}

/// SVC-096: each address at a node that has an endpoint of its family.
#[test]
fn each_family_is_announced_where_it_is_served() {
    let spec = "ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local";
    let endpoint = |name: &str, family: &str, address: &str, node: &str| {
        slice(
            name,
            "web",
            &format!(
                "addressType: {family}\nports: [{{port: 80}}]\nendpoints: [{{addresses: [\"{address}\"], nodeName: {node}}}]"
            ),
        )
    };
    let slices = |v4: &str, v6: &str| {
        endpoint("v4", "IPv4", "198.51.100.1", v4) + &endpoint("v6", "IPv6", "2001:db8::1", v6)
    };
    let lan = pool("lan", "addresses: [192.0.2.16/28, \"2001:db8::10-2001:db8::1f\"]");
    let mut bench = Bench::new(&[&lan, &balancer("web", spec), ""]);
    for name in ["a", "b"] {
        bench.node(name, &[]);
        bench.state.alive.insert(name.parse().unwrap());
    }
    for (v4, v6) in [("a", "b"), ("b", "a"), ("a", "a")] {
        bench.set(2, &slices(v4, v6));
        let announcers = bench.service("web").announcers;
        let at: Vec<_> = announcers.values().map(NodeName::as_str).collect();
        assert_eq!(at, [v4, v6]);
    }
}

/// SVC-109: a node that is to have no balancers' traffic answers for none of their addresses.
#[test]
fn node_that_is_left_out_announces_nothing() {
    let lan = pool("lan", "addresses: [192.0.2.16/28]");
    let left_out = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{node.kubernetes.io/exclude-from-external-load-balancers: \"\"}}}}\n"
        )
    };
    let mut bench = Bench::new(&[&lan, &balancer("web", ""), ""]);
    for name in ["a", "b"] {
        bench.node(name, &[]);
        bench.state.alive.insert(name.parse().unwrap());
    }
    for (out, expected) in [("a", "b"), ("b", "a")] {
        bench.set(2, &left_out(out));
        let announcers = bench.service("web").announcers;
        let at: Vec<_> = announcers.values().map(NodeName::as_str).collect();
        assert_eq!(at, [expected]);
    }
    bench.set(2, &(left_out("a") + "---\n" + &left_out("b")));
    assert!(bench.service("web").announcers.is_empty());
}
