//! What a pod's search list leads to, and names that the operator gave addresses.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, PTR, SRV};
use weft_proto::tables::v1::{DnsName, DnsTables};

use super::support::*;
use crate::{Beyond, Outcome, Transport, Zones};

/// Bit of a pod whose search list is the usual one.
const ORDINARY: u32 = 1 << 31;
const POD: &str = "10.244.1.5";
/// Looks names up in namespace `default` in a way of its own.
const OTHER: &str = "10.244.1.7";

fn with_hosts() -> DnsTables {
    let mut tables = tables();
    let host = |name: &str, v4: &[&str]| DnsName {
        name: name.into(),
        addresses_v4: v4.iter().flat_map(|a| octets(ip(a))).collect(),
        addresses_v6: Vec::new(),
    };
    let settings = tables.settings.as_mut().unwrap();
    settings.autopath = true;
    settings.hosts = vec![
        host("Git.example.com.", &["192.0.2.9", "192.0.2.8"]),
        host("web.default.svc.cluster.local", &["192.0.2.10"]),
        host("db.example.com", &["192.0.2.11"]),
    ];
    (tables.pods_v4, tables.pods_v6) =
        pods(&[(POD, 1 | ORDINARY), (OTHER, 1), ("fd00::1:5", 1 | ORDINARY)]);
    tables
}

fn ask_as(zones: &Zones, pod: &str, name: &str, rtype: RecordType) -> Outcome {
    let message = query(name, rtype).to_vec().unwrap();
    zones.answer(&message, Transport::Udp, Some(ip(pod)), 0)
}

/// Status and records.
fn told(outcome: &Outcome) -> (ResponseCode, Vec<String>) {
    let Outcome::Reply(reply) = outcome else { panic!("{outcome:?}") };
    let message = Message::from_vec(reply).unwrap();
    let answers = message.answers.iter().map(|r| format!("{} {}", r.name, r.data));
    (message.metadata.response_code, answers.collect())
}

/// DNS-093: an alias leads from the name that was asked for to the one that is there.
#[test]
fn first_name_of_a_search_list_leads_to_what_is_there() {
    let zones = zones_of(&with_hosts());
    for (asked, found, address) in [
        ("v4only.default", "v4only.default.svc.cluster.local.", "10.96.0.21"),
        ("v4only.default.svc", "v4only.default.svc.cluster.local.", "10.96.0.21"),
        ("v4only.default.svc.cluster.local", "v4only.default.svc.cluster.local.", "10.96.0.21"),
        ("git.example.com", "git.example.com.", "192.0.2.8"),
    ] {
        let name = format!("{asked}.default.svc.cluster.local.");
        let (code, answers) = told(&ask_as(&zones, POD, &name, A));
        assert_eq!(code, ResponseCode::NoError);
        let expected = [format!("{name} {found}"), format!("{found} {address}")];
        assert_eq!(answers[..2], expected);
        // The other family, which has none, is told of the same name.
        let (code, answers) = told(&ask_as(&zones, POD, &name, AAAA));
        assert_eq!((code, answers), (ResponseCode::NoError, vec![expected[0].clone()]));
    }
}

/// DNS-093: what is not of the cluster is for the resolver, by the last name.
#[test]
fn name_outside_is_asked_for_at_once() {
    let zones = zones_of(&with_hosts());
    let asked = ask_as(&zones, POD, "www.example.net.default.svc.cluster.local.", A);
    let names = vec![b"\x03www\x07example\x03net\0".to_vec()];
    assert_eq!(asked, Outcome::Elsewhere(Beyond { names, searched: true }));
}

/// DNS-093, DNS-094, DNS-095: not for names that are there, of other namespaces, of pods with a search list
/// of their own, of nobody, and other types.
#[test]
fn other_names_are_answered_as_they_are() {
    let zones = zones_of(&with_hosts());
    let code = |pod: &str, name: &str, rtype| told(&ask_as(&zones, pod, name, rtype)).0;
    let gone = ResponseCode::NXDomain;
    assert_eq!(code(POD, "v4only.default.svc.cluster.local.", A), ResponseCode::NoError);
    assert_eq!(code(POD, "example.com.kube-system.svc.cluster.local.", A), gone);
    assert_eq!(code(POD, "example.com.svc.cluster.local.", A), gone);
    assert_eq!(code(POD, "example.com.cluster.local.", A), gone);
    assert_eq!(code(POD, "example.com.default.svc.cluster.local.", SRV), gone);
    for pod in [OTHER, "10.244.9.9"] {
        assert_eq!(code(pod, "example.com.default.svc.cluster.local.", A), gone);
    }
    let mut off = with_hosts();
    off.settings.as_mut().unwrap().autopath = false;
    let outcome = ask_as(&zones_of(&off), POD, "example.com.default.svc.cluster.local.", A);
    assert_eq!(told(&outcome).0, gone);
}

/// Names that the operator gave addresses come before all others, in both directions; of what they do not
/// have there is nothing.
#[test]
fn hosts_of_the_operator_come_first() {
    let zones = zones_of(&with_hosts());
    assert_eq!(data(&zones, "gIT.example.com.", A), ["192.0.2.8", "192.0.2.9"]);
    assert_eq!(data(&zones, "web.default.svc.cluster.local.", A), ["192.0.2.10"]);
    assert_eq!(
        data(&zones, "ext.default.svc.cluster.local.", A),
        ["192.0.2.11", "db.example.COM."]
    );
    assert_eq!(data(&zones, "8.2.0.192.in-addr.arpa.", PTR), ["Git.example.com."]);
    let none = answer(&zones, "git.example.com.", AAAA).unwrap();
    assert_eq!(none.metadata.response_code, ResponseCode::NoError);
    assert!(none.answers.is_empty() && none.authorities.len() == 1);
    assert_eq!(answer(&zones, "git.example.com.", ANY).unwrap().answers.len(), 1);
    assert!(answer(&zones, "sub.git.example.com.", A).is_none());
    assert!(answer(&zones, "7.2.0.192.in-addr.arpa.", PTR).is_none());
}

#[test]
fn hosts_that_are_no_whole_names_are_refused() {
    for name in ["git", "", "a..b"] {
        let mut tables = with_hosts();
        tables.settings.as_mut().unwrap().hosts[0].name = name.into();
        let error = change(&mut Zones::default(), &tables).unwrap_err();
        assert!(error.starts_with("settings: hosts: `"), "{error}");
    }
}
