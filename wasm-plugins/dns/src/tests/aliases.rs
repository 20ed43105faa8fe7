//! ExternalName.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, CNAME, SRV};

use super::support::*;
use crate::{Beyond, Outcome, Transport};

const ZONE: &str = "default.svc.cluster.local.";

fn answers(name: &str, rtype: hickory_proto::rr::RecordType) -> (ResponseCode, Vec<String>) {
    let message = answer(&zones_of(&tables()), &format!("{name}.{ZONE}"), rtype).unwrap();
    let answers = message.answers.iter().map(|r| r.data.to_string()).collect();
    (message.metadata.response_code, answers)
}

/// DNS-011, DNS-083: the alias itself, as it is written.
#[test]
fn alias_has_a_cname() {
    assert_eq!(answers("ext", CNAME), (ResponseCode::NoError, vec!["db.example.COM.".into()]));
}

/// DNS-011: what the target has, nobody but its own servers can tell.
#[test]
fn alias_of_a_name_outside_is_for_the_resolver() {
    let zones = zones_of(&tables());
    assert!(answer(&zones, &format!("ext.{ZONE}"), A).is_none());
    assert!(answer(&zones, &format!("ext.{ZONE}"), AAAA).is_none());
    let message = query(&format!("ext.{ZONE}"), A).to_vec().unwrap();
    let beyond = Beyond { names: vec![b"\x02db\x07example\x03COM\0".to_vec()], searched: false };
    assert_eq!(zones.answer(&message, Transport::Udp, None, 0), Outcome::Elsewhere(beyond));
}

/// DNS-080, DNS-081: a target of the cluster, after the alias.
#[test]
fn alias_of_a_name_of_the_cluster_is_followed() {
    let web = format!("web.{ZONE}");
    assert_eq!(
        answers("inner", A),
        (ResponseCode::NoError, vec![web.clone(), "10.96.0.20".into()])
    );
    assert_eq!(answers("inner", AAAA), (ResponseCode::NoError, vec![web, "fd00::20".into()]));
}

/// DNS-082: no answer that the name itself is not there, unless its target is not.
#[test]
fn alias_of_nothing_does_not_exist() {
    let (code, answers) = answers("gone", A);
    assert_eq!((code, answers), (ResponseCode::NXDomain, vec![format!("nobody.{ZONE}")]));
}

/// DNS-081: a loop ends where it begins.
#[test]
fn aliases_of_each_other_have_no_data() {
    let (code, answers) = answers("loop1", A);
    assert_eq!(code, ResponseCode::NoError);
    assert_eq!(answers, ["loop2", "loop1"].map(|name| format!("{name}.{ZONE}")));
}

/// DNS-085: nothing is below an alias.
#[test]
fn alias_has_nothing_below() {
    for (name, rtype) in [("_http._tcp.ext", SRV), ("_tcp.ext", SRV), ("a.ext", A)] {
        assert_eq!(answers(name, rtype), (ResponseCode::NXDomain, vec![]), "{name}");
    }
}

/// DNS-083: any length that a name can have.
#[test]
fn target_may_be_as_long_as_a_name() {
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    assert_eq!(long.len(), 253);
    let mut tables = tables();
    tables.services.push(alias("default/long", &long));
    let message = answer(&zones_of(&tables), &format!("long.{ZONE}"), CNAME).unwrap();
    assert_eq!(message.answers[0].data.to_string(), format!("{long}."));
}
