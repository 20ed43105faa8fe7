//! Names and numbers that must not be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no legal id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not a DNS-1123 subdomain.
    #[error("`{0}` is no node name: use up to 253 lower-case letters, digits, `-` and `.`")]
    NodeName(String),
    /// Not 32 bytes in base64.
    #[error("`{0}` is no WireGuard public key: 32 bytes in base64 expected")]
    PublicKey(String),
    /// Not six bytes in hex.
    #[error("`{0}` is no MAC address: six bytes as `aa:bb:cc:dd:ee:ff` expected")]
    MacAddr(String),
    /// Not in 1..=16777215.
    #[error("{0} is no VXLAN network identifier: 1 to 16777215 expected")]
    Vni(u32),
}

/// Version of a snapshot or of the tables made from it; rises by at least one with each change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A peer of this node's mesh: an index that the agent gives and that means nothing elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A node's name: a DNS-1123 subdomain, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`IdError::NodeName`] if `name` is not a DNS-1123 subdomain.
    pub fn try_new(name: impl Into<String>) -> Result<Self, IdError> {
        let name = name.into();
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() <= 253 && name.split('.').all(label) {
            Ok(Self(name))
        } else {
            Err(IdError::NodeName(name))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for NodeName {
    type Error = IdError;
    fn try_from(value: String) -> Result<Self, IdError> {
        Self::try_new(value)
    }
}

impl FromStr for NodeName {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::try_new(s)
    }
}

impl From<NodeName> for String {
    fn from(value: NodeName) -> Self {
        value.0
    }
}

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name inside the namespace.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A WireGuard (Curve25519) public key. Text form: base64, 44 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in self.0.chunks(3) {
            let word =
                group.iter().fold(0u32, |w, b| (w << 8) | u32::from(*b)) << (8 * (3 - group.len()));
            for i in 0..4 {
                let digit = usize::try_from((word >> (18 - 6 * i)) & 63).unwrap_or(0);
                let padding = i > group.len();
                f.write_str(if padding {
                    "="
                } else {
                    std::str::from_utf8(&BASE64[digit..=digit]).unwrap_or("?")
                })?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = || IdError::PublicKey(s.to_owned());
        let digits = s.strip_suffix('=').filter(|d| d.len() == 43).ok_or_else(bad)?;
        let mut bytes = Vec::with_capacity(33);
        let (mut word, mut bits) = (0u32, 0u32);
        for digit in digits.bytes() {
            let value = BASE64.iter().position(|b| *b == digit).ok_or_else(bad)?;
            word = (word << 6) | u32::try_from(value).map_err(|_| bad())?;
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                bytes.push(u8::try_from((word >> bits) & 0xff).map_err(|_| bad())?);
            }
        }
        if word & ((1 << bits) - 1) != 0 {
            return Err(bad());
        }
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }
}

/// An Ethernet address; in VXLAN mode the address of a node's VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl TryFrom<String> for MacAddr {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bad = || IdError::MacAddr(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

/// A VXLAN network identifier, 24 bits, not zero. Source: RFC 7348 section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// What Weft uses unless told otherwise.
    pub const DEFAULT: Self = Self(1);

    /// Checks the range.
    ///
    /// # Errors
    /// [`IdError::Vni`] outside 1..=16777215.
    pub fn try_new(vni: u32) -> Result<Self, IdError> {
        if (1..=0x00ff_ffff).contains(&vni) { Ok(Self(vni)) } else { Err(IdError::Vni(vni)) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = IdError;
    fn try_from(value: u32) -> Result<Self, IdError> {
        Self::try_new(value)
    }
}

impl From<Vni> for u32 {
    fn from(value: Vni) -> Self {
        value.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_reads_what_wg_prints() {
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key.0[..3], [0xc5, 0x32, 0x01]);
        assert_eq!(key.to_string(), text);
    }

    #[test]
    fn public_key_with_a_stray_bit_or_a_wrong_length_is_refused() {
        assert!("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=".parse::<PublicKey>().is_err());
        assert!("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D==".parse::<PublicKey>().is_err());
        assert!("".parse::<PublicKey>().is_err());
    }

    #[test]
    fn node_names_are_dns_subdomains() {
        assert!(NodeName::try_new("node-a.example").is_ok());
        for bad in ["", "Node", "a..b", "-a", "a-", "a/b", "a b"] {
            assert!(NodeName::try_new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_address_survives_its_text() {
        let mac: MacAddr = "0a:00:27:ff:fe:01".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:00:27:ff:fe:01");
        assert!("0a:00:27:ff:fe".parse::<MacAddr>().is_err());
        assert!("0a:00:27:ff:fe:1".parse::<MacAddr>().is_err());
    }
}
