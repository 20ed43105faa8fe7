//! What is explained, against a plain reading of the rules: NP-114.

use weft_proto::v1::decision::Reason;
use weft_proto::v1::{DecidingRule, Decision, EndPorts, EndQuestion, Ports};

use super::*;
use crate::tables::policies::explain::Explaining;

fn question(egress: bool, from: IpAddr, to: IpAddr, ports: Option<Ports>) -> EndQuestion {
    let (pod, peer) = if egress { (from, to) } else { (to, from) };
    EndQuestion { egress, pod: pod.to_string(), peer: peer.to_string(), ports }
}

fn port(protocol: plain::Protocol, port: u16) -> Ports {
    let port = u32::from(port);
    match protocol.has_ports() {
        true => Ports { protocol: protocol.number().into(), first: port, last: port },
        false => Ports::default(),
    }
}

fn one(explaining: &Explaining<'_>, question: &EndQuestion) -> EndPorts {
    let [answer] = explaining.answer(question).unwrap().ports.try_into().unwrap();
    answer
}

/// A connection at one of its ends.
#[derive(Clone, Copy, Debug)]
struct End {
    egress: bool,
    from: IpAddr,
    to: IpAddr,
    protocol: plain::Protocol,
    port: u16,
}

impl End {
    fn allowed(self, cluster: &plain::Cluster) -> bool {
        let rules = if self.egress { plain::egress_allowed } else { plain::ingress_allowed };
        rules(cluster, self.from, self.to, self.protocol, self.port)
    }

    fn direction(self) -> plain::Direction {
        if self.egress { plain::Direction::Egress } else { plain::Direction::Ingress }
    }

    fn pod(self, cluster: &plain::Cluster) -> &plain::Pod {
        cluster.pod_at(if self.egress { self.from } else { self.to }).unwrap()
    }
}

/// All that is not about policies.
fn without_policies(cluster: &plain::Cluster) -> plain::Cluster {
    let (policies, cluster_policies) = (BTreeMap::new(), BTreeMap::new());
    plain::Cluster { policies, cluster_policies, ..cluster.clone() }
}

/// True if the rule that is named matches: with nothing but it, it makes the difference.
fn matches(cluster: &plain::Cluster, end: End, rule: &DecidingRule) -> bool {
    let name = rule.policy.clone().unwrap();
    let place = usize::try_from(rule.number).unwrap() - 1;
    let mut alone = without_policies(cluster);
    if name.namespace.is_empty() {
        let mut policy = cluster.cluster_policies[&name.name].clone();
        let rules = match end.direction() {
            plain::Direction::Ingress => &mut policy.ingress,
            plain::Direction::Egress => &mut policy.egress,
        };
        let mut rule = rules[place].clone();
        rule.action = plain::Action::Deny;
        *rules = vec![rule];
        policy.watched = false;
        alone.cluster_policies.insert(name.name, policy);
        return !end.allowed(&alone);
    }
    let key = (name.namespace, name.name);
    let mut policy = cluster.policies[&key].clone();
    let rules = match end.direction() {
        plain::Direction::Ingress => &mut policy.ingress,
        plain::Direction::Egress => &mut policy.egress,
    };
    *rules = vec![rules[place].clone()];
    policy.watched = false;
    alone.policies.insert(key, policy);
    end.allowed(&alone)
}

/// NetworkPolicies that isolate the end's pod.
fn isolating(cluster: &plain::Cluster, end: End, watched: bool) -> Vec<String> {
    let pod = end.pod(cluster);
    let all = cluster.policies.iter().filter(|((namespace, _), policy)| {
        *namespace == pod.namespace
            && policy.pods.matches(&pod.labels)
            && policy.covers(end.direction())
            && (watched || !policy.watched)
    });
    all.map(|((_, name), _)| name.clone()).collect()
}

/// That what is named is what the rules say.
fn check(
    cluster: &plain::Cluster,
    end: End,
    decision: &Decision,
    watched: bool,
) -> Result<(), String> {
    let whole = match watched {
        true => cluster.with_watched(),
        false => cluster.clone(),
    };
    let named = |tier| {
        let [rule] = decision.rules.as_slice() else { return false };
        let policy = &cluster.cluster_policies[&rule.policy.as_ref().unwrap().name];
        policy.tier == tier && matches(cluster, end, rule)
    };
    let isolating = isolating(&whole, end, false);
    let right = match decision.reason() {
        Reason::Admin => named(plain::Tier::Admin),
        Reason::Baseline => named(plain::Tier::Baseline) && isolating.is_empty(),
        Reason::Allowed => {
            let all = decision.rules.iter().all(|rule| matches(cluster, end, rule));
            all && !decision.rules.is_empty() && !isolating.is_empty()
        }
        Reason::Isolated => {
            let names = decision.rules.iter().map(|r| r.policy.clone().unwrap().name);
            names.collect::<Vec<_>>() == isolating && !isolating.is_empty()
        }
        Reason::NoMatch => isolating.is_empty(),
        Reason::NotSelected => isolating.is_empty(),
        Reason::Itself | Reason::OwnNode => {
            let (pod, peer) = if end.egress { (end.from, end.to) } else { (end.to, end.from) };
            let own = &cluster.nodes[&end.pod(cluster).node].addresses;
            match decision.reason() {
                Reason::Itself => pod == peer,
                // NP-061, NP-063
                _ => own.contains(&peer) && (!end.egress || !isolating.is_empty()),
            }
        }
        Reason::NoPolicies => cluster.policies.is_empty() && cluster.cluster_policies.is_empty(),
        Reason::Unspecified | Reason::NoPod | Reason::UnknownPod => false,
    };
    if right { Ok(()) } else { Err(format!("{decision:?}")) }
}

/// NP-114: the verdict is that of the rules, and so of the datapath, which is held against the same; what
/// is named decides; and what is said of all ports is what is said of each.
#[test]
fn explanations_agree_with_the_rules() {
    let (mut allowed, mut denied, mut audited, mut reasons) = (0, 0, 0, BTreeMap::new());
    for seed in 0..150 {
        let mut generator = plain::Generator::new(seed);
        let mut cluster = generator.cluster();
        let mut nodes = NODES.map(|name| compile(&cluster, &name.parse().unwrap(), None));
        for _ in 0..6 {
            let snapshot = snapshot(&cluster);
            let nodes_now: BTreeMap<_, _> = NODES
                .into_iter()
                .zip(&nodes)
                .map(|(name, policies)| (name, Explaining::new(policies, &snapshot).unwrap()))
                .collect();
            for _ in 0..30 {
                let (from, to) = generator.ends(&cluster);
                let (protocol, number) = generator.service();
                for egress in [true, false] {
                    let end = End { egress, from, to, protocol, port: number };
                    let Some(pod) = cluster.pod_at(if egress { from } else { to }) else {
                        continue;
                    };
                    let explaining = &nodes_now[pod.node.as_str()];
                    let asked = port(protocol, number);
                    let told = one(explaining, &question(egress, from, to, Some(asked)));
                    let decision = told.decision.clone().unwrap();
                    let context = || format!("seed {seed}, {end:?}: {told:?}\n{cluster:#?}");
                    let passes = !weft_explain::drops(&decision);
                    assert_eq!(passes, end.allowed(&cluster), "{}", context());
                    let would_pass = end.allowed(&cluster.with_watched());
                    assert_eq!(told.audited.is_some(), passes && !would_pass, "{}", context());
                    let rules = |watched, decision: &Decision| {
                        let checked = check(&cluster, end, decision, watched);
                        assert!(checked.is_ok(), "{checked:?} {}", context());
                        *reasons.entry(format!("{:?}", decision.reason())).or_insert(0) += 1;
                    };
                    let mut rules = rules;
                    rules(false, &decision);
                    told.audited.iter().for_each(|decision| rules(true, decision));
                    let every = explaining.answer(&question(egress, from, to, None)).unwrap().ports;
                    let within = every.iter().filter(|one| {
                        let ports = one.ports.unwrap();
                        ports.protocol == asked.protocol
                            && (ports.first..=ports.last).contains(&asked.first)
                    });
                    let [same] = within.collect::<Vec<_>>().try_into().unwrap();
                    assert_eq!(same.decision, told.decision, "{}", context());
                    assert_eq!(same.audited, told.audited, "{}", context());
                    allowed += usize::from(passes);
                    denied += usize::from(!passes);
                    audited += usize::from(told.audited.is_some());
                }
            }
            drop(nodes_now);
            generator.change(&mut cluster);
            nodes = NODES
                .into_iter()
                .zip(&nodes)
                .map(|(name, before)| compile(&cluster, &name.parse().unwrap(), Some(before)))
                .collect::<Vec<_>>()
                .try_into()
                .unwrap();
        }
    }
    assert!(allowed > 10_000 && denied > 2_000 && audited > 100, "{allowed} {denied} {audited}");
    // Each happens, and often.
    for reason in ["Admin", "Allowed", "Isolated", "Baseline", "NotSelected", "NoMatch", "OwnNode"]
    {
        assert!(reasons.get(reason).is_some_and(|n| *n > 50), "{reason} in {reasons:?}");
    }
}

/// Policies of every node.
fn compiled(cluster: &plain::Cluster) -> BTreeMap<String, Policies> {
    let names = cluster.nodes.keys();
    names.map(|name| (name.clone(), compile(cluster, &name.parse().unwrap(), None))).collect()
}

fn explaining<'a>(
    compiled: &'a BTreeMap<String, Policies>,
    snapshot: &'a Snapshot,
) -> BTreeMap<&'a str, Explaining<'a>> {
    let one = |(name, policies): (&'a String, &'a Policies)| {
        (name.as_str(), Explaining::new(policies, snapshot).unwrap())
    };
    compiled.iter().map(one).collect()
}

/// True if a connection is said to pass at each end that is a pod.
fn connects(
    explaining: &BTreeMap<&str, Explaining<'_>>,
    cluster: &plain::Cluster,
    connection: &plain::Connection,
    (from, to): (IpAddr, IpAddr),
) -> bool {
    let asked = port(connection.protocol, connection.port);
    [(true, from), (false, to)].into_iter().all(|(egress, at)| {
        let Some(pod) = cluster.pod_at(at) else { return true };
        let node = &explaining[pod.node.as_str()];
        let told = one(node, &question(egress, from, to, Some(asked)));
        !weft_explain::drops(&told.decision.unwrap())
    })
}

/// NP-114, NP-120: the cases of Kubernetes' own tests, every connection of them.
#[test]
fn explanations_agree_with_the_upstream_cases() {
    let mut cells = 0;
    for case in plain::upstream_cases() {
        let (snapshot, compiled) = (snapshot(&case.cluster), compiled(&case.cluster));
        let explaining = explaining(&compiled, &snapshot);
        for connection in plain::Case::connections() {
            let [from, to] = [connection.from, connection.to].map(|pod| case.addresses(pod));
            for ends in from.into_iter().zip(to) {
                let passes = connects(&explaining, &case.cluster, &connection, ends);
                assert_eq!(passes, (case.expected)(&connection), "{}: {connection:?}", case.name);
                cells += 1;
            }
        }
    }
    assert!(cells > 30_000, "{cells}");
}

/// NP-114, NP-145: every connection that the conformance suite for ClusterNetworkPolicies tries.
#[test]
fn explanations_agree_with_the_conformance_suite() {
    let mut cells = 0;
    for case in plain::conformance_cases() {
        let (snapshot, compiled) = (snapshot(&case.cluster), compiled(&case.cluster));
        let explaining = explaining(&compiled, &snapshot);
        for probe in &case.probes {
            let connection = &probe.connection;
            let [from, to] = [connection.from, connection.to].map(|pod| case.addresses(pod));
            for ends in from.into_iter().zip(to) {
                let passes = connects(&explaining, &case.cluster, connection, ends);
                let name = (&case.test, case.sub_test);
                assert_eq!(passes, probe.allowed, "{name:?}: {connection:?}");
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 2 * 298);
}
