//! Names that do not exist, and names without what is asked for.

use hickory_proto::op::ResponseCode::{self, NXDomain, NoError, ServFail};
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, CAA, HTTPS, MX, PTR, SRV, SVCB, TXT};

use super::support::*;

/// Asserts that the answer has no data but an SOA (DNS-041).
fn check(name: &str, rtype: RecordType, code: ResponseCode) {
    let message = answer(&zones_of(&tables()), name, rtype).unwrap();
    assert_eq!(message.metadata.response_code, code, "{name} {rtype}");
    assert!(message.answers.is_empty() && message.metadata.authoritative, "{name} {rtype}");
    let [soa] = &message.authorities[..] else { panic!("{name} {rtype}: no SOA") };
    let soa = line(soa);
    assert!(soa.contains(&format!(" {TTL} SOA ")) && soa.ends_with(&format!(" {TTL}")), "{soa}");
}

/// DNS-034, DNS-040, DNS-042: a name that has something else, or addresses of one family only.
#[test]
fn name_without_the_type_exists() {
    for rtype in [MX, CAA, HTTPS, SVCB, TXT, RecordType::Unknown(65_280)] {
        check("web.default.svc.cluster.local.", rtype, NoError);
        check("db-0.db.default.svc.cluster.local.", rtype, NoError);
        check("_http._tcp.web.default.svc.cluster.local.", rtype, NoError);
    }
    check("v4only.default.svc.cluster.local.", AAAA, NoError);
    check("portless.default.svc.cluster.local.", AAAA, NoError);
    check("10-244-2-9.db.default.svc.cluster.local.", AAAA, NoError);
    check("dns-version.cluster.local.", A, NoError);
    check("portless.default.svc.cluster.local.", SRV, NoError);
}

/// DNS-040: names in between.
#[test]
fn name_above_others_exists() {
    for name in ["", "svc.", "pod.", "dns.", "default.svc.", "default.pod.", "svc.svc.", "pod.svc."]
    {
        check(&format!("{name}cluster.local."), A, NoError);
    }
    check("_tcp.web.default.svc.cluster.local.", A, NoError);
    check("_udp.db.default.svc.cluster.local.", SRV, NoError);
}

/// DNS-017, DNS-027, DNS-033, DNS-040: what is not there.
#[test]
fn what_is_not_there_does_not_exist() {
    for name in [
        "nowhere.svc",
        "nowhere.pod",
        "nobody.default.svc",
        "web.nowhere.svc",
        "empty.default.svc",
        "_sctp.web.default.svc",
        "_http._udp.web.default.svc",
        "http._tcp.web.default.svc",
        "_http.tcp.web.default.svc",
        "_._tcp.web.default.svc",
        "_nope._tcp.db.default.svc",
        "db-7.db.default.svc",
        "10-244-2-1.db.default.svc",
        "a.b.c.web.default.svc",
        "a._http._tcp.web.default.svc",
        "*.default.svc",
        "*.db.default.svc",
        "web.default.pod",
        "1.10-244-1-5.default.pod",
        "10-244-1-5.default.svc",
        "other.dns",
        "ns.other",
        "example.com",
        "www.example.com.default.svc",
        "a.zone.pin._zone.svc",
    ] {
        for rtype in [A, SRV, TXT, ANY] {
            check(&format!("{name}.cluster.local."), rtype, NXDomain);
        }
    }
}

/// DNS-102: reverse names of the cluster are never asked elsewhere, and others are not ours.
#[test]
fn reverse_names_of_the_cluster_end_here() {
    check("9.9.96.10.in-addr.arpa.", PTR, NXDomain);
    check("244.10.in-addr.arpa.", PTR, NoError);
    check("20.0.96.10.in-addr.arpa.", A, NoError);
    for below in ["a.20.0.96.10", "b._dns-sd._udp.0.0.96.10", "1.20.0.96.10", "01.0.96.10"] {
        check(&format!("{below}.in-addr.arpa."), PTR, NXDomain);
    }
    let message = answer(&zones_of(&tables()), "9.9.96.10.in-addr.arpa.", PTR).unwrap();
    assert_eq!(message.authorities[0].name.to_ascii(), "in-addr.arpa.");
    for name in ["10.in-addr.arpa.", "8.8.8.8.in-addr.arpa.", "in-addr.arpa.", "a.b.in-addr.arpa."]
    {
        assert!(answer(&zones_of(&tables()), name, PTR).is_none(), "{name}");
    }
}

/// DNS-100: everything else is not of the cluster.
#[test]
fn names_outside_are_for_the_resolver() {
    let zones = zones_of(&tables());
    for name in ["example.com.", "local.", ".", "xcluster.local.", "cluster.local.example.com."] {
        assert!(answer(&zones, name, A).is_none(), "{name}");
    }
}

/// DNS-043: while the cluster is not known, nothing is said of it.
#[test]
fn names_fail_until_the_cluster_is_known() {
    let mut tables = tables();
    tables.settings.as_mut().unwrap().synced = false;
    let zones = zones_of(&tables);
    for (name, rtype) in [
        ("web.default.svc.cluster.local.", A),
        ("nobody.default.svc.cluster.local.", A),
        ("9.9.96.10.in-addr.arpa.", PTR),
    ] {
        let message = answer(&zones, name, rtype).unwrap();
        assert_eq!(message.metadata.response_code, ServFail, "{name}");
        assert!(message.answers.is_empty() && message.authorities.is_empty(), "{name}");
    }
    assert!(answer(&zones, "example.com.", A).is_none());
}
