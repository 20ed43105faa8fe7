//! The 230 cases that cyclonus generates (NP-121), made from their description: one policy of which one
//! part at a time is another, policies in conflict, and changes of policies, namespaces and pods.
//!
//! Where a case can be said in a sentence, what it comes to is written down here, apart from the model.

use std::net::IpAddr;

use crate::upstream::{
    NAMESPACES, PROTOCOLS, block, both, cluster, egress, ingress, name, namespaces, ns, peers, pod,
    pods, port, with_ports,
};
use crate::{
    Cluster, Connection, Direction, Namespace, NetworkPolicy, Operator, Peer, Pod, Port,
    PortNumber, Protocol, Rule, Selector, upstream_cases,
};

/// Namespace and name of a pod.
type PodKey = (String, String);

/// A connection between two pods, or of one with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell<'a> {
    /// Who begins it.
    pub from: &'a PodKey,
    /// Where it goes.
    pub to: &'a PodKey,
    /// Addresses of both, of one family.
    pub addresses: (IpAddr, IpAddr),
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 80 or 81.
    pub port: u16,
}

/// True for a cell that is allowed.
pub type Expected = Box<dyn Fn(&Cell<'_>) -> bool>;

/// A cluster, and what becomes of it.
pub struct GeneratedCase {
    /// Group and name.
    pub name: String,
    /// The cluster after each step.
    pub steps: Vec<Cluster>,
    /// After the last step, if it is written down.
    pub expected: Option<Expected>,
}

impl Cell<'_> {
    /// Of every two pods, protocol, port and family.
    pub fn all(cluster: &Cluster) -> impl Iterator<Item = Cell<'_>> {
        let pairs =
            cluster.pods.iter().flat_map(|from| cluster.pods.iter().map(move |to| (from, to)));
        pairs.flat_map(|((from, sends), (to, gets))| {
            let addresses = sends.addresses.iter().copied().zip(gets.addresses.iter().copied());
            addresses.flat_map(move |addresses| {
                PROTOCOLS.into_iter().flat_map(move |(protocol, _)| {
                    [80, 81].map(|port| Cell { from, to, addresses, protocol, port })
                })
            })
        })
    }

    fn is_from(&self, (namespace, name): (&str, &str)) -> bool {
        self.from.0 == namespace && self.from.1 == name
    }

    fn is_to(&self, (namespace, name): (&str, &str)) -> bool {
        self.to.0 == namespace && self.to.1 == name
    }

    fn is_tcp_80(&self) -> bool {
        self.protocol == Protocol::Tcp && self.port == 80
    }
}

const XA: (&str, &str) = ("x", "a");
const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn one_of(key: &str, values: &[&str]) -> Selector {
    Selector::expression(key, Operator::In, values)
}

/// Of every pod to DNS, so that names can be looked up.
fn dns() -> Rule {
    with_ports(Rule::default(), &[port(Some("TCP"), 53), port(Some("UDP"), 53)])
}

/// x/a gets TCP 80 from b and c in x and y, and sends TCP 80 to a and b in y and z.
fn base() -> NetworkPolicy {
    let tcp_80 = [port(Some("TCP"), 80)];
    let clients = peers(&[both(one_of("ns", &["x", "y"]), one_of("pod", &["b", "c"]))]);
    let servers = peers(&[both(one_of("ns", &["y", "z"]), one_of("pod", &["a", "b"]))]);
    NetworkPolicy {
        pods: pod("a"),
        types: Some(BOTH.to_vec()),
        ingress: vec![with_ports(clients, &tcp_80)],
        egress: vec![with_ports(servers, &tcp_80), dns()],
        watched: false,
    }
}

/// The peer is one that the base policy's rule for this direction names.
fn is_base_peer(direction: Direction, (namespace, name): &PodKey) -> bool {
    match direction {
        Direction::Ingress => namespace != "z" && name != "a",
        Direction::Egress => namespace != "x" && name != "c",
    }
}

/// The policy with another rule for one direction; that for DNS stays.
fn with_rule(direction: Direction, change: impl FnOnce(&mut Rule)) -> NetworkPolicy {
    let mut policy = base();
    let rules = match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    };
    if let Some(rule) = rules.first_mut() {
        change(rule);
    }
    policy
}

/// What the base policy comes to if in one direction only what `matches` passes; it is told the peer.
fn expecting(
    direction: Direction,
    matches: impl Fn(&Cell<'_>, &PodKey, IpAddr) -> bool + 'static,
) -> Option<Expected> {
    Some(Box::new(move |cell| {
        let end = |of: Direction| {
            let (subject, peer, address) = match of {
                Direction::Ingress => (cell.to, cell.from, cell.addresses.0),
                Direction::Egress => (cell.from, cell.to, cell.addresses.1),
            };
            let concerned = subject.0 == "x" && subject.1 == "a" && subject != peer;
            let unchanged = cell.is_tcp_80() && is_base_peer(of, peer);
            !concerned || if of == direction { matches(cell, peer, address) } else { unchanged }
        };
        end(Direction::Ingress) && end(Direction::Egress)
    }))
}

/// Makes cases.
#[derive(Default)]
struct Cases(Vec<GeneratedCase>);

impl Cases {
    fn add(
        &mut self,
        group: &str,
        name: impl std::fmt::Display,
        steps: Vec<Cluster>,
        expected: Option<Expected>,
    ) {
        let name = format!("{group}: {name}");
        self.0.push(GeneratedCase { name, steps, expected });
    }

    /// Of one step, with these policies.
    fn of_policies(
        &mut self,
        group: &str,
        name: impl std::fmt::Display,
        policies: &[(&str, NetworkPolicy)],
        expected: Option<Expected>,
    ) {
        self.add(group, name, vec![with(cluster(), policies)], expected);
    }
}

fn with(mut cluster: Cluster, policies: &[(&str, NetworkPolicy)]) -> Cluster {
    cluster.policies.clear();
    for (index, (namespace, policy)) in policies.iter().enumerate() {
        let key = ((*namespace).to_owned(), format!("p{index}"));
        cluster.policies.insert(key, policy.clone());
    }
    cluster
}

/// All of them, in the order of the checklist.
#[must_use]
pub fn generated_cases() -> Vec<GeneratedCase> {
    let mut cases = Cases::default();
    of_peers(&mut cases);
    of_ports(&mut cases);
    of_conflicts(&mut cases);
    of_upstream(&mut cases);
    of_targets(&mut cases);
    of_actions(&mut cases);
    of_rules(&mut cases);
    of_namespaces(&mut cases);
    of_example(&mut cases);
    cases.0
}

/// Who a peer names, by namespace, name and address.
type Names = fn(&str, &str, IpAddr) -> bool;

/// The single peers, each with whom it names.
fn single_peers() -> [(&'static str, Peer, Names); 10] {
    let (all, c, x) = (Selector::default, || pod("c"), || ns("x"));
    // Pods of the first node are in 10.0.1.0/24, x/a and x/c below 12.
    [
        ("empty pods, no namespaces", pods(all()), |ns, _, _| ns == "x"),
        ("pods by label, no namespaces", pods(c()), |ns, pod, _| ns == "x" && pod == "c"),
        ("no pods, empty namespaces", namespaces(all()), |_, _, _| true),
        ("empty pods, empty namespaces", both(all(), all()), |_, _, _| true),
        ("pods by label, empty namespaces", both(all(), c()), |_, pod, _| pod == "c"),
        ("no pods, namespaces by label", namespaces(x()), |ns, _, _| ns == "x"),
        ("empty pods, namespaces by label", both(x(), all()), |ns, _, _| ns == "x"),
        ("both by label", both(x(), c()), |ns, pod, _| ns == "x" && pod == "c"),
        ("ipBlock", block("10.0.1.0/24", &[]), |_, _, address| is_in_block(address, 0)),
        ("ipBlock with except", block("10.0.1.0/24", &["10.0.1.8/30"]), |_, _, address| {
            is_in_block(address, 12)
        }),
    ]
}

/// In 10.0.1.0/24, from this host on; pods begin at 8.
fn is_in_block(address: IpAddr, first: u8) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [10, 0, 1] && v4.octets()[3] >= first,
        IpAddr::V6(_) => false,
    }
}

/// 112: no peer, one, two.
fn of_peers(cases: &mut Cases) {
    let mut add = |direction, name: String, list: &[(Peer, Names)]| {
        let named: Vec<_> = list.iter().map(|(_, names)| *names).collect();
        let any = named.is_empty();
        let policy = with_rule(direction, |rule| {
            rule.peers = list.iter().map(|(peer, _)| peer.clone()).collect();
        });
        let expected = expecting(direction, move |cell, (ns, pod), address| {
            cell.is_tcp_80() && (any || named.iter().any(|names| names(ns, pod, address)))
        });
        cases.of_policies("peers", format!("{direction:?} {name}"), &[("x", policy)], expected);
    };
    let single = single_peers();
    for direction in BOTH {
        add(direction, "nobody named".to_owned(), &[]);
        for (index, (name, peer, names)) in single.iter().enumerate() {
            add(direction, (*name).to_owned(), &[(peer.clone(), *names)]);
            for (other_name, other, other_names) in &single[index + 1..] {
                let pair = [(peer.clone(), *names), (other.clone(), *other_names)];
                add(direction, format!("{name}; {other_name}"), &pair);
            }
        }
    }
}

/// What an entry of ports lets pass.
type Passes = Box<dyn Fn(Protocol, u16) -> bool>;

/// Lists of ports: single entries, ranges, what matches nothing, and two entries.
fn port_lists() -> Vec<(Vec<Port>, Passes)> {
    let known = |text: Option<&str>| Protocol::named(text.unwrap_or("TCP"));
    let entry = |protocol: Option<&str>, number: PortNumber| {
        let of = known(protocol);
        let port = Port { protocol: protocol.map(str::to_owned), port: number.clone() };
        let passes: Passes = Box::new(move |protocol, port| {
            Some(protocol) == of
                && match &number {
                    PortNumber::Any => true,
                    PortNumber::Range(first, last) => (*first..=*last).contains(&port),
                    // All pods call their ports so, each protocol its own.
                    PortNumber::Name(name) => {
                        let protocol = format!("{protocol:?}").to_lowercase();
                        *name == format!("serve-{port}-{protocol}")
                    }
                }
        });
        (port, passes)
    };
    let exactly = |number| PortNumber::Range(number, number);
    let named = |name: &str| PortNumber::Name(name.to_owned());
    let all = [None, Some("TCP"), Some("UDP"), Some("SCTP")];
    let mut lists: Vec<(Vec<Port>, Passes)> = vec![(Vec::new(), Box::new(|_, _| true))];
    let mut add = |entries: Vec<(Port, Passes)>| {
        let (ports, passes): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let either = move |protocol, port| passes.iter().any(|passes| passes(protocol, port));
        lists.push((ports, Box::new(either)));
    };
    for protocol in all {
        for number in [PortNumber::Any, exactly(80), exactly(81)] {
            add(vec![entry(protocol, number)]);
        }
    }
    for (protocol, number) in all[1..].iter().flat_map(|p| [80, 81].map(|number| (*p, number))) {
        let text = protocol.unwrap_or_default().to_lowercase();
        add(vec![entry(protocol, named(&format!("serve-{number}-{text}")))]);
    }
    for protocol in &all[1..] {
        for last in [80, 84] {
            add(vec![entry(*protocol, PortNumber::Range(53, last))]);
        }
    }
    // The name of another protocol, one that nobody has, a number that nobody serves.
    add(vec![entry(Some("UDP"), named("serve-81-tcp"))]);
    add(vec![entry(Some("TCP"), named("hello"))]);
    add(vec![entry(Some("TCP"), exactly(7981))]);
    for pair in [
        [(None, exactly(80)), (None, exactly(81))],
        [(Some("TCP"), exactly(80)), (Some("UDP"), exactly(80))],
        [(Some("UDP"), exactly(80)), (Some("SCTP"), exactly(81))],
        [(Some("TCP"), PortNumber::Any), (Some("UDP"), exactly(81))],
        [(Some("SCTP"), PortNumber::Any), (Some("SCTP"), exactly(80))],
        [(Some("TCP"), named("serve-80-tcp")), (Some("TCP"), exactly(81))],
        [(Some("UDP"), named("serve-81-udp")), (Some("SCTP"), named("serve-80-sctp"))],
    ] {
        add(pair.map(|(protocol, number)| entry(protocol, number)).into());
    }
    lists
}

/// 70: ports and protocols.
fn of_ports(cases: &mut Cases) {
    for direction in BOTH {
        for (ports, passes) in port_lists() {
            let name = format!("{direction:?} {ports:?}");
            let policy = with_rule(direction, |rule| rule.ports = ports);
            let expected = expecting(direction, move |cell, peer, _| {
                is_base_peer(direction, peer) && passes(cell.protocol, cell.port)
            });
            cases.of_policies("port/protocol", name, &[("x", policy)], expected);
        }
    }
}

/// 16: of x/b and y/c, what one policy allows and another does not.
fn of_conflicts(cases: &mut Cases) {
    let open = [Rule::default()];
    let by_pod = [peers(&[namespaces(Selector::default())])];
    let by_ip = [peers(&[block("0.0.0.0/0", &[])])];
    let nobodys_pod = [peers(&[both(Selector::default(), pod("nobody"))])];
    let nobodys_ip = [peers(&[block("203.0.113.7/32", &[])])];
    let out = |rules: &[Rule]| ("x", egress(pod("b"), rules));
    let into_source = |rules: &[Rule]| ("x", ingress(pod("b"), rules));
    let into_dest = |rules: &[Rule]| ("y", ingress(pod("c"), rules));
    let dns = out(&[dns()]);
    let own = |cell: &Cell<'_>| cell.from == cell.to;
    let v4 = |cell: &Cell<'_>| cell.addresses.0.is_ipv4();
    let sends = |cell: &Cell<'_>| cell.is_from(("x", "b"));
    let gets = |cell: &Cell<'_>| cell.is_to(("x", "b"));
    let sends_nothing = move |cell: &Cell<'_>| own(cell) || !sends(cell);
    let sends_v4 = move |cell: &Cell<'_>| own(cell) || !sends(cell) || v4(cell);
    let gets_nothing = move |cell: &Cell<'_>| own(cell) || !gets(cell);
    let gets_v4 = move |cell: &Cell<'_>| own(cell) || !gets(cell) || v4(cell);
    let dest_gets_nothing = move |cell: &Cell<'_>| own(cell) || !cell.is_to(("y", "c"));
    let everything = |_: &Cell<'_>| true;
    let mut add = |name: &str, policies: &[(&str, NetworkPolicy)], expected: Expected| {
        cases.of_policies("conflict", name, policies, Some(expected));
    };
    add(
        "deny all from source, allow all to dest",
        &[out(&[]), into_dest(&open), dns.clone()],
        Box::new(sends_nothing),
    );
    add(
        "allow all from source, deny all to dest",
        &[out(&open), into_dest(&[])],
        Box::new(dest_gets_nothing),
    );
    add("deny all, allow all from source", &[out(&[]), out(&open)], Box::new(everything));
    add("deny all, allow all to dest", &[into_dest(&[]), into_dest(&open)], Box::new(everything));
    let two: [(&str, &[Rule], &[Rule], bool); 4] = [
        ("deny all, allow all by pod", &[], &by_pod, true),
        ("deny all, allow all by IP", &[], &by_ip, false),
        ("deny all by IP, allow all by pod", &nobodys_ip, &by_pod, true),
        ("deny all by pod, allow all by IP", &nobodys_pod, &by_ip, false),
    ];
    for (name, denying, allowing, every_family) in two {
        let expected: Expected =
            if every_family { Box::new(everything) } else { Box::new(sends_v4) };
        let policies = [out(denying), out(allowing), dns.clone()];
        add(&format!("{name} from source"), &policies, expected);
    }
    for (name, denying, allowing, every_family) in two {
        let expected: Expected =
            if every_family { Box::new(everything) } else { Box::new(gets_v4) };
        add(&format!("{name} to source"), &[into_source(denying), into_source(allowing)], expected);
    }
    for (name, rules) in [("IP", &nobodys_ip), ("pod", &nobodys_pod)] {
        let policies = [out(rules), dns.clone()];
        add(&format!("egress: deny all by {name}"), &policies, Box::new(sends_nothing));
        let policies = [into_source(rules)];
        add(&format!("ingress: deny all by {name}"), &policies, Box::new(gets_nothing));
    }
}

/// 13 of the cases of upstream.
fn of_upstream(cases: &mut Cases) {
    const NUMBERS: [&str; 13] =
        ["1", "2", "3", "4", "5", "6", "7", "9", "10", "11", "12", "14", "25"];
    let fixed = |(namespace, name): &PodKey| {
        let namespace = NAMESPACES.into_iter().find(|n| n == namespace);
        let name = crate::upstream::PODS.into_iter().find(|n| n == name);
        (namespace.unwrap_or_default(), name.unwrap_or_default())
    };
    for case in upstream_cases() {
        let number = case.name.split(' ').next().unwrap_or_default();
        if !NUMBERS.contains(&number) || case.name.contains("before") {
            continue;
        }
        let written = case.expected;
        let expected: Expected = Box::new(move |cell| {
            let (from, to) = (fixed(cell.from), fixed(cell.to));
            let connection = Connection { from, to, protocol: cell.protocol, port: cell.port };
            from == to || written(&connection)
        });
        cases.add("upstream-e2e", &case.name, vec![case.cluster.clone()], Some(expected));
    }
}

/// 6: whom the policy selects.
fn of_targets(cases: &mut Cases) {
    for namespace in NAMESPACES {
        let policies = [(namespace, base())];
        cases.of_policies("target", format!("namespace {namespace}"), &policies, None);
    }
    let b_or_c = one_of("pod", &["b", "c"]);
    for (name, selector) in
        [("all", Selector::default()), ("label", pod("b")), ("expression", b_or_c)]
    {
        let policy = NetworkPolicy { pods: selector, ..base() };
        cases.of_policies("target", format!("pods by {name}"), &[("x", policy)], None);
    }
}

/// 6: something changes, and changes back.
fn of_actions(cases: &mut Cases) {
    let with_base = || with(cluster(), &[("x", base())]);
    let mut add = |name: &str, steps: Vec<Cluster>| cases.add("action", name, steps, None);
    add("create and delete a policy", vec![cluster(), with_base(), cluster()]);
    let updated = with_rule(Direction::Ingress, |rule| rule.ports = vec![port(Some("UDP"), 81)]);
    add("create and update a policy", vec![with_base(), with(cluster(), &[("x", updated)])]);

    // Alike to y, with pods of the same names.
    let mut more = with_base();
    let labels = [("ns", "y"), ("kubernetes.io/metadata.name", "y-2")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    more.namespaces.insert("y-2".to_owned(), Namespace { labels });
    add_pod(&mut more, ("y-2", "a"), ("pod", "a"), 40);
    add_pod(&mut more, ("y-2", "b"), ("pod", "b"), 41);
    add("create and delete a namespace", vec![with_base(), more, with_base()]);

    let labelled = namespaces(Selector::label("new-ns", "qrs"));
    let by_label = with_rule(Direction::Ingress, |rule| rule.peers = vec![labelled]);
    let before = with(cluster(), &[("x", by_label)]);
    let mut after = before.clone();
    if let Some(namespace) = after.namespaces.get_mut("y") {
        namespace.labels.insert("new-ns".to_owned(), "qrs".to_owned());
    }
    add("labels of a namespace", vec![before.clone(), after, before]);

    let mut more = with_base();
    add_pod(&mut more, ("x", "d"), ("pod", "b"), 42);
    add("create and delete a pod", vec![with_base(), more, with_base()]);

    let by_label = NetworkPolicy { pods: Selector::label("new-label", "abc"), ..base() };
    let before = with(cluster(), &[("x", by_label)]);
    let mut after = before.clone();
    if let Some(pod) = after.pods.get_mut(&("x".to_owned(), "b".to_owned())) {
        pod.labels.insert("new-label".to_owned(), "abc".to_owned());
    }
    add("labels of a pod", vec![before.clone(), after, before]);
}

/// On the first node, with everything but labels as another pod has it.
fn add_pod(
    cluster: &mut Cluster,
    (namespace, name): (&str, &str),
    (key, value): (&str, &str),
    host: u8,
) {
    let like = cluster.pods.values().next().cloned().unwrap_or_default();
    let addresses = [format!("10.0.1.{host}"), format!("fd00:1::{host:x}")];
    let pod = Pod {
        namespace: namespace.to_owned(),
        labels: [(key.to_owned(), value.to_owned())].into(),
        addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        node: "node-1".to_owned(),
        ..like
    };
    cluster.pods.insert((namespace.to_owned(), name.to_owned()), pod);
}

/// 4: everything and nothing, in each direction.
fn of_rules(cases: &mut Cases) {
    for direction in BOTH {
        for (name, rules) in [("deny all", Vec::new()), ("allow all", vec![Rule::default()])] {
            let allowed = !rules.is_empty();
            let mut policy = base();
            match direction {
                Direction::Ingress => policy.ingress = rules,
                Direction::Egress => policy.egress = rules,
            }
            let expected = expecting(direction, move |_, _, _| allowed);
            let name = format!("{direction:?} {name}");
            cases.of_policies("rules", name, &[("x", policy)], expected);
        }
    }
}

/// 2: by the label that every namespace has.
fn of_namespaces(cases: &mut Cases) {
    for direction in BOTH {
        let y = namespaces(Selector::label("kubernetes.io/metadata.name", "y"));
        let policy = with_rule(direction, |rule| rule.peers = vec![y]);
        let expected =
            expecting(direction, |cell, (namespace, _), _| cell.is_tcp_80() && namespace == "y");
        cases.of_policies("namespace", format!("{direction:?}"), &[("x", policy)], expected);
    }
}

/// 1: a named port, while pods and namespaces come, change and go.
fn of_example(cases: &mut Cases) {
    let rule = with_ports(peers(&[namespaces(ns("y"))]), &[name("serve-80-tcp")]);
    let policies = [("x", ingress(pod("a"), &[rule]))];
    let start = with(cluster(), &policies);
    let mut steps = vec![cluster(), start.clone()];
    let mut step = |change: &mut dyn FnMut(&mut Cluster)| {
        let mut next = steps.last().cloned().unwrap_or_default();
        change(&mut next);
        steps.push(next);
    };
    step(&mut |cluster| add_pod(cluster, ("y", "d"), ("pod", "d"), 43));
    // Others may call another port so.
    step(&mut |cluster| {
        let key = ("x".to_owned(), "a".to_owned());
        let ports = cluster.pods.get_mut(&key).into_iter().flat_map(|pod| &mut pod.ports);
        for named in ports.filter(|named| named.name == "serve-80-tcp") {
            named.port = 81;
        }
    });
    step(&mut |cluster| {
        let y = cluster.namespaces.get_mut("y").map(|namespace| &mut namespace.labels);
        y.into_iter().for_each(|labels| drop(labels.insert("ns".to_owned(), "other".to_owned())));
    });
    step(&mut |cluster| {
        let labels = [("ns".to_owned(), "y".to_owned())].into();
        cluster.namespaces.insert("y-3".to_owned(), Namespace { labels });
        add_pod(cluster, ("y-3", "a"), ("pod", "a"), 44);
    });
    step(&mut |cluster| cluster.pods.retain(|(namespace, _), _| namespace != "y-3"));
    steps.push(start);
    let expected: Expected = Box::new(|cell| {
        !cell.is_to(XA) || cell.from == cell.to || (cell.is_tcp_80() && cell.from.0 == "y")
    });
    cases.add("example", "named port", steps, Some(expected));
}
