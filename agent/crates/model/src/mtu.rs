//! The one place where tunnel MTU is derived from the underlay's.

use serde::{Deserialize, Serialize};

/// How packets between nodes are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// Encrypted; strict: no session, no packet.
    #[default]
    WireGuard,
    /// Clear text, RFC 7348.
    Vxlan,
}

impl Encapsulation {
    /// Bytes that it adds to a packet inside the UDP datagram.
    #[must_use]
    pub fn overhead(self) -> u16 {
        match self {
            Self::WireGuard => overhead::WIREGUARD,
            Self::Vxlan => overhead::VXLAN,
        }
    }

    /// How many full-sized packets of a pod can leave in one segmented send.
    ///
    /// A pod that makes no larger super-packets costs its node one system call for each, not two.
    /// Sources: 65507 bytes is what a UDP packet over IPv4 carries, 64 is `UDP_MAX_SEGMENTS` of
    /// kernels before 6.9.
    #[must_use]
    pub fn segments_max(self, mtu: u16) -> u16 {
        let datagram = u32::from(mtu) + u32::from(self.overhead());
        u16::try_from((65_507 / datagram).clamp(1, 64)).unwrap_or(1)
    }

    /// The UDP port it is received on: 51820, or 4789 (assigned by IANA).
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::WireGuard => 51820,
            Self::Vxlan => 4789,
        }
    }
}

/// Header and trailer lengths in bytes.
pub mod overhead {
    /// IPv4 header without options.
    pub const IPV4: u16 = 20;
    /// IPv6 header without extension headers.
    pub const IPV6: u16 = 40;
    /// UDP header.
    pub const UDP: u16 = 8;
    /// WireGuard data message: type and reserved 4, receiver index 4, counter 8, tag 16.
    pub const WIREGUARD: u16 = 4 + 4 + 8 + 16;
    /// VXLAN header 8, inner Ethernet header 14.
    pub const VXLAN: u16 = 8 + 14;
}

/// An MTU in bytes, 576..=65535: the largest IP packet a link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

/// An MTU that cannot carry the fabric.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "an underlay MTU of {underlay} leaves {tunnel} bytes for pods, {needed} are needed: raise the MTU of the underlay"
)]
pub struct MtuError {
    /// What the underlay carries.
    pub underlay: u16,
    /// What would be left.
    pub tunnel: u16,
    /// The least that IP allows.
    pub needed: u16,
}

impl Mtu {
    /// Least MTU of an IPv4 link that Weft accepts (RFC 791: every host takes 576 bytes).
    pub const IPV4_MIN: u16 = 576;
    /// Least MTU of an IPv6 link (RFC 8200 section 5).
    pub const IPV6_MIN: u16 = 1280;

    /// Wraps `bytes` if the link can carry `ipv6` pods (1280) or IPv4 ones (576).
    ///
    /// # Errors
    /// [`MtuError`] below that.
    pub fn try_new(bytes: u16, ipv6: bool) -> Result<Self, MtuError> {
        let needed = if ipv6 { Self::IPV6_MIN } else { Self::IPV4_MIN };
        if bytes < needed {
            return Err(MtuError { underlay: bytes, tunnel: bytes, needed });
        }
        Ok(Self(bytes))
    }

    /// What pods may send when nodes exchange packets of up to `underlay` bytes.
    ///
    /// `underlay_ipv6`: some peer is reached over IPv6. `pods_ipv6`: pods have IPv6 addresses.
    ///
    /// # Errors
    /// [`MtuError`] if less than IP's minimum is left.
    pub fn inside(
        encapsulation: Encapsulation,
        underlay: u16,
        underlay_ipv6: bool,
        pods_ipv6: bool,
    ) -> Result<Self, MtuError> {
        let ip = if underlay_ipv6 { overhead::IPV6 } else { overhead::IPV4 };
        let tunnel = underlay.saturating_sub(ip + overhead::UDP + encapsulation.overhead());
        Self::try_new(tunnel, pods_ipv6).map_err(|e| MtuError { underlay, ..e })
    }

    /// The MTU in bytes.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packet_of_a_pod_fits_one_send() {
        assert_eq!(Encapsulation::WireGuard.segments_max(1440), 44);
        assert_eq!(Encapsulation::Vxlan.segments_max(1450), 44);
        assert_eq!(Encapsulation::Vxlan.segments_max(8950), 7);
        assert_eq!(Encapsulation::WireGuard.segments_max(576), 64);
        assert_eq!(Encapsulation::WireGuard.segments_max(65_535), 1);
    }

    #[test]
    fn mtu_is_underlay_less_every_header() {
        let mtu = |e, v6| Mtu::inside(e, 1500, v6, true).unwrap().get();
        assert_eq!(mtu(Encapsulation::WireGuard, false), 1440);
        assert_eq!(mtu(Encapsulation::WireGuard, true), 1420);
        assert_eq!(mtu(Encapsulation::Vxlan, false), 1450);
        assert_eq!(mtu(Encapsulation::Vxlan, true), 1430);
    }

    #[test]
    fn underlay_too_small_for_ipv6_pods_is_an_error() {
        assert!(Mtu::inside(Encapsulation::WireGuard, 1300, false, false).is_ok());
        let error = Mtu::inside(Encapsulation::WireGuard, 1300, false, true).unwrap_err();
        assert_eq!(error, MtuError { underlay: 1300, tunnel: 1240, needed: 1280 });
    }
}
