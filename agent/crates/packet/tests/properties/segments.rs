//! Segments are the packets that a sender without offload would have written.

use proptest::collection::vec;
use proptest::prelude::*;
use weft_packet::{Gso, GsoKind, Headers, Meta, SegmentError, Segments};

use crate::spec::{Spec, Transport, packets, packets_of, tcp};

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 128;

pub(crate) fn cut(packet: &[u8], meta: &Meta) -> Vec<Vec<u8>> {
    let headers = Headers::parse(packet, meta).unwrap();
    let segments = Segments::new(packet, meta, &headers).unwrap();
    (0..segments.count())
        .map(|k| {
            let mut out = vec![0xee; 65_575];
            let len = segments.write(k, &mut out);
            assert_eq!(len, segments.len_of(k));
            out.truncate(len);
            out
        })
        .collect()
}

/// What the sender would have written without offload.
pub(crate) fn slow_cut(spec: &Spec, size: u16) -> Vec<Spec> {
    let count = spec.payload.len().div_ceil(usize::from(size));
    let segment = |(k, payload): (usize, &[u8])| {
        let mut segment = spec.clone();
        segment.payload = payload.to_vec();
        if spec.source.is_ipv4() {
            segment.id = spec.id.wrapping_add(k as u16);
        }
        if let Transport::Tcp(tcp) = &mut segment.transport {
            tcp.sequence = tcp.sequence.wrapping_add(k as u32 * u32::from(size));
            if k + 1 != count {
                tcp.flags &= !(FIN | PSH);
            }
            if k != 0 {
                tcp.flags &= !CWR;
            }
        }
        segment
    };
    spec.payload.chunks(usize::from(size)).enumerate().map(segment).collect()
}

pub(crate) fn super_packets() -> impl Strategy<Value = (Spec, u16)> {
    let udp = any::<(u16, u16)>().prop_map(|(source, destination)| Transport::Udp {
        source,
        destination,
        without_checksum: false,
    });
    let payload = vec(any::<u8>(), 2..9000);
    let spec = packets_of(prop_oneof![tcp(), udp], payload);
    spec.prop_flat_map(|spec| {
        let least = (spec.payload.len() / 100).max(1) as u16;
        (Just(spec), least..2000)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn segments_are_what_a_sender_without_offload_writes((spec, size) in super_packets()) {
        let (packet, meta) = spec.build_super(size);
        let expected: Vec<_> = slow_cut(&spec, size).iter().map(Spec::build).collect();
        prop_assert_eq!(cut(&packet, &meta), expected);
    }

    #[test]
    fn ordinary_packet_is_its_only_segment(spec in packets()) {
        let packet = spec.build();
        prop_assert_eq!(cut(&packet, &Meta::default()), vec![packet]);
    }

    #[test]
    fn checksum_of_the_only_segment_is_completed(spec in packets_of(tcp(), vec(0u8.., 0..99))) {
        let (packet, meta) = spec.build_partial();
        prop_assert_eq!(cut(&packet, &meta), vec![spec.build()]);
    }

    #[test]
    fn datagram_without_checksum_is_cut_into_such(
        (mut spec, size) in super_packets(),
        ports in any::<(u16, u16)>(),
    ) {
        let (source, destination) = ports;
        spec.transport = Transport::Udp { source, destination, without_checksum: true };
        let packet = spec.build();
        let meta = Meta { gso: Some(Gso { kind: GsoKind::Udp, segment_size: size }), ..Meta::default() };
        let expected: Vec<_> = slow_cut(&spec, size).iter().map(Spec::build).collect();
        prop_assert_eq!(cut(&packet, &meta), expected);
    }

    #[test]
    fn kind_must_fit_the_headers(spec in packets(), size in 0u16..3) {
        let packet = spec.build();
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        for kind in [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp] {
            let meta = Meta { gso: Some(Gso { kind, segment_size: size }), ..Meta::default() };
            let fits = match kind {
                GsoKind::TcpV4 => spec.number() == 6 && spec.source.is_ipv4(),
                GsoKind::TcpV6 => spec.number() == 6 && spec.source.is_ipv6(),
                GsoKind::Udp => spec.number() == 17,
            };
            let expected = match (fits, size) {
                (false, _) => Some(SegmentError::Kind),
                (true, 0) => Some(SegmentError::Size),
                (true, _) => None,
            };
            prop_assert_eq!(Segments::new(&packet, &meta, &headers).err(), expected);
        }
    }
}

#[test]
fn segment_beyond_the_last_and_small_buffer_write_nothing() {
    let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 9, 59, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
    let meta =
        Meta { checksum: weft_packet::Checksum::Partial { start: 20, offset: 0 }, gso: None };
    assert!(Headers::parse(&packet, &meta).is_err());
    let mut packet = packet;
    let sum = !crate::spec::slow_sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers::parse(&packet, &Meta::default()).unwrap();
    let segments = Segments::new(&packet, &Meta::default(), &headers).unwrap();
    assert_eq!(segments.write(1, &mut [0; 100]), 0);
    assert_eq!(segments.write(0, &mut [0; 19]), 0);
    assert_eq!(segments.write(0, &mut [0; 20]), 20);
}
