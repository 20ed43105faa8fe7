//! The cases of Kubernetes' own end-to-end tests of NetworkPolicy (NP-120), with what each has to
//! come to, written down apart from the model.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    Block, Cluster, Direction, Labels, NamedPort, Namespace, NetworkPolicy, Node, Operator, Peer,
    Pod, Port, PortNumber, Protocol, Rule, Selector,
};

/// Namespaces, each with pods a, b and c, which all serve TCP, UDP and SCTP at 80 and 81.
pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub(crate) const PODS: [&str; 3] = ["a", "b", "c"];
pub(crate) const PROTOCOLS: [(Protocol, &str); 3] =
    [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp"), (Protocol::Sctp, "sctp")];

/// A connection between two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Namespace and name of who begins it.
    pub from: (&'static str, &'static str),
    /// Where it goes; never to itself.
    pub to: (&'static str, &'static str),
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 80 or 81, or one of the ports of a conformance suite.
    pub port: u16,
}

/// A cluster with policies, and what they come to.
#[derive(Clone, Debug)]
pub struct Case {
    /// Number and name.
    pub name: String,
    /// The cluster, after all of the case's changes.
    pub cluster: Cluster,
    /// True for a connection that is allowed.
    pub expected: fn(&Connection) -> bool,
}

impl Case {
    /// Every connection that there is.
    pub fn connections() -> impl Iterator<Item = Connection> {
        let pods = || NAMESPACES.into_iter().flat_map(|ns| PODS.map(|pod| (ns, pod)));
        let pairs = pods().flat_map(move |from| pods().map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from != to);
        pairs.flat_map(|(from, to)| {
            PROTOCOLS.into_iter().flat_map(move |(protocol, _)| {
                [80, 81].map(|port| Connection { from, to, protocol, port })
            })
        })
    }

    /// Addresses of a pod, one of each family.
    ///
    /// # Panics
    /// If it is none of the case's.
    #[must_use]
    pub fn addresses(&self, pod: (&str, &str)) -> [IpAddr; 2] {
        addresses_of(&self.cluster, pod)
    }
}

pub(crate) fn addresses_of(cluster: &Cluster, (namespace, name): (&str, &str)) -> [IpAddr; 2] {
    let pod = cluster.pods.get(&(namespace.to_owned(), name.to_owned()));
    let addresses = pod.expect("a pod of the case").addresses.as_slice();
    addresses.try_into().expect("two addresses")
}

/// node-1 and node-2, each with an address of each family.
pub(crate) fn nodes() -> BTreeMap<String, Node> {
    let node = |index: u8| {
        let v4 = Ipv4Addr::new(192, 0, 2, index);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, index.into());
        let node = Node { labels: Labels::new(), addresses: vec![v4.into(), v6.into()] };
        (format!("node-{index}"), node)
    };
    [1, 2].map(node).into()
}

/// Of a pod of node-N: 10.0.N.HOST and fd00:N::HOST.
pub(crate) fn addresses(node: u8, host: u8) -> Vec<IpAddr> {
    let v4 = Ipv4Addr::new(10, 0, node, host);
    let v6 = Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, host.into());
    vec![v4.into(), v6.into()]
}

/// Pods are spread over two nodes; 10.0.N.8 and up, and fd00:N::8 and up.
pub(crate) fn cluster() -> Cluster {
    let mut cluster = Cluster { nodes: nodes(), ..Cluster::default() };
    for (n, namespace) in (0..).zip(NAMESPACES) {
        let labels = [("ns", namespace), ("kubernetes.io/metadata.name", namespace)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        cluster.namespaces.insert(namespace.to_owned(), Namespace { labels });
        for (p, name) in (0..).zip(PODS) {
            let (node, host): (u8, u8) = (1 + (n + p) % 2, 8 + 3 * n + p);
            let named = |port: u16| {
                PROTOCOLS.map(|(protocol, text)| NamedPort {
                    name: format!("serve-{port}-{text}"),
                    protocol,
                    port,
                })
            };
            let pod = Pod {
                namespace: namespace.to_owned(),
                labels: [("pod".to_owned(), name.to_owned())].into(),
                addresses: addresses(node, host),
                node: format!("node-{node}"),
                ports: [named(80), named(81)].concat(),
                ..Pod::default()
            };
            cluster.pods.insert((namespace.to_owned(), name.to_owned()), pod);
        }
    }
    cluster
}

pub(crate) fn all() -> Selector {
    Selector::default()
}

pub(crate) fn pod(name: &str) -> Selector {
    Selector::label("pod", name)
}

pub(crate) fn ns(name: &str) -> Selector {
    Selector::label("ns", name)
}

fn not_ns(name: &str) -> Selector {
    Selector::expression("ns", Operator::NotIn, &[name])
}

pub(crate) fn ingress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    let types = Some(vec![Direction::Ingress]);
    NetworkPolicy { pods, types, ingress: rules.to_vec(), ..NetworkPolicy::default() }
}

pub(crate) fn egress(pods: Selector, rules: &[Rule]) -> NetworkPolicy {
    let types = Some(vec![Direction::Egress]);
    NetworkPolicy { pods, types, egress: rules.to_vec(), ..NetworkPolicy::default() }
}

pub(crate) fn peers(peers: &[Peer]) -> Rule {
    Rule { peers: peers.to_vec(), ports: Vec::new() }
}

pub(crate) fn pods(pods: Selector) -> Peer {
    Peer { pods: Some(pods), ..Peer::default() }
}

pub(crate) fn namespaces(namespaces: Selector) -> Peer {
    Peer { namespaces: Some(namespaces), ..Peer::default() }
}

pub(crate) fn both(namespaces: Selector, pods: Selector) -> Peer {
    Peer { namespaces: Some(namespaces), pods: Some(pods), block: None }
}

pub(crate) fn block(cidr: &str, except: &[&str]) -> Peer {
    let net = |text: &str| text.parse().expect("a network");
    let except = except.iter().map(|text| net(text)).collect();
    Peer { block: Some(Block { cidr: net(cidr), except }), ..Peer::default() }
}

pub(crate) fn port(protocol: Option<&str>, port: u16) -> Port {
    let protocol = protocol.map(str::to_owned);
    Port { protocol, port: PortNumber::Range(port, port) }
}

pub(crate) fn name(name: &str) -> Port {
    Port { protocol: None, port: PortNumber::Name(name.to_owned()) }
}

pub(crate) fn with_ports(rule: Rule, ports: &[Port]) -> Rule {
    Rule { ports: ports.to_vec(), ..rule }
}

/// The 48 cases, by their numbers in the checklist. Cases 43, 45, 46 and 48 are 1 and 13 for other
/// protocols, as every case here is for all of them. What a case changes on its way is there as it is
/// at its end, and before where that differs.
#[must_use]
#[expect(clippy::cloned_ref_to_slice_refs, reason = "lists of cases all look alike")]
pub fn upstream_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str,
                   policies: &[(&str, NetworkPolicy)],
                   change: fn(&mut Cluster),
                   expected: fn(&Connection) -> bool| {
        let mut cluster = cluster();
        for (index, (namespace, policy)) in policies.iter().enumerate() {
            let key = ((*namespace).to_owned(), format!("p{index}"));
            cluster.policies.insert(key, policy.clone());
        }
        change(&mut cluster);
        cases.push(Case { name: name.to_owned(), cluster, expected });
    };
    let nothing: fn(&mut Cluster) = |_| {};
    const XA: (&str, &str) = ("x", "a");
    let to_a = |rules: &[Rule]| ("x", ingress(pod("a"), rules));
    let open = Rule::default();
    let deny_in = ("x", ingress(all(), &[]));

    add("1 deny ingress", &[deny_in.clone()], nothing, |c| c.to.0 != "x");
    let deny_all = NetworkPolicy {
        types: Some(vec![Direction::Ingress, Direction::Egress]),
        ..NetworkPolicy::default()
    };
    add("2 deny all", &[("x", deny_all)], nothing, |c| c.to.0 != "x" && c.from.0 != "x");
    let from_b = peers(&[pods(pod("b"))]);
    add("3 PodSelector", &[to_a(&[from_b])], nothing, |c| c.to != XA || c.from == ("x", "b"));
    let for_a = to_a(&[open.clone()]);
    add("4 a target", &[deny_in.clone(), for_a], nothing, |c| c.to.0 != "x" || c.to == XA);
    let everywhere = peers(&[namespaces(all())]);
    add("5 all namespaces", &[to_a(&[everywhere])], nothing, |_| true);
    let from_y = peers(&[namespaces(ns("y"))]);
    let only_y: fn(&Connection) -> bool = |c| c.to != XA || c.from.0 == "y";
    add("6 NamespaceSelector", &[to_a(&[from_y.clone()])], nothing, only_y);
    let b = Selector::expression("pod", Operator::In, &["b"]);
    let from_b = peers(&[pods(b)]);
    add("7 pod expression", &[to_a(&[from_b])], nothing, |c| c.to != XA || c.from == ("x", "b"));
    let y = Selector::expression("ns", Operator::In, &["y"]);
    add("8 namespace expression", &[to_a(&[peers(&[namespaces(y)])])], nothing, only_y);
    let either = peers(&[namespaces(not_ns("x")), pods(pod("b"))]);
    add("9 either", &[to_a(&[either])], nothing, |c| {
        c.to != XA || c.from.0 != "x" || c.from.1 == "b"
    });
    let and = peers(&[both(not_ns("x"), pod("b"))]);
    add("10 both", &[to_a(&[and])], nothing, |c| {
        c.to != XA || (c.from.0 != "x" && c.from.1 == "b")
    });
    let b_or_c = Selector::expression("pod", Operator::In, &["b", "c"]);
    add("11 multiple", &[to_a(&[peers(&[both(not_ns("x"), b_or_c)])])], nothing, |c| {
        c.to != XA || (c.from.0 != "x" && c.from.1 != "a")
    });
    add(
        "12 any PodSelectors",
        &[to_a(&[peers(&[pods(pod("b")), pods(pod("c"))])])],
        nothing,
        |c| c.to != XA || c.from.0 == "x",
    );
    let y_a = peers(&[both(ns("y"), pod("a"))]);
    add("13 pod elsewhere", &[to_a(&[y_a.clone()])], nothing, |c| {
        c.to != XA || c.from == ("y", "a")
    });
    let y_81 = with_ports(from_y.clone(), &[port(None, 81)]);
    add("14 ports", &[to_a(&[y_81.clone()])], nothing, |c| {
        c.to != XA || (c.from.0 == "y" && c.port == 81 && c.protocol == Protocol::Tcp)
    });
    let y_80 = with_ports(from_y.clone(), &[port(None, 80)]);
    add("15 stacked", &[to_a(&[y_81]), to_a(&[y_80.clone()])], nothing, |c| {
        c.to != XA || (c.from.0 == "y" && c.protocol == Protocol::Tcp)
    });
    let allow_all = ("x", ingress(all(), &[open.clone()]));
    add("16 allow all", &[allow_all.clone()], nothing, |_| true);
    let named = |port: &str| with_ports(Rule::default(), &[name(port)]);
    add("17 named port", &[to_a(&[named("serve-81-tcp")])], nothing, |c| {
        c.to != XA || (c.port == 81 && c.protocol == Protocol::Tcp)
    });
    let y_named = with_ports(from_y.clone(), &[name("serve-80-tcp")]);
    add("18 named port from y", &[to_a(&[y_named])], nothing, |c| {
        c.to != XA || (c.from.0 == "y" && c.port == 80 && c.protocol == Protocol::Tcp)
    });
    let out_80 = ("x", egress(all(), &[named("serve-80-tcp")]));
    add("19 egress on a named port", &[out_80], nothing, |c| {
        c.from.0 != "x" || (c.port == 80 && c.protocol == Protocol::Tcp)
    });
    add("20 updated policy", &[deny_in.clone()], nothing, |c| c.to.0 != "x");
    let labelled = peers(&[namespaces(Selector::label("ns2", "updated"))]);
    add("21 before", &[to_a(&[labelled.clone()])], nothing, |c| c.to != XA);
    let label = |cluster: &mut Cluster| {
        if let Some(namespace) = cluster.namespaces.get_mut("y") {
            namespace.labels.insert("ns2".to_owned(), "updated".to_owned());
        }
    };
    add("21 updated namespace", &[to_a(&[labelled])], label, only_y);
    let labelled = peers(&[pods(Selector::label("pod2", "updated"))]);
    add("22 before", &[to_a(&[labelled.clone()])], nothing, |c| c.to != XA);
    let label: fn(&mut Cluster) = |cluster| {
        if let Some(pod) = cluster.pods.get_mut(&("x".to_owned(), "b".to_owned())) {
            pod.labels.insert("pod2".to_owned(), "updated".to_owned());
        }
    };
    add("22 updated pod", &[to_a(&[labelled])], label, |c| c.to != XA || c.from == ("x", "b"));
    let own = peers(&[pods(all())]);
    add("23 other namespaces", &[("x", ingress(all(), &[own]))], nothing, |c| {
        c.to.0 != "x" || c.from.0 == "x"
    });
    let target = ingress(Selector::label("target", "isolated"), &[]);
    add("24 before", &[("x", target.clone())], nothing, |_| true);
    let label: fn(&mut Cluster) = |cluster| {
        if let Some(pod) = cluster.pods.get_mut(&("x".to_owned(), "a".to_owned())) {
            pod.labels.insert("target".to_owned(), "isolated".to_owned());
        }
    };
    add("24 updated target", &[("x", target)], label, |c| c.to != XA);
    let from_a = |rules: &[Rule]| ("x", egress(pod("a"), rules));
    add("25 deny egress of a pod", &[from_a(&[])], nothing, |c| c.from != XA);
    add("26 deny egress", &[("x", egress(all(), &[]))], nothing, |c| c.from.0 != "x");
    let out_80 = with_ports(Rule::default(), &[port(None, 80)]);
    let together = NetworkPolicy {
        types: Some(vec![Direction::Ingress, Direction::Egress]),
        egress: vec![out_80],
        ..ingress(pod("a"), &[peers(&[pods(pod("b"))])])
    };
    add("27 both directions", &[("x", together)], nothing, |c| {
        (c.to != XA || c.from == ("x", "b"))
            && (c.from != XA || (c.port == 80 && c.protocol == Protocol::Tcp))
    });
    let server = ("y", ingress(all(), &[peers(&[both(ns("x"), pod("a"))])]));
    add("28 client side", &[from_a(&[y_a.clone()]), server], nothing, |c| {
        (c.from != XA || c.to == ("y", "a")) && (c.to.0 != "y" || c.from == XA)
    });
    add("29 egress elsewhere", &[from_a(&[y_a.clone()])], nothing, |c| {
        c.from != XA || c.to == ("y", "a")
    });
    let any_tcp = Port { protocol: Some("TCP".to_owned()), port: PortNumber::Any };
    let any_tcp = with_ports(Rule::default(), &[any_tcp]);
    add("30 any port", &[to_a(&[any_tcp])], nothing, |c| c.to != XA || c.protocol == Protocol::Tcp);
    let only_80 = with_ports(Rule::default(), &[port(None, 80)]);
    let in_80 = ("x", ingress(all(), &[only_80.clone()]));
    add("31 before", &[in_80.clone()], nothing, |c| {
        c.to.0 != "x" || (c.port == 80 && c.protocol == Protocol::Tcp)
    });
    add("31 allow all wins", &[in_80, allow_all], nothing, |_| true);
    let out = |rules: &[Rule]| ("x", egress(all(), rules));
    let all_out = out(&[open.clone()]);
    add("32 allow all wins", &[out(&[only_80]), all_out], nothing, |_| true);
    add("33 deleted", &[], nothing, |_| true);
    // y/b is 10.0.1.12, x/b 10.0.2.9.
    let y_b = peers(&[block("10.0.1.12/32", &[]), block("fd00:1::c/128", &[])]);
    add("34 CIDR block", &[from_a(&[y_b])], nothing, |c| c.from != XA || c.to == ("y", "b"));
    let but_x_b = [block("10.0.0.0/16", &["10.0.2.9/32"]), block("fd00::/16", &["fd00:2::9/128"])];
    let but_x_b = peers(&but_x_b);
    add("35 except", &[from_a(&[but_x_b.clone()])], nothing, |c| {
        c.from != XA || c.to != ("x", "b")
    });
    let x_b = peers(&[block("10.0.2.9/32", &[]), block("fd00:2::9/128", &[])]);
    add("36 overlap", &[from_a(&[but_x_b]), from_a(&[x_b])], nothing, |_| true);
    let free = from_a(&[open.clone()]);
    add("37 independent", &[free, to_a(&[])], nothing, |c| c.to != XA);
    let sctp = |number| with_ports(Rule::default(), &[port(Some("SCTP"), number)]);
    add("38 SCTP is not TCP", &[deny_in, to_a(&[sctp(81)])], nothing, |c| {
        c.to.0 != "x" || (c.to == XA && c.port == 81 && c.protocol == Protocol::Sctp)
    });
    add("39 isolated by SCTP", &[to_a(&[sctp(80)])], nothing, |c| {
        c.to != XA || (c.port == 80 && c.protocol == Protocol::Sctp)
    });
    let udp = with_ports(Rule::default(), &[port(Some("UDP"), 81)]);
    add("40 UDP is not TCP", &[to_a(&[udp])], nothing, |c| {
        c.to != XA || (c.port == 81 && c.protocol == Protocol::Udp)
    });
    let by_name = Selector::label("kubernetes.io/metadata.name", "y");
    add("41 default label", &[to_a(&[peers(&[namespaces(by_name)])])], nothing, only_y);
    let not_y = Selector::expression("kubernetes.io/metadata.name", Operator::NotIn, &["y"]);
    add("42 default label", &[from_a(&[peers(&[namespaces(not_y)])])], nothing, |c| {
        c.from != XA || c.to.0 != "y"
    });
    let udp_80 = with_ports(from_y.clone(), &[port(Some("UDP"), 81)]);
    add("44 UDP ports", &[to_a(&[udp_80])], nothing, |c| {
        c.to != XA || (c.from.0 == "y" && c.port == 81 && c.protocol == Protocol::Udp)
    });
    let sctp_80 = with_ports(from_y, &[port(Some("SCTP"), 81)]);
    add("47 SCTP ports", &[to_a(&[sctp_80])], nothing, |c| {
        c.to != XA || (c.from.0 == "y" && c.port == 81 && c.protocol == Protocol::Sctp)
    });
    cases
}
