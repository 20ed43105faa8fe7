//! What names have.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{self, A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};

use super::support::*;

/// Names with their answers: each record, of any section but authority, as `SECTION line`.
fn check(name: &str, rtype: RecordType, expected: &[&str]) {
    let message = answer(&zones_of(&tables()), name, rtype).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::NoError, "{name} {rtype}");
    assert!(message.authorities.is_empty(), "{name} {rtype}");
    assert!(message.metadata.authoritative && !message.metadata.truncation);
    let answers = lines(&message.answers).into_iter().map(|l| format!("answer {l}"));
    let additional = lines(&message.additionals).into_iter().map(|l| format!("more {l}"));
    let got: Vec<String> = answers.chain(additional).collect();
    assert_eq!(got, expected, "{name} {rtype}");
}

/// DNS-001: the version of the schema.
#[test]
fn schema_version_is_told() {
    check("dns-version.cluster.local.", TXT, &["answer dns-version.cluster.local. 5 TXT 1.1.0"]);
}

/// DNS-002, DNS-003, DNS-025: cluster IPs of each family, whatever the names are.
#[test]
fn service_has_its_cluster_ips() {
    let web = "web.default.svc.cluster.local.";
    check(web, A, &["answer web.default.svc.cluster.local. 5 A 10.96.0.20"]);
    check(web, AAAA, &["answer web.default.svc.cluster.local. 5 AAAA fd00::20"]);
    check("pod.svc.svc.cluster.local.", A, &["answer pod.svc.svc.cluster.local. 5 A 10.96.0.22"]);
    check(
        "1st.9data.svc.cluster.local.",
        A,
        &["answer 1st.9data.svc.cluster.local. 5 A 10.96.0.23"],
    );
}

/// DNS-004, DNS-020, DNS-021, DNS-022, DNS-023: a named port of a Service, with where it is.
#[test]
fn named_port_of_a_service_has_srv() {
    let more = [
        "more web.default.svc.cluster.local. 5 A 10.96.0.20",
        "more web.default.svc.cluster.local. 5 AAAA fd00::20",
    ];
    let http = "_http._tcp.web.default.svc.cluster.local.";
    let answer = format!("answer {http} 5 SRV 0 1 80 web.default.svc.cluster.local.");
    check(http, SRV, &[&answer, more[0], more[1]]);
    let quic = "_quic._udp.web.default.svc.cluster.local.";
    let answer = format!("answer {quic} 5 SRV 0 1 443 web.default.svc.cluster.local.");
    check(quic, SRV, &[&answer, more[0], more[1]]);
    let assoc = "_assoc._sctp.v4only.default.svc.cluster.local.";
    let answer = format!("answer {assoc} 5 SRV 0 1 36412 v4only.default.svc.cluster.local.");
    check(assoc, SRV, &[&answer, "more v4only.default.svc.cluster.local. 5 A 10.96.0.21"]);
}

/// DNS-015: all named ports.
#[test]
fn service_has_srv_of_all_named_ports() {
    let zones = zones_of(&tables());
    let own = "web.default.svc.cluster.local.";
    assert_eq!(data(&zones, own, SRV), [format!("0 1 443 {own}"), format!("0 1 80 {own}")]);
}

/// DNS-005, DNS-010: names of addresses.
#[test]
fn addresses_have_names() {
    let zones = zones_of(&tables());
    let of = |address: &str| {
        let name = hickory_proto::rr::Name::from(ip(address)).to_ascii();
        data(&zones, &name, PTR)
    };
    assert_eq!(of("10.96.0.20"), ["web.default.svc.cluster.local."]);
    assert_eq!(of("fd00::20"), ["web.default.svc.cluster.local."]);
    assert_eq!(of("10.244.2.1"), ["db-0.db.default.svc.cluster.local."]);
    let both = [
        "10-244-2-9.db.default.svc.cluster.local.",
        "10-244-2-9.portless.default.svc.cluster.local.",
    ];
    assert_eq!(of("10.244.2.9"), both);
    assert_eq!(of("fd00::2:9"), ["fd00--2-9.db.default.svc.cluster.local."]);
    assert_eq!(of("10.244.3.2"), ["front-0.front.default.svc.cluster.local."]);
}

/// DNS-006, DNS-024, DNS-032, DNS-060: endpoints of all groups, each once.
#[test]
fn headless_service_has_its_endpoints() {
    let zones = zones_of(&tables());
    let v4 = ["10.244.2.1", "10.244.2.2", "10.244.2.9"];
    assert_eq!(data(&zones, "db.default.svc.cluster.local.", A), v4);
    assert_eq!(data(&zones, "db.default.svc.cluster.local.", AAAA), ["fd00::2:2", "fd00::2:9"]);
    assert_eq!(data(&zones, "portless.default.svc.cluster.local.", A), ["10.244.2.9"]);
    let split = ["10.244.4.1", "10.244.4.2"];
    assert_eq!(data(&zones, "split.default.svc.cluster.local.", A), split);
}

/// DNS-007, DNS-008, DNS-014: endpoints by their names, of their own or of the system.
#[test]
fn endpoints_have_names() {
    let zones = zones_of(&tables());
    let below = |name: &str| format!("{name}.default.svc.cluster.local.");
    assert_eq!(data(&zones, &below("db-1.db"), A), ["10.244.2.2"]);
    assert_eq!(data(&zones, &below("DB-1.db"), AAAA), ["fd00::2:2"]);
    assert_eq!(data(&zones, &below("10-244-2-9.db"), A), ["10.244.2.9"]);
    assert_eq!(data(&zones, &below("fd00--2-9.db"), AAAA), ["fd00::2:9"]);
    assert_eq!(data(&zones, &below("10-244-3-1.front"), A), ["10.244.3.1"]);
    assert_eq!(data(&zones, &below("front-0.front"), A), ["10.244.3.2"]);
}

/// DNS-007: a name that several endpoints have.
#[test]
fn endpoints_may_share_a_name() {
    let mut tables = tables();
    let group = |address: &str, number| {
        endpoints(&[], &[("one", &[address])], vec![port("p", TCP, number)])
    };
    tables
        .services
        .push(headless("default/shared", vec![group("10.1.0.1", 1), group("10.1.0.2", 1)]));
    let zones = zones_of(&tables);
    let name = "one.shared.default.svc.cluster.local.";
    assert_eq!(data(&zones, name, A), ["10.1.0.1", "10.1.0.2"]);
    // DNS-060: one record, although two endpoints make it.
    let srv = data(&zones, "_p._tcp.shared.default.svc.cluster.local.", SRV);
    assert_eq!(srv, [format!("0 1 1 {name}")]);
}

/// DNS-009, DNS-022: endpoints' own ports and names.
#[test]
fn named_port_of_a_headless_service_has_srv_of_each_endpoint() {
    let name = "_peer._tcp.db.default.svc.cluster.local.";
    let target = |host: &str| format!("{host}.db.default.svc.cluster.local.");
    let srv = |host: &str| format!("answer {name} 5 SRV 0 1 7000 {}", target(host));
    let more = |host: &str, data: &str| format!("more {} 5 {data}", target(host));
    let expected = [
        srv("10-244-2-9"),
        srv("db-0"),
        srv("db-1"),
        srv("fd00--2-9"),
        more("10-244-2-9", "A 10.244.2.9"),
        more("db-0", "A 10.244.2.1"),
        more("db-1", "A 10.244.2.2"),
        more("db-1", "AAAA fd00::2:2"),
        more("fd00--2-9", "AAAA fd00::2:9"),
    ];
    check(name, SRV, &expected.each_ref().map(String::as_str));
    let zones = zones_of(&tables());
    let ports = data(&zones, "_a._tcp.split.default.svc.cluster.local.", SRV);
    let split = |host: &str, port| format!("0 1 {port} {host}.split.default.svc.cluster.local.");
    assert_eq!(ports, [split("10-244-4-1", 1), split("10-244-4-2", 2)]);
    let only = data(&zones, "_b._tcp.split.default.svc.cluster.local.", SRV);
    assert_eq!(only, [split("10-244-4-2", 3)]);
}

/// DNS-012, DNS-013: pods by their addresses, in their own namespace only.
#[test]
fn pods_have_names_by_their_addresses() {
    let zones = zones_of(&tables());
    assert_eq!(data(&zones, "10-244-1-5.default.pod.cluster.local.", A), ["10.244.1.5"]);
    assert_eq!(data(&zones, "10-244-1-6.kube-system.pod.cluster.local.", A), ["10.244.1.6"]);
    assert_eq!(data(&zones, "fd00--1-5.default.pod.cluster.local.", AAAA), ["fd00::1:5"]);
    for no in ["10-244-1-6.default", "10-244-1-5.nowhere", "10-244-1-7.default", "web.default"] {
        let message = answer(&zones, &format!("{no}.pod.cluster.local."), A).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain, "{no}");
    }
}

/// DNS-012: the other two modes.
#[test]
fn pod_names_can_be_of_all_addresses_or_of_none() {
    let with = |mode: weft_proto::tables::v1::DnsPodNames| {
        let mut tables = tables();
        tables.settings.as_mut().unwrap().pod_names = mode.into();
        let zones = zones_of(&tables);
        answer(&zones, "1-2-3-4.default.pod.cluster.local.", A).unwrap()
    };
    let insecure = with(weft_proto::tables::v1::DnsPodNames::Insecure);
    assert_eq!(insecure.answers[0].data.to_string(), "1.2.3.4");
    let none = with(weft_proto::tables::v1::DnsPodNames::Unspecified);
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
}

/// DNS-016: the zone itself.
#[test]
fn zone_has_soa_and_name_server() {
    let message = answer(&zones_of(&tables()), "cluster.local.", SOA).unwrap();
    let soa = line(&message.answers[0]);
    let start = "cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. ";
    assert!(soa.starts_with(start) && soa.ends_with(" 7200 1800 86400 5"), "{soa}");
    let server = "ns.dns.cluster.local.";
    check(
        "cluster.local.",
        NS,
        &[
            "answer cluster.local. 5 NS ns.dns.cluster.local.",
            "more ns.dns.cluster.local. 5 A 10.96.0.10",
        ],
    );
    check(server, A, &["answer ns.dns.cluster.local. 5 A 10.96.0.10"]);
}

/// DNS-140: several zones, of one label or many, and one inside another.
#[test]
fn zones_may_be_any_names() {
    let mut tables = tables();
    let zones = ["example.com", "k8s", "In.ner.example.com."].map(String::from).to_vec();
    tables.settings.as_mut().unwrap().zones = zones;
    let zones = zones_of(&tables);
    for zone in ["example.com.", "k8s.", "in.ner.example.com."] {
        assert_eq!(data(&zones, &format!("web.default.svc.{zone}"), A), ["10.96.0.20"]);
    }
    assert!(answer(&zones, "web.default.svc.cluster.local.", A).is_none());
    let srv = data(&zones, "_http._tcp.web.default.svc.k8s.", SRV);
    assert_eq!(srv, ["0 1 80 web.default.svc.k8s."]);
    assert_eq!(data(&zones, "20.0.96.10.in-addr.arpa.", PTR), ["web.default.svc.example.com."]);
}

/// DNS-035, DNS-086, DNS-109: the next answer is of the state after a change.
#[test]
fn change_shows_in_the_next_answer() {
    let mut zones = zones_of(&tables());
    let delta = weft_proto::tables::v1::DnsTables {
        services: vec![
            alias("default/web", "elsewhere.example"),
            cluster_ip("default/ext", &["10.96.0.77"], vec![]),
        ],
        removed_services: vec!["default/db".into()],
        ..Default::default()
    };
    change(&mut zones, &delta).unwrap();
    let target = data(&zones, "web.default.svc.cluster.local.", CNAME);
    assert_eq!(target, ["elsewhere.example."]);
    assert_eq!(data(&zones, "ext.default.svc.cluster.local.", A), ["10.96.0.77"]);
    let gone = answer(&zones, "db.default.svc.cluster.local.", A).unwrap();
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    // What the address had is gone with the Service, what another has is not.
    assert_eq!(
        data(&zones, "9.2.244.10.in-addr.arpa.", PTR),
        ["10-244-2-9.portless.default.svc.cluster.local."]
    );
    let reverse = answer(&zones, "20.0.96.10.in-addr.arpa.", PTR).unwrap();
    assert_eq!(reverse.metadata.response_code, ResponseCode::NXDomain);
}
