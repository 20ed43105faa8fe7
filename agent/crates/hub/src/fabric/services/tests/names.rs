//! Services that have nothing but names. The numbers are those of the checklist of DNS.

use weft_model::NamedKind;

use super::*;

impl Bench {
    fn named(&mut self, name: &str) -> NamedService {
        let merged = self.merge();
        assert!(!merged.services.contains_key(&named(name)), "{name} is served");
        let found = merged.named_services.get(&named(name)).cloned();
        found.unwrap_or_else(|| panic!("no {name}: {:?}", merged.misfits))
    }
}

fn addresses(service: &NamedService) -> Vec<String> {
    service.endpoints.iter().map(|e| e.address.to_string()).collect()
}

/// DNS-006, DNS-024, DNS-030: a headless Service has the pods that it selects, with ports or without.
#[test]
fn headless_service_has_its_pods() {
    let ready = "status: {podIPs: [{ip: 10.42.0.1}, {ip: \"fd42::1\"}]}";
    let not = "status: {podIPs: [{ip: 10.42.0.2}], conditions: [{type: Ready, status: \"False\"}]}";
    let pods = [pod("one", ready), pod("two", not)].concat();
    let spec = "clusterIP: None, selector: {app: web}";
    let mut bench = Bench::new(&[&service("web", spec), &pods]);
    let web = bench.named("web");
    assert_eq!((&web.kind, web.ports[0].port), (&NamedKind::Headless, 80));
    assert_eq!(addresses(&web), ["10.42.0.1", "10.42.0.2", "fd42::1"]);
    assert_eq!(web.endpoints.iter().map(|e| e.ready).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(web.endpoints[0].targets, [80]);
    bench.set(0, &service("web", spec).replace("ports: [{port: 80}], ", ""));
    let web = bench.named("web");
    assert!(web.ports.is_empty());
    assert_eq!(addresses(&web).len(), 3);
    assert!(bench.problems().is_empty());
}

/// DNS-031: pods that are not ready, if the Service says so.
#[test]
fn unready_pods_are_published_if_the_service_says_so() {
    let not = "status: {podIPs: [{ip: 10.42.0.2}], conditions: [{type: Ready, status: \"False\"}]}";
    let spec = "clusterIP: None, selector: {app: web}, publishNotReadyAddresses: true";
    let mut bench = Bench::new(&[&service("web", spec), &pod("two", not)]);
    assert!(bench.named("web").endpoints[0].ready);
}

/// DNS-008, DNS-141, DNS-142: if the operator says so, endpoints without a name have their pod's.
#[test]
fn endpoints_are_called_as_their_pods_if_the_operator_says_so() {
    let long = "p".repeat(64);
    let ready = |last: u8| format!("status: {{podIPs: [{{ip: 10.42.0.{last}}}]}}");
    let pods = [pod("one", &ready(1)), pod(&long, &ready(2))].concat();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints:\n- {addresses: [10.42.0.3], targetRef: {kind: Pod, name: three}}\n- {addresses: [10.42.0.4], hostname: own, targetRef: {kind: Pod, name: four}}\n";
    let spec = "clusterIP: None, selector: {app: web}";
    let mut bench = Bench::new(&[&service("web", spec), &pods, slice]);
    let names = |bench: &mut Bench| -> Vec<_> {
        bench.named("web").endpoints.into_iter().map(|e| e.hostname.unwrap_or_default()).collect()
    };
    assert_eq!(names(&mut bench), ["", "", "", "own"]);
    bench.cluster.dns = Some(weft_model::Dns { endpoint_pod_names: true, ..crate::usual_dns() });
    assert_eq!(names(&mut bench), ["one", "", "three", "own"]);
}

/// DNS-007, DNS-026: a pod has a name below its own subdomain only.
#[test]
fn pod_with_a_hostname_has_a_name_below_its_subdomain() {
    let of = |name: &str, subdomain: &str, last: u8| {
        let spec = format!("spec: {{hostname: {name}, subdomain: {subdomain}}}");
        pod(name, &format!("{spec}\nstatus: {{podIPs: [{{ip: 10.42.0.{last}}}]}}"))
    };
    let pods = [of("db-0", "web", 1), of("db-1", "other", 2)].concat();
    let mut bench = Bench::new(&[&service("web", "clusterIP: None, selector: {app: web}"), &pods]);
    let names: Vec<_> = bench.named("web").endpoints.into_iter().map(|e| e.hostname).collect();
    assert_eq!(names, [Some("db-0".to_owned()), None]);
}

/// DNS-009, DNS-032, DNS-036: slices of users, all of them, with ports of their own and names.
#[test]
fn slices_of_users_count() {
    let first = "addressType: IPv4\nports: [{name: peer, port: 7000}]\nendpoints: [{addresses: [198.51.100.1], hostname: a}, {addresses: [198.51.100.2], hostname: Not_One}]";
    let second = "addressType: IPv6\nports: [{name: peer, port: 7001}]\nendpoints: [{addresses: [\"2001:db8::1\"]}]";
    let fqdn = "addressType: FQDN\nendpoints: [{addresses: [a.example]}]";
    let slices = [slice("w1", "web", first), slice("w2", "web", second), slice("w3", "web", fqdn)];
    let text = service("web", "clusterIP: None").replace("ports: [{port: 80}], ", "");
    let mut bench = Bench::new(&[&text, &slices.concat()]);
    let web = bench.named("web");
    assert_eq!(addresses(&web), ["198.51.100.1", "198.51.100.2", "2001:db8::1"]);
    assert_eq!(web.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["peer"]);
    let targets: Vec<_> = web.endpoints.iter().map(|e| e.targets.clone()).collect();
    assert_eq!(targets, [[7000], [7000], [7001]]);
    let names: Vec<_> = web.endpoints.iter().map(|e| e.hostname.as_deref()).collect();
    assert_eq!(names, [Some("a"), None, None]);
}

/// SVC-005, DNS-006: what the controller of Kubernetes makes for a headless Service is for names only.
#[test]
fn slices_that_are_marked_headless_are_for_names_only() {
    let rest = "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [198.51.100.1]}]";
    let marked = |of: &str| {
        let label = format!("service-name: {of}");
        slice(of, of, rest)
            .replace(&label, &format!("{label}, service.kubernetes.io/headless: \"\""))
    };
    let services = [service("web", "clusterIP: None"), service("served", "")].concat();
    let mut bench = Bench::new(&[&services, &[marked("web"), marked("served")].concat()]);
    assert_eq!(addresses(&bench.named("web")), ["198.51.100.1"]);
    assert!(bench.service("served").endpoints.is_empty());
}

/// DNS-011, DNS-083, DNS-084: a name for something else, if it is a name.
#[test]
fn external_name_is_an_alias() {
    let of =
        |target: &str| service("ext", &format!("type: ExternalName, externalName: \"{target}\""));
    let mut bench = Bench::new(&[&of("Db.example.com.")]);
    let kind = |name: &str| NamedKind::Alias(name.into());
    assert_eq!(bench.named("ext").kind, kind("Db.example.com"));
    bench.set(0, &of("10.0.0.1"));
    assert_eq!(bench.named("ext").kind, kind("10.0.0.1"));
    for bad in ["", "a..b", "a b", &"x".repeat(64)] {
        bench.set(0, &of(bad));
        let problem = format!("Service default/ext: `spec.externalName`: `{bad}` is no DNS name");
        assert_eq!(bench.problems(), [problem]);
        assert!(bench.merge().named_services.is_empty());
    }
}

/// DNS-037: names of a Service do not ask who serves it.
#[test]
fn service_of_another_proxy_has_names() {
    let label = "labels: {service.kubernetes.io/service-proxy-name: x}";
    let text = with("web", label, "clusterIP: 10.96.0.9");
    let mut bench = Bench::new(&[&text]);
    let kind = NamedKind::Foreign(vec!["10.96.0.9".parse().unwrap()]);
    assert_eq!(bench.named("web").kind, kind);
}
