//! What the agent configures built-in plugins with, kept whole, as it comes in changes.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use weft_control::Encoded;
use weft_model::{BUILT_IN_PLUGINS, DNS_PLUGIN, POLICY_PLUGIN, SERVICE_PLUGIN};
use weft_proto::tables::v1::{
    DnsNamespace, DnsService, DnsSettings, DnsTables, IdentitySet, PolicyLearned, PolicyProgram,
    PolicySettings, PolicySubject, PolicyTables, ServiceSettings, ServiceTable, ServiceTables,
};

/// Changes of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BuiltInChange {
    pub(crate) services: Option<ServiceTables>,
    pub(crate) policies: Option<PolicyTables>,
    pub(crate) names: Option<DnsTables>,
}

impl BuiltInChange {
    /// What this plugin is to take; `resolver`: whether the node's own serves names.
    pub(crate) fn of(&self, plugin: &str, resolver: bool) -> Option<Vec<u8>> {
        match plugin {
            SERVICE_PLUGIN => self.services.clone().map(|s| told(s, resolver).encode_to_vec()),
            POLICY_PLUGIN => self.policies.as_ref().map(Message::encode_to_vec),
            DNS_PLUGIN => self.names.as_ref().map(Message::encode_to_vec),
            _ => None,
        }
    }

    /// What each plugin is to take, by its name.
    pub(crate) fn by_plugin(
        &self,
        resolver: bool,
    ) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        BUILT_IN_PLUGINS
            .into_iter()
            .filter_map(move |plugin| Some((plugin, self.of(plugin, resolver)?)))
    }
}

/// What the plugin of Services is told: without the node's resolver others may be asked for names.
fn told(mut tables: ServiceTables, resolver: bool) -> ServiceTables {
    for service in &mut tables.services {
        let without = std::mem::take(&mut service.ports_without_resolver);
        if !(resolver || without.is_empty()) {
            service.ports = without;
        }
    }
    tables
}

/// What the built-in plugin of Services is configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Services {
    settings: Option<ServiceSettings>,
    by_name: BTreeMap<String, ServiceTable>,
}

impl Services {
    pub(crate) fn change(&mut self, change: ServiceTables) {
        self.settings = change.settings.or(self.settings.take());
        change.removed.iter().for_each(|name| drop(self.by_name.remove(name)));
        self.by_name.extend(change.services.into_iter().map(|s| (s.name.clone(), s)));
    }

    /// Everything, as the agent told it.
    pub(crate) fn complete(&self) -> ServiceTables {
        ServiceTables {
            settings: self.settings.clone(),
            services: self.by_name.values().cloned().collect(),
            removed: Vec::new(),
        }
    }

    /// Everything, as the plugin takes it.
    pub(crate) fn told(&self, resolver: bool) -> ServiceTables {
        told(self.complete(), resolver)
    }

    /// Those that differ with the node's resolver and without; `None` if none does.
    pub(crate) fn of_resolver(&self) -> Option<ServiceTables> {
        let differ = self.by_name.values().filter(|s| !s.ports_without_resolver.is_empty());
        let services: Vec<_> = differ.cloned().collect();
        (!services.is_empty()).then(|| ServiceTables { services, ..ServiceTables::default() })
    }
}

/// Bytes of an address in a record, before the number that belongs to it.
const V4: usize = 4;
/// As [`V4`].
const V6: usize = 16;
const NUMBER: usize = 4;

/// What the built-in plugin of policies is configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies {
    settings: Option<PolicySettings>,
    v4: BTreeMap<[u8; V4], [u8; NUMBER]>,
    v6: BTreeMap<[u8; V6], [u8; NUMBER]>,
    sets: BTreeMap<u32, BTreeSet<u32>>,
    programs: BTreeMap<u32, PolicyProgram>,
    subjects: BTreeMap<u32, PolicySubject>,
    /// Numbers of names by a pod's address and the one that it learned.
    learned: BTreeMap<(Vec<u8>, Vec<u8>), Vec<u64>>,
}

impl Policies {
    pub(crate) fn change(&mut self, change: PolicyTables) {
        self.settings = change.settings.or(self.settings.take());
        set_addresses(&mut self.v4, &change.addresses_v4);
        set_addresses(&mut self.v6, &change.addresses_v6);
        change.removed_sets.iter().for_each(|number| drop(self.sets.remove(number)));
        for IdentitySet { number, identities } in change.sets {
            self.sets.insert(number, identities.into_iter().collect());
        }
        for changed in change.changed_sets {
            let set = self.sets.entry(changed.number).or_default();
            set.retain(|identity| !changed.removed.contains(identity));
            set.extend(changed.added);
        }
        change.removed_programs.iter().for_each(|number| drop(self.programs.remove(number)));
        self.programs.extend(change.programs.into_iter().map(|p| (p.number, p)));
        self.subjects.retain(|identity, _| !change.removed_subjects.contains(identity));
        self.subjects.extend(change.subjects.into_iter().map(|s| (s.identity, s)));
        for PolicyLearned { pod, address, names } in change.learned {
            match names.is_empty() {
                true => self.learned.remove(&(pod, address)),
                false => self.learned.insert((pod, address), names),
            };
        }
    }

    /// Everything, as the plugin takes it.
    pub(crate) fn complete(&self) -> PolicyTables {
        let set = |(number, identities): (&u32, &BTreeSet<u32>)| IdentitySet {
            number: *number,
            identities: identities.iter().copied().collect(),
        };
        let learned = |((pod, address), names): (&(Vec<u8>, Vec<u8>), &Vec<u64>)| PolicyLearned {
            pod: pod.clone(),
            address: address.clone(),
            names: names.clone(),
        };
        PolicyTables {
            settings: self.settings.clone(),
            addresses_v4: addresses(&self.v4),
            addresses_v6: addresses(&self.v6),
            sets: self.sets.iter().map(set).collect(),
            programs: self.programs.values().cloned().collect(),
            subjects: self.subjects.values().copied().collect(),
            learned: self.learned.iter().map(learned).collect(),
            ..PolicyTables::default()
        }
    }
}

/// What the built-in plugin of DNS is configured with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Names {
    settings: Option<DnsSettings>,
    by_name: BTreeMap<String, Encoded<DnsService>>,
    /// Names by number.
    namespaces: BTreeMap<u32, String>,
    v4: BTreeMap<[u8; V4], [u8; NUMBER]>,
    v6: BTreeMap<[u8; V6], [u8; NUMBER]>,
}

impl Names {
    pub(crate) fn change(&mut self, change: DnsTables) {
        self.settings = change.settings.or(self.settings.take());
        change.removed_services.iter().for_each(|name| drop(self.by_name.remove(name)));
        let encoded = |s: DnsService| (s.name.clone(), Encoded::new(&s));
        self.by_name.extend(change.services.into_iter().map(encoded));
        change.removed_namespaces.iter().for_each(|n| drop(self.namespaces.remove(n)));
        self.namespaces.extend(change.namespaces.into_iter().map(|n| (n.number, n.name)));
        set_addresses(&mut self.v4, &change.pods_v4);
        set_addresses(&mut self.v6, &change.pods_v6);
    }

    /// Everything, as the plugin takes it.
    pub(crate) fn complete(&self) -> DnsTables {
        let namespace =
            |(number, name): (&u32, &String)| DnsNamespace { number: *number, name: name.clone() };
        DnsTables {
            settings: self.settings.clone(),
            services: self.by_name.values().map(Encoded::decode).collect(),
            namespaces: self.namespaces.iter().map(namespace).collect(),
            pods_v4: addresses(&self.v4),
            pods_v6: addresses(&self.v6),
            ..DnsTables::default()
        }
    }
}

/// Number 0 takes an address out. What is no whole record the plugin refuses.
fn set_addresses<const N: usize>(all: &mut BTreeMap<[u8; N], [u8; NUMBER]>, mut records: &[u8]) {
    while let Some((address, rest)) = records.split_first_chunk::<N>() {
        let Some((number, rest)) = rest.split_first_chunk::<NUMBER>() else { return };
        if *number == [0; NUMBER] {
            all.remove(address);
        } else {
            all.insert(*address, *number);
        }
        records = rest;
    }
}

fn addresses<const N: usize>(all: &BTreeMap<[u8; N], [u8; NUMBER]>) -> Vec<u8> {
    all.iter().flat_map(|(address, number)| address.iter().chain(number)).copied().collect()
}

#[cfg(test)]
mod tests {
    use weft_proto::tables::v1::{IdentitySetChange, ServicePortTable};

    use super::*;

    #[test]
    fn plugin_is_told_of_ports_with_the_resolver_or_without() {
        let port = |port| ServicePortTable { port, ..ServicePortTable::default() };
        let service = |name: &str, without: &[u32]| ServiceTable {
            name: name.into(),
            ports: vec![port(1)],
            ports_without_resolver: without.iter().copied().map(port).collect(),
            ..ServiceTable::default()
        };
        let mut services = Services::default();
        let all = vec![service("a/b", &[]), service("a/dns", &[2])];
        services.change(ServiceTables { services: all.clone(), ..ServiceTables::default() });
        assert_eq!(services.complete().services, all);
        let ports = |tables: ServiceTables| {
            let of = |s: ServiceTable| {
                assert!(s.ports_without_resolver.is_empty());
                s.ports.iter().map(|p| p.port).collect::<Vec<_>>()
            };
            tables.services.into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(ports(services.told(true)), [[1], [1]]);
        assert_eq!(ports(services.told(false)), [[1], [2]]);
        let only = services.of_resolver().unwrap();
        assert_eq!(only.services, [service("a/dns", &[2])]);
        let change = BuiltInChange { services: Some(only), ..BuiltInChange::default() };
        let taken = change.of(SERVICE_PLUGIN, false).unwrap();
        assert_eq!(ports(ServiceTables::decode(&*taken).unwrap()), [[2]]);
    }

    #[test]
    fn names_follow_changes() {
        let mut names = Names::default();
        let service = |name: &str| DnsService { name: name.into(), ..DnsService::default() };
        let namespace = |number, name: &str| DnsNamespace { number, name: name.into() };
        names.change(DnsTables {
            settings: Some(DnsSettings::default()),
            services: vec![service("a/b"), service("a/c")],
            namespaces: vec![namespace(1, "a"), namespace(2, "b")],
            pods_v4: vec![10, 0, 0, 1, 0, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 2],
            pods_v6: [vec![0; 15], vec![1, 0, 0, 0, 3]].concat(),
            ..DnsTables::default()
        });
        names.change(DnsTables {
            removed_services: vec!["a/b".into()],
            removed_namespaces: vec![1],
            namespaces: vec![namespace(3, "a")],
            pods_v4: vec![10, 0, 0, 1, 0, 0, 0, 0],
            ..DnsTables::default()
        });
        let whole = names.complete();
        assert_eq!(whole.services, [service("a/c")]);
        assert_eq!(whole.namespaces, [namespace(2, "b"), namespace(3, "a")]);
        assert_eq!((whole.pods_v4, whole.pods_v6.len()), (vec![10, 0, 0, 2, 0, 0, 0, 2], 20));
        let mut again = Names::default();
        again.change(names.complete());
        assert_eq!(again, names);
    }

    #[test]
    fn policies_follow_changes() {
        let mut policies = Policies::default();
        let learned = |last, names: &[u64]| PolicyLearned {
            pod: vec![10, 0, 0, 1],
            address: vec![192, 0, 2, last],
            names: names.to_vec(),
        };
        let program = |number| PolicyProgram { number, ..PolicyProgram::default() };
        policies.change(PolicyTables {
            settings: Some(PolicySettings::default()),
            addresses_v4: vec![10, 0, 0, 1, 0, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 2],
            addresses_v6: [vec![0; 15], vec![1, 0, 0, 0, 3]].concat(),
            sets: vec![IdentitySet { number: 1, identities: vec![1, 2] }],
            programs: vec![program(1), program(2)],
            subjects: vec![PolicySubject { identity: 1, ingress: 1, egress: 2 }],
            learned: vec![learned(1, &[1]), learned(2, &[2, 3]), learned(3, &[4])],
            ..PolicyTables::default()
        });
        policies.change(PolicyTables {
            addresses_v4: vec![10, 0, 0, 1, 0, 0, 0, 0, 10, 0, 0, 3, 0, 0, 0, 2],
            changed_sets: vec![IdentitySetChange { number: 1, added: vec![3], removed: vec![1] }],
            removed_programs: vec![1],
            removed_subjects: vec![1],
            learned: vec![learned(1, &[]), learned(2, &[3])],
            ..PolicyTables::default()
        });
        let whole = policies.complete();
        assert_eq!(whole.addresses_v4, [10, 0, 0, 2, 0, 0, 0, 2, 10, 0, 0, 3, 0, 0, 0, 2]);
        assert_eq!(whole.addresses_v6.len(), 20);
        assert_eq!(whole.sets, [IdentitySet { number: 1, identities: vec![2, 3] }]);
        assert_eq!(whole.learned, [learned(2, &[3]), learned(3, &[4])]);
        assert_eq!((whole.programs, whole.subjects), (vec![program(2)], vec![]));
        let mut again = Policies::default();
        again.change(policies.complete());
        assert_eq!(again, policies);
    }
}
