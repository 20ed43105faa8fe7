//! Interfaces, addresses, routes, rules, nftables, the monitor and processes, in namespaces.

use std::time::Duration;

use ipnet::IpNet;

use crate::harness::{Namespace, set_up};
use crate::link::{self, Veth};
use crate::monitor::{Change, Monitor};
use crate::netlink::{Ensured, Family, Netlink};
use crate::nft::{self, NftError};
use crate::route::{self, Route};
use crate::rule::{self, Rule};
use crate::{InNetNs, addr, netns, sysctl};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn everything_is_set_once_and_removed_to_what_was_before() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let netlink = Netlink::new().unwrap();
        let state = async || {
            let rules = rule::list(&netlink).await.unwrap();
            (link::list(&netlink).await.unwrap(), route::list(&netlink).await.unwrap(), rules)
        };
        let before = state().await;
        let veth = Veth { name: "a", peer: "b", peer_netns: None, mtu: Some(1300) };
        assert_eq!(link::ensure_veth(&netlink, &veth).await.unwrap(), Ensured::Changed);
        assert_eq!(link::ensure_veth(&netlink, &veth).await.unwrap(), Ensured::Unchanged);
        set_up(&netlink, "a", &["10.2.0.1/24", "fd02::1/64"]).await;
        let mac = weft_model::MacAddr([2, 0, 0, 0, 0, 7]);
        for expected in [Ensured::Changed, Ensured::Unchanged] {
            assert_eq!(link::ensure_mac(&netlink, "a", mac).await.unwrap(), expected);
            assert_eq!(link::ensure_mtu(&netlink, "a", 1350).await.unwrap(), expected);
            assert_eq!(link::ensure_bridge(&netlink, "br").await.unwrap(), expected);
            assert_eq!(link::ensure_master(&netlink, "b", Some("br")).await.unwrap(), expected);
        }
        assert_eq!(
            addr::ensure(&netlink, "a", net("fd02::1/64")).await.unwrap(),
            Ensured::Unchanged
        );
        let index = link::require(&netlink, "a").await.unwrap().index;
        for (to, source) in [("10.96.0.0/16", "10.2.0.1"), ("fd96::/64", "fd02::1")] {
            let mut wanted = Route::new(net(to));
            (wanted.table, wanted.output) = (5100, Some(index));
            wanted.source = Some(source.parse().unwrap());
            wanted.mtu = Some(9000);
            let rule = Rule {
                family: Family::of(&net(to)),
                priority: 101,
                input: Some("a".to_owned()),
                mark: Some(0x1000),
                from: None,
                to: Some(net(to)),
                table: 5100,
            };
            for expected in [Ensured::Changed, Ensured::Unchanged] {
                assert_eq!(route::ensure(&netlink, &wanted).await.unwrap(), expected, "{to}");
                assert_eq!(rule::ensure(&netlink, &rule).await.unwrap(), expected, "{to}");
            }
            for expected in [Ensured::Changed, Ensured::Unchanged] {
                assert_eq!(rule::remove(&netlink, &rule).await.unwrap(), expected, "{to}");
                assert_eq!(route::remove(&netlink, &wanted).await.unwrap(), expected, "{to}");
            }
        }
        for expected in [Ensured::Changed, Ensured::Unchanged] {
            assert_eq!(addr::remove(&netlink, "a", net("10.2.0.1/24")).await.unwrap(), expected);
        }
        for name in ["a", "br"] {
            assert_eq!(link::remove(&netlink, name).await.unwrap(), Ensured::Changed);
        }
        assert_eq!(state().await, before);
    });
}

#[test]
fn monitor_sees_a_deleted_route() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let netlink = Netlink::new().unwrap();
        let mut wanted = Route::new(net("10.3.0.0/16"));
        wanted.kind = route::BLACKHOLE;
        route::ensure(&netlink, &wanted).await.unwrap();
        let mut monitor = Monitor::new().unwrap();
        route::remove(&netlink, &wanted).await.unwrap();
        link::ensure_bridge(&netlink, "br").await.unwrap();
        let soon = Duration::from_secs(3);
        let route = tokio::time::timeout(soon, monitor.next()).await.unwrap().unwrap();
        assert!(
            matches!(route, Change::RouteDeleted(route) if route.destination == wanted.destination)
        );
        let link = tokio::time::timeout(soon, monitor.next()).await.unwrap().unwrap();
        assert!(
            matches!(link, Change::LinkSet(link) if link.name == "br" && link.kind == "bridge")
        );
    });
}

#[test]
fn monitor_sees_whatever_changes_in_a_table() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let mut monitor = Monitor::new().unwrap();
        for change in [
            "add table inet weft",
            "add chain inet weft c",
            "add rule inet weft c ip saddr 10.0.0.1 drop",
            "add set inet weft s { type ipv4_addr; }",
            "add element inet weft s { 10.0.0.1 }",
            "flush chain inet weft c",
            "delete table inet weft",
        ] {
            nft::apply(change).await.unwrap();
            let soon = tokio::time::timeout(Duration::from_secs(3), monitor.next());
            let seen = soon.await.expect(change).unwrap();
            assert_eq!(seen, Change::Nftables { table: "weft".to_owned() }, "{change}");
            // A deleted table is announced with all that was in it.
            while tokio::time::timeout(Duration::ZERO, monitor.next()).await.is_ok() {}
        }
    });
}

#[test]
fn listing_is_known_without_touching_what_is_here() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let ruleset = "table inet weft\ndelete table inet weft\ntable inet weft {\nset s {\n\
            type ipv4_addr; flags interval; elements = { 10.0.0.0/16 }\n}\nchain c {\n\
            iifname \"weft0\" ip daddr @s notrack\n}\n}\n";
        let listed = nft::as_listed(ruleset, "inet", "weft").await.unwrap();
        assert!(listed.as_ref().is_some_and(|text| text.contains("notrack")), "{listed:?}");
        assert_eq!(nft::list().await.unwrap(), "");
        nft::apply(ruleset).await.unwrap();
        assert_eq!(nft::list_table("inet", "weft").await.unwrap(), listed);
        nft::apply("flush chain inet weft c").await.unwrap();
        assert_ne!(nft::list_table("inet", "weft").await.unwrap(), listed);
    });
}

#[test]
fn ruleset_is_applied_whole_or_not_at_all() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        nft::apply("table inet weft {\nchain c {\nip saddr 10.0.0.1 drop\n}\n}\n").await.unwrap();
        let text = nft::list_table("inet", "weft").await.unwrap().unwrap();
        assert!(text.contains("ip saddr 10.0.0.1 drop"), "{text}");
        let broken = "table inet other {\n}\ntable inet weft {\nchain d {\njump nowhere\n}\n}\n";
        let refused = nft::apply(broken).await.unwrap_err();
        assert!(
            matches!(&refused, NftError::Refused { text } if text.contains("nowhere")),
            "{refused}"
        );
        assert_eq!(nft::list_table("inet", "other").await.unwrap(), None);
        nft::delete_table("inet", "weft").await.unwrap();
        nft::delete_table("inet", "weft").await.unwrap();
        assert_eq!(nft::list().await.unwrap(), "");
    });
}

#[test]
fn process_and_settings_are_of_the_namespace() {
    let Some(namespace) = Namespace::new() else { return };
    let mut command = std::process::Command::new("readlink");
    let output = command.arg("/proc/self/ns/net").in_netns(&namespace.handle).output().unwrap();
    let inside = netns::enter(&namespace.name, || std::fs::read_link("/proc/thread-self/ns/net"));
    let inside = inside.unwrap().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), inside.to_str().unwrap());
    assert_ne!(inside, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    let set = || sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
    assert!(namespace.handle.enter(set).unwrap().changed());
    assert!(!namespace.handle.enter(set).unwrap().changed());
    assert!(netns::list().unwrap().contains(&namespace.name));
    assert!(netns::create(&namespace.name).is_err());
    assert!(netns::create("../x").is_err());
}

#[test]
fn connection_reaches_into_another_namespace() {
    let Some(namespace) = Namespace::new() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let netlink = Netlink::in_netns(&namespace.handle).unwrap();
        let mut monitor = Monitor::in_netns(&namespace.handle).unwrap();
        link::ensure_bridge(&netlink, "only-here").await.unwrap();
        assert!(matches!(monitor.next().await.unwrap(), Change::LinkSet(link) if link.name == "only-here"));
        assert_eq!(link::get(&Netlink::new().unwrap(), "only-here").await.unwrap(), None);
    });
}

#[test]
fn super_packets_of_an_interface_are_bounded() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let netlink = Netlink::new().unwrap();
        let veth = Veth { name: "a", peer: "b", peer_netns: None, mtu: None };
        link::ensure_veth(&netlink, &veth).await.unwrap();
        crate::segments::limit("a", 44).unwrap();
        let output = std::process::Command::new("ip").args(["-d", "link", "show", "a"]).output();
        let shown = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(shown.contains("gso_max_segs 44 "), "{shown}");
        let missing = crate::segments::limit("none", 44).unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    });
}
