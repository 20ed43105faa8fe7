//! Two namespaces with a veth between them.

use super::*;
use crate::harness::{Namespace, wait_for};

const NEAR: [&str; 2] = ["10.8.0.1/24", "fd08::1/64"];
const FAR: [&str; 2] = ["10.8.0.2/24", "fd08::2/64"];

fn pair() -> Option<(Namespace, Namespace)> {
    let (near, far) = (Namespace::new()?, Namespace::new()?);
    near.connect(&far, &NEAR, &FAR);
    Some((near, far))
}

fn bind(namespace: &Namespace, local: &str, offloads: UdpOffloads) -> UdpSocket {
    namespace.handle.enter(|| UdpSocket::bind(local.parse().unwrap(), offloads).unwrap()).unwrap()
}

/// Receives until `count` datagrams are there; also the largest number in one receive.
fn receive(socket: &UdpSocket, count: usize) -> (Vec<Vec<u8>>, usize, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let (mut all, mut most, mut sender) = (Vec::new(), 0, socket.local_addr());
    wait_for(|| {
        while let Some(datagrams) = socket.recv(&mut buffer).unwrap() {
            let before = all.len();
            all.extend(datagrams.split(&mut buffer).map(|datagram| datagram.to_vec()));
            most = most.max(all.len() - before);
            sender = datagrams.from;
        }
        (all.len() >= count).then_some(())
    });
    (all, most, sender)
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 7) as u8).collect()
}

#[test]
fn segmented_batch_arrives_merged_in_both_families() {
    let Some((near, far)) = pair() else { return };
    let (from, to) =
        (bind(&near, "[::]:7000", UdpOffloads::ALL), bind(&far, "[::]:7001", UdpOffloads::ALL));
    assert_eq!(from.offloads(), UdpOffloads::ALL);
    for (address, sender) in
        [("10.8.0.2:7001", "10.8.0.1:7000"), ("[fd08::2]:7001", "[fd08::1]:7000")]
    {
        let bytes = payload(100 * 1200 + 500);
        let sent = from.send(address.parse().unwrap(), &bytes, Some(1200)).unwrap();
        assert_eq!(sent, bytes.len());
        let (datagrams, most, seen) = receive(&to, 101);
        assert_eq!(datagrams.concat(), bytes);
        assert_eq!(datagrams.len(), 101);
        assert!(most > 10, "merged at most {most}");
        assert_eq!(seen, sender.parse().unwrap());
    }
    assert_eq!(from.refused_batches(), 0);
}

#[test]
fn without_offloads_each_datagram_goes_alone() {
    let Some((near, far)) = pair() else { return };
    let (from, to) =
        (bind(&near, "0.0.0.0:0", UdpOffloads::NONE), bind(&far, "[::]:7001", UdpOffloads::NONE));
    let bytes = payload(10 * 1000);
    from.send("10.8.0.2:7001".parse().unwrap(), &bytes, Some(1000)).unwrap();
    let (datagrams, most, _) = receive(&to, 10);
    assert_eq!((datagrams.concat(), datagrams.len(), most), (bytes, 10, 1));
    assert!(from.send("[fd08::2]:7001".parse().unwrap(), b"x", None).is_err());
}

#[test]
fn datagrams_beyond_the_mtu_are_fragmented() {
    let Some((near, far)) = pair() else { return };
    let (from, to) =
        (bind(&near, "[::]:0", UdpOffloads::ALL), bind(&far, "[::]:7001", UdpOffloads::ALL));
    for address in ["10.8.0.2:7001", "[fd08::2]:7001"] {
        let bytes = payload(PAYLOAD_MAX);
        assert_eq!(from.send(address.parse().unwrap(), &bytes, None).unwrap(), PAYLOAD_MAX);
        assert_eq!(receive(&to, 1).0, [bytes]);
        // Segments that do not fit cannot be segmented by the kernel and go one by one.
        let bytes = payload(4 * 3000);
        assert_eq!(from.send(address.parse().unwrap(), &bytes, Some(3000)).unwrap(), bytes.len());
        let (datagrams, ..) = receive(&to, 4);
        assert_eq!((datagrams.concat(), datagrams.len()), (bytes, 4));
    }
    assert_eq!(from.refused_batches(), 2);
    assert!(from.offloads().gso, "one long batch must not turn segmentation off");
}

#[test]
fn port_is_shared_and_its_buffers_are_big() {
    let Some(namespace) = Namespace::new() else { return };
    let first = bind(&namespace, "[::]:7002", UdpOffloads::ALL);
    let second = bind(&namespace, "[::]:7002", UdpOffloads::ALL);
    assert_eq!(first.local_addr(), second.local_addr());
    assert!(first.socket.recv_buffer_size().unwrap() >= BUFFER_SIZE);
}
