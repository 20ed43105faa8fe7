//! What a name has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::Rtype;
use domain::base::iana::Rcode;

use crate::address::{Reverse, of_dashed};
use crate::config::{Host, Zone};
use crate::name::LowerName;
use crate::service::{Kind, OwnedName, Port, Protocol, Service};
use crate::tables::Tables;

/// Aliases that are followed, one after the other.
const CHAIN_MAX: usize = 10;

/// Version of the schema that names of the cluster follow.
const SCHEMA_VERSION: &str = "1.1.0";

/// Data of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(OwnedName),
    Ns(OwnedName),
    Ptr(OwnedName),
    Srv {
        port: u16,
        target: OwnedName,
    },
    Txt(&'static str),
    Soa,
    /// What is said instead of all that there is (RFC 8482).
    Minimal,
}

impl From<IpAddr> for Data {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::A(v4),
            IpAddr::V6(v6) => Self::Aaaa(v6),
        }
    }
}

/// A record of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// `None`: the name that was asked for.
    pub(crate) owner: Option<OwnedName>,
    pub(crate) data: Data,
}

/// Where a negative answer is from.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    /// Name of the zone.
    pub(crate) zone: OwnedName,
    /// The cluster domain that has its name server.
    pub(crate) server_zone: OwnedName,
}

/// An answer of the cluster's.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) rcode: Rcode,
    pub(crate) records: Vec<Record>,
    pub(crate) additional: Vec<Record>,
    /// Of the zone that was asked about; its SOA is in answers that have no data.
    pub(crate) authority: Option<Authority>,
    pub(crate) negative: bool,
}

/// What is known about a question.
#[derive(Clone, Debug)]
pub(crate) enum Resolution {
    Answer(Answer),
    /// The name is an alias of one that is not of the cluster: what stands for what, to the last.
    Follow {
        names: Vec<OwnedName>,
        /// The first of them is no alias, but where the client would look next.
        searched: bool,
    },
    /// The name is not of the cluster.
    Elsewhere,
}

/// What one name has, of the type that is asked for.
enum Step<'t> {
    Records {
        records: Vec<Data>,
        additional: Vec<(OwnedName, Data)>,
    },
    /// It exists.
    NoData,
    Missing,
    Alias(&'t OwnedName),
}

impl Step<'_> {
    /// Of a name that exists.
    fn of(records: Vec<Data>) -> Self {
        Self::with_additional(records, Vec::new())
    }

    fn with_additional(records: Vec<Data>, additional: Vec<(OwnedName, Data)>) -> Self {
        if records.is_empty() { Self::NoData } else { Self::Records { records, additional } }
    }
}

/// Answers a question of class IN.
pub(crate) fn resolve(tables: &Tables, name: &LowerName, rtype: Rtype) -> Resolution {
    if let Some(host) = tables.host(name) {
        return Resolution::Answer(of_host(tables, host, rtype));
    }
    let Some((zone, before)) = tables.zone(name) else { return reverse(tables, name, rtype) };
    if !tables.settings().synced {
        return Resolution::Answer(Answer::of_zone(zone, Rcode::SERVFAIL, Vec::new()));
    }
    let (mut zone, mut before, mut name) = (zone, before, name.clone());
    let (mut records, mut owner): (Vec<Record>, Option<OwnedName>) = (Vec::new(), None);
    let mut seen = Vec::new();
    loop {
        let step = step(tables, zone, &name, before, rtype);
        match step {
            Step::Alias(target) => {
                records.push(Record { owner, data: Data::Cname(target.clone()) });
                seen.push(std::mem::replace(&mut name, LowerName::new(target)));
                let is_wanted = rtype == Rtype::CNAME || rtype == Rtype::ANY;
                if is_wanted || records.len() > CHAIN_MAX || seen.contains(&name) {
                    return Resolution::Answer(Answer::of_zone(zone, Rcode::NOERROR, records));
                }
                owner = Some(target.clone());
                if let Some(host) = tables.host(&name) {
                    let data = of_type(host.addresses.iter(), rtype).into_iter();
                    records.extend(data.map(|data| Record { owner: owner.clone(), data }));
                    return Resolution::Answer(Answer::of_zone(zone, Rcode::NOERROR, records));
                }
                match tables.zone(&name) {
                    Some(found) => (zone, before) = found,
                    None => {
                        let names = records.iter().filter_map(alias).collect();
                        return Resolution::Follow { names, searched: false };
                    }
                }
            }
            Step::Records { records: data, additional } => {
                records.extend(data.into_iter().map(|data| Record { owner: owner.clone(), data }));
                let mut answer = Answer::of_zone(zone, Rcode::NOERROR, records);
                answer.additional = additional
                    .into_iter()
                    .map(|(owner, data)| Record { owner: Some(owner), data })
                    .collect();
                return Resolution::Answer(answer);
            }
            Step::NoData if rtype == Rtype::ANY => {
                records.push(Record { owner, data: Data::Minimal });
                return Resolution::Answer(Answer::of_zone(zone, Rcode::NOERROR, records));
            }
            Step::NoData => return negative(zone, Rcode::NOERROR, records),
            Step::Missing => return negative(zone, Rcode::NXDOMAIN, records),
        }
    }
}

/// What a record's owner stands for.
fn alias(record: &Record) -> Option<OwnedName> {
    match &record.data {
        Data::Cname(target) => Some(target.clone()),
        _ => None,
    }
}

/// A name of the operator's.
fn of_host(tables: &Tables, host: &Host, rtype: Rtype) -> Answer {
    let data = match rtype {
        Rtype::ANY => vec![Data::Minimal],
        _ => of_type(host.addresses.iter(), rtype),
    };
    let records: Vec<_> = data.into_iter().map(|data| Record { owner: None, data }).collect();
    let server_zone = tables.settings().zones.first().map(|z| z.name.clone());
    let authority =
        server_zone.map(|server_zone| Authority { zone: host.name.clone(), server_zone });
    let negative = records.is_empty();
    Answer { rcode: Rcode::NOERROR, records, additional: Vec::new(), authority, negative }
}

fn negative(zone: &Zone, rcode: Rcode, aliases: Vec<Record>) -> Resolution {
    let mut answer = Answer::of_zone(zone, rcode, aliases);
    answer.negative = true;
    Resolution::Answer(answer)
}

impl Answer {
    fn of_zone(zone: &Zone, rcode: Rcode, records: Vec<Record>) -> Self {
        let name = zone.name.clone();
        let authority = Some(Authority { server_zone: name.clone(), zone: name });
        Self { rcode, records, additional: Vec::new(), authority, negative: false }
    }

    /// One that says nothing but why.
    pub(crate) fn refusal(rcode: Rcode) -> Self {
        Self {
            rcode,
            records: Vec::new(),
            additional: Vec::new(),
            authority: None,
            negative: false,
        }
    }

    /// Lets another address come first, as the number says.
    pub(crate) fn rotate(&mut self, number: u64) {
        let is_address = |r: &Record| matches!(r.data, Data::A(_) | Data::Aaaa(_));
        let Some(first) = self.records.iter().position(is_address) else { return };
        let addresses = &mut self.records[first..];
        let by = number % addresses.len() as u64;
        addresses.rotate_left(by as usize);
    }
}

/// Looks a name of the zone up; `before` are its labels before the zone.
fn step<'t>(
    tables: &'t Tables,
    zone: &Zone,
    name: &LowerName,
    before: usize,
    rtype: Rtype,
) -> Step<'t> {
    let Some(last) = before.checked_sub(1) else { return apex(tables, zone, rtype) };
    match (name.label(last), last) {
        (b"svc" | b"pod", 0) => Step::NoData,
        (b"svc", _) => service(tables, zone, name, last, rtype),
        (b"pod", _) => pod(tables, name, last, rtype),
        (b"dns-version", 0) => match rtype {
            Rtype::TXT => Step::of(vec![Data::Txt(SCHEMA_VERSION)]),
            _ => Step::NoData,
        },
        (b"dns", 0) => Step::NoData,
        (b"dns", 1) if name.label(0) == b"ns" => {
            Step::of(of_type(tables.settings().name_servers.iter().copied(), rtype))
        }
        _ => Step::Missing,
    }
}

fn apex<'t>(tables: &'t Tables, zone: &Zone, rtype: Rtype) -> Step<'t> {
    match rtype {
        Rtype::SOA => Step::of(vec![Data::Soa]),
        Rtype::NS => {
            let Some(server) = name_server(&zone.name) else { return Step::NoData };
            let addresses = tables.settings().name_servers.iter();
            let additional = addresses.map(|a| (server.clone(), Data::from(*a))).collect();
            Step::with_additional(vec![Data::Ns(server)], additional)
        }
        _ => Step::NoData,
    }
}

/// `None` if the zone's name is too long for it.
pub(crate) fn name_server(zone: &OwnedName) -> Option<OwnedName> {
    below(b"\x02ns\x03dns", zone)
}

/// The name of labels in wire form below another.
pub(crate) fn below(labels: &[u8], parent: &OwnedName) -> Option<OwnedName> {
    OwnedName::from_octets([labels, parent.as_slice()].concat()).ok()
}

fn of_type(addresses: impl Iterator<Item = IpAddr>, rtype: Rtype) -> Vec<Data> {
    let wanted = |a: &IpAddr| match a {
        IpAddr::V4(_) => rtype == Rtype::A,
        IpAddr::V6(_) => rtype == Rtype::AAAA,
    };
    addresses.filter(wanted).map(Data::from).collect()
}

/// `n` labels stand before `pod`.
fn pod<'t>(tables: &'t Tables, name: &LowerName, n: usize, rtype: Rtype) -> Step<'t> {
    let namespace = name.wire(n - 1, n);
    if !tables.has_namespace(namespace) {
        return Step::Missing;
    }
    match n {
        1 => Step::NoData,
        2 => match of_dashed(name.label(0)) {
            Some(address) if tables.has_pod(address, namespace) => {
                Step::of(of_type([address].into_iter(), rtype))
            }
            _ => Step::Missing,
        },
        _ => Step::Missing,
    }
}

/// `n` labels stand before `svc`.
fn service<'t>(
    tables: &'t Tables,
    zone: &Zone,
    name: &LowerName,
    n: usize,
    rtype: Rtype,
) -> Step<'t> {
    if n == 1 {
        let exists = tables.has_namespace(name.wire(0, 1));
        return if exists { Step::NoData } else { Step::Missing };
    }
    let Some(service) = tables.service(name.wire(n - 2, n)) else { return Step::Missing };
    match (&service.kind, n) {
        (Kind::Alias(target), 2) => return Step::Alias(target),
        (Kind::Alias(_), _) => return Step::Missing,
        (Kind::Headless, _) if service.endpoints.iter().all(|e| e.all().next().is_none()) => {
            return Step::Missing;
        }
        _ => {}
    }
    match n {
        2 if rtype == Rtype::SRV => srv(zone, service, |_| true),
        2 => Step::of(of_type(own_addresses(service), rtype)),
        3 => match Protocol::of_label(name.label(0)) {
            Some(protocol) => {
                let any = ports(service).any(|p| p.protocol == protocol);
                if any { Step::NoData } else { Step::Missing }
            }
            None => endpoint(service, name.label(0), rtype),
        },
        4 => {
            let Some(wanted) = wanted_port(name.label(0), name.label(1)) else {
                return Step::Missing;
            };
            if !ports(service).any(&wanted) {
                return Step::Missing;
            }
            if rtype == Rtype::SRV { srv(zone, service, wanted) } else { Step::NoData }
        }
        _ => Step::Missing,
    }
}

/// Addresses that the Service's own name has, each once.
fn own_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let (own, endpoints) = match &service.kind {
        Kind::ClusterIp { v4, v6, .. } => ([v4.map(IpAddr::V4), v6.map(IpAddr::V6)], &[][..]),
        Kind::Headless | Kind::Alias(_) => ([None, None], &*service.endpoints),
    };
    let mut all: Vec<IpAddr> = endpoints.iter().flat_map(|e| e.all()).collect();
    // Those of one group are in order, and none is twice unless a name is.
    if endpoints.len() > 1 || endpoints.iter().any(|e| !e.hosts.is_empty()) {
        all.sort_unstable();
        all.dedup();
    }
    own.into_iter().flatten().chain(all)
}

/// Ports that have SRV records.
fn ports(service: &Service) -> impl Iterator<Item = &Port> {
    let (own, endpoints) = match &service.kind {
        Kind::ClusterIp { ports, .. } => (&**ports, &[][..]),
        Kind::Headless | Kind::Alias(_) => (&[][..], &*service.endpoints),
    };
    own.iter().chain(endpoints.iter().flat_map(|e| &*e.ports))
}

/// `None` if the labels are none of a port.
fn wanted_port(port: &[u8], protocol: &[u8]) -> Option<impl Fn(&Port) -> bool> {
    let protocol = Protocol::of_label(protocol)?;
    let name = port.strip_prefix(b"_")?;
    Some(move |p: &Port| p.protocol == protocol && p.name.as_bytes() == name)
}

fn endpoint<'t>(service: &'t Service, label: &[u8], rtype: Rtype) -> Step<'t> {
    let hosts = service.endpoints.iter().filter_map(|e| e.host(label));
    let mut found: Vec<IpAddr> = hosts.flat_map(|h| h.addresses.iter()).collect();
    if found.is_empty()
        && let Some(address) = of_dashed(label)
        && service.endpoints.iter().any(|e| e.unnamed.holds(address))
    {
        found.push(address);
    }
    if found.is_empty() {
        return Step::Missing;
    }
    found.sort_unstable();
    found.dedup();
    Step::of(of_type(found.into_iter(), rtype))
}

fn srv<'t>(zone: &Zone, service: &'t Service, wanted: impl Fn(&Port) -> bool) -> Step<'t> {
    let Some(own) = service_name(zone, service) else { return Step::NoData };
    let (mut records, mut additional) = (Vec::new(), Vec::new());
    if let Kind::ClusterIp { ports, .. } = &service.kind {
        for port in ports.iter().filter(|p| wanted(p)) {
            let record = Data::Srv { port: port.number, target: own.clone() };
            // Of two protocols.
            if !records.contains(&record) {
                records.push(record);
            }
        }
        additional.extend(own_addresses(service).map(|a| (own.clone(), Data::from(a))));
        return Step::with_additional(records, additional);
    }
    for endpoints in &service.endpoints {
        let ports: Vec<&Port> = endpoints.ports.iter().filter(|p| wanted(p)).collect();
        if ports.is_empty() {
            continue;
        }
        for (name, addresses) in endpoints.names() {
            let Some(target) = below(&label(&name), &own) else { continue };
            for port in &ports {
                let record = Data::Srv { port: port.number, target: target.clone() };
                // A name may stand in several groups of endpoints.
                if !endpoints_are_one(service) && records.contains(&record) {
                    continue;
                }
                records.push(record);
            }
            additional.extend(addresses.into_iter().map(|a| (target.clone(), Data::from(a))));
        }
    }
    Step::with_additional(records, additional)
}

fn endpoints_are_one(service: &Service) -> bool {
    service.endpoints.len() == 1
}

fn label(text: &str) -> Vec<u8> {
    let mut wire = vec![text.len() as u8];
    wire.extend_from_slice(text.as_bytes());
    wire
}

/// `None` if it would be too long.
fn service_name(zone: &Zone, service: &Service) -> Option<OwnedName> {
    below(&[&*service.key, b"\x03svc"].concat(), &zone.name)
}

/// Names under `in-addr.arpa` and `ip6.arpa`.
fn reverse(tables: &Tables, name: &LowerName, rtype: Rtype) -> Resolution {
    let settings = tables.settings();
    let (Some(about), Some(zone)) = (Reverse::of(name), settings.zones.first()) else {
        return Resolution::Elsewhere;
    };
    let inside = settings.reverse_ranges.iter().any(|range| range.holds(about));
    let names: Vec<OwnedName> = match about.is_host() {
        true => {
            let of_services = tables.services_at(about.address);
            let hosts = tables.hosts_at(about.address).cloned();
            hosts.chain(of_services.flat_map(|s| names_at(zone, s, about))).collect()
        }
        false => Vec::new(),
    };
    // A range has names below it, if nobody knows which.
    let exists = !names.is_empty() || (about.is_whole && !about.is_host());
    if names.is_empty() && !inside {
        return Resolution::Elsewhere;
    }
    let suffix: &[u8] =
        if about.address.is_ipv4() { b"\x07in-addr\x04arpa\0" } else { b"\x03ip6\x04arpa\0" };
    let authority = OwnedName::from_octets(suffix.to_vec())
        .ok()
        .map(|name| Authority { zone: name, server_zone: zone.name.clone() });
    let records: Vec<Record> = match rtype {
        Rtype::PTR => {
            names.into_iter().map(|n| Record { owner: None, data: Data::Ptr(n) }).collect()
        }
        Rtype::ANY if exists => vec![Record { owner: None, data: Data::Minimal }],
        _ => Vec::new(),
    };
    let rcode = if !settings.synced {
        Rcode::SERVFAIL
    } else if exists {
        Rcode::NOERROR
    } else {
        Rcode::NXDOMAIN
    };
    let negative = records.is_empty() && settings.synced;
    Resolution::Answer(Answer { rcode, records, additional: Vec::new(), authority, negative })
}

/// Names of an address by the Service.
fn names_at(zone: &Zone, service: &Service, about: Reverse) -> Vec<OwnedName> {
    let Some(own) = service_name(zone, service) else { return Vec::new() };
    let is_own = match (&service.kind, about.address) {
        (Kind::ClusterIp { v4, .. }, IpAddr::V4(a)) => *v4 == Some(a),
        (Kind::ClusterIp { v6, .. }, IpAddr::V6(a)) => *v6 == Some(a),
        _ => false,
    };
    let names = service.endpoints.iter().filter_map(|e| e.name_of(about.address));
    let mut all: Vec<OwnedName> = names.filter_map(|n| below(&label(&n), &own)).collect();
    all.dedup();
    if is_own {
        all.insert(0, own);
    }
    all
}
