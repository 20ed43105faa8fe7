use weft_model::PolicyTier;

use super::*;

const EVERYBODY: &str = "subject: {namespaces: {}}";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n"
    )
}

fn admin(rest: &str) -> String {
    policy(&format!("tier: Admin, priority: 10, {EVERYBODY}, {rest}"))
}

fn egress(rule: &str) -> String {
    admin(&format!("egress: [{{{rule}}}]"))
}

/// The only rule for egress, as it should be.
fn one(given: &str) -> String {
    let [found] = rules(&good(&egress(given)).egress).unwrap().try_into().unwrap();
    found
}

/// The only rule for egress, and what is said of it.
fn one_bad(given: &str) -> (String, Vec<String>) {
    let (policy, problems) = bad(&egress(given));
    let [found] = rules(&policy.egress).unwrap().try_into().unwrap();
    (found, problems)
}

const TO_ALL: &str = "to: [{namespaces: {}}]";

/// NP-130, NP-131: rules stay in their order.
#[test]
fn tier_priority_and_order_are_taken() {
    let of = |tier: &str, priority: u16| {
        good(&policy(&format!("tier: {tier}, priority: {priority}, {EVERYBODY}"))).tier
    };
    assert_eq!(of("Admin", 0), PolicyTier::Admin(0));
    assert_eq!(of("Baseline", 1000), PolicyTier::Baseline(1000));
    let from = "from: [{namespaces: {}}]";
    let list = format!(
        "[{{action: Pass, {from}}}, {{action: Deny, name: b, {from}}}, {{action: Accept, {from}}}]"
    );
    let policy = good(&admin(&format!("ingress: {list}")));
    let expected = ["ingress[0] Pass [*/*] any", "b Deny [*/*] any", "ingress[2] Accept [*/*] any"];
    assert_eq!(rules(&policy.ingress).unwrap(), expected);
    assert_eq!(policy.name.to_string(), "ClusterNetworkPolicy p");
}

/// NP-136.
#[test]
fn direction_without_rules_is_not_touched() {
    for rest in ["", "ingress: [], egress: null"] {
        let policy = good(&admin(rest));
        assert_eq!((&policy.ingress, &policy.egress), (&None, &None));
    }
    let policy = good(&egress(&format!("action: Deny, {TO_ALL}")));
    assert!(policy.ingress.is_none() && policy.egress.is_some());
}

/// NP-137.
#[test]
fn subject_is_namespaces_or_pods() {
    let subject = |text: &str| {
        pods(&good(&policy(&format!("tier: Admin, priority: 1, subject: {text}"))).subject)
    };
    assert_eq!(subject("{namespaces: {}}"), "*/*");
    assert_eq!(subject("{namespaces: {matchLabels: {a: b}}}"), "a in [b]/*");
    assert_eq!(subject("{pods: {namespaceSelector: {}, podSelector: {}}}"), "*/*");
    let both =
        "{pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}";
    assert_eq!(subject(both), "a in [b]/c in [d]");
    assert_eq!(subject("{pods: {podSelector: {}}}"), "*/*");
}

/// NP-110: for more pods than was meant, or out of its place, only rules that drop are harmless.
#[test]
fn policy_for_whom_or_when_is_not_certain_only_drops() {
    let list = format!(
        "[{{action: Accept, {TO_ALL}}}, {{action: Pass, {TO_ALL}}}, {{action: Deny, {TO_ALL}}}]"
    );
    for (head, subject, says) in [
        ("tier: Admin, priority: 1, subject: {}", "*/*", "no known kind of subject"),
        ("tier: Admin, priority: 1", "*/*", "no known kind of subject"),
        ("tier: Admin, priority: 1, subject: {nodes: {}}", "*/*", "`nodes` is no known field"),
        (
            "tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}",
            "*/*",
            "exclude each other",
        ),
        (
            "tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: Like}]}}",
            "a in [b]/*",
            "operator `Like`",
        ),
        (
            "tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {matchLabels: {a: b}}}}",
            "a in [b]/*",
            "podSelector is missing",
        ),
        ("tier: Other, priority: 1, subject: {namespaces: {}}", "*/*", "`Other` is neither"),
        ("priority: 1, subject: {namespaces: {}}", "*/*", "`` is neither Admin nor Baseline"),
        ("tier: Baseline, subject: {namespaces: {}}", "*/*", "it is missing and counts as 0"),
    ] {
        let (policy, problems) = bad(&policy(&format!("{head}, egress: {list}")));
        assert_eq!(rules(&policy.egress).unwrap(), ["egress[2] Deny [*/*] any"], "{head}");
        assert_eq!(pods(&policy.subject), subject, "{head}");
        assert!(problems.len() == 1 && problems[0].contains(says), "{head}: {problems:?}");
        assert!(problems[0].ends_with("only rules that drop are left of the policy"));
    }
}

/// NP-141.
#[test]
fn priority_out_of_range_keeps_its_order() {
    for (given, tier) in [(-1, PolicyTier::Baseline(0)), (70_000, PolicyTier::Baseline(1000))] {
        let (policy, problems) =
            bad(&policy(&format!("tier: Baseline, priority: {given}, {EVERYBODY}")));
        assert_eq!(policy.tier, tier);
        assert!(problems[0].contains("is not between 0 and 1000"), "{problems:?}");
    }
}

/// NP-138.
#[test]
fn peers_are_pods_networks_and_nodes() {
    let to = |peers: &str| one(&format!("action: Deny, to: [{peers}]"));
    assert_eq!(to("{namespaces: {matchLabels: {a: b}}}"), "egress[0] Deny [a in [b]/*] any");
    let both =
        "{pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}";
    assert_eq!(to(both), "egress[0] Deny [a in [b]/c in [d]] any");
    assert_eq!(to("{pods: {podSelector: {}}}"), "egress[0] Deny [*/*] any");
    let networks = "{networks: [10.0.0.1/8, 'fd00::/8']}, {nodes: {}}";
    assert_eq!(to(networks), "egress[0] Deny [10.0.0.0/8, fd00::/8, nodes *] any");
    let nodes = "{nodes: {matchExpressions: [{key: a, operator: Exists}]}}";
    assert_eq!(to(nodes), "egress[0] Deny [nodes a] any");
    for peer in ["{namespaces: {}}", "{pods: {podSelector: {}}}"] {
        let policy = good(&admin(&format!("ingress: [{{action: Deny, from: [{peer}]}}]")));
        assert_eq!(rules(&policy.ingress).unwrap(), ["ingress[0] Deny [*/*] any"]);
    }
}

/// NP-139.
#[test]
fn unknown_peer_makes_a_rule_match_nothing_or_drop_everything() {
    for (peer, says) in [
        ("{}", "no known kind of peer"),
        ("{services: {}}", "`services` is no known field"),
        ("{namespaces: {}, nodes: {}}", "exclude each other"),
        ("{namespaces: {}, but: x}", "`but` is no known field"),
        ("{namespaces: {matchExpressions: [{key: a, operator: Like}]}}", "operator `Like`"),
        ("{networks: [10.0.0.0/8, junk]}", "`junk` is no CIDR"),
        ("{networks: []}", "no known kind of peer"),
        ("{pods: {namespaceSelector: {}}}", "podSelector is missing"),
    ] {
        let with = |action: &str| {
            let rule = "to: [{namespaces: {}}, PEER], protocols: [{tcp: {}}]";
            one_bad(&format!("action: {action}, {}", rule.replace("PEER", peer)))
        };
        let (rule, problems) = with("Accept");
        assert_eq!(rule, "egress[0] Accept [] any", "{peer}");
        let end = "; the rule matches nothing";
        assert!(problems[0].contains(says) && problems[0].ends_with(end), "{problems:?}");
        for action in ["Deny", "Pass"] {
            let (rule, problems) = with(action);
            assert_eq!(rule, "egress[0] Deny any any", "{peer}");
            assert!(problems[0].starts_with("`spec.egress[0].to[1]`: "), "{problems:?}");
            assert!(problems[0].ends_with("; the rule drops everything"), "{problems:?}");
        }
    }
}

/// NP-139: peers that are not of this direction, and none at all.
#[test]
fn rule_without_peers_of_its_direction_is_closed() {
    for (given, says) in [
        ("from: [{networks: [10.0.0.0/8]}]", "have namespaces and pods as peers"),
        ("from: [{nodes: {}}]", "have namespaces and pods as peers"),
        ("to: [{namespaces: {}}]", "its peers are in `from` only"),
        ("from: []", "there are no peers"),
        ("name: a", "there are no peers"),
        ("from: [{namespaces: {}}], port: 80", "`port` is no known field"),
    ] {
        let (policy, problems) = bad(&admin(&format!("ingress: [{{action: Pass, {given}}}]")));
        let [rule] = rules(&policy.ingress).unwrap().try_into().unwrap();
        assert!(rule.ends_with(" Deny any any"), "{given}: {rule}");
        assert!(problems.len() == 1 && problems[0].contains(says), "{given}: {problems:?}");
    }
}

#[test]
fn unknown_action_drops() {
    for action in ["Allow", "''", "null"] {
        let (rule, problems) = one_bad(&format!("action: {action}, {TO_ALL}"));
        assert_eq!(rule, "egress[0] Deny [*/*] any");
        let says = if action == "null" { "it is missing" } else { "is none of Accept, Deny, Pass" };
        assert!(problems[0].contains(says), "{problems:?}");
    }
}

/// NP-138, NP-150, NP-151, NP-152, NP-168.
#[test]
fn domain_names_are_for_rules_of_tier_admin_that_accept() {
    let names = "{domainNames: [API.example.com., '*.Example.org']}";
    let peers = format!("to: [{names}, {{networks: [10.0.0.0/8]}}]");
    let rule = one(&format!("action: Accept, {peers}"));
    assert_eq!(rule, "egress[0] Accept [api.example.com, *.example.org, 10.0.0.0/8] any");
    for action in ["Deny", "Pass"] {
        let (rule, problems) = one_bad(&format!("action: {action}, {peers}"));
        assert_eq!(rule, "egress[0] Deny any any");
        assert!(problems[0].contains("for rules that accept"), "{problems:?}");
    }
    let head = "tier: Baseline, priority: 1, subject: {namespaces: {}}";
    let list = format!("[{{action: Accept, to: [{names}]}}]");
    let (baseline, problems) = bad(&policy(&format!("{head}, egress: {list}")));
    assert_eq!(rules(&baseline.egress).unwrap(), ["egress[0] Accept [] any"]);
    assert!(problems[0].contains("for tier Admin"), "{problems:?}");
    for name in ["'*'", "a.*.example", "'a b'", "''"] {
        let (rule, problems) =
            one_bad(&format!("action: Accept, to: [{{domainNames: [a.example, {name}]}}]"));
        assert_eq!(rule, "egress[0] Accept [] any");
        assert!(problems[0].contains("is no name such as"), "{problems:?}");
    }
    let rule = format!("action: Accept, to: [{names}], protocols: [{{destinationNamedPort: a}}]");
    let (_, problems) = one_bad(&rule);
    assert!(problems[0].contains("for peers that are namespaces or pods"), "{problems:?}");
}

/// NP-140.
#[test]
fn protocols_are_numbers_ranges_and_names() {
    let ports = |list: &str| {
        let rule = one(&format!("action: Pass, {TO_ALL}, protocols: {list}"));
        rule.strip_prefix("egress[0] Pass [*/*] ").unwrap().to_owned()
    };
    assert_eq!(ports("null"), "any");
    assert_eq!(ports("[{tcp: {}}, {udp: {}}, {sctp: {}}]"), "[TCP, UDP, SCTP]");
    assert_eq!(ports("[{tcp: {destinationPort: {number: 80}}}]"), "[TCP 80]");
    let range = "[{udp: {destinationPort: {range: {start: 80, end: 90}}}}]";
    assert_eq!(ports(range), "[UDP 80-90]");
    let named = "[{destinationNamedPort: http}, {sctp: {destinationPort: {number: 1}}}]";
    assert_eq!(ports(named), "[TCP http, UDP http, SCTP http, SCTP 1]");
}

/// NP-139, NP-140: as with peers, but no further than the rule's peers.
#[test]
fn protocol_that_is_not_understood_is_closed() {
    for (entry, says) in [
        ("{}", "no known kind of protocol"),
        ("{icmp: {}}", "`icmp` is no known field"),
        ("{tcp: {}, udp: {}}", "exclude each other"),
        ("{tcp: {}, destinationNamedPort: http}", "exclude each other"),
        ("{tcp: {flags: syn}}", "`flags` is no known field"),
        ("{tcp: {destinationPort: {}}}", "either a number or a range"),
        ("{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}", "either a number"),
        ("{tcp: {destinationPort: {number: 0}}}", "`0` is no port"),
        ("{tcp: {destinationPort: {number: 65536}}}", "`65536` is no port"),
        ("{tcp: {destinationPort: {range: {start: 9, end: 8}}}}", "less than its start 9"),
        ("{tcp: {destinationPort: {range: {start: 9}}}}", "end of the range is missing"),
        ("{destinationNamedPort: ''}", "is no name of a port"),
    ] {
        let with = |action: &str| {
            one_bad(&format!("action: {action}, {TO_ALL}, protocols: [{entry}, {{sctp: {{}}}}]"))
        };
        let (rule, problems) = with("Accept");
        assert_eq!(rule, "egress[0] Accept [*/*] [SCTP]", "{entry}");
        assert!(problems.len() == 1 && problems[0].contains(says), "{entry}: {problems:?}");
        assert_eq!(with("Deny").0, "egress[0] Deny [*/*] any", "{entry}");
        assert_eq!(with("Pass").0, "egress[0] Deny [*/*] any", "{entry}");
    }
    let named = "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]";
    let (rule, problems) = one_bad(&format!("action: Accept, {named}"));
    assert_eq!(rule, "egress[0] Accept [10.0.0.0/8] []");
    assert!(problems[0].contains("for peers that are namespaces or pods"), "{problems:?}");
}

/// NP-141: what no CRD has cut off counts, and is said.
#[test]
fn lists_beyond_the_limits_are_noted_and_count() {
    let times = |n: usize, item: &str| vec![item; n].join(", ");
    let rule = format!("{{action: Deny, {TO_ALL}}}");
    let (all, problems) = bad(&admin(&format!("egress: [{}]", times(26, &rule))));
    assert_eq!(all.egress.as_ref().unwrap().len(), 26);
    assert_eq!(problems, ["`spec.egress`: 26 rules are more than the 25 of the API; all count"]);
    good(&admin(&format!("egress: [{}]", times(25, &rule))));
    let networks = times(26, "10.0.0.0/8");
    for (given, says) in [
        (format!("to: [{}]", times(26, "{namespaces: {}}")), "26 peers"),
        (format!("to: [{{networks: [{networks}]}}]"), "26 networks"),
        (format!("{TO_ALL}, protocols: [{}]", times(26, "{tcp: {}}")), "26 entries"),
    ] {
        let (_, problems) = one_bad(&format!("action: Accept, {given}"));
        assert!(problems.len() == 1 && problems[0].contains(says), "{problems:?}");
    }
    // 100 objects of a tier.
    let objects: Vec<_> = (0..100)
        .map(|i| {
            egress(&format!("action: Deny, {TO_ALL}")).replace("name: p", &format!("name: p{i}"))
        })
        .collect();
    assert_eq!(made(&objects.join("---\n")).policies.len(), 100);
}

#[test]
fn rules_are_called_by_their_names() {
    let named = |name: &str| one_bad(&format!("name: {name}, action: Deny, {TO_ALL}"));
    let (rule, problems) = named("\"block the lab\"");
    assert_eq!((rule.as_str(), problems.len()), ("block the lab Deny [*/*] any", 0));
    assert_eq!(named("''").0, "egress[0] Deny [*/*] any");
    for name in ["\"a\\nb\"".to_owned(), "a".repeat(101)] {
        let (rule, problems) = named(&name);
        assert_eq!((rule.as_str(), problems.len()), ("egress[0] Deny [*/*] any", 1));
    }
}

#[test]
fn audited_cluster_policy_is_watched() {
    let annotated = "annotations: {weft.dev/policy-mode: audit}, name: p";
    assert!(good(&admin("").replace("name: p", annotated)).watched);
}

/// The two kinds are told apart by their namespace.
#[test]
fn policies_of_one_name_do_not_meet() {
    let other = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let outcome = made(&format!("{}---\n{other}", admin("")));
    let names: Vec<_> = outcome.policies.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["ClusterNetworkPolicy p", "NetworkPolicy default/p"]);
}

/// NP-110, NP-139: a field that may be a misspelt list of rules, or what cannot be read at all.
#[test]
fn policy_that_may_say_anything_drops_everything() {
    let deny = ["spec Deny any any"];
    let (policy, problems) = bad(&admin("ingres: [{action: Deny, from: [{namespaces: {}}]}]"));
    assert_eq!(
        (rules(&policy.ingress).unwrap(), rules(&policy.egress).unwrap()),
        (deny.map(Into::into).to_vec(), deny.map(Into::into).to_vec())
    );
    assert_eq!(
        problems,
        ["`spec`: `ingres` is no known field; the policy drops everything in both directions"]
    );
    let (policy, problems) = bad(&admin("").replace("spec:", "spek:"));
    assert_eq!(pods(&policy.subject), "*/*");
    assert_eq!(rules(&policy.ingress).unwrap(), deny);
    assert!(problems.iter().any(|p| p.contains("`spek` is no known field")), "{problems:?}");
    let source = read(&admin("").replace("priority: 10", "priority: ten"));
    let outcome = build(&source);
    let policy = outcome.policies.values().next().unwrap();
    assert_eq!(rules(&policy.egress).unwrap(), deny);
    assert!(outcome.problems.iter().any(|p| p.reason.contains("it cannot be read")));
}
