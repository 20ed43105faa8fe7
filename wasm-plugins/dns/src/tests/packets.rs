//! The plugin in the packets' way.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use hickory_proto::op::Message;
use hickory_proto::op::ResponseCode::{NoError, Refused};
use hickory_proto::rr::RecordType::A;
use prost::Message as _;
use weft_policy_sdk::{
    Config, Descriptor, Export, Filter, Flow, Host, Packet, Verdict, flags, protocols,
};
use weft_policy_testing::{NativeMap, NativePlugin};

use super::support::*;
use crate::{Dns, NO_QUERY, TOO_MANY};

const UDP: u8 = 17;

fn plugin() -> Dns {
    let mut plugin = Dns::default();
    plugin.configure(Config::Full(&tables().encode_to_vec())).unwrap();
    plugin
}

/// What a datagram from a pod is told as, and its bytes.
fn datagram(to: &str, port: u16, payload: &[u8]) -> (Descriptor, Vec<u8>) {
    let from = if ip(to).is_ipv4() { ip("10.244.1.5") } else { ip("fd00::1:5") };
    let mapped = |a: std::net::IpAddr| match a {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    let header = if from.is_ipv4() { 20 } else { 40 };
    let length = header + 8 + payload.len();
    let told = Descriptor {
        length: length as u32,
        flags: flags::EGRESS | flags::SOURCE_LOCAL_POD,
        transport_offset: header as u16,
        payload_offset: header as u16 + 8,
        source_port: 40_000,
        destination_port: port,
        ip_version: if from.is_ipv4() { 4 } else { 6 },
        protocol: UDP,
        source: mapped(from),
        destination: mapped(ip(to)),
        now: 5,
        ..Descriptor::default()
    };
    (told, [vec![0; header + 8], payload.to_vec()].concat())
}

fn verdict(told: &Descriptor, bytes: &[u8]) -> (Verdict, bool) {
    let (map, mut flow) = (NativeMap::default(), Flow::new(told));
    let packet = Packet::new(told, bytes);
    let verdict = plugin().on_packet(&packet, &mut flow, &Host::new(&map));
    (verdict, flow.asks_again())
}

/// DNS-120: the answer comes from where the query went, in both families.
#[test]
fn query_to_the_resolver_is_answered() {
    let query = query("web.default.svc.cluster.local.", A).to_vec().unwrap();
    for (to, from) in [("169.254.88.53", "10.244.1.5"), ("fd57:6566:7400::53", "fd00::1:5")] {
        let (told, bytes) = datagram(to, 53, &query);
        let (Verdict::Reply(reply, number), true) = verdict(&told, &bytes) else { panic!("{to}") };
        // DNS-144: of type A, without an error.
        assert_eq!(number, 1 << 8);
        let meta = weft_packet::Meta::default();
        let headers = weft_packet::Headers::parse(&reply, &meta).unwrap();
        assert_eq!((headers.source, headers.destination), (ip(to), ip(from)));
        assert_eq!((headers.source_port, headers.destination_port), (53, 40_000));
        check_checksums(&reply);
        let message = Message::from_vec(&reply[usize::from(headers.payload_offset)..]).unwrap();
        assert_eq!(message.answers[0].data.to_string(), "10.96.0.20");
    }
}

fn check_checksums(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let (Some(net), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport) else {
        panic!("no UDP")
    };
    let header = udp.to_header();
    let expected = match net {
        NetSlice::Ipv4(v4) => {
            let v4 = v4.header().to_header();
            assert_eq!(v4.header_checksum, v4.calc_header_checksum());
            header.calc_checksum_ipv4(&v4, udp.payload())
        }
        NetSlice::Ipv6(v6) => header.calc_checksum_ipv6(&v6.header().to_header(), udp.payload()),
        NetSlice::Arp(_) => panic!("no IP"),
    };
    assert_eq!(header.checksum, expected.unwrap());
}

/// DNS-100, DNS-121: everything else goes where it was sent; of the resolver's, each packet is seen.
#[test]
fn what_is_not_of_the_cluster_passes() {
    let outside = query("example.com.", A).to_vec().unwrap();
    let (told, bytes) = datagram("169.254.88.53", 53, &outside);
    assert_eq!(verdict(&told, &bytes), (Verdict::Continue, true));
    let ours = query("web.default.svc.cluster.local.", A).to_vec().unwrap();
    for (to, port) in [("8.8.8.8", 53), ("169.254.88.53", 5353), ("10.96.0.10", 53)] {
        let (told, bytes) = datagram(to, port, &ours);
        assert_eq!(verdict(&told, &bytes), (Verdict::Continue, false), "{to}:{port}");
    }
    let (told, bytes) = datagram("169.254.88.53", 53, &ours);
    let reply = Descriptor { flags: told.flags | flags::REPLY, ..told };
    assert_eq!(verdict(&reply, &bytes), (Verdict::Continue, false));
}

/// DNS-133: of whom the resolver has to hear, it gets all queries; of others it gets none.
#[test]
fn all_queries_of_some_clients_pass() {
    let ours = query("web.default.svc.cluster.local.", A).to_vec().unwrap();
    let mut tables = tables();
    let passed = ["fd00::1:5", "10.244.1.9"].map(|a| octets(ip(a)));
    tables.settings.as_mut().unwrap().passed_clients = passed.into();
    for (to, passes) in [("169.254.88.53", false), ("fd57:6566:7400::53", true)] {
        let (told, bytes) = datagram(to, 53, &ours);
        let mut plugin = Dns::default();
        plugin.configure(Config::Full(&tables.encode_to_vec())).unwrap();
        let (map, mut flow) = (NativeMap::default(), Flow::new(&told));
        let packet = Packet::new(&told, &bytes);
        let verdict = plugin.on_packet(&packet, &mut flow, &Host::new(&map));
        assert_eq!(verdict == Verdict::Continue, passes, "{to}");
        assert_eq!(flow.asks_again(), !passes, "{to}");
    }
}

/// DNS-131: a client that asks too often is refused, by name or not, also if the resolver has to hear of
/// it; others are not.
#[test]
fn client_that_asks_too_often_is_refused() {
    let mut tables = tables();
    let settings = tables.settings.as_mut().unwrap();
    settings.client_rate = 2;
    settings.passed_clients = vec![octets(ip("fd00::1:5"))];
    let config = tables.encode_to_vec();
    let mut plugin = Dns::default();
    plugin.configure(Config::Full(&config)).unwrap();
    let map = NativeMap::default();
    // Gives the map the room that the manifest asks for.
    let _other_worker = NativePlugin::<Dns>::with_map(&config, map.clone()).unwrap();
    let mut ask = |told: &Descriptor, bytes: &[u8]| {
        let mut flow = Flow::new(told);
        let packet = Packet::new(told, bytes);
        let verdict = plugin.on_packet(&packet, &mut flow, &Host::new(&map));
        assert!(flow.asks_again());
        let Verdict::Reply(reply, _) = verdict else { return Err(verdict) };
        let sliced = SlicedPacket::from_ip(&reply).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!() };
        Ok(Message::from_vec(udp.payload()).unwrap().metadata.response_code)
    };
    let ours = query("web.default.svc.cluster.local.", A).to_vec().unwrap();
    let others = query("example.org.", A).to_vec().unwrap();
    let to = "169.254.88.53";
    let (told, bytes) = datagram(to, 53, &ours);
    assert_eq!(ask(&told, &bytes), Ok(NoError));
    let (told, bytes) = datagram(to, 53, &others);
    assert_eq!(ask(&told, &bytes), Err(Verdict::Continue));
    assert_eq!(ask(&told, &bytes), Ok(Refused));
    let (told, bytes) = datagram(to, 53, &ours);
    assert_eq!(ask(&told, &bytes), Ok(Refused));
    let fragment = Descriptor { flags: told.flags | flags::FRAGMENT, ..told };
    assert_eq!(ask(&fragment, &bytes), Err(Verdict::Drop(TOO_MANY)));
    let mut other = told;
    other.source[15] ^= 1;
    assert_eq!(ask(&other, &bytes), Ok(NoError));
    let (passed, bytes) = datagram("fd57:6566:7400::53", 53, &ours);
    assert_eq!(ask(&passed, &bytes), Err(Verdict::Continue));
    assert_eq!(ask(&passed, &bytes), Err(Verdict::Continue));
    assert_eq!(ask(&passed, &bytes), Ok(Refused));
}

/// DNS-067: what is not whole here is for the resolver, which gets it whole.
#[test]
fn part_of_a_query_passes() {
    let query = query("web.default.svc.cluster.local.", A).to_vec().unwrap();
    let (told, bytes) = datagram("169.254.88.53", 53, &query);
    let fragment = Descriptor { flags: told.flags | flags::FRAGMENT, ..told };
    assert_eq!(verdict(&fragment, &bytes), (Verdict::Continue, true));
    let cut = Descriptor { length: 4000, ..told };
    assert_eq!(verdict(&cut, &bytes), (Verdict::Continue, true));
    let several = Descriptor { segments: 2, ..told };
    assert_eq!(verdict(&several, &bytes), (Verdict::Continue, true));
}

/// DNS-065: nobody answers an answer.
#[test]
fn what_is_no_query_is_dropped() {
    let (told, bytes) = datagram("169.254.88.53", 53, &[0; 11]);
    assert_eq!(verdict(&told, &bytes).0, Verdict::Drop(NO_QUERY));
}

/// Flows that are none of DNS cost one call.
#[test]
fn manifest_asks_for_first_packets_of_udp() {
    let manifest = Dns::MANIFEST;
    assert!(manifest.per_flow && manifest.protocols == protocols::UDP);
    assert!(manifest.window >= 1232 + 48);
}
