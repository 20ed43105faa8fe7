//! DNS as the operator wants it, and the Service that clients ask if no manifest has it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_model::{Dns, PodNames, ServiceName};

use crate::source::files::Objects;
use crate::source::index::Defined;
use crate::source::object::{Key, Object};

/// The usual settings: domain `cluster.local`, Service `kube-system/kube-dns`, the nodes' own upstreams.
#[must_use]
pub fn usual_dns() -> Dns {
    Dns {
        zones: vec!["cluster.local".to_owned()],
        ttl_s: DNS_TTL_S,
        service: ServiceName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() },
        labels: BTreeMap::new(),
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
const PORT: i32 = 53;
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
            port: PORT,
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
        source.objects.entry(self.key.clone()).or_insert_with(|| Arc::clone(&self.defined));
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

/// What selects the pods of the Service that clients ask.
pub(crate) fn labels(source: &Objects, service: &ServiceName) -> BTreeMap<String, String> {
    match source.objects.get(&Key::service(service)).map(|d| &d.object) {
        Some(Object::Service(manifest)) => {
            manifest.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default()
        }
        _ => BTreeMap::new(),
    }
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
