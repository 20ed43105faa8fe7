//! ICMP errors: the quoted packet is found, and translated with every checksum.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use weft_packet::checksum::transport_is_valid;
use weft_packet::{Headers, Meta, Rewrite, icmp_error_inner, rewrite_icmp_error_inner};

use crate::spec::{Spec, Transport, packets, rewrites};

/// An error that quotes the first `len` bytes of `inner`, sent to its source by its destination.
fn error(to: &Spec, quote: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match (to.destination, to.source) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 60)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut out, quote)
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 60)
            .icmpv6_raw(1, 4, [0; 4])
            .write(&mut out, quote)
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

fn with_rewrite() -> impl Strategy<Value = (Spec, Rewrite, usize)> {
    packets().prop_flat_map(|spec| {
        let rewrite = rewrites(spec.source);
        let least = spec.transport_offset() + 8;
        let most = spec.build().len().max(least);
        // Half of a checksum is not patched.
        let half = spec.transport_offset() + spec.checksum_offset() + 1;
        let len = (least..=most).prop_map(move |len| if len == half { len - 1 } else { len });
        (Just(spec), rewrite, len)
    })
}

proptest! {
    #[test]
    fn quote_is_translated_with_every_checksum((spec, change, len) in with_rewrite()) {
        let is_sctp = matches!(spec.transport, Transport::Sctp { .. });
        let whole = spec.build();
        let mut packet = error(&spec, &whole[..len.min(whole.len())]);
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        let inner = icmp_error_inner(&packet, &headers).unwrap();
        let quoted = Headers::parse(&whole, &Meta::default()).unwrap();
        prop_assert_eq!(inner.five_tuple, quoted.five_tuple());
        prop_assert_eq!(inner.fragment, quoted.fragment);

        let meta = Meta::default();
        rewrite_icmp_error_inner(&mut packet, &meta, &headers, &inner, &change).unwrap();

        prop_assert!(transport_is_valid(&packet, &headers));
        if !is_sctp {
            let translated = spec.translated(&change).build();
            prop_assert_eq!(packet, error(&spec, &translated[..len.min(translated.len())]));
        }
    }

    #[test]
    fn translation_of_a_quote_and_its_reverse_are_the_identity(
        (spec, change, len) in with_rewrite()
    ) {
        let whole = spec.build();
        let original = error(&spec, &whole[..len.min(whole.len())]);
        let mut packet = original.clone();
        let meta = Meta::default();
        let headers = Headers::parse(&packet, &meta).unwrap();
        let inner = icmp_error_inner(&packet, &headers).unwrap();
        rewrite_icmp_error_inner(&mut packet, &meta, &headers, &inner, &change).unwrap();
        let after = icmp_error_inner(&packet, &headers).unwrap();
        let back = Rewrite::between(&after.five_tuple, &inner.five_tuple);
        rewrite_icmp_error_inner(&mut packet, &meta, &headers, &after, &back).unwrap();
        prop_assert_eq!(packet, original);
    }

    #[test]
    fn only_errors_quote(spec in packets()) {
        let packet = spec.build();
        let headers = Headers::parse(&packet, &Meta::default()).unwrap();
        prop_assert_eq!(icmp_error_inner(&packet, &headers), None);
    }
}
