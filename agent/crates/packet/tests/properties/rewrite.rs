//! A translated packet is the packet that its new sender would have written.

use proptest::prelude::*;
use weft_packet::checksum::{self, Change};
use weft_packet::{
    Fragment, Headers, Meta, Rewrite, RewriteError, complete_checksum, decrement_hop_limit, rewrite,
};

use crate::spec::{Spec, Transport, packets, rewrites, slow_sum};

fn with_rewrite() -> impl Strategy<Value = (Spec, Rewrite)> {
    packets().prop_flat_map(|spec| {
        let rewrite = rewrites(spec.source);
        (Just(spec), rewrite)
    })
}

fn back(spec: &Spec, headers: &Headers) -> Rewrite {
    let Headers { source_port, destination_port, .. } = *headers;
    Rewrite {
        source: Some(spec.source),
        destination: Some(spec.destination),
        source_port: Some(source_port),
        destination_port: Some(destination_port),
    }
}

proptest! {
    #[test]
    fn incremental_checksums_equal_full_ones((spec, change) in with_rewrite()) {
        let mut packet = spec.build();
        let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
        rewrite(&mut packet, &Meta::default(), &mut headers, &change).unwrap();
        prop_assert_eq!(&packet, &spec.translated(&change).build());
        prop_assert_eq!(headers, Headers::parse(&packet, &Meta::default()).unwrap());
    }

    #[test]
    fn translation_and_its_reverse_are_the_identity((spec, change) in with_rewrite()) {
        let original = spec.build();
        let mut packet = original.clone();
        let before = Headers::parse(&packet, &Meta::default()).unwrap();
        let mut headers = before;
        rewrite(&mut packet, &Meta::default(), &mut headers, &change).unwrap();
        rewrite(&mut packet, &Meta::default(), &mut headers, &back(&spec, &before)).unwrap();
        prop_assert_eq!(packet, original);
        prop_assert_eq!(headers, before);
    }

    #[test]
    fn partial_checksum_is_patched_for_addresses_only((spec, change) in with_rewrite()) {
        let is_sum = matches!(spec.transport, Transport::Tcp(_) | Transport::Udp { .. });
        prop_assume!(is_sum);
        let (mut packet, meta) = spec.build_partial();
        let mut headers = Headers::parse(&packet, &meta).unwrap();
        rewrite(&mut packet, &meta, &mut headers, &change).unwrap();
        prop_assert_eq!(packet, spec.translated(&change).build_partial().0);
    }

    #[test]
    fn completed_partial_checksum_is_the_full_one(spec in packets()) {
        let wants_none = matches!(spec.transport, Transport::Udp { without_checksum: true, .. });
        let is_sum = matches!(spec.transport, Transport::Tcp(_) | Transport::Udp { .. });
        prop_assume!(is_sum && !wants_none);
        let (mut packet, mut meta) = spec.build_partial();
        let headers = Headers::parse(&packet, &meta).unwrap();
        complete_checksum(&mut packet, &mut meta, &headers);
        prop_assert_eq!(meta, Meta::default());
        prop_assert_eq!(packet, spec.build());
    }

    #[test]
    fn hop_limit_goes_down_by_one(spec in packets()) {
        let mut packet = spec.build();
        let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
        if spec.hop_limit <= 1 {
            prop_assert!(!decrement_hop_limit(&mut packet, &mut headers));
            prop_assert_eq!(packet, spec.build());
        } else {
            prop_assert!(decrement_hop_limit(&mut packet, &mut headers));
            let expected = Spec { hop_limit: spec.hop_limit - 1, ..spec };
            prop_assert_eq!(packet, expected.build());
        }
    }

    #[test]
    fn sum_is_the_slow_sum(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(checksum::sum(&bytes), slow_sum(&bytes));
    }

    #[test]
    fn change_of_words_gives_the_full_checksum(
        mut bytes in prop::collection::vec(any::<u8>(), 4..100),
        at in any::<prop::sample::Index>(),
        new in any::<[u8; 2]>(),
    ) {
        // A word that stays: only a sum of nothing but zeros has two representations.
        bytes[0] = 1;
        let before = checksum::full(&bytes);
        let at = 2 + at.index((bytes.len() - 2) / 2) * 2;
        let mut change = Change::default();
        change.replace(&bytes[at..at + 2], &new);
        bytes[at..at + 2].copy_from_slice(&new);
        prop_assert_eq!(change.apply_to_checksum(before), checksum::full(&bytes));
    }
}

/// A UDP packet over IPv4 as a fragment with this flags-and-offset field.
fn fragment(field: u16, protocol: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 7];
    packet.extend(field.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([0x12; 40]);
    let sum = !slow_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn later_fragment_has_its_addresses_changed_only() {
    let before = fragment(8, 17);
    let mut packet = before.clone();
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    assert_eq!(headers.fragment, Fragment::Later { id: 7, offset: 64 });
    let change = Rewrite {
        source: Some("192.0.2.1".parse().unwrap()),
        source_port: Some(9),
        ..Rewrite::default()
    };
    rewrite(&mut packet, &Meta::default(), &mut headers, &change).unwrap();
    assert_eq!(packet[20..], before[20..]);
    assert_eq!(headers, Headers::parse(&packet, &Meta::default()).unwrap());
    assert_eq!(headers.source, change.source.unwrap());
}

#[test]
fn port_of_fragmented_sctp_is_not_changed() {
    let mut packet = fragment(0x2000, 132);
    let before = packet.clone();
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    let change = Rewrite { destination_port: Some(9), ..Rewrite::default() };
    let result = rewrite(&mut packet, &Meta::default(), &mut headers, &change);
    assert_eq!(result, Err(RewriteError::FragmentedSctp));
    assert_eq!(packet, before);
}

#[test]
fn address_of_the_other_family_is_refused() {
    let mut packet = fragment(0, 99);
    let before = packet.clone();
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    let change = Rewrite {
        source: Some("10.9.9.9".parse().unwrap()),
        destination: Some("fd00::1".parse().unwrap()),
        ..Rewrite::default()
    };
    let result = rewrite(&mut packet, &Meta::default(), &mut headers, &change);
    assert_eq!(result, Err(RewriteError::Family));
    assert_eq!(packet, before);
}

#[test]
fn wrong_checksum_stays_wrong() {
    let spec_change = Rewrite { source_port: Some(77), ..Rewrite::default() };
    let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = !slow_sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 1, 0, 2, 0, 9, 0xba, 0xad, 5]);
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    assert!(!checksum::transport_is_valid(&packet, &headers));
    rewrite(&mut packet, &Meta::default(), &mut headers, &spec_change).unwrap();
    assert!(!checksum::transport_is_valid(&packet, &headers));
}

#[test]
fn echo_reply_of_nothing_but_zeros_has_a_valid_checksum() {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = !slow_sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 0, 0xff, 0xfa, 0, 5, 0, 0, 0, 0, 0, 0]);
    let mut headers = Headers::parse(&packet, &Meta::default()).unwrap();
    for id in [0, 7, 0, 0xffff, 0] {
        let change = Rewrite { source_port: Some(id), ..Rewrite::default() };
        rewrite(&mut packet, &Meta::default(), &mut headers, &change).unwrap();
        assert!(checksum::transport_is_valid(&packet, &headers), "identifier {id}");
    }
}
