//! One Service as its manifest asks for it, before it is known what it gets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as kube, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_model::{ServiceName, ServiceProtocol, TrafficPolicy};

use super::{is_unusable, text};
use crate::range::Family;
use crate::source::index::Defined;
use crate::source::pod::protocol;

/// Addresses that a Service wants of its pool, separated by commas; more than `spec.loadBalancerIP`
/// can say, which is one of one family.
const LOAD_BALANCER_IPS: &str = "weft.dev/load-balancer-ips";
/// The class of balancers that is ours.
const OUR_CLASS: &str = "weft.dev/l2";
/// Under this key an allocation holds `healthCheckNodePort`.
pub(super) const HEALTH_CHECK: &str = "healthCheck";
/// Seconds of session affinity unless set.
const AFFINITY_S: u32 = 10_800;
const AFFINITY_MAX_S: u32 = 86_400;

/// `spec.type`, of those that have addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Where a pod serves a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u16),
    /// Each pod's own port of that name.
    Name(String),
}

pub(super) struct DraftPort {
    pub(super) name: String,
    pub(super) protocol: ServiceProtocol,
    pub(super) port: u16,
    pub(super) target: Target,
    /// `nodePort`, if given.
    pub(super) node_port: Option<u16>,
}

impl DraftPort {
    /// Under this key an allocation holds its node port.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.protocol, self.port)
    }
}

/// A Service that wants addresses.
pub(super) struct Draft<'a> {
    pub(super) name: ServiceName,
    pub(super) defined: &'a Defined,
    pub(super) manifest: &'a kube::Service,
    pub(super) spec: &'a ServiceSpec,
    pub(super) kind: Kind,
    pub(super) ports: Vec<DraftPort>,
    /// A cluster IP for each of these, or this one in particular; the primary family first.
    pub(super) cluster_ips: Vec<(Family, Option<IpAddr>)>,
}

/// Reads a manifest. `Ok(None)` if the Service has no addresses by intention. `notes` take what is
/// wrong and does not keep it from being served.
///
/// # Errors
/// What keeps it from being served.
pub(super) fn draft<'a>(
    name: &ServiceName,
    defined: &'a Defined,
    manifest: &'a kube::Service,
    available: &[Family],
    notes: &mut Vec<String>,
) -> Result<Option<Draft<'a>>, String> {
    let spec = manifest.spec.as_ref().ok_or("`spec` is missing")?;
    let kind = match spec.type_.as_deref() {
        Some("ExternalName") => return Ok(None),
        Some("NodePort") => Kind::NodePort,
        Some("LoadBalancer") => Kind::LoadBalancer,
        _ => Kind::ClusterIp,
    };
    if is_headless(spec) {
        return Ok(None);
    }
    let given = given_cluster_ips(spec);
    let asked = given.iter().map(|given| {
        text::address(given).ok_or_else(|| format!("`spec.clusterIPs`: `{given}` is no IP address"))
    });
    let asked = asked.collect::<Result<Vec<_>, _>>()?;
    let cluster_ips = families(spec, &asked, available, notes)?;
    let ports = ports(spec, notes);
    if ports.is_empty() {
        notes.push("it has no ports: nothing is served".to_owned());
    }
    note_unknown_words(spec, notes);
    let name = name.clone();
    Ok(Some(Draft { name, defined, manifest, spec, kind, ports, cluster_ips }))
}

/// True if it wants no address of its own.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    given_cluster_ips(spec).first() == Some(&"None")
}

/// Reads the manifest of a Service that nodes have nothing but names for: it gets no address.
pub(super) fn headless<'a>(
    name: &ServiceName,
    defined: &'a Defined,
    manifest: &'a kube::Service,
    spec: &'a ServiceSpec,
    notes: &mut Vec<String>,
) -> Draft<'a> {
    let (ports, name) = (ports(spec, notes), name.clone());
    let (kind, cluster_ips) = (Kind::ClusterIp, Vec::new());
    Draft { name, defined, manifest, spec, kind, ports, cluster_ips }
}

fn given_cluster_ips(spec: &ServiceSpec) -> Vec<&str> {
    let all = spec.cluster_ips.iter().flatten().map(String::as_str);
    let all: Vec<_> = all.filter(|a| !a.is_empty()).collect();
    if all.is_empty() {
        return spec.cluster_ip.as_deref().filter(|a| !a.is_empty()).into_iter().collect();
    }
    all
}

/// Families that the Service wants a cluster IP of, with the one it asks for. An address speaks for
/// its family, then `ipFamilies` do, then the policy adds what is missing.
fn families(
    spec: &ServiceSpec,
    asked: &[IpAddr],
    available: &[Family],
    notes: &mut Vec<String>,
) -> Result<Vec<(Family, Option<IpAddr>)>, String> {
    let mut wanted: Vec<(Family, Option<IpAddr>)> = Vec::new();
    for address in asked {
        let family = Family::of(*address);
        if wanted.iter().any(|(f, _)| *f == family) {
            return Err(format!("`spec.clusterIPs` has two addresses of {family}"));
        }
        wanted.push((family, Some(*address)));
    }
    let policy = spec.ip_family_policy.as_deref();
    let more = match policy {
        Some("SingleStack") => 1,
        _ => 2,
    };
    let named = spec.ip_families.iter().flatten().filter_map(|f| Family::from_kubernetes(f));
    let dual = matches!(policy, Some("PreferDualStack" | "RequireDualStack"));
    let rest = available.iter().copied().filter(|_| dual);
    for family in named.chain(rest) {
        if wanted.len() < more && wanted.iter().all(|(f, _)| *f != family) {
            wanted.push((family, None));
        }
    }
    if wanted.is_empty() {
        wanted.extend(available.first().map(|f| (*f, None)));
    }
    wanted.retain(|(family, _)| {
        let there = available.contains(family);
        if !there {
            notes.push(format!("{family} is not served: no service CIDR is of that family"));
        }
        there
    });
    match (policy, wanted.len()) {
        (_, 0) => Err("no family is left that it could have a cluster IP of".to_owned()),
        (Some("RequireDualStack"), 1) => {
            Err("it requires two families and the fabric's Services have one".to_owned())
        }
        _ => Ok(wanted),
    }
}

/// What a later Kubernetes may say counts as if nothing were said.
fn note_unknown_words(spec: &ServiceSpec, notes: &mut Vec<String>) {
    let policies = &["Cluster", "Local"][..];
    let families = &["SingleStack", "PreferDualStack", "RequireDualStack"][..];
    let fields = [
        ("type", &spec.type_, &["ClusterIP", "NodePort", "LoadBalancer"][..]),
        ("sessionAffinity", &spec.session_affinity, &["None", "ClientIP"]),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, policies),
        ("externalTrafficPolicy", &spec.external_traffic_policy, policies),
        ("ipFamilyPolicy", &spec.ip_family_policy, families),
    ];
    for (field, given, known) in fields {
        let given = given.as_deref().filter(|word| !word.is_empty());
        if let Some(given) = given.filter(|word| !known.contains(word)) {
            let (known, first) = (known.join(", "), known.first().copied().unwrap_or_default());
            notes.push(format!(
                "`spec.{field}`: `{given}` is none of {known}: it counts as {first}"
            ));
        }
    }
}

fn ports(spec: &ServiceSpec, notes: &mut Vec<String>) -> Vec<DraftPort> {
    let mut seen = BTreeSet::new();
    let mut ports: Vec<DraftPort> = Vec::new();
    for given in spec.ports.iter().flatten() {
        let number = |n: i32| u16::try_from(n).ok().filter(|n| *n != 0);
        let Some(protocol) = protocol(given.protocol.as_deref()) else {
            let unknown = given.protocol.as_deref().unwrap_or_default();
            notes.push(format!("port {} is not served: `{unknown}` is no protocol", given.port));
            continue;
        };
        // The source has checked the range.
        let Some(port) = number(given.port) else { continue };
        if !seen.insert((protocol, port)) {
            notes.push(format!("{protocol} port {port} is there twice; the first counts"));
            continue;
        }
        let target = match &given.target_port {
            Some(IntOrString::String(name)) if !name.is_empty() => match name.parse() {
                Ok(number) => Target::Number(number),
                Err(_) => Target::Name(name.clone()),
            },
            Some(IntOrString::Int(target)) => Target::Number(number(*target).unwrap_or(port)),
            Some(IntOrString::String(_)) | None => Target::Number(port),
        };
        let node_port = given.node_port.and_then(number);
        let name = given.name.clone().unwrap_or_default();
        if ports.iter().any(|p| p.name == name) {
            notes.push(format!(
                "two ports have the name `{name}`, by which EndpointSlices say where a port is served"
            ));
        }
        ports.push(DraftPort { name, protocol, port, target, node_port });
    }
    ports
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

impl Draft<'_> {
    pub(super) fn internal_policy(&self) -> TrafficPolicy {
        policy(self.spec.internal_traffic_policy.as_deref())
    }

    pub(super) fn external_policy(&self) -> TrafficPolicy {
        policy(self.spec.external_traffic_policy.as_deref())
    }

    /// Seconds of session affinity.
    pub(super) fn affinity_s(&self, notes: &mut Vec<String>) -> Option<u32> {
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let Some(given) = config.and_then(|c| c.timeout_seconds) else { return Some(AFFINITY_S) };
        let legal = u32::try_from(given).ok().filter(|s| (1..=AFFINITY_MAX_S).contains(s));
        if legal.is_none() {
            notes.push(format!(
                "a session affinity of {given} s is not from 1 to {AFFINITY_MAX_S}: it is {AFFINITY_S} s"
            ));
        }
        legal.or(Some(AFFINITY_S))
    }

    /// Node ports that it wants: key, protocol and the one it asks for.
    pub(super) fn node_ports(&self) -> Vec<(String, ServiceProtocol, Option<u16>)> {
        let given_only = match self.kind {
            Kind::ClusterIp => return Vec::new(),
            Kind::NodePort => false,
            Kind::LoadBalancer => self.spec.allocate_load_balancer_node_ports == Some(false),
        };
        let wanting = self.ports.iter().filter(|p| !given_only || p.node_port.is_some());
        let mut wanted: Vec<_> = wanting.map(|p| (p.key(), p.protocol, p.node_port)).collect();
        if self.kind == Kind::LoadBalancer && self.external_policy() == TrafficPolicy::Local {
            let asked = self.spec.health_check_node_port.and_then(|p| u16::try_from(p).ok());
            let asked = asked.filter(|p| *p != 0);
            wanted.push((HEALTH_CHECK.to_owned(), ServiceProtocol::Tcp, asked));
        }
        wanted
    }

    fn ingress(&self) -> &[kube::LoadBalancerIngress] {
        let status = self.manifest.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        status.and_then(|b| b.ingress.as_deref()).unwrap_or_default()
    }

    /// Addresses of a balancer that somebody else has set up and nodes answer for.
    pub(super) fn status_addresses(&self, notes: &mut Vec<String>) -> Vec<IpAddr> {
        if self.kind != Kind::LoadBalancer {
            return Vec::new();
        }
        // With `Proxy` the balancer answers itself; a mode that is not known yet counts as `VIP`.
        let entries = self.ingress().iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        let texts: Vec<_> = entries.filter_map(|i| i.ip.as_deref()).collect();
        usable("status.loadBalancer.ingress.ip", texts, notes)
    }

    pub(super) fn external_ips(&self, notes: &mut Vec<String>) -> Vec<IpAddr> {
        let texts = self.spec.external_ips.iter().flatten().map(String::as_str);
        usable("spec.externalIPs", texts, notes)
    }

    /// True if nobody but the fabric can give it addresses.
    pub(super) fn names_our_class(&self) -> bool {
        self.spec.load_balancer_class.as_deref() == Some(OUR_CLASS)
    }

    /// True if its balancer's addresses come from our pools.
    pub(super) fn wants_pool(&self) -> bool {
        let class = self.spec.load_balancer_class.as_deref();
        let ours = class.is_none_or(|c| c == OUR_CLASS || c.is_empty());
        self.kind == Kind::LoadBalancer && ours && self.ingress().is_empty()
    }

    /// Addresses of a pool that it asks for.
    ///
    /// # Errors
    /// What is no address.
    pub(super) fn asked_of_pool(&self) -> Result<Vec<IpAddr>, String> {
        let annotation = self.manifest.metadata.annotations.as_ref();
        let annotation = annotation.and_then(|a| a.get(LOAD_BALANCER_IPS)).map(String::as_str);
        let (field, asked) = match (annotation, self.spec.load_balancer_ip.as_deref()) {
            (Some(list), _) => (LOAD_BALANCER_IPS, list),
            (None, Some(one)) => ("spec.loadBalancerIP", one),
            (None, None) => return Ok(Vec::new()),
        };
        let texts = asked.split(',').map(str::trim).filter(|t| !t.is_empty());
        let read = |t| text::address(t).ok_or_else(|| format!("`{field}`: `{t}` is no IP address"));
        texts.map(read).collect()
    }

    /// `loadBalancerSourceRanges`. A family of `addresses` that none is of is open to everybody, as
    /// it is with kube-proxy, and that is noted.
    ///
    /// # Errors
    /// What is no range.
    pub(super) fn source_ranges(
        &self,
        addresses: &[IpAddr],
        notes: &mut Vec<String>,
    ) -> Result<Vec<IpNet>, String> {
        if self.kind != Kind::LoadBalancer {
            return Ok(Vec::new());
        }
        let texts = self.spec.load_balancer_source_ranges.iter().flatten();
        let read = |t: &String| {
            text::network(t).ok_or_else(|| {
                format!("`spec.loadBalancerSourceRanges`: `{t}` is no subnet; its balancer's addresses are not served")
            })
        };
        let ranges = texts.filter(|t| !t.trim().is_empty()).map(read);
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        if ranges.is_empty() {
            return Ok(ranges);
        }
        let restricted = |f| ranges.iter().any(|r| Family::of(r.addr()) == f);
        let families: BTreeSet<_> = addresses.iter().map(|a| Family::of(*a)).collect();
        for family in families.into_iter().filter(|f| !restricted(*f)) {
            notes.push(format!(
                "`spec.loadBalancerSourceRanges` has no {family} range: its {family} address is open to everybody"
            ));
        }
        Ok(ranges)
    }
}

fn usable<'a>(
    field: &str,
    texts: impl IntoIterator<Item = &'a str>,
    notes: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for given in texts {
        match text::address(given) {
            None => notes.push(format!("`{field}`: `{given}` is no IP address")),
            Some(address) if is_unusable(address) => {
                notes.push(format!("`{field}`: {address} is not one that others can reach"));
            }
            Some(address) if addresses.contains(&address) => {}
            Some(address) => addresses.push(address),
        }
    }
    addresses
}
