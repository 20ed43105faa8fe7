//! What the cluster has, found by name and by address.

use std::net::IpAddr;

use hashbrown::HashMap;

use crate::config::{Change, Host, Pod, PodNames, Settings, Zone};
use crate::name::LowerName;
use crate::service::{Kind, OwnedName, Service};

/// Everything that names are about.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    settings: Settings,
    /// Where in `services` each is, by its key.
    by_key: HashMap<Box<[u8]>, u32>,
    services: Vec<Option<Service>>,
    /// Places in `services` that are free.
    free: Vec<u32>,
    /// Services that have an address, the cluster IP or an endpoint, by it.
    by_address: HashMap<IpAddr, Owners>,
    /// Wire form of each namespace, by number.
    namespaces: HashMap<u32, Box<[u8]>>,
    /// Numbers by wire form.
    numbers: HashMap<Box<[u8]>, u32>,
    pods: HashMap<IpAddr, Pod>,
    /// Keys of the settings' hosts, by their addresses.
    hosts_at: HashMap<IpAddr, Vec<Box<[u8]>>>,
    changes: u32,
}

/// Places in `services`.
#[derive(Debug)]
enum Owners {
    One(u32),
    Several(Vec<u32>),
}

impl Owners {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(all) => all,
        }
    }

    fn add(&mut self, place: u32) {
        match self {
            Self::One(one) if *one == place => {}
            Self::One(one) => *self = Self::Several(vec![*one, place]),
            Self::Several(all) if all.contains(&place) => {}
            Self::Several(all) => all.push(place),
        }
    }

    /// True if none is left.
    fn remove(&mut self, place: u32) -> bool {
        match self {
            Self::One(one) => *one == place,
            Self::Several(all) => {
                all.retain(|p| *p != place);
                if let [one] = all[..] {
                    *self = Self::One(one);
                }
                false
            }
        }
    }
}

impl Tables {
    /// Takes a change: everything of it.
    pub(crate) fn change(&mut self, change: Change) {
        if let Some(settings) = change.settings {
            self.hosts_at.clear();
            for (key, host) in &settings.hosts {
                for address in host.addresses.iter() {
                    self.hosts_at.entry(address).or_default().push(key.clone());
                }
            }
            self.settings = settings;
        }
        for key in &change.removed_services {
            self.remove(key);
        }
        for service in change.services {
            self.remove(&service.key);
            self.insert(service);
        }
        for number in change.removed_namespaces {
            if let Some(name) = self.namespaces.remove(&number)
                && self.numbers.get(&name) == Some(&number)
            {
                self.numbers.remove(&name);
            }
        }
        for (number, name) in change.namespaces {
            self.numbers.insert(name.clone(), number);
            self.namespaces.insert(number, name);
        }
        for (address, pod) in change.pods {
            match pod {
                Some(pod) => self.pods.insert(address, pod),
                None => self.pods.remove(&address),
            };
        }
        self.changes = self.changes.wrapping_add(1);
    }

    fn insert(&mut self, service: Service) {
        let place = self.free.pop().unwrap_or(self.services.len() as u32);
        for address in addresses(&service) {
            self.by_address
                .entry(address)
                .and_modify(|owners| owners.add(place))
                .or_insert(Owners::One(place));
        }
        self.by_key.insert(service.key.clone(), place);
        match self.services.get_mut(place as usize) {
            Some(slot) => *slot = Some(service),
            None => self.services.push(Some(service)),
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let Some(place) = self.by_key.remove(key) else { return };
        let Some(service) = self.services.get_mut(place as usize).and_then(Option::take) else {
            return;
        };
        for address in addresses(&service) {
            if let Some(owners) = self.by_address.get_mut(&address)
                && owners.remove(place)
            {
                self.by_address.remove(&address);
            }
        }
        self.free.push(place);
    }

    /// What holds for all names.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Number of changes, for the zone's serial.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// The longest zone that the name is in, and the number of labels before it.
    pub(crate) fn zone(&self, name: &LowerName) -> Option<(&Zone, usize)> {
        let inside = |zone: &'_ Zone| name.labels_before(&zone.lower);
        let zones = self.settings.zones.iter();
        zones.filter_map(|z| inside(z).map(|before| (z, before))).min_by_key(|(_, before)| *before)
    }

    /// The Service with the key, NAME.NAMESPACE in wire form.
    pub(crate) fn service(&self, key: &[u8]) -> Option<&Service> {
        let place = *self.by_key.get(key)?;
        self.services.get(place as usize)?.as_ref()
    }

    /// Those that have the address.
    pub(crate) fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let owners = self.by_address.get(&address).map(Owners::as_slice).unwrap_or_default();
        owners.iter().filter_map(|place| self.services.get(*place as usize)?.as_ref())
    }

    /// True if there is a namespace with that name, in wire form.
    pub(crate) fn has_namespace(&self, wire: &[u8]) -> bool {
        self.numbers.contains_key(wire)
    }

    /// True if a pod has a name by its address in the namespace.
    pub(crate) fn has_pod(&self, address: IpAddr, namespace: &[u8]) -> bool {
        let Some(number) = self.numbers.get(namespace) else { return false };
        match self.settings.pod_names {
            PodNames::None => false,
            PodNames::Insecure => true,
            PodNames::Verified => self.pods.get(&address).map(|p| p.namespace) == Some(*number),
        }
    }

    /// What the operator says of a name.
    pub(crate) fn host(&self, name: &LowerName) -> Option<&Host> {
        self.settings.hosts.get(name.as_wire())
    }

    /// Names that the operator gave the address.
    pub(crate) fn hosts_at(&self, address: IpAddr) -> impl Iterator<Item = &OwnedName> {
        let keys = self.hosts_at.get(&address).map(Vec::as_slice).unwrap_or_default();
        keys.iter().filter_map(|key| Some(&self.settings.hosts.get(key)?.name))
    }

    /// The namespace of a pod that looks names up in the usual order, in wire form.
    pub(crate) fn searched_namespace(&self, pod: IpAddr) -> Option<&[u8]> {
        let pod = self.pods.get(&pod).filter(|p| p.ordinary_search && self.settings.autopath)?;
        self.namespaces.get(&pod.namespace).map(|name| &**name)
    }
}

/// What its reverse names are about.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let (v4, v6) = match &service.kind {
        Kind::ClusterIp { v4, v6, .. } => (*v4, *v6),
        Kind::Headless | Kind::Alias(_) => (None, None),
    };
    let own = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
    own.chain(service.endpoints.iter().flat_map(|e| e.all()))
}
