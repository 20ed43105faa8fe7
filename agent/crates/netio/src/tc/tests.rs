//! A port made of a veth into a pod's namespace, and a TUN it redirects into.

use std::net::UdpSocket;
use std::time::Duration;

use super::*;
use crate::harness::{Namespace, wait_for};
use crate::{Offloads, Tun};

const ALLOWED: [&str; 2] = ["10.1.0.2", "fd01::2"];

fn allowed() -> Sender {
    let addresses = ALLOWED.iter().map(|ip| ip.parse().unwrap()).collect();
    Sender { addresses, ..Sender::default() }
}

/// Sends one datagram from inside the pod.
fn send(pod: &Namespace, from: &str, to: &str) {
    pod.handle
        .enter(|| {
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"x", to).unwrap();
        })
        .unwrap();
}

/// Whether a packet from `source` comes out of the TUN within the time.
fn arrives(tun: &Tun, source: IpAddr, time: Duration) -> bool {
    let deadline = std::time::Instant::now() + time;
    let mut buffer = vec![0; 1 << 17];
    while std::time::Instant::now() < deadline {
        let Some((range, _)) = tun.queues()[0].read(&mut buffer).unwrap() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let packet = &buffer[range];
        let found = match source {
            IpAddr::V4(ip) => packet[0] >> 4 == 4 && packet[12..16] == ip.octets(),
            IpAddr::V6(ip) => packet[0] >> 4 == 6 && packet[8..24] == ip.octets(),
        };
        if found {
            return true;
        }
    }
    false
}

fn counted(host: &Namespace) -> u64 {
    host.run(|| async {
        let all = all_drops(&Netlink::new().unwrap()).await.unwrap();
        all.into_values().sum()
    })
}

#[test]
fn port_redirects_the_pod_and_drops_forged_sources() {
    let (Some(host), Some(pod)) = (Namespace::new(), Namespace::new()) else { return };
    let forged = ["10.1.0.9/24", "fd01::9/64"];
    let own = ["10.1.0.2/24", "fd01::2/64"];
    host.connect(&pod, &["10.1.0.1/24", "fd01::1/64"], &[own, forged].concat());
    let tun = host.run(|| async {
        let tun = Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap();
        let netlink = Netlink::new().unwrap();
        let ensure = || ensure_port(&netlink, "near", tun.index(), &ALLOWED_IPS);
        static ALLOWED_IPS: std::sync::LazyLock<Sender> = std::sync::LazyLock::new(allowed);
        assert_eq!(ensure().await.unwrap(), Ensured::Changed);
        assert_eq!(ensure().await.unwrap(), Ensured::Unchanged);
        tun
    });
    let second = Duration::from_secs(3);
    // That anything comes shows that ARP and neighbour discovery were answered by the host.
    send(&pod, "10.1.0.2:1000", "10.1.0.1:53");
    assert!(arrives(&tun, "10.1.0.2".parse().unwrap(), second));
    send(&pod, "[fd01::2]:1000", "[fd01::1]:53");
    assert!(arrives(&tun, "fd01::2".parse().unwrap(), second));

    let before = counted(&host);
    send(&pod, "10.1.0.9:1000", "10.1.0.1:53");
    send(&pod, "[fd01::9]:1000", "[fd01::1]:53");
    wait_for(|| (counted(&host) >= before + 2).then_some(()));
    assert!(!arrives(&tun, "10.1.0.9".parse().unwrap(), Duration::from_millis(50)));
}

#[test]
fn port_is_put_right_and_taken_away() {
    let (Some(host), Some(pod)) = (Namespace::new(), Namespace::new()) else { return };
    host.connect(&pod, &["10.1.0.1/24"], &["10.1.0.2/24"]);
    host.run(|| async {
        let netlink = Netlink::new().unwrap();
        let first = Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap();
        let only = Sender { addresses: vec!["10.1.0.7".parse().unwrap()], ..Sender::default() };
        ensure_port(&netlink, "near", first.index(), &only).await.unwrap();
        // Other addresses, then a new TUN, then a filter deleted by somebody.
        let changed = ensure_port(&netlink, "near", first.index(), &allowed()).await.unwrap();
        assert_eq!(changed, Ensured::Changed);
        link::remove(&netlink, "weft0").await.unwrap();
        drop(first);
        link::ensure_bridge(&netlink, "other").await.unwrap();
        let tun = Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap();
        let ensure =
            || async { ensure_port(&netlink, "near", tun.index(), &allowed()).await.unwrap() };
        let check =
            || async { check_port(&netlink, "near", tun.index(), &allowed()).await.unwrap() };
        assert!(!check().await);
        assert_eq!(ensure().await, Ensured::Changed);
        assert!(check().await);
        assert_eq!(ensure().await, Ensured::Unchanged);
        assert!(!check_port(&netlink, "near", tun.index(), &only).await.unwrap());
        let index = link::require(&netlink, "near").await.unwrap().index;
        let port = Port { netlink: &netlink, name: "near", index };
        assert_eq!(port.filters(INGRESS).await.unwrap().iter().filter_map(redirect_of).count(), 1);
        for (priority, kind) in [(PROGRAM_PRIORITY, "bpf"), (3, "u32")] {
            port.delete_filter(priority, kind).await.unwrap();
            assert!(!check().await, "without {kind}");
            assert_eq!(ensure().await, Ensured::Changed);
            assert_eq!(ensure().await, Ensured::Unchanged);
        }
        port.delete_qdisc().await.unwrap();
        assert!(!check().await);
        assert_eq!(ensure().await, Ensured::Changed);
        assert_eq!(remove_port(&netlink, "near").await.unwrap(), Ensured::Changed);
        assert_eq!(remove_port(&netlink, "near").await.unwrap(), Ensured::Unchanged);
        assert_eq!(all_drops(&netlink).await.unwrap(), BTreeMap::new());
        let many = Sender { addresses: vec![IpAddr::from([10, 0, 0, 1]); 17], ..Sender::default() };
        let refused = ensure_port(&netlink, "near", tun.index(), &many).await;
        assert!(matches!(refused, Err(NetlinkError::TooManyAddresses { .. })));
    });
}
