//! What is compiled from what differs allows what is compiled from nothing.

use proptest::prelude::*;

use super::*;
use crate::tables::tests::fqdn_policy;

/// Names of hosts that policies have.
const DOMAINS: [&str; 4] = ["a.example", "*.example", "b.other", "*.a.example"];
/// Names that pods ask for.
const ASKED: [&str; 4] = ["a.example", "b.a.example", "b.other", "c.other"];
/// What they are told, beside addresses of pods.
const TOLD: [&str; 3] = ["203.0.113.1", "203.0.113.2", "2001:db8::1"];

/// Policies that name hosts, by bits, and what pods were told: which pod, which name, which address.
#[derive(Clone, Debug)]
struct Names {
    policies: u8,
    told: Vec<(prop::sample::Index, usize, prop::sample::Index)>,
}

fn names() -> impl Strategy<Value = Names> {
    let told = (any::<prop::sample::Index>(), 0..ASKED.len(), any::<prop::sample::Index>());
    let told = prop::collection::vec(told, 0..6);
    (any::<u8>(), told).prop_map(|(policies, told)| Names { policies, told })
}

impl Names {
    /// Each bit is a policy of one name for all pods of a namespace.
    fn publish(&self, snapshot: &mut Snapshot, cluster: &plain::Cluster) {
        let namespaces: Vec<_> = cluster.namespaces.keys().collect();
        for bit in (0..8).filter(|bit| self.policies >> bit & 1 == 1 && !namespaces.is_empty()) {
            let namespace = namespaces[bit % namespaces.len()].clone();
            let domains = [DOMAINS[bit % 4], DOMAINS[bit / 2]];
            let policy = fqdn_policy(&namespace, &format!("f{bit}"), &domains, None);
            snapshot.policies.insert(policy.name.clone(), policy.into());
        }
    }

    /// What pods of a node know. What is as it was before is the same in memory, as it is in an agent.
    fn known(
        &self,
        cluster: &plain::Cluster,
        policed: &[(PodName, Vec<IpAddr>)],
        before: &BTreeMap<IpAddr, Arc<Known>>,
    ) -> BTreeMap<IpAddr, Arc<Known>> {
        let mut told: Vec<IpAddr> = TOLD.iter().map(|a| a.parse().unwrap()).collect();
        told.extend(cluster.pods.values().flat_map(|pod| &pod.addresses));
        let mut all: BTreeMap<IpAddr, Known> = BTreeMap::new();
        for (pod, name, address) in self.told.iter().filter(|_| !policed.is_empty()) {
            for own in &policed[pod.index(policed.len())].1 {
                let known = all.entry(*own).or_default();
                let address = told[address.index(told.len())];
                known.entry(ASKED[*name].into()).or_default().insert(address);
            }
        }
        let kept = |(pod, known): (IpAddr, Known)| {
            let same = before.get(&pod).filter(|before| ***before == known);
            (pod, same.cloned().unwrap_or_else(|| Arc::new(known)))
        };
        all.into_iter().map(kept).collect()
    }
}

/// What one node was told, step by step, with the hub's words kept as an agent keeps them.
struct Chain {
    name: NodeName,
    snapshot: Snapshot,
    policies: Policies,
    known: BTreeMap<IpAddr, Arc<Known>>,
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
        let (policies, known) = (Policies::default(), BTreeMap::new());
        Self { name: name.parse().unwrap(), snapshot, policies, known, plugin }
    }

    fn update(
        &mut self,
        next: &Snapshot,
        cluster: &plain::Cluster,
        policed: &[(PodName, Vec<IpAddr>)],
        known: BTreeMap<IpAddr, Arc<Known>>,
    ) {
        self.snapshot.apply(self.snapshot.delta_to(next)).unwrap();
        let before = Some(&self.policies);
        // What pods learn is told at once, without the rest.
        let learned_before = &self.known;
        let mut policies =
            compile_known(&self.snapshot, cluster, &self.name, policed, learned_before, before);
        policies.learn(&known);
        self.known = known;
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
    matches!(Answered::from(outcome.verdict), Answered::Continue | Answered::WouldDrop(_))
}

/// A step: how many things change at once, which pod of the node the runtime has already taken away or
/// the hub does not know yet, and whether the hub tells of subnets.
type Step = (u8, Option<prop::sample::Index>, bool, Names);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gone = prop::option::weighted(0.3, any::<prop::sample::Index>());
    prop::collection::vec((1..4_u8, gone, prop::bool::weighted(0.9), names()), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// NP-002, NP-090 to NP-095: numbers may differ, verdicts may not.
    #[test]
    fn increments_allow_what_the_whole_allows(seed in any::<u64>(), steps in steps()) {
        let mut generator = plain::Generator::new(seed);
        let mut cluster = generator.cluster();
        let mut nodes = NODES.map(Chain::new);
        for (generation, (changes, gone, with_subnets, names)) in (1..).zip(steps) {
            let mut next = published(&cluster, generation, with_subnets);
            names.publish(&mut next, &cluster);
            for node in &mut nodes {
                let mut policed = policed(&cluster, &node.name);
                if let Some(gone) = gone.filter(|_| !policed.is_empty()) {
                    policed.remove(gone.index(policed.len()));
                }
                let known = names.known(&cluster, &policed, &node.known);
                node.update(&next, &cluster, &policed, known);
                let known = &node.known;
                let whole = compile_known(&next, &cluster, &node.name, &policed, known, None);
                let config = whole.complete().encode_to_vec();
                let mut fresh = NativePlugin::<weft_policy::Policies>::new(config).unwrap();
                prop_assert_eq!(whole.is_empty(), node.policies.is_empty());
                prop_assert_eq!(node.policies.complete().learned, whole.complete().learned);
                prop_assert_eq!(node.policies.with_domains(), whole.with_domains());
                let learned = known.iter().flat_map(|(pod, known)| {
                    known.values().flatten().map(|address| (*pod, *address))
                });
                let learned: Vec<_> = learned.filter(|(a, b)| a.is_ipv4() == b.is_ipv4()).collect();
                let random: Vec<_> = (0..40).map(|_| generator.ends(&cluster)).collect();
                for (from, to) in learned.into_iter().chain(random) {
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
