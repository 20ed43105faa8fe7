//! Names as the plugin and the resolver on this node are told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_control::Encoded;
use weft_model::{
    Dns, Endpoint, NamedKind, NamedService, PodNames, RESOLVERS, Service, ServiceName, ServicePort,
    Snapshot,
};
use weft_proto::tables::v1::{
    DnsEndpoints, DnsHost, DnsName, DnsNamespace, DnsPodNames, DnsPort, DnsService, DnsSettings,
    DnsTables,
};

use super::services::{bytes, range};

/// Everything the plugin is configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Names {
    settings: Option<DnsSettings>,
    by_name: BTreeMap<ServiceName, Compiled>,
    /// With the numbers that they have as long as the agent lives.
    namespaces: BTreeMap<String, u32>,
    next_namespace: u32,
    /// Numbers of pods' namespaces, with [`ORDINARY_SEARCH`].
    pods: BTreeMap<IpAddr, u32>,
}

/// Beside the number of a pod's namespace: names are looked up as usual in it.
const ORDINARY_SEARCH: u32 = 1 << 31;

#[derive(Clone, Debug, PartialEq)]
struct Compiled {
    from: Source,
    table: Encoded<DnsService>,
}

/// What a Service's names are made of.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    Served(Arc<Service>),
    Named(Arc<NamedService>),
}

impl Source {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Served(a), Self::Served(b)) => Arc::ptr_eq(a, b),
            (Self::Named(a), Self::Named(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn table(&self) -> DnsService {
        match self {
            Self::Served(s) => with_addresses(&s.name, &s.cluster_ips, &s.ports, &s.endpoints),
            Self::Named(s) => match &s.kind {
                NamedKind::Alias(target) => {
                    DnsService { external_name: target.clone(), ..named(&s.name) }
                }
                NamedKind::Headless => {
                    DnsService { endpoints: endpoints(&s.ports, &s.endpoints), ..named(&s.name) }
                }
                NamedKind::Foreign(ips) => with_addresses(&s.name, ips, &s.ports, &s.endpoints),
            },
        }
    }
}

fn named(name: &ServiceName) -> DnsService {
    DnsService { name: name.to_string(), ..DnsService::default() }
}

/// One that has addresses of its own.
fn with_addresses(
    name: &ServiceName,
    ips: &[IpAddr],
    all: &[ServicePort],
    backends: &[Endpoint],
) -> DnsService {
    DnsService {
        cluster_ips: ips.iter().map(bytes).collect(),
        ports: ports(all.iter().map(|port| (port, port.port))),
        endpoints: endpoints(&[], backends),
        ..named(name)
    }
}

/// Those that have a name and a number.
fn ports<'a>(all: impl Iterator<Item = (&'a ServicePort, u16)>) -> Vec<DnsPort> {
    let port = |(p, number): (&ServicePort, u16)| DnsPort {
        name: p.name.clone(),
        protocol: p.protocol.number().into(),
        port: number.into(),
    };
    all.filter(|(p, number)| !p.name.is_empty() && *number != 0).map(port).collect()
}

/// Ready ones, those with the same of these ports together.
fn endpoints(service_ports: &[ServicePort], all: &[Endpoint]) -> Vec<DnsEndpoints> {
    let mut groups: BTreeMap<Vec<u16>, DnsEndpoints> = BTreeMap::new();
    for endpoint in all.iter().filter(|e| e.ready) {
        let targets: Vec<u16> =
            endpoint.targets.iter().copied().take(service_ports.len()).collect();
        let group = groups.entry(targets).or_insert_with_key(|targets| {
            let numbered = service_ports.iter().zip(targets.iter().copied());
            DnsEndpoints { ports: ports(numbered), ..DnsEndpoints::default() }
        });
        let (v4, v6) = match &endpoint.hostname {
            None => (&mut group.addresses_v4, &mut group.addresses_v6),
            Some(name) => {
                let known = group.hosts.iter().position(|h| h.name == *name);
                let at = known.unwrap_or_else(|| {
                    group.hosts.push(DnsHost { name: name.clone(), ..DnsHost::default() });
                    group.hosts.len() - 1
                });
                let host = &mut group.hosts[at];
                (&mut host.addresses_v4, &mut host.addresses_v6)
            }
        };
        let addresses = if endpoint.address.is_ipv4() { v4 } else { v6 };
        addresses.extend(bytes(&endpoint.address));
    }
    groups.into_values().collect()
}

impl Names {
    /// `before`: what was compiled last.
    pub(crate) fn compile(snapshot: &Snapshot, before: Option<&Self>) -> Self {
        let Some(dns) = &snapshot.cluster.dns else { return Self::default() };
        let served = snapshot.services.iter().map(|(n, s)| (n, Source::Served(Arc::clone(s))));
        let unserved = snapshot.named_services.iter();
        let all = served.chain(unserved.map(|(n, s)| (n, Source::Named(Arc::clone(s)))));
        let one = |(name, from): (&ServiceName, Source)| {
            let known = before.and_then(|b| b.by_name.get(name));
            let compiled = known.filter(|k| k.from.is(&from)).cloned();
            let make = || Compiled { table: Encoded::new(&from.table()), from };
            (name.clone(), compiled.unwrap_or_else(make))
        };
        let by_name: BTreeMap<_, _> = all.map(one).collect();
        let mut names = Self {
            settings: Some(settings(snapshot, dns)),
            by_name,
            namespaces: BTreeMap::new(),
            next_namespace: before.map_or(1, |b| b.next_namespace.max(1)),
            pods: BTreeMap::new(),
        };
        names.number_namespaces(snapshot, before);
        if dns.pod_names == PodNames::Verified || dns.autopath {
            for pod in snapshot.pods.values() {
                let Some(number) = names.namespaces.get(&pod.name.namespace) else { continue };
                let search = if pod.own_search { 0 } else { ORDINARY_SEARCH };
                names.pods.extend(pod.addresses.iter().map(|a| (*a, *number | search)));
            }
        }
        names
    }

    fn number_namespaces(&mut self, snapshot: &Snapshot, before: Option<&Self>) {
        let of_services = self.by_name.keys().map(|name| &name.namespace);
        for name in snapshot.namespaces.keys().chain(of_services) {
            if self.namespaces.contains_key(name) {
                continue;
            }
            let known = before.and_then(|b| b.namespaces.get(name)).copied();
            let number = known.unwrap_or_else(|| {
                self.next_namespace += 1;
                self.next_namespace - 1
            });
            self.namespaces.insert(name.clone(), number);
        }
    }

    /// Has the resolver answer all that these ask: it has to hear of what they are told.
    pub(crate) fn pass_clients(&mut self, clients: BTreeSet<IpAddr>) {
        if let Some(settings) = &mut self.settings {
            settings.passed_clients = clients.iter().map(bytes).collect();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.settings.is_none()
    }

    pub(crate) fn complete(&self) -> DnsTables {
        let (pods_v4, pods_v6) = records(self.pods.iter().map(|(a, n)| (*a, *n)));
        DnsTables {
            settings: self.settings.clone(),
            services: self.by_name.values().map(|c| c.table.decode()).collect(),
            namespaces: namespaces(self.namespaces.iter()),
            pods_v4,
            pods_v6,
            ..DnsTables::default()
        }
    }

    /// `None` if nothing changed.
    pub(crate) fn change_from(&self, old: &Self) -> Option<DnsTables> {
        let differs = |(name, new): &(&ServiceName, &Compiled)| match old.by_name.get(*name) {
            Some(old) => old.table != new.table,
            None => true,
        };
        let services = self.by_name.iter().filter(differs).map(|(_, c)| c.table.decode());
        let gone = old.by_name.keys().filter(|name| !self.by_name.contains_key(*name));
        let new_namespaces =
            self.namespaces.iter().filter(|(name, n)| old.namespaces.get(*name) != Some(*n));
        let gone_namespaces =
            old.namespaces.iter().filter(|(name, n)| self.namespaces.get(*name) != Some(*n));
        let set = self.pods.iter().filter(|(a, n)| old.pods.get(a) != Some(n));
        let unset = old.pods.keys().filter(|a| !self.pods.contains_key(a)).map(|a| (*a, 0));
        let (pods_v4, pods_v6) = records(set.map(|(a, n)| (*a, *n)).chain(unset));
        let change = DnsTables {
            settings: self.settings.clone().filter(|_| self.settings != old.settings),
            services: services.collect(),
            removed_services: gone.map(ToString::to_string).collect(),
            namespaces: namespaces(new_namespaces),
            removed_namespaces: gone_namespaces.map(|(_, n)| *n).collect(),
            pods_v4,
            pods_v6,
        };
        (change != DnsTables::default()).then_some(change)
    }
}

fn settings(snapshot: &Snapshot, dns: &Dns) -> DnsSettings {
    let cluster = &snapshot.cluster;
    let pod_names = match dns.pod_names {
        PodNames::Disabled => DnsPodNames::Unspecified,
        PodNames::Verified => DnsPodNames::Verified,
        PodNames::Insecure => DnsPodNames::Insecure,
    };
    DnsSettings {
        zones: dns.zones.clone(),
        ttl_s: dns.ttl_s,
        resolvers: RESOLVERS.iter().map(bytes).collect(),
        name_servers: snapshot.name_servers().iter().map(bytes).collect(),
        reverse_ranges: cluster.service_cidrs.iter().chain(&cluster.pod_cidrs).map(range).collect(),
        pod_names: pod_names.into(),
        synced: true,
        hosts: dns.hosts.iter().map(host_name).collect(),
        autopath: dns.autopath,
        passed_clients: Vec::new(),
        client_rate: dns.client_rate,
    }
}

fn host_name((name, addresses): (&String, &Vec<IpAddr>)) -> DnsName {
    let of = |v4| addresses.iter().filter(move |a| a.is_ipv4() == v4).flat_map(bytes).collect();
    DnsName { name: name.clone(), addresses_v4: of(true), addresses_v6: of(false) }
}

fn namespaces<'a>(all: impl Iterator<Item = (&'a String, &'a u32)>) -> Vec<DnsNamespace> {
    all.map(|(name, number)| DnsNamespace { number: *number, name: name.clone() }).collect()
}

/// Records of each family.
fn records(all: impl Iterator<Item = (IpAddr, u32)>) -> (Vec<u8>, Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (address, number) in all {
        let records = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        records.extend(bytes(&address));
        records.extend(number.to_be_bytes());
    }
    (v4, v6)
}

#[cfg(test)]
pub(super) mod tests;
