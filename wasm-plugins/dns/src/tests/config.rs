//! Configurations that are refused.

use weft_proto::tables::v1::{DnsNamespace, DnsService, DnsSettings, DnsTables, Range};

use super::support::*;
use hickory_proto::rr::RecordType::A;

fn of_settings(change: impl FnOnce(&mut DnsSettings)) -> DnsTables {
    let mut settings = settings();
    change(&mut settings);
    DnsTables { settings: Some(settings), ..DnsTables::default() }
}

fn of_service(service: DnsService) -> DnsTables {
    DnsTables { services: vec![service], ..DnsTables::default() }
}

/// Every part that is wrong is named, and what was there stays.
#[test]
fn part_that_is_wrong_is_named() {
    let mut zones = zones_of(&tables());
    let label = "x".repeat(64);
    let twice = &[("a", &["10.0.0.1"][..]), ("A", &["10.0.0.2"][..])];
    for (delta, text) in [
        (of_settings(|s| s.zones.clear()), "settings: zones: there is none"),
        (of_settings(|s| s.zones.push(".".into())), "settings: zones: `.` is no name of a domain"),
        (of_settings(|s| s.zones.push("a..b".into())), "settings: zones: `a..b` is no name"),
        (of_settings(|s| s.ttl_s = 3601), "settings: ttl_s: 3601 is over 3600"),
        (of_settings(|s| s.resolvers.push(vec![1])), "settings: resolvers: an address of 1 bytes"),
        (of_settings(|s| s.name_servers.push(vec![])), "settings: name_servers: an address of 0"),
        (
            of_settings(|s| s.reverse_ranges.push(Range { address: vec![0; 4], prefix: 33 })),
            "settings: reverse_ranges: a prefix of 33 bits",
        ),
        (of_service(alias("nothing", "a.b")), "service `nothing`: its name is no NAMESPACE/NAME"),
        (of_service(alias(&format!("a/{label}"), "a.b")), "its name is no NAMESPACE/NAME"),
        (of_service(alias("a/b", &format!("{label}.c"))), "service `a/b`: external_name: `xxx"),
        (
            of_service(cluster_ip("a/b", &["10.0.0.1", "10.0.0.2"], vec![])),
            "service `a/b`: cluster_ips: two of one family",
        ),
        (
            of_service(DnsService { cluster_ips: vec![vec![1; 5]], ..alias("a/b", "") }),
            "service `a/b`: cluster_ips: an address of 5 bytes",
        ),
        (
            of_service(cluster_ip("a/b", &["10.0.0.1"], vec![port("p", 1, 80)])),
            "service `a/b`: port `p`: number 80, protocol 1",
        ),
        (
            of_service(cluster_ip("a/b", &["10.0.0.1"], vec![port("p", TCP, 65_536)])),
            "service `a/b`: port `p`: number 65536, protocol 6",
        ),
        (
            of_service(headless("a/b", vec![endpoints(&[], &[(&label, &["10.0.0.1"])], vec![])])),
            "is no label",
        ),
        (
            of_service(headless("a/b", vec![endpoints(&[], twice, vec![])])),
            "service `a/b`: host `a`: is there twice",
        ),
        (
            of_service(headless(
                "a/b",
                vec![weft_proto::tables::v1::DnsEndpoints {
                    addresses_v6: vec![0; 15],
                    ..Default::default()
                }],
            )),
            "service `a/b`: addresses_v6: 15 bytes are no addresses of 16",
        ),
        (
            DnsTables { removed_services: vec!["x".into()], ..DnsTables::default() },
            "removed_services: `x` is no NAMESPACE/NAME",
        ),
        (
            DnsTables {
                namespaces: vec![DnsNamespace { number: 0, name: "a".into() }],
                ..DnsTables::default()
            },
            "namespaces: number 0, name `a`",
        ),
        (
            DnsTables { pods_v4: vec![0; 9], ..DnsTables::default() },
            "pods_v4: 9 bytes are no records of 8",
        ),
    ] {
        let refusal = change(&mut zones, &delta).unwrap_err();
        assert!(refusal.contains(text), "{refusal:?} is not about {text:?}");
    }
    assert_eq!(data(&zones, "web.default.svc.cluster.local.", A), ["10.96.0.20"]);
}

/// A change of nothing but some of it leaves the rest, and one that refuses leaves everything.
#[test]
fn delta_is_taken_whole_or_not_at_all() {
    let mut zones = zones_of(&tables());
    let mut delta = of_service(cluster_ip("default/new", &["10.96.0.99"], vec![]));
    delta.removed_services.push("default/web".into());
    delta.services.push(alias("bad", "a.b"));
    change(&mut zones, &delta).unwrap_err();
    assert_eq!(data(&zones, "web.default.svc.cluster.local.", A), ["10.96.0.20"]);
    delta.services.pop();
    change(&mut zones, &delta).unwrap();
    assert_eq!(data(&zones, "new.default.svc.cluster.local.", A), ["10.96.0.99"]);
    assert_eq!(data(&zones, "v4only.default.svc.cluster.local.", A), ["10.96.0.21"]);
}

/// A namespace may go and come again under another number.
#[test]
fn namespaces_and_pods_follow_changes() {
    let mut zones = zones_of(&tables());
    let code = |zones: &crate::Zones, name: &str| {
        answer(zones, name, A).unwrap().metadata.response_code.to_string()
    };
    let delta = DnsTables {
        removed_namespaces: vec![1],
        namespaces: vec![DnsNamespace { number: 9, name: "default".into() }],
        pods_v4: [[10, 244, 1, 5], [0, 0, 0, 9], [10, 244, 1, 6], [0; 4]].concat(),
        ..DnsTables::default()
    };
    change(&mut zones, &delta).unwrap();
    assert_eq!(data(&zones, "10-244-1-5.default.pod.cluster.local.", A), ["10.244.1.5"]);
    let gone = code(&zones, "10-244-1-6.kube-system.pod.cluster.local.");
    assert_eq!(gone, "Non-Existent Domain");
    let delta = DnsTables { removed_namespaces: vec![9], ..DnsTables::default() };
    change(&mut zones, &delta).unwrap();
    assert_eq!(code(&zones, "default.svc.cluster.local."), "Non-Existent Domain");
}
