//! A cluster, queries to it, and answers as another implementation reads them.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use prost::Message as _;
use weft_policy_sdk::Config;
use weft_proto::tables::v1::{
    DnsEndpoints, DnsHost, DnsNamespace, DnsPodNames, DnsPort, DnsService, DnsSettings, DnsTables,
    Range,
};

use crate::{Outcome, Transport, Zones};

pub(super) const TCP: u32 = 6;
pub(super) const UDP: u32 = 17;
pub(super) const SCTP: u32 = 132;
pub(super) const TTL: u32 = 5;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Addresses of each family back to back.
fn back_to_back(addresses: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().map(|a| ip(a)).partition(|a| a.is_ipv4());
    let bytes = |all: Vec<IpAddr>| all.into_iter().flat_map(octets).collect();
    (bytes(v4), bytes(v6))
}

pub(super) fn port(name: &str, protocol: u32, port: u32) -> DnsPort {
    DnsPort { name: name.into(), protocol, port }
}

pub(super) fn cluster_ip(name: &str, ips: &[&str], ports: Vec<DnsPort>) -> DnsService {
    let cluster_ips = ips.iter().map(|a| octets(ip(a))).collect();
    DnsService { name: name.into(), cluster_ips, ports, ..DnsService::default() }
}

pub(super) fn headless(name: &str, endpoints: Vec<DnsEndpoints>) -> DnsService {
    DnsService { name: name.into(), endpoints, ..DnsService::default() }
}

pub(super) fn alias(name: &str, target: &str) -> DnsService {
    DnsService { name: name.into(), external_name: target.into(), ..DnsService::default() }
}

pub(super) fn endpoints(
    unnamed: &[&str],
    hosts: &[(&str, &[&str])],
    ports: Vec<DnsPort>,
) -> DnsEndpoints {
    let (addresses_v4, addresses_v6) = back_to_back(unnamed);
    let host = |(name, addresses): &(&str, &[&str])| {
        let (addresses_v4, addresses_v6) = back_to_back(addresses);
        DnsHost { name: (*name).into(), addresses_v4, addresses_v6 }
    };
    DnsEndpoints { addresses_v4, addresses_v6, hosts: hosts.iter().map(host).collect(), ports }
}

pub(super) fn settings() -> DnsSettings {
    let range = |text: &str, prefix| Range { address: octets(ip(text)), prefix };
    DnsSettings {
        zones: vec!["cluster.local".into()],
        ttl_s: TTL,
        resolvers: vec![octets(ip("169.254.88.53")), octets(ip("fd57:6566:7400::53"))],
        name_servers: vec![octets(ip("10.96.0.10"))],
        reverse_ranges: vec![range("10.96.0.0", 12), range("10.244.0.0", 16), range("fd00::", 48)],
        pod_names: DnsPodNames::Verified.into(),
        synced: true,
        ..DnsSettings::default()
    }
}

pub(super) fn pods(pods: &[(&str, u32)]) -> (Vec<u8>, Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (address, number) in pods {
        let all = if ip(address).is_ipv4() { &mut v4 } else { &mut v6 };
        all.extend(octets(ip(address)));
        all.extend(number.to_be_bytes());
    }
    (v4, v6)
}

/// The cluster of most tests.
pub(super) fn tables() -> DnsTables {
    let (pods_v4, pods_v6) = pods(&[("10.244.1.5", 1), ("10.244.1.6", 2), ("fd00::1:5", 1)]);
    let namespaces = ["default", "kube-system", "svc", "pod", "9data"];
    let namespaces = namespaces
        .iter()
        .enumerate()
        .map(|(n, name)| DnsNamespace { number: n as u32 + 1, name: (*name).into() });
    let peer = vec![port("peer", TCP, 7000), port("gossip", UDP, 7001)];
    DnsTables {
        settings: Some(settings()),
        services: vec![
            cluster_ip(
                "default/web",
                &["10.96.0.20", "fd00::20"],
                vec![port("http", TCP, 80), port("quic", UDP, 443), port("", TCP, 9000)],
            ),
            cluster_ip("default/v4only", &["10.96.0.21"], vec![port("assoc", SCTP, 36412)]),
            cluster_ip("svc/pod", &["10.96.0.22"], vec![]),
            cluster_ip("9data/1st", &["10.96.0.23"], vec![]),
            DnsService {
                endpoints: vec![endpoints(
                    &["10.244.3.1"],
                    &[("front-0", &["10.244.3.2"])],
                    vec![],
                )],
                ..cluster_ip("default/front", &["10.96.0.24"], vec![])
            },
            headless(
                "default/db",
                vec![endpoints(
                    &["10.244.2.9", "fd00::2:9"],
                    &[("db-0", &["10.244.2.1"]), ("db-1", &["10.244.2.2", "fd00::2:2"])],
                    peer,
                )],
            ),
            headless("default/portless", vec![endpoints(&["10.244.2.9"], &[], vec![])]),
            headless("default/empty", vec![]),
            headless(
                "default/split",
                vec![
                    endpoints(&["10.244.4.1"], &[], vec![port("a", TCP, 1)]),
                    endpoints(&["10.244.4.2"], &[], vec![port("a", TCP, 2), port("b", TCP, 3)]),
                ],
            ),
            alias("default/ext", "db.example.COM"),
            alias("default/inner", "web.default.svc.cluster.local."),
            alias("default/gone", "nobody.default.svc.cluster.local"),
            alias("default/loop1", "loop2.default.svc.cluster.local"),
            alias("default/loop2", "loop1.default.svc.cluster.local"),
        ],
        namespaces: namespaces.collect(),
        pods_v4,
        pods_v6,
        ..DnsTables::default()
    }
}

pub(super) fn zones_of(tables: &DnsTables) -> Zones {
    let mut zones = Zones::default();
    zones.configure(Config::Full(&tables.encode_to_vec())).unwrap();
    zones
}

pub(super) fn change(zones: &mut Zones, delta: &DnsTables) -> Result<(), String> {
    zones.configure(Config::Delta(&delta.encode_to_vec()))
}

/// A query as a stub resolver sends it.
pub(super) fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut question = Query::query(Name::from_ascii(name).unwrap(), rtype);
    question.set_query_class(DNSClass::IN);
    message.add_query(question);
    message
}

/// As [`query`], with EDNS.
pub(super) fn edns_query(name: &str, rtype: RecordType, size: u16) -> Message {
    let mut message = query(name, rtype);
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.edns = Some(edns);
    message
}

pub(super) fn ask(zones: &Zones, message: &Message, transport: Transport) -> Option<Message> {
    match zones.answer(&message.to_vec().unwrap(), transport, None, 0) {
        Outcome::Reply(reply) => Some(Message::from_vec(&reply).unwrap()),
        Outcome::Elsewhere(_) => None,
        Outcome::Nothing => panic!("no answer to a query"),
    }
}

/// What a query over TCP gets; `None` if it is not of the cluster.
pub(super) fn answer(zones: &Zones, name: &str, rtype: RecordType) -> Option<Message> {
    ask(zones, &query(name, rtype), Transport::Tcp)
}

/// `OWNER TTL TYPE DATA` of each, in order of the text.
pub(super) fn lines(records: &[Record]) -> Vec<String> {
    let mut all: Vec<String> = records.iter().map(line).collect();
    all.sort();
    all
}

pub(super) fn line(record: &Record) -> String {
    let data = match &record.data {
        RData::TXT(text) => {
            let parts = text.txt_data.iter().map(|t| String::from_utf8_lossy(t).into_owned());
            parts.collect::<Vec<_>>().concat()
        }
        data => data.to_string(),
    };
    format!("{} {} {} {data}", record.name, record.ttl, record.record_type())
}

/// Data alone of the answers to a question about `name`.
pub(super) fn data(zones: &Zones, name: &str, rtype: RecordType) -> Vec<String> {
    let message = answer(zones, name, rtype).unwrap();
    assert_eq!(message.metadata.response_code, hickory_proto::op::ResponseCode::NoError, "{name}");
    let mut all: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
    all.sort();
    all
}
