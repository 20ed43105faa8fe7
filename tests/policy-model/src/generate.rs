//! Random clusters of a small world, in which everything gets into each other's way.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_fuzz::Random;

use crate::{
    Action, Block, Cluster, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Direction,
    Labels, NamedPort, Namespace, NetworkPolicy, Node, Operator, Peer, Pod, Port, PortNumber,
    Protocol, Requirement, Rule, Selector, Subject, Tier,
};

const NAMESPACES: [&str; 4] = ["w", "x", "y", "z"];
const PODS: [&str; 4] = ["a", "b", "c", "d"];
const NODES: [&str; 2] = ["node-1", "node-2"];
const KEYS: [&str; 3] = ["app", "role", "kubernetes.io/metadata.name"];
const VALUES: [&str; 5] = ["a", "b", "x", "y", ""];
const PORT_NAMES: [&str; 3] = ["web", "dns", "nobody"];
const PORTS: [u16; 4] = [53, 80, 81, 8080];
const OUTSIDE: [&str; 3] = ["203.0.113.9", "198.51.100.1", "2001:db8:9::1"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.1.0/24",
    "10.0.1.9/30",
    "10.0.1.8/31",
    "10.0.2.9/32",
    "10.0.1.10/32",
    "10.0.2.0/28",
    "fd00::/16",
    "fd00:1::/64",
    "fd00:1::8/127",
    "fd00:2::9/128",
    "192.0.2.0/24",
    "203.0.113.9/31",
    "0.0.0.0/1",
];

/// Makes clusters and changes them.
#[derive(Clone, Debug)]
pub struct Generator {
    random: Random,
}

impl Generator {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    /// A cluster of two nodes, with up to 16 pods and a few policies.
    pub fn cluster(&mut self) -> Cluster {
        let mut cluster = Cluster::default();
        for (index, name) in (1_u16..).zip(NODES) {
            let addresses = [format!("192.0.2.{index}"), format!("2001:db8::{index}")];
            let addresses = addresses.iter().map(|text| address(text)).collect();
            let node = Node { labels: self.labels(), addresses };
            cluster.nodes.insert(name.to_owned(), node);
        }
        for name in NAMESPACES {
            let namespace = self.namespace(name);
            cluster.namespaces.insert(name.to_owned(), namespace);
        }
        for _ in 0..14 {
            self.change_pod(&mut cluster);
        }
        for _ in 0..4 + self.random.below(8) {
            self.change_policy(&mut cluster);
        }
        for _ in 0..self.random.below(5) {
            self.change_cluster_policy(&mut cluster);
        }
        cluster
    }

    /// Changes one thing: a pod or its labels, ports or addresses, labels of a namespace, a policy.
    pub fn change(&mut self, cluster: &mut Cluster) {
        match self.random.below(10) {
            0 => {
                let name = self.random.pick(&NAMESPACES);
                let namespace = self.namespace(name);
                cluster.namespaces.insert(name.to_owned(), namespace);
            }
            1..4 => self.change_pod(cluster),
            4 => {
                let place = self.random.below(cluster.pods.len());
                let (labels, ports) = (self.labels(), self.named_ports());
                if let Some(pod) = cluster.pods.values_mut().nth(place) {
                    pod.labels = labels;
                    pod.ports = ports;
                }
            }
            5..8 => self.change_policy(cluster),
            8 => self.change_cluster_policy(cluster),
            _ => {
                let node = self.random.pick(&NODES);
                if let Some(node) = cluster.nodes.get_mut(node) {
                    node.labels = self.labels();
                }
            }
        }
    }

    /// Ends of a connection of one family: addresses of pods, nodes and others.
    pub fn ends(&mut self, cluster: &Cluster) -> (IpAddr, IpAddr) {
        let pods = cluster.pods.values().flat_map(|pod| &pod.addresses).copied();
        let nodes = cluster.nodes.values().flat_map(|node| &node.addresses).copied();
        // Pods twice, so that most ends are pods.
        let all: Vec<_> = pods.clone().chain(pods).chain(nodes).collect();
        let outside: Vec<_> = OUTSIDE.iter().map(|text| address(text)).collect();
        let all = [all, outside].concat();
        let from = self.random.pick(&all);
        loop {
            let to = self.random.pick(&all);
            if to.is_ipv4() == from.is_ipv4() {
                return (from, to);
            }
        }
    }

    /// A protocol and a port.
    pub fn service(&mut self) -> (Protocol, u16) {
        let icmp = Protocol::Other(1);
        let protocol =
            self.random.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp, icmp]);
        let port = self.random.pick(&[53, 80, 81, 8080, 79, 82, 65_535]);
        (protocol, port)
    }

    /// Mostly a few labels, so that selectors often meet them.
    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for key in ["app", "role"] {
            if self.random.below(3) > 0 {
                labels.insert(key.to_owned(), self.random.pick(&VALUES).to_owned());
            }
        }
        labels
    }

    fn namespace(&mut self, name: &str) -> Namespace {
        let mut labels = self.labels();
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Namespace { labels }
    }

    fn selector(&mut self) -> Selector {
        let mut selector = Selector::default();
        match self.random.below(5) {
            0 => {}
            1 | 2 => {
                let (key, value) = (self.random.pick(&KEYS), self.random.pick(&VALUES));
                selector.labels.insert(key.to_owned(), value.to_owned());
            }
            3 => selector.expressions.push(self.requirement()),
            _ => {
                selector.expressions.push(self.requirement());
                selector.expressions.push(self.requirement());
            }
        }
        selector
    }

    fn requirement(&mut self) -> Requirement {
        let operators = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist];
        let operator = self.random.pick(&operators);
        let values = match operator {
            Operator::In | Operator::NotIn => 1 + self.random.below(2),
            Operator::Exists | Operator::DoesNotExist => 0,
        };
        Requirement {
            key: self.random.pick(&KEYS).to_owned(),
            operator,
            values: (0..values).map(|_| self.random.pick(&VALUES).to_owned()).collect(),
        }
    }

    fn named_ports(&mut self) -> Vec<NamedPort> {
        let mut ports: Vec<_> = (0..self.random.below(4))
            .map(|_| NamedPort {
                name: self.random.pick(&["web", "dns"]).to_owned(),
                protocol: self.random.pick(&PROTOCOLS),
                port: self.random.pick(&PORTS),
            })
            .collect();
        ports.sort();
        ports
    }

    /// Adds, replaces, removes or ends a pod. Addresses of what is gone are given again.
    fn change_pod(&mut self, cluster: &mut Cluster) {
        let (namespace, name) = (self.random.pick(&NAMESPACES), self.random.pick(&PODS));
        let key = (namespace.to_owned(), name.to_owned());
        match self.random.below(8) {
            0 => {
                cluster.pods.remove(&key);
                return;
            }
            1 => {
                if let Some(pod) = cluster.pods.get_mut(&key) {
                    pod.finished = true;
                }
                return;
            }
            _ => {}
        }
        cluster.pods.remove(&key);
        let node_index = 1 + self.random.below(2);
        let node = NODES[node_index - 1].to_owned();
        let host_network = self.random.below(12) == 0;
        let addresses = if host_network {
            cluster.nodes.get(&node).map(|node| node.addresses.clone()).unwrap_or_default()
        } else {
            let free = (8..30).map(|host: u16| {
                [format!("10.0.{node_index}.{host}"), format!("fd00:{node_index}::{host:x}")]
                    .map(|text| address(&text))
            });
            let mut free = free.filter(|pair| pair.iter().all(|a| cluster.pod_at(*a).is_none()));
            free.next().map(Vec::from).unwrap_or_default()
        };
        // Seldom of one family only.
        let addresses = match self.random.below(8) {
            0 if !host_network => addresses.into_iter().filter(IpAddr::is_ipv4).collect(),
            _ => addresses,
        };
        let pod = Pod {
            namespace: namespace.to_owned(),
            labels: self.labels(),
            addresses,
            node,
            host_network,
            finished: false,
            ports: self.named_ports(),
        };
        cluster.pods.insert(key, pod);
    }

    fn change_policy(&mut self, cluster: &mut Cluster) {
        let (namespace, name) = (self.random.pick(&NAMESPACES), self.random.pick(&["p", "q", "r"]));
        let key = (namespace.to_owned(), name.to_owned());
        if self.random.below(4) == 0 {
            cluster.policies.remove(&key);
            return;
        }
        let types = self.random.pick(&[
            None,
            Some(&[Direction::Ingress][..]),
            Some(&[Direction::Egress][..]),
            Some(&[Direction::Ingress, Direction::Egress][..]),
        ]);
        let policy = NetworkPolicy {
            pods: self.selector(),
            types: types.map(<[_]>::to_vec),
            ingress: self.rules(),
            egress: self.rules(),
            watched: self.random.below(6) == 0,
        };
        cluster.policies.insert(key, policy);
    }

    fn rules(&mut self) -> Vec<Rule> {
        (0..self.random.below(4))
            .map(|_| {
                let peers = (0..self.random.below(3)).map(|_| self.peer()).collect();
                Rule { peers, ports: self.ports() }
            })
            .collect()
    }

    fn peer(&mut self) -> Peer {
        match self.random.below(9) {
            0 | 1 => Peer { pods: Some(self.selector()), ..Peer::default() },
            2 | 3 => Peer { namespaces: Some(self.selector()), ..Peer::default() },
            4 | 5 => {
                let (pods, namespaces) = (self.selector(), self.selector());
                Peer { pods: Some(pods), namespaces: Some(namespaces), block: None }
            }
            6 | 7 => Peer { block: Some(self.block()), ..Peer::default() },
            _ => Peer::default(),
        }
    }

    fn block(&mut self) -> Block {
        let cidr = self.network();
        let except = (0..self.random.below(3)).map(|_| self.network());
        // Of the same family and inside, as the API server has it.
        let inside = |hole: &IpNet| cidr.contains(&hole.network()) && cidr != *hole;
        Block { cidr, except: except.filter(inside).collect() }
    }

    fn network(&mut self) -> IpNet {
        self.random.pick(&BLOCKS).parse().expect("a network")
    }

    fn ports(&mut self) -> Vec<Port> {
        match self.random.below(12) {
            0..5 => Vec::new(),
            5 => vec![Port { protocol: Some("QUIC".to_owned()), port: PortNumber::Any }],
            _ => (0..=self.random.below(2)).map(|_| self.port()).collect(),
        }
    }

    fn port(&mut self) -> Port {
        let protocol = self.random.pick(&[None, Some("TCP"), Some("UDP"), Some("SCTP")]);
        let port = match self.random.below(6) {
            0 => PortNumber::Any,
            1 | 2 => {
                let port = self.random.pick(&PORTS);
                PortNumber::Range(port, port)
            }
            3 => {
                let (first, last) = self.range();
                PortNumber::Range(first, last)
            }
            _ => PortNumber::Name(self.random.pick(&PORT_NAMES).to_owned()),
        };
        Port { protocol: protocol.map(str::to_owned), port }
    }

    fn range(&mut self) -> (u16, u16) {
        self.random.pick(&[(1, u16::MAX), (53, 80), (80, 81), (81, 8080), (8080, 65_535)])
    }

    fn change_cluster_policy(&mut self, cluster: &mut Cluster) {
        let place = self.random.below(5);
        let name = format!("cluster-{place}");
        if self.random.below(4) == 0 {
            cluster.cluster_policies.remove(&name);
            return;
        }
        // One priority for each name, in a changing order.
        let turn = self.random.below(100) * 5;
        let policy = ClusterPolicy {
            tier: self.random.pick(&[Tier::Admin, Tier::Baseline]),
            priority: u32::try_from(turn + place).expect("it is small"),
            subject: self.subject(),
            ingress: self.cluster_rules(Direction::Ingress),
            egress: self.cluster_rules(Direction::Egress),
            watched: self.random.below(6) == 0,
        };
        cluster.cluster_policies.insert(name, policy);
    }

    fn subject(&mut self) -> Subject {
        match self.random.below(2) {
            0 => Subject::Namespaces(self.selector()),
            _ => Subject::Pods(self.selector(), self.selector()),
        }
    }

    fn cluster_rules(&mut self, direction: Direction) -> Vec<ClusterRule> {
        (0..self.random.below(4)).map(|_| self.cluster_rule(direction)).collect()
    }

    fn cluster_rule(&mut self, direction: Direction) -> ClusterRule {
        let ports: Vec<_> = match self.random.below(3) {
            0 => Vec::new(),
            1 => (0..=self.random.below(2)).map(|_| self.cluster_port()).collect(),
            _ => vec![ClusterPort::Ports(Protocol::Tcp, Some((80, 80)))],
        };
        let named = ports.iter().any(|port| matches!(port, ClusterPort::Named(_)));
        let by_address = direction == Direction::Egress && !named;
        let peers = (0..=self.random.below(2)).map(|_| self.cluster_peer(by_address)).collect();
        ClusterRule {
            action: self.random.pick(&[Action::Accept, Action::Deny, Action::Pass]),
            peers,
            ports,
        }
    }

    fn cluster_port(&mut self) -> ClusterPort {
        let protocol = self.random.pick(&PROTOCOLS);
        match self.random.below(4) {
            0 => ClusterPort::Ports(protocol, None),
            1 => ClusterPort::Ports(protocol, Some(self.range())),
            2 => {
                let port = self.random.pick(&PORTS);
                ClusterPort::Ports(protocol, Some((port, port)))
            }
            _ => ClusterPort::Named(self.random.pick(&PORT_NAMES).to_owned()),
        }
    }

    fn cluster_peer(&mut self, by_address: bool) -> ClusterPeer {
        match self.random.below(if by_address { 16 } else { 11 }) {
            0..10 => ClusterPeer::Pods(self.subject()),
            10 => ClusterPeer::Unknown,
            11..15 => {
                let networks = (0..=self.random.below(2)).map(|_| self.network());
                ClusterPeer::Networks(networks.collect())
            }
            _ => ClusterPeer::Nodes(self.selector()),
        }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
