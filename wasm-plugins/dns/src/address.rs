//! Addresses in names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::LowerName;

/// The name of an address as one label: `10-0-0-1`, `fd00--1`.
pub(crate) fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        IpAddr::V6(v6) => {
            let text = v6.to_string().replace(':', "-");
            // A label neither begins nor ends with a dash.
            let before = if text.starts_with('-') { "0" } else { "" };
            let after = if text.ends_with('-') { "0" } else { "" };
            format!("{before}{text}{after}")
        }
    }
}

/// The address that a label stands for, in any form that means it.
pub(crate) fn of_dashed(label: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(label).ok()?;
    if let Ok(v4) = text.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(v4.into());
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(Into::into)
}

/// What a name under `in-addr.arpa` or `ip6.arpa` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reverse {
    /// Bits after `bits` are zero.
    pub(crate) address: IpAddr,
    /// All of them if it is an address, fewer if it is a range.
    pub(crate) bits: u32,
    /// False: other labels stand before those.
    pub(crate) is_whole: bool,
}

impl Reverse {
    /// `None` if the name is no reverse name.
    pub(crate) fn of(name: &LowerName) -> Option<Self> {
        let labels = name.labels().checked_sub(1)?;
        let suffix = (name.label(labels.checked_sub(2)?), name.label(labels - 1));
        let count = labels - 2;
        let digits = (0..count).rev().map(|at| name.label(at));
        match suffix {
            (b"in-addr", b"arpa") => {
                let (mut octets, mut read) = ([0; 4], 0);
                for (octet, number) in octets.iter_mut().zip(digits.map_while(number)) {
                    *octet = number;
                    read += 1;
                }
                let address = Ipv4Addr::from(octets).into();
                Some(Self { address, bits: 8 * read as u32, is_whole: read == count })
            }
            (b"ip6", b"arpa") => {
                let (mut address, mut read) = (0_u128, 0);
                for digit in digits.map_while(hexadecimal).take(32) {
                    address = address << 4 | u128::from(digit);
                    read += 1;
                }
                let bits = 4 * read as u32;
                let address = address.checked_shl(128 - bits).unwrap_or(0);
                let address = Ipv6Addr::from(address).into();
                Some(Self { address, bits, is_whole: read == count })
            }
            _ => None,
        }
    }

    /// True if it is about one address.
    pub(crate) fn is_host(&self) -> bool {
        self.is_whole && self.bits == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

fn number(digits: &[u8]) -> Option<u8> {
    let plain =
        digits.iter().all(u8::is_ascii_digit) && (digits == b"0" || !digits.starts_with(b"0"));
    plain.then(|| str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

fn hexadecimal(digit: &[u8]) -> Option<u32> {
    let [digit] = digit else { return None };
    char::from(*digit).to_digit(16)
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    address: IpAddr,
    bits: u32,
}

impl Range {
    /// `None` if the family has fewer bits.
    pub(crate) fn new(address: IpAddr, bits: u32) -> Option<Self> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits })
    }

    /// True if all of `other` is inside.
    pub(crate) fn holds(&self, other: Reverse) -> bool {
        let differ = match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        other.bits >= self.bits && differ.leading_zeros() >= self.bits
    }
}

/// Of 4 or 16 bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::Name;

    fn reverse(text: &str) -> Option<(String, u32)> {
        let name: Name<Vec<u8>> = text.parse().unwrap();
        let whole = Reverse::of(&LowerName::new(&name)).filter(|r| r.is_whole);
        whole.map(|r| (r.address.to_string(), r.bits))
    }

    #[test]
    fn addresses_have_names_that_mean_them() {
        for (address, label) in [
            ("10.0.0.1", "10-0-0-1"),
            ("fd00::1", "fd00--1"),
            ("::1", "0--1"),
            ("fd00::", "fd00--0"),
            ("2001:db8:1:2:3:4:5:6", "2001-db8-1-2-3-4-5-6"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(dashed(address), label);
            assert_eq!(of_dashed(label.as_bytes()), Some(address));
        }
        for label in ["web", "10-0-0", "10-0-0-256", "1-2-3-4-5", ""] {
            assert_eq!(of_dashed(label.as_bytes()), None, "{label}");
        }
    }

    #[test]
    fn reverse_names_are_addresses_or_ranges() {
        let of = |address: &str, bits| Some((address.to_owned(), bits));
        assert_eq!(reverse("4.3.2.1.in-addr.arpa"), of("1.2.3.4", 32));
        assert_eq!(reverse("2.1.IN-ADDR.arpa"), of("1.2.0.0", 16));
        assert_eq!(reverse("in-addr.arpa"), of("0.0.0.0", 0));
        assert_eq!(reverse("b.d.0.1.0.0.2.ip6.arpa"), of("2001:db0::", 28));
        let one = format!("1.{}d.f.ip6.arpa", "0.".repeat(29));
        assert_eq!(reverse(&one), of("fd00::1", 128));
        for no in ["5.4.3.2.1.in-addr.arpa", "256.1.in-addr.arpa", "01.2.in-addr.arpa", "x.arpa"] {
            assert_eq!(reverse(no), None, "{no}");
        }
        assert_eq!(reverse("10.ip6.arpa"), None);
    }

    #[test]
    fn range_holds_what_is_all_inside() {
        let range = Range::new([10, 96, 0, 0].into(), 12).unwrap();
        let about =
            |octets: [u8; 4], bits| Reverse { address: octets.into(), bits, is_whole: true };
        assert!(range.holds(about([10, 96, 0, 1], 32)));
        assert!(range.holds(about([10, 111, 0, 0], 16)));
        assert!(!range.holds(about([10, 0, 0, 0], 8)));
        assert!(!range.holds(about([10, 112, 0, 0], 16)));
        let other = Reverse { address: Ipv6Addr::UNSPECIFIED.into(), bits: 128, is_whole: true };
        assert!(!range.holds(other));
    }
}
