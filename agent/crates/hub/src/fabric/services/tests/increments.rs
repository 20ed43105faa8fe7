//! What is made anew after a change is what would be made of everything.

use proptest::prelude::*;
use weft_model::{Generation, Namespace, Policy, PolicyName, SharedMap, Snapshot};

use super::*;
use crate::fabric::extent::Extent;
use crate::fabric::merge::merge_endpoints;

/// What a file may say, for each of them; the first says nothing.
fn variants() -> Vec<Vec<String>> {
    let slice = |name: &str, of: &str, address: &str| {
        let rest = format!(
            "addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]"
        );
        slice(name, of, &rest)
    };
    let pods = |name: &str| {
        let at = |more: &str| pod(name, more);
        vec![
            String::new(),
            at("status: {podIPs: [{ip: 10.42.0.9}]}"),
            at(
                "status: {podIPs: [{ip: 10.42.0.9}], conditions: [{type: Ready, status: \"False\"}]}",
            ),
            at("status: {phase: Failed, podIPs: [{ip: 10.42.0.9}]}"),
            at("spec: {hostNetwork: true, nodeName: a}"),
            at("status: {podIPs: [{ip: 10.42.0.8}]}").replace("app: web", "app: other"),
        ]
    };
    let elsewhere = |name: &str| {
        let of = |namespace: &str| {
            pod(name, "").replace("metadata: {", &format!("metadata: {{namespace: {namespace}, "))
        };
        vec![String::new(), of("other"), of("new"), of("other").replace("app: web", "app: other")]
    };
    let policy = |from: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{ingress: [{{from: {from}}}]}}"
        )
    };
    vec![
        vec![
            String::new(),
            service("web", "selector: {app: web}"),
            service("web", "selector: {pod: one}, type: NodePort"),
            service("web", ""),
            service("web", "clusterIP: None, selector: {app: web}"),
        ],
        vec![
            String::new(),
            service("dns", ""),
            service("dns", "selector: {app: other}"),
            service("dns", "clusterIP: None"),
            service("dns", "type: ExternalName, externalName: a.example"),
        ],
        pods("one"),
        pods("two"),
        vec![
            String::new(),
            slice("web-1", "web", "198.51.100.1"),
            slice("web-1", "dns", "198.51.100.1"),
            slice("web-1", "web", "nonsense"),
            slice("web-1", "web", "10.42.0.9"),
        ],
        vec![
            String::new(),
            slice("x", "dns", "198.51.100.2"),
            slice("x", "nobody", "198.51.100.3"),
        ],
        elsewhere("three"),
        elsewhere("four"),
        vec![
            String::new(),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: a}}".into(),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: new}".into(),
        ],
        vec![
            String::new(),
            policy("[{podSelector: {}}]"),
            policy("[{namespaceSelector: {matchLabels: {team: a}}}]"),
        ],
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The file says something else.
    File(usize, prop::sample::Index),
    /// The node runs the pods that have a bit.
    Report(usize, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..10_usize, any::<prop::sample::Index>()).prop_map(|(f, v)| Step::File(f, v)),
        1 => (0..2_usize, 0..4_u8).prop_map(|(n, bits)| Step::Report(n, bits)),
    ];
    prop::collection::vec(step, 1..60)
}

fn reported(node: usize, bits: u8) -> Vec<Pod> {
    let pods = ["one", "two"].iter().enumerate().filter(|(i, _)| bits & 1 << i != 0);
    let pod = |(i, name): (usize, &&str)| Pod {
        name: PodName { namespace: "default".into(), name: (*name).into() },
        node: None,
        addresses: vec![format!("10.42.{}.{}", node + 1, i + 1).parse().unwrap()],
        labels: BTreeMap::new(),
        ports: vec![],
        finished: false,
        own_search: false,
    };
    pods.map(pod).collect()
}

/// All that is published of pods, Services, namespaces and policies, and said of Services.
type Said = (
    SharedMap<PodName, Arc<Pod>>,
    SharedMap<ServiceName, Arc<Service>>,
    BTreeMap<ServiceName, Vec<Problem>>,
    SharedMap<String, Arc<Namespace>>,
    SharedMap<PolicyName, Arc<Policy>>,
    SharedMap<ServiceName, Arc<NamedService>>,
);

proptest! {
    #[test]
    fn increments_lead_to_the_whole(steps in steps()) {
        let variants = variants();
        let mut bench = Bench::new(&[]);
        for name in ["a", "b"] {
            bench.node(name, &[if name == "a" { "192.0.2.1" } else { "192.0.2.2" }]);
        }
        let mut said = Said::default();
        let mut small = 0;
        for (number, step) in steps.iter().enumerate() {
            let before = bench.state.source.clone();
            let extent = match step {
                Step::File(file, variant) => {
                    match variant.get(&variants[*file]).as_str() {
                        "" => bench.remove(*file),
                        text => bench.set(*file, text),
                    }
                    bench.read();
                    Extent::of_source(&before, &bench.state.source)
                }
                Step::Report(node, bits) => {
                    let name = ["a", "b"][*node];
                    let name: NodeName = name.parse().unwrap();
                    let pods = reported(*node, *bits);
                    let had = &bench.state.nodes[&name].reported.pods;
                    let extent = Extent::of_pods(&bench.state, &name, had, &pods);
                    let node_of = bench.state.nodes.get_mut(&name).unwrap();
                    if node_of.reported.pods != pods {
                        node_of.pods_from = 1 + u64::try_from(number).unwrap();
                    }
                    node_of.reported.pods = pods;
                    Some(extent)
                }
            };
            let allocations = bench.state.allocations.clone();
            let whole = bench.merge();
            let arc = |(name, service)| (name, Arc::new(service));
            let expected: Said = (
                whole.pods,
                whole.services.into_iter().map(arc).collect(),
                whole.service_problems,
                whole.namespaces,
                whole.policies,
                whole.named_services.into_iter().map(|(n, s)| (n, Arc::new(s))).collect(),
            );
            match extent {
                None => {}
                Some(Extent::Everything) => said = expected.clone(),
                Some(Extent::Endpoints(changed)) => {
                    small += 1;
                    bench.state.allocations = allocations;
                    let snapshot = Snapshot {
                        generation: Generation(1),
                        cluster: bench.cluster.clone(),
                        nodes: whole.nodes,
                        pods: said.0.clone(),
                        plugins: BTreeMap::new(),
                        services: said.1.clone(),
                        named_services: said.5.clone(),
                        namespaces: said.3.clone(),
                        policies: said.4.clone(),
                    };
                    let made =
                        merge_endpoints(&bench.cluster, false, &bench.state, &snapshot, &changed);
                    said.0.retain(|name, _| !made.pods.contains_key(name));
                    said.0.extend(made.pods.into_iter().filter_map(|(n, p)| Some((n, p?))));
                    said.1.retain(|name, _| !made.services.contains_key(name));
                    said.2.retain(|name, _| !made.services.contains_key(name));
                    let served = made.services.into_iter().filter_map(|(n, s)| Some((n, s?.into())));
                    said.1.extend(served);
                    said.5.retain(|name, _| !made.named_services.contains_key(name));
                    let named = made.named_services.into_iter();
                    said.5.extend(named.filter_map(|(n, s)| Some((n, s?.into()))));
                    said.3.retain(|name, _| !made.namespaces.contains_key(name));
                    let there = made.namespaces.into_iter().filter_map(|(n, s)| Some((n, s?)));
                    said.3.extend(there);
                    said.2.extend(made.problems.into_iter().filter(|(_, p)| !p.is_empty()));
                }
            }
            prop_assert_eq!(&said, &expected, "after {:?}", step);
        }
        prop_assert!(steps.len() < 30 || small > 0);
    }
}
