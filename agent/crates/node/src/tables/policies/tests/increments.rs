//! What is compiled from what differs allows what is compiled from nothing.

use proptest::prelude::*;

use super::*;

/// What one node was told, step by step, with the hub's words kept as an agent keeps them.
struct Chain {
    name: NodeName,
    snapshot: Snapshot,
    policies: Policies,
    plugin: NativePlugin<weft_policy::Policies>,
}

/// A node's subnets are what its pods' addresses are in, if the hub says so.
fn published(cluster: &plain::Cluster, generation: u64, with_subnets: bool) -> Snapshot {
    let mut snapshot = snapshot(cluster);
    snapshot.generation = Generation(generation);
    for (index, node) in (1..).zip(snapshot.nodes.values_mut()).filter(|_| with_subnets) {
        let subnets = [format!("10.0.{index}.0/24"), format!("fd00:{index}::/64")];
        node.subnets = subnets.iter().map(|s| s.parse().unwrap()).collect();
    }
    snapshot
}

impl Chain {
    fn new(name: &str) -> Self {
        let snapshot = published(&plain::Cluster::default(), 0, false);
        let plugin = NativePlugin::new(Policies::default().complete().encode_to_vec()).unwrap();
        Self { name: name.parse().unwrap(), snapshot, policies: Policies::default(), plugin }
    }

    fn update(
        &mut self,
        next: &Snapshot,
        cluster: &plain::Cluster,
        policed: &[(PodName, Vec<IpAddr>)],
    ) {
        self.snapshot.apply(self.snapshot.delta_to(next)).unwrap();
        let before = Some(&self.policies);
        let policies = compile_snapshot(&self.snapshot, cluster, &self.name, policed, before);
        let change = policies.change_from(&self.policies);
        if let Some(change) = &change {
            self.plugin.configure(Config::Delta(&change.encode_to_vec())).unwrap();
        }
        if policies == self.policies {
            assert_eq!(change, None);
        }
        self.policies = policies;
    }
}

/// What a packet between these two is told as, at one end of a connection of this node.
fn told(
    cluster: &plain::Cluster,
    node: &NodeName,
    egress: bool,
    protocol: u8,
    ends: [SocketAddr; 2],
) -> Descriptor {
    let local =
        |end: SocketAddr| cluster.pod_at(end.ip()).is_some_and(|pod| pod.node == node.as_str());
    let mark = |bit, set| if set { bit } else { 0 };
    Descriptor {
        flags: mark(flags::SOURCE_LOCAL_POD, local(ends[0]))
            | mark(flags::DESTINATION_LOCAL_POD, local(ends[1]))
            | mark(flags::EGRESS, egress),
        source: mapped(ends[0].ip()),
        destination: mapped(ends[1].ip()),
        source_port: ends[0].port(),
        destination_port: ends[1].port(),
        protocol,
        ip_version: if ends[0].is_ipv4() { 4 } else { 6 },
        segments: 1,
        ..Descriptor::default()
    }
}

fn answer(plugin: &mut NativePlugin<weft_policy::Policies>, told: &Descriptor) -> bool {
    let outcome = plugin.on_packet(told, &[0x45]).unwrap();
    Answered::from(outcome.verdict) == Answered::Continue
}

/// A step: how many things change at once, which pod of the node the runtime has already taken away or
/// the hub does not know yet, and whether the hub tells of subnets.
type Step = (u8, Option<prop::sample::Index>, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gone = prop::option::weighted(0.3, any::<prop::sample::Index>());
    prop::collection::vec((1..4_u8, gone, prop::bool::weighted(0.9)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// NP-002, NP-090 to NP-095: numbers may differ, verdicts may not.
    #[test]
    fn increments_allow_what_the_whole_allows(seed in any::<u64>(), steps in steps()) {
        let mut generator = plain::Generator::new(seed);
        let mut cluster = generator.cluster();
        let mut nodes = NODES.map(Chain::new);
        for (generation, (changes, gone, with_subnets)) in (1..).zip(steps) {
            let next = published(&cluster, generation, with_subnets);
            for node in &mut nodes {
                let mut policed = policed(&cluster, &node.name);
                if let Some(gone) = gone.filter(|_| !policed.is_empty()) {
                    policed.remove(gone.index(policed.len()));
                }
                node.update(&next, &cluster, &policed);
                let whole = compile_snapshot(&next, &cluster, &node.name, &policed, None);
                let config = whole.complete().encode_to_vec();
                let mut fresh = NativePlugin::<weft_policy::Policies>::new(config).unwrap();
                prop_assert_eq!(whole.is_empty(), node.policies.is_empty());
                for _ in 0..40 {
                    let (from, to) = generator.ends(&cluster);
                    let (protocol, port) = generator.service();
                    let ends = [SocketAddr::new(from, 40_000), SocketAddr::new(to, port)];
                    for egress in [true, false] {
                        let told =
                            told(&cluster, &node.name, egress, protocol.number(), ends);
                        let answers = [answer(&mut node.plugin, &told), answer(&mut fresh, &told)];
                        prop_assert_eq!(answers[0], answers[1], "{:?} {:#?}", ends, cluster);
                    }
                }
                // Nothing of what was is left.
                let size = |tables: PolicyTables| {
                    (tables.addresses_v4.len(), tables.sets.len(), tables.programs.len())
                };
                prop_assert_eq!(size(node.policies.complete()), size(whole.complete()));
            }
            for _ in 0..changes {
                generator.change(&mut cluster);
            }
        }
    }
}
