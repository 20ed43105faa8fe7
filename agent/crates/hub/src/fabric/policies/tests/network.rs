use weft_model::PolicyTier;

use super::*;

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {{{spec}}}\n"
    )
}

/// Rules for ingress of a policy, and what is said of it.
fn ingress(list: &str) -> (Vec<String>, Vec<String>) {
    let (policy, problems) = bad(&policy(&format!("policyTypes: [Ingress], ingress: [{list}]")));
    (rules(&policy.ingress).unwrap(), problems)
}

/// Peers and ports of one rule that is as it should be; the same in both directions.
fn one(peers: &str, ports: &str) -> String {
    let of = |direction: &str, list: &str| {
        let spec =
            format!("policyTypes: [{direction}], {}: [{{{list}}}]", direction.to_lowercase());
        let policy = good(&policy(&spec));
        let [found] = rules(policy.ingress.as_ref().map_or(&policy.egress, |_| &policy.ingress))
            .unwrap()
            .try_into()
            .unwrap();
        let name = format!("{}[0] Accept ", direction.to_lowercase());
        found.strip_prefix(&name).unwrap().to_owned()
    };
    let with = |name: &str| {
        let peers = match peers {
            "" => String::new(),
            list => format!("{name}: {list}"),
        };
        let ports = match ports {
            "" => String::new(),
            list => format!("ports: {list}"),
        };
        [peers, ports].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(", ")
    };
    let (ingress, egress) = (of("Ingress", &with("from")), of("Egress", &with("to")));
    assert_eq!(ingress, egress);
    ingress
}

/// What becomes of a rule with one bad part beside a good one.
fn partly(list: &str, part: &str, good: &str) -> (String, String) {
    let (rules, problems) = ingress(&format!("{{{list}: [{part}, {good}]}}"));
    let [rule] = rules.try_into().unwrap();
    let [problem] = problems.try_into().unwrap();
    let field = format!("`spec.ingress[0].{list}[0]");
    assert!(problem.starts_with(&field) && problem.ends_with("it matches nothing"), "{problem}");
    (rule, problem)
}

/// NP-010, NP-011: which directions the table's rows isolate, and with which rules.
#[test]
fn policy_types_say_what_is_isolated() {
    let isolated = |spec: &str| {
        let policy = good(&policy(spec));
        let count = |rules: &Option<Vec<PolicyRule>>| rules.as_ref().map(Vec::len);
        (count(&policy.ingress), count(&policy.egress))
    };
    let (both, in_rules, out_rules) =
        ("ingress: [{}], egress: [{}]", "ingress: [{}]", "egress: [{}]");
    assert_eq!(isolated(""), (Some(0), None));
    assert_eq!(isolated("egress: []"), (Some(0), None));
    assert_eq!(isolated(in_rules), (Some(1), None));
    assert_eq!(isolated(out_rules), (Some(0), Some(1)));
    assert_eq!(isolated(both), (Some(1), Some(1)));
    assert_eq!(isolated(&format!("policyTypes: [], {out_rules}")), (Some(0), Some(1)));
    assert_eq!(isolated(&format!("policyTypes: [Ingress], {both}")), (Some(1), None));
    assert_eq!(isolated(&format!("policyTypes: [Ingress], {out_rules}")), (Some(0), None));
    assert_eq!(isolated(&format!("policyTypes: [Egress], {both}")), (None, Some(1)));
    assert_eq!(isolated(&format!("policyTypes: [Egress], {in_rules}")), (None, Some(0)));
    assert_eq!(isolated("policyTypes: [Egress], egress: []"), (None, Some(0)));
    assert_eq!(isolated("policyTypes: [Ingress, Egress]"), (Some(0), Some(0)));
    assert_eq!(isolated(&format!("policyTypes: [Ingress, Egress], {both}")), (Some(1), Some(1)));
}

#[test]
fn unknown_policy_type_counts_as_both() {
    let (policy, problems) = bad(&policy("policyTypes: [egress], ingress: [{}]"));
    assert!(policy.ingress.is_some() && policy.egress == Some(vec![]));
    assert_eq!(
        problems,
        ["`spec.policyTypes`: `egress` is neither Ingress nor Egress; it counts as both"]
    );
}

/// NP-012, NP-020, NP-023: absent and empty lists of peers and ports are anybody and any port.
#[test]
fn rule_without_peers_and_ports_allows_everything() {
    for (peers, ports) in [("", ""), ("[]", "[]"), ("null", "null")] {
        assert_eq!(one(peers, ports), "any any");
    }
}

/// NP-005, NP-020: the pods of its namespace.
#[test]
fn pod_selector_selects_in_the_policys_namespace() {
    let subject = |spec: &str| pods(&good(&policy(spec)).subject);
    assert_eq!(subject(""), "@x/*");
    assert_eq!(subject("podSelector: {}"), "@x/*");
    assert_eq!(subject("podSelector: {matchLabels: {}, matchExpressions: []}"), "@x/*");
    assert_eq!(subject("podSelector: {matchLabels: {app: a}}"), "@x/app in [a]");
    let no_spec = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let policy = good(no_spec);
    assert_eq!(
        (pods(&policy.subject), policy.ingress.clone()),
        ("@default/*".into(), Some(vec![]))
    );
    assert_eq!((policy.tier, policy.watched), (PolicyTier::Namespace, false));
}

/// NP-020, NP-021, NP-023.
#[test]
fn selectors_of_one_peer_are_anded_and_peers_are_ored() {
    assert_eq!(one("[{podSelector: {}}]", ""), "[@x/*] any");
    assert_eq!(one("[{namespaceSelector: {}}]", ""), "[*/*] any");
    assert_eq!(one("[{namespaceSelector: {}, podSelector: {}}]", ""), "[*/*] any");
    let (a, y) =
        ("podSelector: {matchLabels: {app: a}}", "namespaceSelector: {matchLabels: {ns: y}}");
    assert_eq!(one(&format!("[{{{a}, {y}}}]"), ""), "[ns in [y]/app in [a]] any");
    assert_eq!(one(&format!("[{{{a}}}, {{{y}}}]"), ""), "[@x/app in [a], ns in [y]/*] any");
    let block = "[{ipBlock: {cidr: 10.0.0.0/8}}, {podSelector: {}}]";
    assert_eq!(one(block, ""), "[10.0.0.0/8, @x/*] any");
    // A field that is null is not there.
    assert_eq!(
        one("[{podSelector: {}, namespaceSelector: null, ipBlock: null}]", ""),
        "[@x/*] any"
    );
}

/// NP-022.
#[test]
fn peers_and_ports_of_a_rule_belong_together_and_rules_are_apart() {
    let pods = "from: [{podSelector: {}}]";
    let (rules, problems) =
        ingress(&format!("{{{pods}, ports: [{{port: 80}}, {{port: 81}}]}}, {{}}"));
    assert_eq!(rules, ["ingress[0] Accept [@x/*] [TCP 80, TCP 81]", "ingress[1] Accept any any"]);
    assert_eq!(problems, [""; 0]);
}

/// NP-024, NP-025, NP-026.
#[test]
fn all_operators_are_read_and_anded_with_labels() {
    let selector = "{matchLabels: {app: A, tier: ''}, matchExpressions: [{key: a, operator: In, values: [x, y]}, {key: b, operator: NotIn, values: [x]}, {key: c, operator: Exists}, {key: d, operator: DoesNotExist, values: []}]}";
    let read = "app in [A] & tier in [] & a in [x y] & b notin [x] & c & !d";
    assert_eq!(one(&format!("[{{podSelector: {selector}}}]"), ""), format!("[@x/{read}] any"));
    let name = "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]";
    assert_eq!(one(name, ""), "[kubernetes.io/metadata.name in [y]/*] any");
}

/// NP-027, NP-110: the rest of the rule stands, and the policy isolates.
#[test]
fn peer_that_is_not_understood_matches_nothing() {
    for (part, says) in [
        ("{}", "no known kind of peer"),
        ("{serviceSelector: {}}", "`serviceSelector` is no known field"),
        ("{namespaceSelector: {}, podSelectr: {}}", "`podSelectr` is no known field"),
        ("{podSelector: {matchLabel: {app: a}}}", "`matchLabel` is no known field"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}",
            "operator `Gt` is none of In, NotIn, Exists, DoesNotExist",
        ),
        ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "In of `a` needs values"),
        ("{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}", "NotIn of"),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}}",
            "Exists of `a` takes no values",
        ),
        ("{podSelector: {matchExpressions: [{key: '', operator: Exists}]}}", "has no key"),
        ("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", "either an ipBlock or selectors"),
        ("{ipBlock: {cidr: 10.0.0.0/33}}", "`10.0.0.0/33` is no CIDR"),
        ("{ipBlock: {cidr: 10.0.0.1}}", "`10.0.0.1` is no CIDR"),
        ("{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}", "is no CIDR"),
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/x]}}", "`10.1.0.0/x` is no CIDR"),
    ] {
        let (rule, problem) = partly("from", part, "{podSelector: {}}");
        assert_eq!(rule, "ingress[0] Accept [@x/*] any", "{part}");
        assert!(problem.contains(says), "{part}: {problem}");
    }
    let (alone, _) = ingress("{from: [{}]}");
    assert_eq!(alone, ["ingress[0] Accept [] any"]);
}

/// NP-110.
#[test]
fn rule_with_an_unknown_field_matches_nothing_and_the_others_stand() {
    let (rules, problems) = ingress("{form: [{podSelector: {}}], ports: [{port: 80}]}, {}");
    assert_eq!(rules, ["ingress[0] Accept [] [TCP 80]", "ingress[1] Accept any any"]);
    assert_eq!(problems, ["`spec.ingress[0]`: `form` is no known field; it matches nothing"]);
    let beside = policy("ingress: [{}]") + "policyTypes: [Egress]\n";
    let misspelt = policy("").replace("spec:", "spek:");
    for text in [
        policy("policyType: [Egress], ingress: [{}]"),
        policy("egres: [{}], ingress: [{}]"),
        beside,
        misspelt,
    ] {
        let (policy, problems) = bad(&text);
        assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])), "{text}");
        let says = "is no known field; the policy isolates in both directions and allows nothing";
        assert!(problems.len() == 1 && problems[0].ends_with(says), "{problems:?}");
    }
}

/// NP-110: whoever may be meant is isolated; to the others rules would open what another policy closes.
#[test]
fn policy_for_pods_that_are_not_certain_isolates_and_allows_nothing() {
    let spec = "podSelector: {matchLabels: {app: a}, matchExpressions: [{key: b, operator: Like, values: [x]}]}, ingress: [{}], egress: [{}]";
    let (policy, problems) = bad(&policy(spec));
    assert_eq!(pods(&policy.subject), "@x/app in [a]");
    assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])));
    assert!(problems.len() == 1 && problems[0].contains("operator `Like`"), "{problems:?}");
}

/// NP-031, NP-032, NP-033, NP-036.
#[test]
fn blocks_are_networks_with_exceptions() {
    let block = |cidr: &str, except: &str| {
        one(&format!("[{{ipBlock: {{cidr: '{cidr}', except: {except}}}}}]"), "")
    };
    for absent in ["null", "[]"] {
        assert_eq!(block("10.0.0.0/8", absent), "[10.0.0.0/8] any");
    }
    assert_eq!(block("10.1.2.3/8", "[10.1.2.3/16]"), "[10.0.0.0/8 but [10.1.0.0/16]] any");
    let several = "[10.1.0.0/16, 10.1.2.0/24, 10.2.0.0/16, 10.0.0.0/8]";
    let read = several.replace(',', "");
    assert_eq!(block("10.0.0.0/8", several), format!("[10.0.0.0/8 but {read}] any"));
    for cidr in ["0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/31", "10.0.0.1/32", "::/0", "fd00::/127"] {
        assert_eq!(block(cidr, "[]"), format!("[{cidr}] any"));
    }
    assert_eq!(block("fd00::1/128", "[]"), "[fd00::1/128] any");
    let (rules, problems) = ingress("{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}]}");
    assert_eq!(rules, ["ingress[0] Accept [0.0.0.0/0] any"]);
    assert!(problems[0].contains("makes no difference"), "{problems:?}");
    let many: Vec<_> = (0..2000)
        .map(|i| format!("{{ipBlock: {{cidr: 10.{}.{}.0/24}}}}", i / 250, i % 250))
        .collect();
    let (rules, problems) = ingress(&format!("{{from: [{}]}}", many.join(", ")));
    assert_eq!((rules[0].matches("/24").count(), problems.len()), (2000, 0));
}

/// NP-020, NP-040, NP-043, NP-046, NP-047, NP-048, NP-050, NP-051.
#[test]
fn ports_are_numbers_names_or_ranges_of_a_protocol() {
    let port = |text: &str| {
        let found = one("", &format!("[{{{text}}}]"));
        found.strip_prefix("any [").and_then(|f| f.strip_suffix(']')).unwrap().to_owned()
    };
    assert_eq!(port(""), "TCP");
    assert_eq!(port("protocol: UDP"), "UDP");
    assert_eq!(port("protocol: SCTP"), "SCTP");
    assert_eq!(port("port: 80"), "TCP 80");
    assert_eq!(port("port: 80, protocol: SCTP"), "SCTP 80");
    assert_eq!(port("port: http"), "TCP http");
    assert_eq!(port("port: dns, protocol: UDP"), "UDP dns");
    assert_eq!(port("port: 80, endPort: 90"), "TCP 80-90");
    assert_eq!(port("port: 80, endPort: 80"), "TCP 80");
    assert_eq!(port("port: 1, endPort: 65535, protocol: UDP"), "UDP 1-65535");
}

/// NP-049, NP-052, NP-110.
#[test]
fn port_that_is_not_understood_matches_nothing() {
    for (part, says) in [
        ("{protocol: QUIC, port: 80}", "`QUIC` is none of TCP, UDP, SCTP"),
        ("{protocol: tcp}", "`tcp` is none of"),
        ("{protocol: ''}", "`` is none of"),
        ("{port: 0}", "`0` is no port: 1 to 65535"),
        ("{port: 65536}", "`65536` is no port"),
        ("{port: -1}", "`-1` is no port"),
        ("{port: '80'}", "`80` is no name of a port"),
        ("{port: Http}", "`Http` is no name of a port"),
        ("{port: a-name-that-is-too-long}", "is no name of a port"),
        ("{port: 80, endPort: 79}", "endPort 79 is less than port 80"),
        ("{port: 80, endPort: 70000}", "`70000` is no port"),
        ("{endPort: 80}", "endPort is there without port"),
        ("{port: http, endPort: 80}", "endPort is there with the name of a port"),
        ("{port: 80, endport: 90}", "`endport` is no known field"),
    ] {
        let (rule, problem) = partly("ports", part, "{port: 443}");
        assert_eq!(rule, "ingress[0] Accept any [TCP 443]", "{part}");
        assert!(problem.contains(says), "{part}: {problem}");
    }
    let (alone, _) = ingress("{ports: [{protocol: QUIC}]}");
    assert_eq!(alone, ["ingress[0] Accept any []"]);
}

/// NP-110: with the place of the document, and without harm to another.
#[test]
fn problem_names_file_line_and_policy() {
    let bad = policy("ingress: [{}], egress: [{to: [{ipBlock: {cidr: junk}}]}]");
    let other = policy("").replace("name: p", "name: q");
    let outcome = made(&format!("{other}---\n{bad}"));
    let [problem] = outcome.problems.try_into().unwrap();
    assert_eq!((problem.file.to_str(), problem.line), (Some("p.yaml"), 6));
    let said = "NetworkPolicy x/p: `spec.egress[0].to[0]`: `junk` is no CIDR such as 10.0.0.0/8 or fd00::/8; it matches nothing";
    assert_eq!(problem.reason, said);
    let names: Vec<_> = outcome.policies.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["NetworkPolicy x/p", "NetworkPolicy x/q"]);
}

/// What is not YAML, or has a field of another type, leaves the last good one.
#[test]
fn policy_that_does_not_parse_is_as_it_was() {
    let mut index = Index::default();
    let path = Path::new("p.yaml");
    index.set(path, &policy("ingress: [{}]"));
    for broken in ["ingress: [{", "ingress: 5", "ingress: [{ports: [{endPort: x}]}]"] {
        index.set(path, &policy(broken));
        let (objects, problems) = index.objects();
        assert_eq!(problems.len(), 1, "{broken}");
        let outcome = build(&Objects { objects, ..Objects::default() });
        let policy = outcome.policies.values().next().unwrap();
        assert_eq!(rules(&policy.ingress).unwrap(), ["ingress[0] Accept any any"]);
    }
}

/// NP-110: one that nobody knew before isolates whom it may be for, and allows nothing.
#[test]
fn policy_that_was_never_good_isolates_and_allows_nothing() {
    for (spec, selects) in [
        ("podSelector: {matchLabels: {app: a}}, ingress: [{ports: {port: 80}}]", "@x/app in [a]"),
        ("podSelector: {matchLabels: {app: a}}, policyTypes: Ingress", "@x/app in [a]"),
        ("podSelector: {matchLabels: {app: a}}, ingress: [null]", "@x/app in [a]"),
        ("podSelector: [], ingress: [{}]", "@x/*"),
        ("podSelector: {matchLabels: {app: [a]}}", "@x/*"),
    ] {
        let source = read(&policy(spec));
        assert_eq!(source.problems.len(), 1, "{spec}");
        let outcome = build(&source);
        let (_, policy) = outcome.policies.into_iter().next().unwrap();
        assert_eq!(pods(&policy.subject), selects, "{spec}");
        assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])), "{spec}");
        assert!(outcome.problems[0].reason.contains("it cannot be read"), "{:?}", outcome.problems);
        assert_eq!(outcome.unread.len(), 1);
    }
}

#[test]
fn audited_policy_is_watched() {
    let with = |mode: &str| {
        let annotations = format!("annotations: {{weft.dev/policy-mode: {mode}}}, name: p");
        bad(&policy("").replace("name: p", &annotations))
    };
    assert!(with("audit").0.watched);
    let (policy, problems) = with("Audit");
    assert!(!policy.watched);
    let said = "`weft.dev/policy-mode`: `Audit` is not `audit`; the policy is enforced";
    assert_eq!(problems, [said]);
}
