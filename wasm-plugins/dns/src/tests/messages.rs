//! Messages: what they say beside the records, how long they are, and what is no query.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, AXFR, IXFR, SRV};
use weft_fuzz::{Random, Report, iterations, mutate};

use super::support::*;
use crate::{Outcome, Transport, Zones};

const WEB: &str = "web.default.svc.cluster.local.";

fn raw(zones: &Zones, message: &[u8]) -> Outcome {
    zones.answer(message, Transport::Udp, None, 0)
}

fn code(zones: &Zones, message: &[u8]) -> ResponseCode {
    let Outcome::Reply(reply) = raw(zones, message) else { panic!("no reply") };
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, 0x1234);
    reply.metadata.response_code
}

/// DNS-050: letters are as the client wrote them, in the question and in what answers it.
#[test]
fn letter_case_of_the_query_is_kept() {
    let query = query("WeB.deFault.SVC.Cluster.LOCAL.", A).to_vec().unwrap();
    let Outcome::Reply(reply) = raw(&zones_of(&tables()), &query) else { panic!() };
    assert_eq!(reply[12..query.len()], query[12..]);
    let message = Message::from_vec(&reply).unwrap();
    assert_eq!(message.answers[0].name.to_ascii(), "WeB.deFault.SVC.Cluster.LOCAL.");
}

/// DNS-051: the header.
#[test]
fn header_answers_the_query() {
    let zones = zones_of(&tables());
    for (desired, disabled) in [(false, false), (true, true)] {
        let mut query = query(WEB, A);
        query.metadata.recursion_desired = desired;
        query.metadata.checking_disabled = disabled;
        let reply = ask(&zones, &query, Transport::Udp).unwrap().metadata;
        assert_eq!((reply.id, reply.op_code), (0x1234, OpCode::Query));
        assert_eq!((reply.recursion_desired, reply.recursion_available), (desired, true));
        assert_eq!((reply.authoritative, reply.checking_disabled), (true, disabled));
        assert!(!reply.authentic_data && !reply.truncation);
    }
}

/// As many endpoints as asked for.
fn many(count: u32) -> Zones {
    let mut tables = tables();
    let address = |n: u32| std::net::Ipv4Addr::from(0x0af4_8000 + n).to_string();
    let all: Vec<String> = (0..count).map(address).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let group = endpoints(&all, &[], vec![port("peer", TCP, 7000)]);
    tables.services.push(headless("default/many", vec![group]));
    zones_of(&tables)
}

const MANY: &str = "many.default.svc.cluster.local.";

/// DNS-052, DNS-053, DNS-054: no answer is longer than its client takes, and records are whole.
#[test]
fn answer_that_is_too_long_is_cut_between_records() {
    let zones = many(200);
    let length_of = |query: &Message| {
        let Outcome::Reply(reply) = raw(&zones, &query.to_vec().unwrap()) else { panic!() };
        (reply.len(), Message::from_vec(&reply).unwrap())
    };
    for (query, limit) in [
        (query(MANY, A), 512),
        (edns_query(MANY, A, 100), 512),
        (edns_query(MANY, A, 700), 700),
        (edns_query(MANY, A, 4096), 1232),
    ] {
        let (length, reply) = length_of(&query);
        assert!(length <= limit && length + 16 >= limit, "{length} of {limit}");
        assert!(reply.metadata.truncation && reply.queries.len() == 1);
        assert_eq!(reply.edns.is_some(), query.edns.is_some());
        assert!(reply.answers.len() > 20);
    }
    let whole = ask(&zones, &query(MANY, A), Transport::Tcp).unwrap();
    assert!(whole.answers.len() == 200 && !whole.metadata.truncation);
}

/// DNS-054: what is only additional goes first, and without a word.
#[test]
fn additional_records_that_do_not_fit_are_not_missed() {
    let zones = many(6);
    let name = "_peer._tcp.many.default.svc.cluster.local.";
    let reply = ask(&zones, &query(name, SRV), Transport::Udp).unwrap();
    assert!(reply.answers.len() == 6 && reply.additionals.len() < 6);
    assert!(!reply.metadata.truncation);
    let whole = ask(&zones, &query(name, SRV), Transport::Tcp).unwrap();
    assert_eq!(whole.additionals.len(), 6);
}

/// DNS-073: a thousand endpoints over TCP.
#[test]
fn thousand_endpoints_fit_into_one_answer() {
    let reply = ask(&many(1000), &query(MANY, A), Transport::Tcp).unwrap();
    assert!(reply.answers.len() == 1000 && !reply.metadata.truncation);
}

/// DNS-055, DNS-056: EDNS.
#[test]
fn edns_is_answered_with_edns() {
    let zones = zones_of(&tables());
    let mut query = edns_query(WEB, A, 1400);
    query.edns.as_mut().unwrap().set_dnssec_ok(true);
    let edns = ask(&zones, &query, Transport::Udp).unwrap().edns.unwrap();
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
    assert!(edns.flags().dnssec_ok);
    assert!(ask(&zones, &super::support::query(WEB, A), Transport::Udp).unwrap().edns.is_none());
    query.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&zones, &query, Transport::Udp).unwrap();
    // BADSIG has the same number.
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert!(reply.answers.is_empty());
}

/// DNS-055: options that nobody knows.
#[test]
fn unknown_options_are_ignored() {
    let mut bytes = edns_query(WEB, A, 1232).to_vec().unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0, 7]);
    bytes.extend([0xff, 0x00, 0, 3, 1, 2, 3]);
    assert_eq!(code(&zones_of(&tables()), &bytes), ResponseCode::NoError);
    let cut = bytes.len() - 3;
    bytes[end - 2..end].copy_from_slice(&[0, 4]);
    assert_eq!(code(&zones_of(&tables()), &bytes[..cut]), ResponseCode::FormErr);
}

/// DNS-057: names are compressed.
#[test]
fn names_are_compressed() {
    let query = query(MANY, A).to_vec().unwrap();
    let Outcome::Reply(reply) = many(10).answer(&query, Transport::Tcp, None, 0) else { panic!() };
    assert_eq!(reply.len(), query.len() + 10 * 16);
}

/// DNS-058: the time to live, of all records.
#[test]
fn time_to_live_is_configured() {
    for ttl in [0, 3600] {
        let mut tables = tables();
        tables.settings.as_mut().unwrap().ttl_s = ttl;
        let reply = answer(&zones_of(&tables), WEB, A).unwrap();
        assert_eq!(reply.answers[0].ttl, ttl);
    }
}

/// DNS-059: each address comes first as often as others.
#[test]
fn addresses_take_turns() {
    let zones = many(10);
    let query = query(MANY, A).to_vec().unwrap();
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    for n in 0..1000_u64 {
        let seed = crate::mix(n * 1_000_003);
        let Outcome::Reply(reply) = zones.answer(&query, Transport::Udp, None, seed) else {
            panic!()
        };
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.answers.len(), 10);
        *first.entry(reply.answers[0].data.to_string()).or_default() += 1;
    }
    assert!(first.len() == 10 && first.values().all(|n| (60..=140).contains(n)), "{first:?}");
}

/// DNS-065: too short, or an answer.
#[test]
fn what_is_no_query_gets_no_answer() {
    let zones = zones_of(&tables());
    let mut answer = query(WEB, A).to_vec().unwrap();
    assert_eq!(raw(&zones, &answer[..11]), Outcome::Nothing);
    assert_eq!(raw(&zones, &[]), Outcome::Nothing);
    answer[2] |= 0x80;
    assert_eq!(raw(&zones, &answer), Outcome::Nothing);
}

/// DNS-065: each kind of what is not served.
#[test]
fn what_is_not_served_is_refused() {
    let zones = zones_of(&tables());
    for opcode in [1_u8, 2, 3, 4, 5, 6, 15] {
        let mut bytes = query(WEB, A).to_vec().unwrap();
        bytes[2] = bytes[2] & 0x87 | opcode << 3;
        assert_eq!(code(&zones, &bytes), ResponseCode::NotImp, "opcode {opcode}");
    }
    for rtype in [AXFR, IXFR] {
        let bytes = query("cluster.local.", rtype).to_vec().unwrap();
        assert_eq!(code(&zones, &bytes), ResponseCode::Refused);
    }
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY] {
        let mut query = query("version.bind.", RecordType::TXT);
        query.queries[0].set_query_class(class);
        assert_eq!(code(&zones, &query.to_vec().unwrap()), ResponseCode::Refused, "{class}");
    }
}

/// DNS-055, DNS-057, DNS-065: what cannot be read.
#[test]
fn what_is_malformed_is_said_to_be() {
    let zones = zones_of(&tables());
    let good = query(WEB, A).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        code(&zones, &bytes)
    };
    let bad = ResponseCode::FormErr;
    assert_eq!(with(&|b| b[5] = 0), bad, "no question");
    assert_eq!(with(&|b| b[5] = 2), bad, "a question that is missing");
    assert_eq!(
        with(&|b| {
            b[5] = 2;
            b.extend_from_within(12..);
        }),
        bad,
        "two questions"
    );
    assert_eq!(with(&|b| b.truncate(20)), bad, "a name that is cut");
    assert_eq!(with(&|b| b.truncate(b.len() - 1)), bad, "a class that is cut");
    assert_eq!(with(&|b| b.push(0)), bad, "a byte too many");
    assert_eq!(with(&|b| b[12] = 64), bad, "a label of 64 bytes");
    assert_eq!(with(&|b| b[12..14].copy_from_slice(&[0xc0, 12])), bad, "a pointer to itself");
    assert_eq!(with(&|b| b[12..14].copy_from_slice(&[0xc0, 40])), bad, "a pointer forwards");
    assert_eq!(with(&|b| b[11] = 1), bad, "a record that is missing");
    assert_eq!(
        with(&|b| {
            b.splice(12..12, [63; 64].repeat(4));
        }),
        bad,
        "a name of over 255 bytes"
    );
    let twice = |b: &mut Vec<u8>| {
        let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
        b[11] = 2;
        b.extend(opt.repeat(2));
    };
    assert_eq!(with(&twice), bad, "two OPT records");
    let owner = |b: &mut Vec<u8>| {
        b[11] = 1;
        b.extend([1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    };
    assert_eq!(with(&owner), bad, "an OPT record with a name");
}

/// DNS-065: of ANY, the least (RFC 8482).
#[test]
fn any_gets_a_minimal_answer() {
    let reply = answer(&zones_of(&tables()), WEB, ANY).unwrap();
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].data.record_type(), RecordType::HINFO);
    assert_eq!(reply.answers[0].data.to_string(), "RFC8482 ");
}

/// DNS-126: two queries of one socket are two answers.
#[test]
fn address_queries_of_both_families_are_answered() {
    let zones = zones_of(&tables());
    for (rtype, address) in [(A, "10.96.0.20"), (AAAA, "fd00::20")] {
        let reply = ask(&zones, &edns_query(WEB, rtype, 1232), Transport::Udp).unwrap();
        assert_eq!(reply.answers[0].data.to_string(), address);
    }
}

/// DNS-066: whatever comes, an answer is one to it, and no longer than it may be.
#[test]
fn fuzz_messages() {
    let zones = zones_of(&tables());
    let with_edns = |name: &str, rtype| {
        let mut query = query(name, rtype);
        let mut edns = Edns::new();
        edns.set_max_payload(900);
        query.edns = Some(edns);
        query.to_vec().unwrap()
    };
    let seeds: Vec<Vec<u8>> = vec![
        query(WEB, A).to_vec().unwrap(),
        with_edns("_peer._tcp.db.default.svc.cluster.local.", SRV),
        with_edns("9.2.244.10.in-addr.arpa.", RecordType::PTR),
        with_edns("10-244-2-9.db.default.svc.cluster.local.", ANY),
        with_edns("loop1.default.svc.cluster.local.", A),
        query("dns-version.cluster.local.", RecordType::TXT).to_vec().unwrap(),
    ];
    let telling = [0, 1, 2, 4, 12, 41, 63, 64, 0x80, 0xc0, 0xff, b'_', b'.'];
    let mut random = Random::new(66);
    let mut replies = 0;
    for iteration in 0..iterations() {
        let bytes = mutate(&mut random, &seeds, &telling);
        let _report = Report { iteration, input: &bytes };
        let client = Some(ip("10.244.1.5"));
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Outcome::Reply(reply) = zones.answer(&bytes, transport, client, 7) {
                replies += 1;
                assert_eq!((&reply[..2], reply[2] & 0x80), (&bytes[..2], 0x80));
                assert!(transport == Transport::Tcp || reply.len() <= 1232);
                Message::from_vec(&reply).unwrap();
            }
        }
    }
    assert!(replies > iterations() / 2);
}
