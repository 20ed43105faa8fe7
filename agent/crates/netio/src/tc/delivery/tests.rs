//! A host that forwards nothing: what reaches the pod was delivered.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::time::Duration;

use super::*;
use crate::harness::{Namespace, set_up, wait_for};
use crate::{Offloads, Tun, VnetHeader, sysctl};

/// Where the pod listens.
const TO: [&str; 2] = ["10.1.0.2:2000", "[fd01::2]:2000"];

/// A host with a TUN device and a pod behind a veth.
struct Bed {
    host: Namespace,
    pod: Namespace,
    tun: Tun,
}

impl Bed {
    fn new() -> Option<Self> {
        let (host, pod) = (Namespace::new()?, Namespace::new()?);
        let nets = (["10.1.0.1/24", "fd01::1/64"], ["10.1.0.2/24", "fd01::2/64"]);
        host.connect(&pod, &nets.0, &nets.1);
        let tun = host.run(|| async {
            let tun = Tun::open("weft0", 1, 1400, Offloads::ALL).unwrap();
            set_up(&Netlink::new().unwrap(), "weft0", &["10.9.0.1/24", "fd09::1/64"]).await;
            for family in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                sysctl::ensure(family, "0").unwrap();
            }
            tun
        });
        Some(Self { host, pod, tun })
    }

    fn device(&self) -> u32 {
        self.host
            .run(|| async { link::require(&Netlink::new().unwrap(), "near").await.unwrap().index })
    }

    fn listen(&self, at: &str) -> UdpSocket {
        // A new IPv6 address is not usable at once.
        let socket = wait_for(|| self.pod.handle.enter(|| UdpSocket::bind(at)).unwrap().ok());
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    }

    /// The MTU that the host tells a sender over IPv4: destination unreachable, fragmentation needed.
    fn told_mtu(&self) -> u16 {
        let told = wait_for(|| {
            let mut buffer = vec![0; 1 << 17];
            let (range, _) = self.tun.queues()[0].read(&mut buffer).unwrap()?;
            let packet = buffer[range].to_vec();
            (packet[0] >> 4 == 4 && packet[9] == 1).then_some(packet)
        });
        assert_eq!((told[20], told[21]), (3, 4));
        u16::from_be_bytes([told[26], told[27]])
    }

    /// Whether a datagram for `to` that is written into the TUN arrives within 300 ms.
    fn reaches(&self, to: &str, payload: usize) -> bool {
        let socket = self.listen(to);
        let packet = datagram(to.parse::<std::net::SocketAddr>().unwrap().ip(), payload);
        let queue = &self.tun.queues()[0];
        queue.write(&VnetHeader::default(), &[IoSlice::new(&packet)]).unwrap();
        let mut buffer = [0; 9000];
        socket.recv(&mut buffer).is_ok_and(|len| len == payload)
    }
}

/// From port 1000 of the TUN's net; over IPv6 with a checksum.
fn datagram(to: IpAddr, payload: usize) -> Vec<u8> {
    let len = u16::try_from(8 + payload).unwrap();
    let (mut head, pseudo) = match to {
        IpAddr::V4(to) => {
            let start = [&[0x45, 0][..], &(20 + len).to_be_bytes(), &[0, 0, 0x40, 0, 64, 17, 0, 0]];
            let mut head = [&start.concat()[..], &[10, 9, 0, 2], &to.octets()].concat();
            let sum = sum(&head).to_be_bytes();
            head[10..12].copy_from_slice(&sum);
            (head, Vec::new())
        }
        IpAddr::V6(to) => {
            let from = "fd09::2".parse::<std::net::Ipv6Addr>().unwrap();
            let addresses = [from.octets(), to.octets()].concat();
            let head = [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[17, 64], &addresses].concat();
            (head, [&addresses[..], &[0, 17], &len.to_be_bytes()].concat())
        }
    };
    let ports = [1000_u16, 2000].map(u16::to_be_bytes).concat();
    let mut udp = [&ports[..], &len.to_be_bytes(), &[0, 0], &vec![7; payload]].concat();
    if !pseudo.is_empty() {
        let sum = sum(&[&pseudo[..], &udp].concat()).to_be_bytes();
        udp[6..8].copy_from_slice(&sum);
    }
    head.extend(udp);
    head
}

/// The internet checksum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[test]
fn what_is_for_a_pod_reaches_it_past_a_host_that_does_not_forward() {
    let Some(bed) = Bed::new() else { return };
    let delivery = Delivery::new().unwrap();
    bed.host.run(|| async {
        let netlink = Netlink::new().unwrap();
        assert_eq!(delivery.ensure(&netlink, "weft0").await.unwrap(), Ensured::Changed);
        assert_eq!(delivery.ensure(&netlink, "weft0").await.unwrap(), Ensured::Unchanged);
    });
    let device = bed.device();
    for to in TO {
        assert!(!bed.reaches(to, 100), "{to}: the host forwards");
        let address = to.parse::<std::net::SocketAddr>().unwrap().ip();
        delivery.put(address, device).unwrap();
        // A neighbour is not asked for before the device's own addresses are known to be unique.
        wait_for(|| bed.reaches(to, 100).then_some(()));
        delivery.remove(address).unwrap();
        delivery.remove(address).unwrap();
        assert!(!bed.reaches(to, 100), "{to}: still delivered");
    }
}

/// An agent that is killed leaves its pods as they are, and its successor takes them over.
#[test]
fn delivery_outlives_its_process_and_is_replaced_by_the_next() {
    let Some(bed) = Bed::new() else { return };
    let device = bed.device();
    let address = "10.1.0.2".parse().unwrap();
    let put_on = |delivery: &Delivery| {
        delivery.put(address, device).unwrap();
        bed.host.run(|| async { delivery.ensure(&Netlink::new().unwrap(), "weft0").await.unwrap() })
    };
    put_on(&Delivery::new().unwrap());
    assert!(bed.reaches(TO[0], 100));
    let next = Delivery::new().unwrap();
    assert_eq!(put_on(&next), Ensured::Changed);
    assert!(bed.reaches(TO[0], 100));
    let take_off =
        || async { Delivery::take_off(&Netlink::new().unwrap(), "weft0").await.unwrap() };
    assert_eq!(bed.host.run(take_off), Ensured::Changed);
    assert_eq!(bed.host.run(take_off), Ensured::Unchanged);
    assert!(!bed.reaches(TO[0], 100));
    assert_eq!(put_on(&next), Ensured::Changed);
    assert!(bed.reaches(TO[0], 100));
}

/// The host says how much fits; dropped at the device, nobody would.
#[test]
fn what_is_too_big_for_the_pod_is_routed_and_its_sender_told() {
    let Some(bed) = Bed::new() else { return };
    let delivery = Delivery::new().unwrap();
    delivery.put("10.1.0.2".parse().unwrap(), bed.device()).unwrap();
    bed.host.run(|| async {
        let netlink = Netlink::new().unwrap();
        delivery.ensure(&netlink, "weft0").await.unwrap();
        link::ensure_mtu(&netlink, "near", 1300).await.unwrap();
        sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
    });
    assert!(bed.reaches(TO[0], 1272));
    assert!(!bed.reaches(TO[0], 1273));
    assert_eq!(bed.told_mtu(), 1300);

    // A super-packet of two datagrams: its own length does not matter, that of its segments does.
    let super_packet = |payload: u16| {
        let packet = datagram("10.1.0.2".parse().unwrap(), 2 * usize::from(payload));
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_UDP_L4,
            hdr_len: 28,
            gso_size: payload,
            csum_start: 20,
            csum_offset: 6,
        };
        bed.tun.queues()[0].write(&header, &[IoSlice::new(&packet)]).unwrap();
    };
    super_packet(1273);
    assert_eq!(bed.told_mtu(), 1300);
    let socket = bed.listen(TO[0]);
    super_packet(1272);
    let mut buffer = [0; 9000];
    assert_eq!([(); 2].map(|()| socket.recv(&mut buffer).unwrap()), [1272; 2]);
}
