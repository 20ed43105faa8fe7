use super::*;
use crate::core::UnderlayState;
use crate::tables::tests::{node, service, snapshot};

fn config() -> AgentConfig {
    AgentConfig::new(node(1).name, "hub:7443")
}

fn desired() -> Desired {
    Desired::new(&config(), &state()).unwrap()
}

fn state() -> State {
    let mut state = State::default();
    state.snapshot = Some(snapshot(1, &[1, 2]));
    state.looked = true;
    state.underlay = Some(UnderlayState {
        interface: "eth0".into(),
        mtu: 1500,
        address: "192.0.2.1".parse().unwrap(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        prefixes: vec!["192.0.2.0/24".parse().unwrap()],
        gateways: ["192.0.2.254".parse().unwrap()].into(),
    });
    state
}

fn link(index: u32) -> Link {
    Link {
        index,
        name: "weft0".into(),
        kind: "tun".into(),
        mtu: 1420,
        mac: None,
        up: true,
        master: None,
    }
}

/// What the kernel shows after `actions`.
fn done(mut actual: Actual, index: u32, actions: &[Action]) -> Actual {
    for action in actions.iter().cloned() {
        match action {
            Action::AddAddress(net) => actual.addresses.push(Address { index, net }),
            Action::RemoveAddress(net) => actual.addresses.retain(|a| a.net != net),
            Action::AddRoute(route) => {
                actual.routes.retain(|r| !same_place(r, &route));
                actual.routes.push(route);
            }
            Action::RemoveRoute(route) => actual.routes.retain(|r| *r != route),
            Action::AddRule(rule) => actual.rules.push(rule),
            Action::RemoveRule(rule) => actual.rules.retain(|r| *r != rule),
            Action::AddPortAddress(..) | Action::AddPortRoute(_) => {}
        }
    }
    actual
}

fn same_place(a: &Route, b: &Route) -> bool {
    (a.table, a.destination) == (b.table, b.destination)
}

fn settled(index: u32) -> Actual {
    let actual = Actual { links: vec![link(index)], ..Actual::default() };
    let actions = plan(&desired(), &actual);
    done(actual, index, &actions)
}

#[test]
fn node_without_its_interface_waits() {
    assert!(plan(&desired(), &Actual::default()).is_empty());
}

#[test]
fn fresh_node_gets_everything_and_then_nothing_more() {
    let actual = settled(7);
    assert_eq!(actual.addresses.len(), 2);
    assert_eq!(actual.routes.len(), 2);
    assert_eq!(actual.rules.len(), 4);
    assert_eq!(plan(&desired(), &actual), []);
}

#[test]
fn host_sends_from_its_own_address_or_else_from_the_gateway() {
    let sources: Vec<String> =
        desired().routes.iter().map(|(_, source)| source.unwrap().to_string()).collect();
    assert_eq!(sources, ["192.0.2.1", "fd42:0:0:1::1"]);
}

/// SVC-132: answers of the host that are marked have a way into the fabric, as long as there are Services.
#[test]
fn marked_answers_go_into_the_fabric() {
    let mut state = state();
    assert!(Desired::new(&config(), &state).unwrap().answers.is_empty());
    let service = service(Vec::new());
    let services = &mut state.snapshot.as_mut().unwrap().services;
    services.insert(service.name.clone(), service.into());
    let desired = Desired::new(&config(), &state).unwrap();
    let actual = Actual { links: vec![link(7)], ..Actual::default() };
    let actual = done(actual.clone(), 7, &plan(&desired, &actual));
    assert_eq!(plan(&desired, &actual), []);
    let everything: Vec<_> = actual.routes.iter().filter(|r| r.table == ANSWERS).collect();
    assert_eq!(everything.len(), 2, "of both families: {everything:?}");
    assert!(everything.iter().all(|r| r.destination.prefix_len() == 0 && r.output == Some(7)));
    let rules: Vec<_> = actual.rules.iter().filter(|r| r.table == ANSWERS).collect();
    assert_eq!(rules.len(), 2);
    assert!(rules.iter().all(|r| r.mark == Some(ANSWER)));
    let removed = done(actual.clone(), 7, &plan_removal("weft0", &actual));
    assert!(removed.routes.is_empty() && removed.rules.is_empty());
    let without = done(actual.clone(), 7, &plan(&self::desired(), &actual));
    assert!(without.rules.iter().all(|r| r.table != ANSWERS));
    assert!(without.routes.iter().all(|r| r.table != ANSWERS));
}

/// Its way to the world would end in the fabric.
#[test]
fn balancer_at_a_routers_address_is_neither_routed_nor_announced() {
    let balancer = |address: &str| {
        let mut state = state();
        let mut service = service(Vec::new());
        service.load_balancer_ips = vec![address.parse().unwrap()];
        service.announcers = [(address.parse().unwrap(), node(1).name)].into();
        let services = &mut state.snapshot.as_mut().unwrap().services;
        services.insert(service.name.clone(), service.into());
        let address: IpNet = format!("{address}/32").parse().unwrap();
        let desired = Desired::new(&config(), &state).unwrap();
        let routed = desired.routes.iter().any(|(to, _)| *to == address);
        (routed, announce::addresses(&config(), &state).contains(&address.addr()))
    };
    assert_eq!(balancer("192.0.2.240"), (true, true));
    assert_eq!(balancer("192.0.2.254"), (false, false));
}

#[test]
fn pod_cidr_that_the_node_itself_lives_in_is_not_put_in_force_and_what_was_goes() {
    let overlaps = |change: fn(&mut State)| {
        let mut state = state();
        change(&mut state);
        let line = state.overlap().unwrap();
        assert!(line.contains("10.42.0.0/16"), "{line}");
        assert!(state.delegation(&config()).is_none());
        let desired = Desired::new(&config(), &state).unwrap();
        assert!(!desired.ruleset.contains("10.42"), "{}", desired.ruleset);
        let left = done(settled(7), 7, &plan(&desired, &settled(7)));
        assert!(left.rules.is_empty() && left.routes.is_empty() && left.addresses.is_empty());
        line
    };
    fn on_link(state: &mut State, prefix: &str) {
        state.underlay.as_mut().unwrap().prefixes.push(prefix.parse().unwrap());
    }
    assert!(overlaps(|s| on_link(s, "10.42.3.0/24")).contains("interface eth0"));
    fn address(state: &mut State, address: &str) {
        on_link(state, "10.0.0.0/8");
        state.underlay.as_mut().unwrap().addresses.push(address.parse().unwrap());
    }
    let own = overlaps(|s| address(s, "10.42.0.7"));
    assert!(own.contains("10.42.0.7/32, of interface eth0"), "{own}");
    let mut elsewhere = state();
    address(&mut elsewhere, "10.9.0.7");
    assert_eq!(elsewhere.overlap(), None, "a wide network may have room for pods");
    let hub = overlaps(|s| s.hub = Some("10.42.0.9".parse().unwrap()));
    assert!(hub.contains("10.42.0.9/32, the hub's address"), "{hub}");
    assert_eq!(state().overlap(), None);
}

#[test]
fn hosts_side_of_pods_does_not_count_as_the_nodes_own_network() {
    let mut state = state();
    let underlay = state.underlay.as_mut().unwrap();
    underlay.interface = "weft-br0".into();
    underlay.prefixes = vec!["10.42.1.0/24".parse().unwrap()];
    assert_eq!(state.overlap(), None);
}

#[test]
fn whatever_is_deleted_comes_back() {
    let actual = settled(7);
    let mut less = actual.clone();
    less.routes.remove(0);
    less.rules.remove(1);
    less.addresses.remove(0);
    let actions = plan(&desired(), &less);
    assert_eq!(actions.len(), 3);
    let again = done(less, 7, &actions);
    assert_eq!(plan(&desired(), &again), []);
}

#[test]
fn interface_made_anew_has_its_routes_moved() {
    let mut actual = settled(7);
    actual.links = vec![link(9)];
    actual.addresses.clear();
    let actions = plan(&desired(), &actual);
    let routes = actions.iter().filter(|a| matches!(a, Action::AddRoute(r) if r.output == Some(9)));
    assert_eq!(routes.count(), 2);
    assert_eq!(plan(&desired(), &done(actual, 9, &actions)), []);
}

#[test]
fn stale_things_of_ours_go_and_things_of_others_stay() {
    let mut actual = settled(7);
    let before = actual.clone();
    let old: IpNet = "10.99.0.0/16".parse().unwrap();
    let foreign =
        Route { table: TABLE, protocol: 4, ..Route::new("10.98.0.0/16".parse().unwrap()) };
    let rule = Rule { to: Some(old), ..before.rules[1].clone() };
    let foreign_rule = Rule { priority: 99, ..rule.clone() };
    actual.routes.push(Route { table: TABLE, ..Route::new(old) });
    actual.routes.push(foreign.clone());
    actual.rules.extend([rule.clone(), foreign_rule.clone()]);
    actual.addresses.push(Address { index: 7, net: "fe80::1/64".parse().unwrap() });
    actual.addresses.push(Address { index: 7, net: "10.99.1.1/32".parse().unwrap() });
    let actions = plan(&desired(), &actual);
    assert_eq!(
        actions,
        [
            Action::RemoveRule(rule),
            Action::RemoveRoute(Route { table: TABLE, ..Route::new(old) }),
            Action::RemoveAddress("10.99.1.1/32".parse().unwrap()),
        ]
    );
    let removed = done(actual.clone(), 7, &plan_removal("weft0", &actual));
    assert_eq!(removed.routes, [foreign]);
    assert_eq!(removed.rules, [foreign_rule]);
}

/// A pod whose port is the interface of index 8.
fn with_pod(bridge: Option<&str>, master: Option<u32>) -> (Desired, Actual) {
    let mut record = crate::cni::tests::record("a", "veth-a", "10.42.1.2/24");
    record.wiring.gateways = vec!["10.42.1.1".parse().unwrap()];
    record.wiring.bridge = bridge.map(str::to_owned);
    let mut desired = desired();
    desired.ports.insert("veth-a".into(), record);
    let mut actual = settled(7);
    actual.links.push(Link { name: "veth-a".into(), kind: "veth".into(), master, ..link(8) });
    (desired, actual)
}

#[test]
fn what_ptp_made_at_a_port_comes_back() {
    let (desired, mut actual) = with_pod(None, None);
    let address: IpNet = "10.42.1.1/32".parse().unwrap();
    let route = Route { output: Some(8), ..Route::new("10.42.1.2/32".parse().unwrap()) };
    let actions = plan_ports(&desired, &actual);
    let expected =
        [Action::AddPortAddress("veth-a".into(), address), Action::AddPortRoute(route.clone())];
    assert_eq!(actions, expected);
    // As the plugin makes them.
    actual.addresses.push(Address { index: 8, net: address });
    actual.routes.push(Route { protocol: 3, ..route });
    assert_eq!(plan_ports(&desired, &actual), []);
    actual.routes.pop();
    actual.links.iter_mut().for_each(|l| l.up = false);
    assert_eq!(plan_ports(&desired, &actual), [], "a route needs a port that is up");
    assert_eq!(unbridged(&desired, &actual), [""; 0]);
}

#[test]
fn pod_without_its_bridge_is_named_and_not_routed() {
    let (desired, mut actual) = with_pod(Some("weft-br0"), None);
    assert_eq!(plan_ports(&desired, &actual), []);
    let lines = unbridged(&desired, &actual);
    assert!(lines[0].contains("default/pod-a") && lines[0].contains("weft-br0"), "{lines:?}");
    actual.links.push(Link { name: "weft-br0".into(), ..link(9) });
    assert_eq!(unbridged(&desired, &actual).len(), 1, "a new one of that name");
    let (desired, mut actual) = with_pod(Some("weft-br0"), Some(9));
    actual.links.push(Link { name: "weft-br0".into(), ..link(9) });
    assert_eq!(unbridged(&desired, &actual), [""; 0]);
}
