//! IPv4 fragments put together again are the packet.

use proptest::collection::vec;
use proptest::prelude::*;
use weft_packet::{Fragment, FragmentError, Headers, Meta, fragment_ipv4};

use crate::spec::{Spec, packets_of, slow_sum, transport};

fn fragments(packet: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, FragmentError> {
    let meta = Meta::default();
    let headers = Headers::parse(packet, &meta).unwrap();
    let mut out = Vec::new();
    let mut scratch = Vec::new();
    fragment_ipv4(packet, &meta, &headers, mtu, &mut scratch, &mut |f| out.push(f.to_vec()))?;
    Ok(out)
}

/// The payload that fragments make, each checked for its header.
fn reassemble(fragments: &[Vec<u8>], id: u32, mtu: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for (k, fragment) in fragments.iter().enumerate() {
        assert!(fragment.len() <= mtu);
        let headers = Headers::parse(fragment, &Meta::default()).unwrap();
        let expected = match k {
            0 => Fragment::First { id },
            _ => Fragment::Later { id, offset: data.len() as u16 },
        };
        assert_eq!(headers.fragment, expected);
        let more = fragment[6] & 0x20 != 0;
        assert_eq!(more, k + 1 != fragments.len());
        data.extend(&fragment[usize::from(headers.transport_offset)..]);
    }
    data
}

fn large_packets() -> impl Strategy<Value = Spec> {
    packets_of(transport(), vec(any::<u8>(), 1600..4000))
        .prop_filter("IPv4", |spec| spec.source.is_ipv4())
        .prop_map(|spec| Spec { dont_fragment: false, ..spec })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fragments_make_the_packet(spec in large_packets(), mtu in 576u16..1500) {
        let packet = spec.build();
        let pieces = fragments(&packet, mtu).unwrap();
        let data = reassemble(&pieces, u32::from(spec.id), usize::from(mtu));
        prop_assert_eq!(&data[..], &packet[spec.transport_offset()..]);
    }

    #[test]
    fn fragment_can_be_cut_further(spec in large_packets(), mtu in 300u16..570) {
        let packet = spec.build();
        let pieces: Vec<Vec<u8>> = fragments(&packet, 1400)
            .unwrap()
            .iter()
            .flat_map(|piece| fragments(piece, mtu).unwrap())
            .collect();
        let data = reassemble(&pieces, u32::from(spec.id), usize::from(mtu));
        prop_assert_eq!(&data[..], &packet[spec.transport_offset()..]);
    }

    #[test]
    fn packet_that_must_not_be_cut_is_not(spec in large_packets()) {
        let spec = Spec { dont_fragment: true, ..spec };
        let packet = spec.build();
        prop_assert_eq!(fragments(&packet, 1500), Err(FragmentError::DontFragment));
        prop_assert_eq!(fragments(&packet, u16::MAX), Ok(vec![packet]));
    }
}

#[test]
fn only_copied_options_are_in_later_fragments() {
    // Record route (7, not copied), router alert (148, copied), padding.
    let options = [7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 0];
    let mut packet = vec![0x48, 0, 0, 132, 0, 1, 0, 0, 9, 99, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
    packet.extend(options);
    let sum = !slow_sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([5; 100]);
    let pieces = fragments(&packet, 72).unwrap();
    assert_eq!(pieces[0][..2], [0x48, 0]);
    assert_eq!(pieces[0][20..32], options);
    assert_eq!(pieces[1][20..32], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 0]);
    assert_eq!(reassemble(&pieces, 1, 72), packet[32..]);
    assert_eq!(fragments(&packet, 39), Err(FragmentError::Mtu));
}
