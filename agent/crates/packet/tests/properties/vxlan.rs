//! VXLAN framing.

use etherparse::Ethernet2Slice;
use proptest::collection::vec;
use proptest::prelude::*;
use weft_model::{MacAddr, Vni};
use weft_packet::IpVersion;
use weft_packet::vxlan::{self, VxlanError};

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(
        vni in 1u32..1 << 24,
        macs in any::<([u8; 6], [u8; 6])>(),
        v4 in any::<bool>(),
        payload in vec(any::<u8>(), 1..100),
    ) {
        let (source, destination) = macs;
        let vni = Vni::try_new(vni).unwrap();
        let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let mut packet = payload;
        packet[0] = if v4 { 0x45 } else { 0x60 };
        let mut out = vec![9];
        vxlan::emit(vni, MacAddr(source), MacAddr(destination), version, &packet, &mut out);
        let datagram = &out[1..];
        prop_assert_eq!(&datagram[..4], &[8, 0, 0, 0]);
        prop_assert_eq!(u32::from_be_bytes(datagram[4..8].try_into().unwrap()), vni.get() << 8);
        let ethernet = Ethernet2Slice::from_slice_without_fcs(&datagram[8..]).unwrap();
        prop_assert_eq!(ethernet.source(), source);
        prop_assert_eq!(ethernet.destination(), destination);
        prop_assert_eq!(ethernet.ether_type().0, if v4 { 0x0800 } else { 0x86dd });

        let frame = vxlan::parse(datagram).unwrap();
        prop_assert_eq!(frame.vni, vni);
        prop_assert_eq!((frame.source.0, frame.destination.0), macs);
        prop_assert_eq!(frame.ip_packet(), Some(&packet[..]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..60)) {
        if let Ok(frame) = vxlan::parse(&bytes) {
            prop_assert!(bytes[0] & 8 != 0);
            prop_assert_eq!(frame.payload.len(), bytes.len() - vxlan::OVERHEAD);
        }
    }
}

#[test]
fn frames_that_are_not_ours_are_refused() {
    let vni = Vni::DEFAULT;
    let mac = MacAddr([2; 6]);
    let good = vxlan::header(vni, mac, mac, vxlan::ETHERTYPE_IPV4);
    assert_eq!(vxlan::parse(&good[..21]), Err(VxlanError::Truncated));
    let mut flags = good;
    flags[0] = 0xf7;
    assert_eq!(vxlan::parse(&flags), Err(VxlanError::Flags));
    let mut zero = good;
    zero[4..7].fill(0);
    assert_eq!(vxlan::parse(&zero), Err(VxlanError::Vni));
    let tagged = vxlan::header(vni, mac, mac, 0x8100);
    assert_eq!(vxlan::parse(&tagged), Err(VxlanError::Tagged));
    let mut reserved = good;
    reserved[1..4].fill(0xff);
    reserved[7] = 0xff;
    assert!(vxlan::parse(&reserved).is_ok());
}
