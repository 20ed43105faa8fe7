use weft_model::PolicyTier;

use super::*;

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: FqdnPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {{{spec}}}\n"
    )
}

/// Rules of a policy, and what is said of it.
fn egress(list: &str) -> (Vec<String>, Vec<String>) {
    let (policy, problems) = bad(&policy(&format!("podSelector: {{}}, egress: [{list}]")));
    (rules(&policy.egress).unwrap(), problems)
}

/// NP-150, NP-151, NP-152, NP-161.
#[test]
fn policy_isolates_at_egress_and_allows_names() {
    let list = "[{names: [API.example.com., '*.example.org'], ports: [{port: 443}, {protocol: UDP, port: 1, endPort: 9}]}, {names: [a.b]}]";
    let made = good(&policy(&format!("podSelector: {{matchLabels: {{a: b}}}}, egress: {list}")));
    assert_eq!(made.name.to_string(), "FqdnPolicy x/p");
    assert_eq!((made.tier, &made.ingress), (PolicyTier::Namespace, &None));
    assert_eq!(pods(&made.subject), "@x/a in [b]");
    let expected = [
        "egress[0] Accept [api.example.com, *.example.org] [TCP 443, UDP 1-9]",
        "egress[1] Accept [a.b] any",
    ];
    assert_eq!(rules(&made.egress).unwrap(), expected);
    for spec in ["", "podSelector: {}", "podSelector: {}, egress: []"] {
        let made = good(&policy(spec));
        assert_eq!((pods(&made.subject).as_str(), &made.egress), ("@x/*", &Some(vec![])));
    }
}

/// NP-110: a part that is not understood matches nothing, and the policy isolates all the same.
#[test]
fn part_that_is_not_understood_matches_nothing() {
    for (rule, field, says, left) in [
        ("names: [a, '*']", "names[1]", "is no name such as", "[a] any"),
        ("names: []", "", "there are no names", "[] any"),
        ("ports: [{port: 1}]", "", "there are no names", "[] [TCP 1]"),
        ("names: [a], to: []", "", "`to` is no known field", "[] any"),
        ("names: [a], ports: [{port: 0}, {port: 1}]", "ports[0]", "no port", "[a] [TCP 1]"),
        ("names: [a], ports: [{port: http}]", "ports[0]", "no number of a port", "[a] []"),
        ("names: [a], ports: [{prot: TCP}]", "ports[0]", "`prot` is no known field", "[a] []"),
        ("names: [a], ports: [{protocol: ICMP}]", "ports[0]", "none of TCP, UDP", "[a] []"),
    ] {
        let (rules, problems) = egress(&format!("{{{rule}}}"));
        assert_eq!(rules, [format!("egress[0] Accept {left}")], "{rule}");
        let field = match field {
            "" => "`spec.egress[0]`: ".to_owned(),
            field => format!("`spec.egress[0].{field}`: "),
        };
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.starts_with(&field) && problem.contains(says), "{problem}");
        assert!(problem.ends_with("it matches nothing"), "{problem}");
    }
}

/// NP-110.
#[test]
fn policy_for_whom_or_what_is_not_certain_allows_nothing() {
    let rule = "egress: [{names: [a]}]";
    for (text, subject) in [
        (policy(&format!("podSelector: {{}}, ingress: [], {rule}")), "@x/*"),
        (policy(&format!("podSelector: {{matchLabels: {{a: b}}, but: 1}}, {rule}")), "@x/a in [b]"),
        (policy(rule).replace("spec:", "spek:"), "@x/*"),
    ] {
        let (made, problems) = bad(&text);
        assert_eq!((pods(&made.subject).as_str(), &made.egress), (subject, &Some(vec![])));
        assert!(problems.len() == 1 && problems[0].contains("no known field"), "{problems:?}");
    }
}

/// Policies of two kinds may have one name, and one that cannot be read isolates.
#[test]
fn policy_that_cannot_be_read_isolates_beside_a_namesake() {
    let network = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {podSelector: {}}\n";
    let text = [&policy("podSelector: {matchLabels: {a: b}}, egress: 7"), network].concat();
    let source = read(&text);
    assert_eq!(source.problems.len(), 1);
    let made = build(&source);
    let names: Vec<_> = made.policies.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["NetworkPolicy x/p", "FqdnPolicy x/p"]);
    let policy = made.policies.values().last().unwrap();
    assert_eq!((pods(&policy.subject).as_str(), &policy.egress), ("@x/a in [b]", &Some(vec![])));
    assert!(made.unread.contains(&policy.name));
}

/// Names that nobody answers open nothing, which is said where they are not answered.
#[test]
fn names_that_nobody_answers_are_a_problem() {
    let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [a]}]}]}\n---\n";
    let text = [cluster, &policy("podSelector: {}, egress: [{names: [a]}]")].concat();
    let said: Vec<_> = made(&text).without_dns.into_iter().map(|p| (p.line, p.reason)).collect();
    let [(1, cluster), (6, fqdn)] = &said[..] else { panic!("{said:?}") };
    assert!(cluster.starts_with("ClusterNetworkPolicy c: hosts that it names"), "{cluster}");
    assert!(fqdn.starts_with("FqdnPolicy x/p: hosts that it names"), "{fqdn}");
    assert_eq!(made(&policy("podSelector: {}")).without_dns, []);
}
