//! Real devices in namespaces of their own.

use std::collections::BTreeSet;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use weft_model::Timestamp;

use super::*;
use crate::harness::{Namespace, set_up, wait_for};
use crate::{Affinity, Netlink, addr, clock, link};

/// Opens `weft0` with one queue and gives it an address.
fn open(namespace: &Namespace, queues: usize, net: &str) -> Tun {
    namespace.run(|| async {
        let tun = Tun::open("weft0", queues, 1400, Offloads::ALL).unwrap();
        set_up(&Netlink::new().unwrap(), "weft0", &[net]).await;
        tun
    })
}

/// The next packet that is UDP over IPv4; the kernel sends others of its own accord.
fn read_udp(queue: &TunQueue) -> Option<(Vec<u8>, VnetHeader)> {
    let mut buffer = vec![0; 1 << 17];
    let (range, header) = queue.read(&mut buffer).unwrap()?;
    let packet = buffer[range].to_vec();
    (packet[0] >> 4 == 4 && packet[9] == 17).then_some((packet, header))
}

#[test]
fn packet_makes_a_round_trip() {
    let Some(namespace) = Namespace::new() else { return };
    let tun = open(&namespace, 1, "10.9.0.1/24");
    assert!(tun.offloads().tso && tun.offloads().checksum);
    let socket = namespace.handle.enter(|| UdpSocket::bind("10.9.0.1:1000").unwrap()).unwrap();
    socket.send_to(b"ping", "10.9.0.2:2000").unwrap();
    let queue = &tun.queues()[0];
    let (mut packet, header) = wait_for(|| read_udp(queue));
    assert_eq!(header.flags, VnetHeader::NEEDS_CSUM);
    assert_eq!((header.csum_start, header.csum_offset), (20, 6));
    assert_eq!(&packet[28..], b"ping");
    // The answer: addresses and ports change places, no UDP checksum. The sum of the IPv4 header
    // stays the same.
    packet[12..20].rotate_left(4);
    packet[20..24].rotate_left(2);
    packet[26..28].fill(0);
    let (head, payload) = packet.split_at(28);
    queue.write(&VnetHeader::default(), &[IoSlice::new(head), IoSlice::new(payload)]).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"ping"[..], "10.9.0.2:2000".parse().unwrap()));
}

/// What a worker follows its pods by.
#[test]
fn sender_of_the_last_packet_is_known() {
    let Some(namespace) = Namespace::new() else { return };
    let mut tun = open(&namespace, 2, "10.9.0.1/24");
    tun.watch_senders().unwrap();
    let socket = namespace.handle.enter(|| UdpSocket::bind("10.9.0.1:1000").unwrap()).unwrap();
    let all = Affinity::current().unwrap();
    for cpu in (0..1024).filter(|cpu| all.contains(*cpu)).take(4) {
        all.keep_on(cpu).unwrap();
        let before = clock::now();
        // Long enough not to be cut short by what the program returns.
        socket.send_to(&[7; 1372], "10.9.0.2:2000").unwrap();
        let (queue, (packet, _)) =
            wait_for(|| tun.queues().iter().find_map(|q| Some((q, read_udp(q)?))));
        assert_eq!(packet.len(), 1400);
        let sender = queue.last_sender().unwrap();
        assert_eq!(sender.cpu, cpu);
        let exactness = Duration::from_micros(5);
        assert!(sender.at.since(Timestamp::ZERO) + exactness > before.since(Timestamp::ZERO));
        assert!(sender.at <= clock::now());
    }
    all.allow_all().unwrap();
}

#[test]
fn tcp_super_packets_pass_whole() {
    const BYTES: usize = 4 << 20;
    let (Some(near), Some(far)) = (Namespace::new(), Namespace::new()) else { return };
    let tuns = [open(&near, 1, "10.9.0.1/24"), open(&far, 1, "10.9.0.2/24")];
    let (stop, longest) = (AtomicBool::new(false), AtomicUsize::new(0));
    let forward = |from: &TunQueue, to: &TunQueue| {
        let mut buffer = vec![0; 1 << 17];
        while !stop.load(Ordering::Relaxed) {
            let Some((range, header)) = from.read(&mut buffer).unwrap() else {
                std::thread::yield_now();
                continue;
            };
            if header.gso_type == VnetHeader::GSO_TCPV4 {
                longest.fetch_max(range.len(), Ordering::Relaxed);
            }
            to.write(&header, &[IoSlice::new(&buffer[range])]).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| forward(&tuns[0].queues()[0], &tuns[1].queues()[0]));
        scope.spawn(|| forward(&tuns[1].queues()[0], &tuns[0].queues()[0]));
        let listener = far.handle.enter(|| TcpListener::bind("10.9.0.2:80").unwrap()).unwrap();
        let mut client = near.handle.enter(|| TcpStream::connect("10.9.0.2:80").unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        let sent: Vec<u8> = (0..BYTES).map(|n| (n * 7 / 3) as u8).collect();
        let mut received = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&sent).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
            });
            server.read_to_end(&mut received).unwrap();
        });
        stop.store(true, Ordering::Relaxed);
        assert!(received == sent, "data arrived changed");
    });
    assert!(longest.into_inner() > 10_000, "no super-packet was seen");
}

#[test]
fn flows_spread_over_queues() {
    let Some(namespace) = Namespace::new() else { return };
    let tun = open(&namespace, 2, "10.9.0.1/24");
    namespace
        .handle
        .enter(|| {
            for _ in 0..64 {
                let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
                socket.send_to(b"x", "10.9.0.2:2000").unwrap();
            }
        })
        .unwrap();
    let mut seen = Vec::new();
    let mut queues = BTreeSet::new();
    wait_for(|| {
        for (number, queue) in tun.queues().iter().enumerate() {
            while let Some((packet, _)) = read_udp(queue) {
                seen.push(packet);
                queues.insert(number);
            }
        }
        (seen.len() == 64).then_some(())
    });
    assert_eq!(queues.len(), 2);
}

#[test]
fn persistent_device_is_attached_again() {
    let Some(namespace) = Namespace::new() else { return };
    let first = open(&namespace, 2, "10.9.0.1/24");
    let index = first.index();
    namespace.run(|| async {
        let busy = Tun::open("weft0", 1, 1400, Offloads::ALL);
        assert!(matches!(busy, Err(TunError::Busy { .. })), "{busy:?}");
        drop(first);
        let second = Tun::open("weft0", 1, 1300, Offloads::NONE).unwrap();
        assert_eq!(second.index(), index);
        assert_eq!(second.offloads(), Offloads::NONE);
        let netlink = Netlink::new().unwrap();
        assert_eq!(link::require(&netlink, "weft0").await.unwrap().mtu, 1300);
        let addresses = addr::list(&netlink).await.unwrap();
        assert!(addresses.iter().any(|address| address.net == "10.9.0.1/24".parse().unwrap()));
        drop(second);
        Tun::delete("weft0").unwrap();
        assert_eq!(link::get(&netlink, "weft0").await.unwrap(), None);
        Tun::delete("weft0").unwrap();
    });
}

#[test]
fn unusable_names_have_reasons() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| async {
        let netlink = Netlink::new().unwrap();
        link::ensure_bridge(&netlink, "weft0").await.unwrap();
        let taken = Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap_err();
        assert!(
            matches!(&taken, TunError::NameTaken { driver, .. } if driver == "bridge"),
            "{taken}"
        );
        for (name, queues) in [("", 1), ("a-name-that-is-too-long", 1), ("weft1", 0)] {
            let refused = Tun::open(name, queues, 1400, Offloads::ALL);
            assert!(matches!(refused, Err(TunError::Invalid { .. })));
        }
        let refused = Tun::open("weft1", 1, 1, Offloads::ALL);
        assert!(matches!(refused, Err(TunError::Io { .. })), "{refused:?}");
        assert_eq!(link::get(&netlink, "weft1").await.unwrap(), None);
    });
}

#[test]
fn deletion_is_noticed_and_mended() {
    let Some(namespace) = Namespace::new() else { return };
    let tun = open(&namespace, 1, "10.9.0.1/24");
    namespace.run(|| async {
        let netlink = Netlink::new().unwrap();
        link::ensure_down(&netlink, "weft0").await.unwrap();
        let packet = [0x45; 40];
        let down = tun.queues()[0].write(&VnetHeader::default(), &[IoSlice::new(&packet)]);
        assert!(matches!(down, Err(QueueError::Down)), "{down:?}");
        link::remove(&netlink, "weft0").await.unwrap();
        let mut buffer = vec![0; 1 << 16];
        let gone = tun.queues()[0].read(&mut buffer);
        assert!(matches!(gone, Err(QueueError::Deleted)), "{gone:?}");
        let gone = tun.queues()[0].write(&VnetHeader::default(), &[IoSlice::new(&packet)]);
        assert!(matches!(gone, Err(QueueError::Deleted)), "{gone:?}");
        Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap();
    });
}
