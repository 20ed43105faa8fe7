//! DNS as the operator wants it, and the Service that clients ask if no manifest has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_model::{DNS_PORT, Dns, Pod, PodName, PodNames, ServiceName, SharedMap};

use crate::source::index::Defined;
use crate::source::object::{Key, Object};
use crate::source::objects::Objects;

/// The usual settings: domain `cluster.local`, Service `kube-system/kube-dns`, the nodes' own upstreams.
#[must_use]
pub fn usual_dns() -> Dns {
    Dns {
        zones: vec!["cluster.local".to_owned()],
        ttl_s: DNS_TTL_S,
        service: ServiceName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() },
        labels: BTreeMap::new(),
        port: DNS_PORT,
        pod_names: PodNames::default(),
        upstreams: Vec::new(),
        stub_domains: BTreeMap::new(),
        hosts: BTreeMap::new(),
        autopath: false,
        endpoint_pod_names: false,
        client_rate: 0,
    }
}

/// Usual time to live of the cluster's records, in seconds.
pub const DNS_TTL_S: u32 = 5;
/// Longest one.
const DNS_TTL_MAX_S: u32 = 3600;

/// Number of the Service's address in each range, as installers of clusters choose it.
const NUMBER: u32 = 10;
/// Label and value that select the Service's pods, as they have been since there was one.
const SELECTOR: (&str, &str) = ("k8s-app", "kube-dns");

/// Settings that cannot work: a line that says why.
pub(crate) fn check(dns: &Dns) -> Result<(), String> {
    if dns.zones.is_empty() {
        return Err("no cluster domain given".to_owned());
    }
    let mut names = dns.zones.iter().chain(dns.stub_domains.keys());
    if let Some(bad) = names.find(|n| !is_domain(n, DOMAIN_MAX)) {
        return Err(format!("`{bad}` is no name of a domain, as cluster.local is one"));
    }
    // A name of one label would stand before every Service that a pod calls so.
    let whole =
        |name: &&String| is_domain(name, DOMAIN_MAX) && name.trim_end_matches('.').contains('.');
    if let Some(bad) = dns.hosts.keys().find(|n| !whole(n)) {
        return Err(format!("`{bad}` is no name of a host, as git.example.com is one"));
    }
    if dns.ttl_s > DNS_TTL_MAX_S {
        return Err(format!("a time to live of {} s is over {DNS_TTL_MAX_S}", dns.ttl_s));
    }
    match dns.stub_domains.iter().find(|(_, upstreams)| upstreams.is_empty()) {
        Some((name, _)) => Err(format!("domain {name} has no server")),
        None => Ok(()),
    }
}

/// Longest name that names of Services go in front of.
const DOMAIN_MAX: usize = 120;

/// A name of a domain, with or without a dot at its end, of so many characters at most.
pub(crate) fn is_domain(text: &str, longest: usize) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= longest && name.split('.').all(label)
}

/// The Service that clients ask, as nobody wrote it.
pub(crate) struct Stand {
    key: Key,
    defined: Arc<Defined>,
}

impl Stand {
    pub(crate) fn new(name: &ServiceName, service_cidrs: &[IpNet]) -> Self {
        let metadata = ObjectMeta {
            namespace: Some(name.namespace.clone()),
            name: Some(name.name.clone()),
            ..ObjectMeta::default()
        };
        let addresses: Vec<String> =
            service_cidrs.iter().filter_map(usual_address).map(|a| a.to_string()).collect();
        let (label, value) = SELECTOR;
        let port = |name: &str, protocol: &str| ServicePort {
            name: Some(name.to_owned()),
            protocol: Some(protocol.to_owned()),
            port: DNS_PORT.into(),
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            selector: Some([(label.to_owned(), value.to_owned())].into()),
            cluster_ips: Some(addresses),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        };
        let manifest = Service { metadata, spec: Some(spec), status: None };
        let object = Object::Service(Box::new(manifest));
        Self { key: Key::service(name), defined: Arc::new(Defined::built_in(object)) }
    }

    /// Stands in where the source has no such Service. It gives way to whoever asks for its addresses.
    pub(crate) fn stand_in(&self, source: &mut Objects) {
        if !source.objects.contains_key(&self.key) {
            source.objects.insert(self.key.clone(), Arc::clone(&self.defined));
        }
    }
}

/// `None` if the range has too few.
fn usual_address(cidr: &IpNet) -> Option<IpAddr> {
    let address = match cidr.network() {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + NUMBER).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(NUMBER)).into()),
    };
    (cidr.contains(&address) && address != cidr.broadcast()).then_some(address)
}

/// Settings with what the pods of the Service that clients ask are to policies, out of its manifest and of the
/// endpoints that it has. Where only those can say and there are none, what they said last holds: `before`.
pub(crate) fn standing_in(
    dns: &Dns,
    before: Option<&Dns>,
    source: &Objects,
    services: &SharedMap<ServiceName, Arc<weft_model::Service>>,
    pods: &SharedMap<PodName, Arc<Pod>>,
) -> Dns {
    let Some(Object::Service(manifest)) =
        source.objects.get(&Key::service(&dns.service)).map(|d| &d.object)
    else {
        return dns.clone();
    };
    let spec = manifest.spec.as_ref();
    let selector = spec.and_then(|s| s.selector.clone()).unwrap_or_default();
    let before = before.filter(|before| before.service == dns.service);
    let served = services.get(&dns.service).map(|s| &**s);
    let selects = !selector.is_empty();
    let behind = || served.and_then(|served| labels_behind(served, pods));
    let last = || before.map(|before| before.labels.clone());
    let labels = if selects { selector } else { behind().or_else(last).unwrap_or_default() };
    let given = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let over_udp = |p: &&ServicePort| p.protocol.as_deref() == Some("UDP");
    let query = given.iter().filter(over_udp).find(|p| p.port == i32::from(DNS_PORT));
    let port = match query.and_then(|p| p.target_port.as_ref()) {
        // Slices that somebody wrote say it themselves.
        _ if !selects => None,
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|n| *n != 0),
        // A number may stand as a text.
        Some(IntOrString::String(text)) => text.parse().ok(),
        None => Some(DNS_PORT),
    };
    let behind = || served.and_then(port_behind).or_else(|| before.map(|before| before.port));
    Dns { labels, port: port.or_else(behind).unwrap_or(DNS_PORT), ..dns.clone() }
}

/// What a pod of the Service's namespace has that is one of its endpoints.
fn labels_behind(
    service: &weft_model::Service,
    pods: &SharedMap<PodName, Arc<Pod>>,
) -> Option<BTreeMap<String, String>> {
    let addresses: BTreeSet<_> = service.endpoints.iter().map(|e| e.address).collect();
    let behind = |pod: &&Arc<Pod>| {
        pod.name.namespace == service.name.namespace
            && pod.addresses.iter().any(|a| addresses.contains(a))
    };
    pods.values().find(behind).map(|pod| pod.labels.clone())
}

/// Where the first endpoint gets queries.
fn port_behind(service: &weft_model::Service) -> Option<u16> {
    let is_query = |p: &weft_model::ServicePort| {
        p.port == DNS_PORT && p.protocol == weft_model::ServiceProtocol::Udp
    };
    let index = service.ports.iter().position(is_query)?;
    let mut targets = service.endpoints.iter().filter_map(|e| e.targets.get(index).copied());
    targets.find(|target| *target != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let with = |change: &dyn Fn(&mut Dns)| {
            let mut dns = usual_dns();
            change(&mut dns);
            check(&dns)
        };
        assert_eq!(with(&|_| {}), Ok(()));
        assert_eq!(with(&|d| d.zones = vec!["k8s.example.com.".into()]), Ok(()));
        assert!(with(&|d| d.zones.clear()).is_err());
        assert!(with(&|d| d.zones.push("a..b".into())).unwrap_err().contains("`a..b`"));
        assert!(with(&|d| d.zones.push(String::new())).is_err());
        assert_eq!(with(&|d| drop(d.hosts.insert("a.example".into(), vec![]))), Ok(()));
        assert!(with(&|d| drop(d.hosts.insert("a".into(), vec![]))).unwrap_err().contains("`a`"));
        assert!(with(&|d| d.ttl_s = 3601).unwrap_err().contains("3601"));
        assert!(with(&|d| drop(d.stub_domains.insert("x.y".into(), vec![]))).is_err());
    }

    fn behind(manifest: &str, targets: &[u16]) -> (Vec<String>, u16) {
        let name = usual_dns().service;
        let manifest: Service = serde_yaml_ng::from_str(manifest).unwrap();
        let defined = Defined::built_in(Object::Service(Box::new(manifest)));
        let mut source = Objects::default();
        source.objects.insert(Key::service(&name), defined.into());
        let endpoint = |(last, target): (u8, &u16)| weft_model::Endpoint {
            address: [10, 42, 0, last].into(),
            hostname: None,
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            for_nodes: Vec::new(),
            for_zones: Vec::new(),
            targets: vec![*target],
        };
        let served = weft_model::Service {
            ports: vec![weft_model::ServicePort {
                name: "dns".into(),
                protocol: weft_model::ServiceProtocol::Udp,
                port: DNS_PORT,
                node_port: None,
            }],
            endpoints: (1..).zip(targets).map(endpoint).collect(),
            name: name.clone(),
            cluster_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            announcers: BTreeMap::new(),
            external_ips: Vec::new(),
            source_ranges: Vec::new(),
            internal_policy: weft_model::TrafficPolicy::Cluster,
            external_policy: weft_model::TrafficPolicy::Cluster,
            affinity_s: None,
            health_check_node_port: None,
        };
        let pod = |namespace: &str, last: u8| {
            let name = PodName { namespace: namespace.into(), name: last.to_string() };
            let pod = Pod {
                name: name.clone(),
                node: None,
                addresses: vec![[10, 42, 0, last].into()],
                labels: [("of".to_owned(), namespace.to_owned())].into(),
                ports: Vec::new(),
                finished: false,
                own_search: false,
            };
            (name, Arc::new(pod))
        };
        let pods = [pod("default", 1), pod("kube-system", 2)].into_iter().collect();
        let services = [(name, Arc::new(served))].into_iter().collect();
        let before =
            Dns { labels: [("of".into(), "before".into())].into(), port: 54, ..usual_dns() };
        let found = standing_in(&usual_dns(), Some(&before), &source, &services, &pods);
        (found.labels.into_values().collect(), found.port)
    }

    /// NP-066: what policies take the resolver for is what they would take the Service's pods for.
    #[test]
    fn resolver_has_labels_and_port_of_the_pods_behind_the_service() {
        let service = |selector: &str, target: &str| {
            format!(
                "metadata: {{name: kube-dns, namespace: kube-system}}\nspec: {{{selector} ports: [{{name: dns, protocol: UDP, port: 53{target}}}]}}"
            )
        };
        let selector = "selector: {k8s-app: dns},";
        let selected = |target: &str, targets: &[u16]| behind(&service(selector, target), targets);
        let of = |labels: &str, port| (vec![labels.to_owned()], port);
        assert_eq!(selected("", &[]), of("dns", 53));
        assert_eq!(selected(", targetPort: 5353", &[]), of("dns", 5353));
        assert_eq!(selected(", targetPort: '5353'", &[]), of("dns", 5353));
        assert_eq!(selected(", targetPort: dns", &[]), of("dns", 54));
        assert_eq!(selected(", targetPort: dns", &[0, 5353]), of("dns", 5353));
        // Without a selector, what the endpoints in the Service's namespace are.
        assert_eq!(behind(&service("", ""), &[5353, 5353]), of("kube-system", 5353));
        assert_eq!(behind(&service("", ", targetPort: 53"), &[0, 5353]), of("kube-system", 5353));
        assert_eq!(behind(&service("", ""), &[5353]), of("before", 5353));
        assert_eq!(behind(&service("", ""), &[]), of("before", 54));
    }

    #[test]
    fn service_has_the_usual_address_of_each_range() {
        let cidrs = ["10.96.0.0/16", "fd00:10:96::/112"].map(|c| c.parse().unwrap());
        let stand = Stand::new(&usual_dns().service, &cidrs);
        let Object::Service(manifest) = &stand.defined.object else { panic!() };
        let addresses = manifest.spec.as_ref().unwrap().cluster_ips.clone().unwrap();
        assert_eq!(addresses, ["10.96.0.10", "fd00:10:96::a"]);
        let small = Stand::new(&usual_dns().service, &["10.0.0.0/29".parse().unwrap()]);
        let Object::Service(manifest) = &small.defined.object else { panic!() };
        assert_eq!(manifest.spec.as_ref().unwrap().cluster_ips, Some(vec![]));
    }
}
