use std::path::Path;

use super::*;

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\n";

fn index(files: &[(&str, &str)]) -> Index {
    let mut index = Index::default();
    for (path, text) in files {
        index.set(Path::new(path), text);
    }
    index
}

fn names(index: &mut Index) -> Vec<String> {
    index.objects().0.keys().map(ToString::to_string).collect()
}

fn problems(index: &mut Index) -> Vec<(String, usize, String)> {
    let all = index.objects().1.into_iter();
    all.map(|p| (p.file.display().to_string(), p.line, p.reason)).collect()
}

#[test]
fn every_kind_is_read() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}]";
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: n}\nspec: {podSelector: {}}";
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}";
    let filter = "apiVersion: weft.dev/v1alpha1\nkind: PacketFilter\nmetadata: {name: f}\nspec: {module: f.wasm, position: Egress, onFault: Skip, deadline: 2ms, priority: 3}";
    let pool = "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: lan}\nspec: {addresses: [192.0.2.0/28]}";
    let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}";
    let text =
        [NAMESPACE, POD, service, slice, policy, cluster, node, filter, pool].join("\n---\n");
    let mut index = index(&[("a.yaml", &text)]);
    assert_eq!(problems(&mut index), []);
    let expected = [
        "AddressPool lan",
        "ClusterNetworkPolicy c",
        "EndpointSlice default/e",
        "Namespace a",
        "NetworkPolicy n/p",
        "Node node-a",
        "PacketFilter f",
        "Pod default/web",
        "Service default/s",
    ];
    assert_eq!(names(&mut index), expected);
}

#[test]
fn bad_document_is_reported_with_its_line_and_the_others_count() {
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports: 80\n";
    let mut index = index(&[("a.yaml", &[NAMESPACE, bad, POD].join("---\n"))]);
    assert_eq!(names(&mut index), ["Namespace a", "Pod default/web"]);
    let [(file, line, reason)] = problems(&mut index).try_into().unwrap();
    assert_eq!((file.as_str(), line), ("a.yaml", 9));
    assert!(reason.contains("ports") && !reason.contains('\n'), "{reason}");
}

#[test]
fn broken_syntax_is_reported_with_its_line_in_the_file() {
    let mut index = index(&[("a.yaml", &[NAMESPACE, "kind: [\n\n"].join("---\n"))]);
    assert_eq!(names(&mut index), ["Namespace a"]);
    let [(_, line, _)] = problems(&mut index).try_into().unwrap();
    assert!((5..=7).contains(&line), "{line}");
}

#[test]
fn half_written_file_keeps_its_last_good_documents() {
    let mut index = index(&[("a.yaml", &[NAMESPACE, POD].join("---\n"))]);
    let cut = [NAMESPACE, "apiVersion: v1\nkind: Po"].join("---\n");
    index.set(Path::new("a.yaml"), &cut[..cut.len() - 2]);
    index.set(Path::new("a.yaml"), "apiVersion: v1\nkin");
    assert_eq!(names(&mut index), ["Namespace a", "Pod default/web"]);
    assert_eq!(problems(&mut index).len(), 1);
    index.set(Path::new("a.yaml"), POD);
    assert_eq!(names(&mut index), ["Pod default/web"]);
    assert_eq!(problems(&mut index), []);
}

#[test]
fn duplicate_is_reported_and_the_first_counts_until_it_is_gone() {
    let other = POD.replace("app: web", "app: other");
    let mut index = index(&[("b.yaml", &other), ("a.yaml", POD)]);
    let [(file, line, reason)] = problems(&mut index).try_into().unwrap();
    assert_eq!((file.as_str(), line), ("b.yaml", 1));
    assert!(reason.contains("a.yaml:1"), "{reason}");
    index.remove(Path::new("a.yaml"));
    assert_eq!(problems(&mut index), []);
    assert_eq!(names(&mut index), ["Pod default/web"]);
}

/// SVC-013: who comes later does not take a name over, wherever its file sorts.
#[test]
fn duplicate_that_comes_later_does_not_count_though_its_file_sorts_first() {
    let other = POD.replace("app: web", "app: other");
    let mut index = index(&[("b.yaml", POD)]);
    let in_force = index.objects().0;
    index.set(Path::new("a.yaml"), &other);
    let [(file, line, reason)] = problems(&mut index).try_into().unwrap();
    assert_eq!((file.as_str(), line), ("a.yaml", 1));
    assert!(reason.contains("b.yaml:1"), "{reason}");
    let same = |index: &mut Index| index.objects().0.values().eq(in_force.values());
    assert!(same(&mut index));
    // Edited, it is as old as it was.
    index.set(Path::new("b.yaml"), &[NAMESPACE, POD].join("---\n"));
    assert_eq!(problems(&mut index).len(), 1);
    index.set(Path::new("b.yaml"), POD);
    index.set(Path::new("a.yaml"), &[POD, &other].join("---\n"));
    assert_eq!(problems(&mut index).len(), 2);
    assert!(same(&mut index));
    // Moved to another file, it is the one that was waiting that counts.
    index.set(Path::new("a.yaml"), &other);
    index.remove(Path::new("b.yaml"));
    index.set(Path::new("c.yaml"), POD);
    let [(file, ..)] = problems(&mut index).try_into().unwrap();
    assert_eq!(file, "c.yaml");
    assert!(!same(&mut index));
}

/// In one file too.
#[test]
fn duplicate_above_does_not_count_either() {
    let other = POD.replace("app: web", "app: other");
    let mut index = index(&[("a.yaml", POD)]);
    index.objects();
    index.set(Path::new("a.yaml"), &[&other, POD].join("---\n"));
    let [(_, line, reason)] = problems(&mut index).try_into().unwrap();
    assert_eq!(line, 1, "{reason}");
}

#[test]
fn unknown_kind_is_reported_once() {
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\n";
    let mut index = index(&[("a.yaml", &[job, job].join("---\n")), ("b.yaml", job)]);
    let [(_, _, reason)] = problems(&mut index).try_into().unwrap();
    assert!(reason.starts_with("Job of batch/v1"), "{reason}");
}

#[test]
fn lists_are_unwrapped_and_a_bad_item_is_named() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: x}}\n- {apiVersion: v1, kind: Pod}\n";
    let json = "{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"y\"}}]}";
    let mut index = index(&[("a.yaml", list), ("b.json", json)]);
    assert_eq!(names(&mut index), ["Pod default/x", "Pod default/y"]);
    let [(_, _, reason)] = problems(&mut index).try_into().unwrap();
    assert!(reason.starts_with("items[1]: "), "{reason}");
}

#[test]
fn static_peer_is_read_from_its_annotations() {
    let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: peer\n  annotations:\n    weft.dev/static-peer: \"true\"\n    weft.dev/endpoint: 192.0.2.9:51820\n    weft.dev/public-key: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n    weft.dev/vtep-mac: 02:00:00:00:00:09\nspec: {podCIDRs: [10.1.9.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.9}, {type: Hostname, address: peer}]}\n";
    let mut found = index(&[("a.yaml", text)]);
    let (objects, _) = found.objects();
    let Some(Object::StaticPeer(peer)) = objects.values().map(|d| &d.object).next() else {
        panic!("no static peer: {:?}", problems(&mut found));
    };
    assert_eq!(peer.endpoint, Some("192.0.2.9:51820".parse().unwrap()));
    assert_eq!(peer.subnets, ["10.1.9.0/24".parse().unwrap()]);
    assert_eq!(peer.addresses, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((peer.keys.len(), peer.vtep_mac.is_some()), (1, true));
    let mut bad = index(&[("a.yaml", &text.replace("51820", "x"))]);
    assert!(problems(&mut bad)[0].2.contains("weft.dev/endpoint"));
}

#[test]
fn what_kubernetes_would_not_take_is_reported() {
    for (text, says) in [
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: Web_1}", "metadata.name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a.b}", "metadata.name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: A}", "metadata.namespace"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b}", "duplicate"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 70000}]}",
            "Service s: `spec.ports.port`: `70000` is no port",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: lan}\nspec: {addresses: [junk]}",
            "AddressPool lan: `spec.addresses`: `junk`",
        ),
    ] {
        let mut index = index(&[("a.yaml", text)]);
        assert_eq!(names(&mut index), [""; 0], "{text}");
        let found = problems(&mut index);
        assert!(found.len() == 1 && found[0].2.contains(says), "{text}: {found:?}");
    }
}

/// NP-110: a policy that vanished would let everything pass.
#[test]
fn policy_with_a_bad_part_is_there() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8x}}], ports: [{port: 0}]}]}";
    let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {}";
    let mut index = index(&[("a.yaml", &[policy, cluster].join("\n---\n"))]);
    assert_eq!(names(&mut index), ["ClusterNetworkPolicy c", "NetworkPolicy default/p"]);
}

#[test]
fn byte_order_mark_is_no_part_of_the_text() {
    let mut index = index(&[("a.yaml", &format!("\u{feff}{NAMESPACE}"))]);
    assert_eq!((names(&mut index), problems(&mut index)), (vec!["Namespace a".to_owned()], vec![]));
}

/// NP-110: what policies select a pod by counts, though the rest of its document is bad.
#[test]
fn pod_that_was_never_good_has_its_labels() {
    let bad = POD.to_owned() + "spec: {containers: [{ports: [{containerPort: eighty}]}]}\n";
    let mut index = index(&[("a.yaml", &bad)]);
    assert_eq!(
        (names(&mut index), problems(&mut index).len()),
        (vec!["Pod default/web".to_owned()], 1)
    );
    let labels = |index: &mut Index| match &index.objects().0.values().next().unwrap().object {
        Object::Pod(pod) => pod.pod.labels.clone(),
        _ => panic!("no pod"),
    };
    assert_eq!(labels(&mut index)["app"], "web");
    // What was good is better.
    index.set(Path::new("a.yaml"), POD);
    index.set(Path::new("a.yaml"), &bad.replace("app: web", "app: other"));
    assert_eq!(labels(&mut index)["app"], "web");
}

/// NP-110: it is said, with file and line, and nothing else changes.
#[test]
fn misspelt_field_beside_the_spec_or_in_the_metadata_is_a_problem_and_the_object_counts() {
    let pod = POD.replace("labels", "lables").replace("name: web,", "name: web, namspace: a,");
    let namespace = format!("{NAMESPACE}spek: {{}}\n");
    let list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\", selfLink: \"\"}\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: b, anotations: {}}}\n";
    let mut index = index(&[("a.yaml", &[&namespace, pod.as_str(), list].join("---\n"))]);
    assert_eq!(names(&mut index), ["Namespace a", "Pod default/b", "Pod default/web"]);
    let said = problems(&mut index);
    let said: Vec<_> = said.iter().map(|(_, line, reason)| format!("{line} {reason}")).collect();
    let expected = [
        "1 Namespace a: `spek` is no known field, and ignored",
        "6 Pod default/web: `metadata.namspace` is no known field, and ignored",
        "6 Pod default/web: `metadata.lables` is no known field, and ignored",
        "10 Pod default/b: `metadata.anotations` is no known field, and ignored",
    ];
    assert!(expected.iter().all(|e| said.contains(&(*e).to_owned())), "{said:?}");
    assert_eq!(said.len(), expected.len(), "{said:?}");
    assert!(index.is_complete());
}
