//! The rules, read plainly and slowly, against the plugin: over whole clusters and what becomes of
//! them step by step.

use std::net::{IpAddr, SocketAddr};

use weft_fuzz::Random;
use weft_policy_model::{
    Case, Cluster, Connection, Generator, conformance_cases, egress_allowed, ingress_allowed,
    upstream_cases,
};
use weft_policy_sdk::flags;
use weft_proto::tables::v1::PolicyTables;

use super::compile::{Compiler, difference, is_local};
use super::node::*;

const NODES: [&str; 2] = ["node-1", "node-2"];
const CLIENT_PORT: u16 = 40_000;

/// Both nodes of a cluster, kept up to date by deltas.
struct Fabric {
    compiler: Compiler,
    nodes: [(Node, PolicyTables); 2],
}

#[derive(Debug, Default)]
struct Counts {
    allowed: usize,
    denied: usize,
    watched: usize,
}

impl Fabric {
    fn new(cluster: &Cluster) -> Self {
        let mut compiler = Compiler::default();
        let nodes = NODES.map(|name| {
            let tables = compiler.compile(cluster, name);
            (Node::with(&tables), tables)
        });
        Self { compiler, nodes }
    }

    fn update(&mut self, cluster: &Cluster, random: &mut Random) {
        for ((node, held), name) in self.nodes.iter_mut().zip(NODES) {
            let tables = self.compiler.compile(cluster, name);
            if random.below(20) == 0 {
                node.full(&tables);
            } else {
                node.delta(&difference(held, &tables, random));
            }
            *held = tables;
        }
    }
}

/// A connection, as it is judged at one end.
#[derive(Clone, Copy, Debug)]
struct Cell<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    protocol: u8,
    from: IpAddr,
    to: IpAddr,
    port: u16,
}

impl Cell<'_> {
    fn place(&self, from: IpAddr, to: IpAddr) -> u32 {
        let own = &self.cluster.nodes[self.node].addresses;
        let mark = |bit, set| if set { bit } else { 0 };
        mark(flags::SOURCE_LOCAL_POD, is_local(self.cluster, from, self.node))
            | mark(flags::DESTINATION_LOCAL_POD, is_local(self.cluster, to, self.node))
            | mark(flags::SOURCE_HOST, own.contains(&from))
    }

    /// True if the first packet passes and answers too; nothing if they differ.
    fn passes(&self, node: &mut Node, at: At) -> Option<bool> {
        let from = SocketAddr::new(self.from, CLIENT_PORT);
        let to = SocketAddr::new(self.to, self.port);
        let first = node.ask(at, self.place(self.from, self.to), self.protocol, from, to);
        let back = if at == At::Egress { At::Ingress } else { At::Egress };
        let flags = self.place(self.to, self.from) | flags::REPLY;
        let answer = node.ask(back, flags, self.protocol, to, from);
        (first == answer).then(|| first == "pass")
    }
}

/// Compares connections at each of their ends.
fn compare(
    fabric: &mut Fabric,
    cluster: &Cluster,
    generator: &mut Generator,
    cells: usize,
    counts: &mut Counts,
) {
    let watched = cluster.with_watched();
    for _ in 0..cells {
        let (from, to) = generator.ends(cluster);
        let (protocol, port) = generator.service();
        for ((node, _), name) in fabric.nodes.iter_mut().zip(NODES) {
            node.forget();
            let number = protocol.number();
            let cell = Cell { cluster, node: name, protocol: number, from, to, port };
            for at in [At::Egress, At::Ingress] {
                let (end, rules): (_, fn(&_, _, _, _, _) -> bool) = match at {
                    At::Egress => (from, egress_allowed),
                    At::Ingress => (to, ingress_allowed),
                };
                if !is_local(cluster, end, name) {
                    continue;
                }
                let told = node.would_drop.len();
                let expected = rules(cluster, from, to, protocol, port);
                let passes = cell.passes(node, at);
                assert_eq!(passes, Some(expected), "{at:?} of {cell:#?}");
                let would_drop = expected && !rules(&watched, from, to, protocol, port);
                let lines = node.would_drop.len() - told;
                assert_eq!(lines, usize::from(would_drop), "watched {at:?} of {cell:#?}");
                counts.allowed += usize::from(expected);
                counts.denied += usize::from(!expected);
                counts.watched += lines;
            }
        }
    }
}

/// True if a new connection passes at each end that is a pod.
fn connects(
    fabric: &mut Fabric,
    cluster: &Cluster,
    connection: &Connection,
    (from, to): (IpAddr, IpAddr),
) -> bool {
    let (protocol, port) = (connection.protocol.number(), connection.port);
    fabric.nodes.iter_mut().zip(NODES).all(|((node, _), name)| {
        node.forget();
        let cell = Cell { cluster, node: name, protocol, from, to, port };
        let mut end =
            |at, address| !is_local(cluster, address, name) || cell.passes(node, at).unwrap();
        end(At::Egress, from) && end(At::Ingress, to)
    })
}

/// NP-120
#[test]
fn plugin_does_what_upstream_expects() {
    for case in upstream_cases() {
        let mut fabric = Fabric::new(&case.cluster);
        for connection in Case::connections() {
            let [from, to] = [connection.from, connection.to].map(|pod| case.addresses(pod));
            for ends in from.into_iter().zip(to) {
                let passes = connects(&mut fabric, &case.cluster, &connection, ends);
                assert_eq!(passes, (case.expected)(&connection), "{} {connection:?}", case.name);
            }
        }
    }
}

/// NP-145: through the sub-tests of each test by what changed.
#[test]
fn plugin_does_what_the_conformance_suite_expects() {
    let mut random = Random::new(145);
    let cases = conformance_cases();
    for test in cases.chunk_by(|a, b| a.test == b.test) {
        let mut fabric = Fabric::new(&test[0].cluster);
        for case in test {
            fabric.update(&case.cluster, &mut random);
            for probe in &case.probes {
                let connection = &probe.connection;
                let [from, to] = [connection.from, connection.to].map(|pod| case.addresses(pod));
                for ends in from.into_iter().zip(to) {
                    let passes = connects(&mut fabric, &case.cluster, connection, ends);
                    let name = (&case.test, case.sub_test);
                    assert_eq!(passes, probe.allowed, "{name:?} {connection:?}");
                }
            }
        }
    }
}

/// NP-001 to NP-007, NP-010 to NP-012, NP-020 to NP-027, NP-030 to NP-033, NP-037, NP-040 to
/// NP-053, NP-060 to NP-064, NP-080 to NP-082, NP-092, NP-094, NP-095, NP-130 to NP-140.
#[test]
fn plugin_allows_what_the_model_allows_through_all_changes() {
    let mut counts = Counts::default();
    for seed in 0..300 {
        let (mut generator, mut random) = (Generator::new(seed), Random::new(seed ^ 77));
        let mut cluster = generator.cluster();
        let mut fabric = Fabric::new(&cluster);
        compare(&mut fabric, &cluster, &mut generator, 60, &mut counts);
        for _ in 0..10 {
            for _ in 0..=random.below(3) {
                generator.change(&mut cluster);
            }
            fabric.update(&cluster, &mut random);
            compare(&mut fabric, &cluster, &mut generator, 30, &mut counts);
        }
        // All of it goes, and nothing is left.
        let gone = Cluster { nodes: cluster.nodes.clone(), ..Cluster::default() };
        for ((node, held), name) in fabric.nodes.iter_mut().zip(NODES) {
            let tables = fabric.compiler.compile(&gone, name);
            node.delta(&difference(held, &tables, &mut random));
            assert!(node.plugin.filter().tables.is_empty(), "something is left");
        }
    }
    let Counts { allowed, denied, watched } = counts;
    let enough = allowed > 20_000 && denied > 20_000 && watched > 1000;
    assert!(enough, "{allowed} {denied} {watched}");
}
