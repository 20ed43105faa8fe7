//! What a module says of itself, readable without running it.

use crate::{ABI_VERSION, HEADER_WINDOW, WINDOW_MAX};

/// Bits of [`Manifest::hooks`].
pub mod hooks {
    /// Packets that a pod or the host sends.
    pub const EGRESS: u8 = 1;
    /// Packets that a pod is about to get.
    pub const INGRESS: u8 = 2;
}

/// Bits of [`Manifest::protocols`]: other packets pass the plugin unseen.
pub mod protocols {
    /// TCP.
    pub const TCP: u8 = 1;
    /// UDP.
    pub const UDP: u8 = 2;
    /// ICMP and ICMPv6.
    pub const ICMP: u8 = 4;
    /// SCTP.
    pub const SCTP: u8 = 8;
    /// Everything else.
    pub const OTHER: u8 = 16;
    /// Every packet.
    pub const ALL: u8 = 31;
}

/// Bits of [`Manifest::capabilities`]: what the plugin may do beyond looking, accepting and
/// dropping. An import or verdict that is not declared is refused.
pub mod capability {
    /// Import the map functions.
    pub const MAP: u32 = 1;
    /// Import the log function.
    pub const LOG: u32 = 2;
    /// Answer [`crate::VerdictCode::Rewrite`].
    pub const REWRITE: u32 = 4;
    /// Answer [`crate::VerdictCode::Reply`].
    pub const REPLY: u32 = 8;
}

/// What a module says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest<'a> {
    /// A DNS-1123 label of up to 63 bytes.
    pub name: &'a str,
    /// The plugin's own version, up to 31 bytes of UTF-8.
    pub version: &'a str,
    /// See [`hooks`]; not zero.
    pub hooks: u8,
    /// See [`protocols`]; not zero.
    pub protocols: u8,
    /// Asked once for each direction of a flow, and again after a change, instead of every packet.
    pub per_flow: bool,
    /// A packet whose call faults goes on, instead of being dropped.
    pub skip_on_fault: bool,
    /// See [`capability`].
    pub capabilities: u32,
    /// Bytes of the packet to show: [`HEADER_WINDOW`]..=[`WINDOW_MAX`].
    pub window: u32,
    /// Entries of the plugin's map at most, 0..=1 048 576; zero without the capability.
    pub map_entries: u32,
}

/// Why a section is no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Does not begin with `WEFT`, or is cut short.
    NotAManifest,
    /// Made for another version of the ABI.
    AbiVersion(u16),
    /// `name` is no DNS-1123 label, or `version` no text.
    Name,
    /// A field is outside its range.
    OutOfRange(&'static str),
}

impl core::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotAManifest => f.write_str("the manifest is cut short or none"),
            Self::AbiVersion(v) => {
                write!(f, "made for ABI version {v}, this host speaks {ABI_VERSION}: rebuild it")
            }
            Self::Name => f.write_str("the manifest's name is no DNS label or its version no text"),
            Self::OutOfRange(field) => write!(f, "the manifest's field `{field}` is out of range"),
        }
    }
}

impl core::error::Error for ManifestError {}

/// Bytes of the section: magic 4, ABI version 2, hooks 1, protocols 1, flags 4, capabilities 4,
/// window 4, map entries 4, reserved 8, name 64 (length first), version 32 (length first).
pub const MANIFEST_LEN: usize = 128;

const MAGIC: [u8; 4] = *b"WEFT";
const MAP_ENTRIES_MAX: u32 = 1 << 20;

impl<'a> Manifest<'a> {
    /// Writes the section. `const`, so that a macro can put it there at compile time.
    ///
    /// # Panics
    /// If name or version is too long.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; MANIFEST_LEN] {
        let mut bytes = [0; MANIFEST_LEN];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &ABI_VERSION.to_le_bytes());
        bytes[6] = self.hooks;
        bytes[7] = self.protocols;
        bytes[8] = self.per_flow as u8 | (self.skip_on_fault as u8) << 1;
        put(&mut bytes, 12, &self.capabilities.to_le_bytes());
        put(&mut bytes, 16, &self.window.to_le_bytes());
        put(&mut bytes, 20, &self.map_entries.to_le_bytes());
        assert!(self.name.len() <= 63, "a plugin's name has 63 bytes at most");
        assert!(self.version.len() <= 31, "a plugin's version has 31 bytes at most");
        bytes[32] = self.name.len() as u8;
        put(&mut bytes, 33, self.name.as_bytes());
        bytes[96] = self.version.len() as u8;
        put(&mut bytes, 97, self.version.as_bytes());
        bytes
    }

    /// Reads and checks a section.
    ///
    /// # Errors
    /// [`ManifestError`] says which check failed.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let bytes: &[u8; MANIFEST_LEN] = bytes.try_into().map_err(|_| {
            // A later version may be of another length: say that first.
            match bytes {
                [b'W', b'E', b'F', b'T', a, b, ..]
                    if u16::from_le_bytes([*a, *b]) != ABI_VERSION =>
                {
                    ManifestError::AbiVersion(u16::from_le_bytes([*a, *b]))
                }
                _ => ManifestError::NotAManifest,
            }
        })?;
        if bytes[..4] != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != ABI_VERSION {
            return Err(ManifestError::AbiVersion(version));
        }
        let word =
            |o: usize| u32::from_le_bytes([bytes[o], bytes[o + 1], bytes[o + 2], bytes[o + 3]]);
        let text = |field: &'a [u8]| {
            let (len, text) = field.split_first()?;
            core::str::from_utf8(text.get(..usize::from(*len))?).ok()
        };
        let manifest = Self {
            name: text(&bytes[32..96]).filter(|n| is_label(n)).ok_or(ManifestError::Name)?,
            version: text(&bytes[96..128]).ok_or(ManifestError::Name)?,
            hooks: bytes[6],
            protocols: bytes[7],
            per_flow: bytes[8] & 1 != 0,
            skip_on_fault: bytes[8] & 2 != 0,
            capabilities: word(12),
            window: word(16),
            map_entries: word(20),
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let all = capability::MAP | capability::LOG | capability::REWRITE | capability::REPLY;
        let map = self.capabilities & capability::MAP != 0;
        let checks = [
            ("hooks", (1..=3).contains(&self.hooks)),
            ("protocols", (1..=protocols::ALL).contains(&self.protocols)),
            ("capabilities", self.capabilities & !all == 0),
            ("window", (HEADER_WINDOW..=WINDOW_MAX).contains(&self.window)),
            ("map_entries", self.map_entries <= MAP_ENTRIES_MAX && (map || self.map_entries == 0)),
        ];
        match checks.iter().find(|(_, ok)| !ok) {
            Some((field, _)) => Err(ManifestError::OutOfRange(field)),
            None => Ok(()),
        }
    }
}

const fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    let mut i = 0;
    while i < value.len() {
        bytes[offset + i] = value[i];
        i += 1;
    }
}

fn is_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: Manifest<'_> = Manifest {
        name: "port-block",
        version: "1.2.3",
        hooks: hooks::EGRESS,
        protocols: protocols::TCP | protocols::UDP,
        per_flow: true,
        skip_on_fault: false,
        capabilities: capability::LOG,
        window: HEADER_WINDOW,
        map_entries: 0,
    };

    #[test]
    fn manifest_survives_its_bytes() {
        assert_eq!(Manifest::from_bytes(&MANIFEST.to_bytes()), Ok(MANIFEST));
    }

    #[test]
    fn manifest_of_a_later_abi_is_named_as_such() {
        let mut bytes = MANIFEST.to_bytes();
        bytes[4] = 9;
        assert_eq!(Manifest::from_bytes(&bytes), Err(ManifestError::AbiVersion(9)));
        assert_eq!(Manifest::from_bytes(&bytes[..40]), Err(ManifestError::AbiVersion(9)));
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let with = |change: fn(&mut Manifest<'_>)| {
            let mut manifest = MANIFEST;
            change(&mut manifest);
            let bytes = manifest.to_bytes();
            Manifest::from_bytes(&bytes).err()
        };
        assert_eq!(with(|m| m.hooks = 0), Some(ManifestError::OutOfRange("hooks")));
        assert_eq!(with(|m| m.window = 1), Some(ManifestError::OutOfRange("window")));
        assert_eq!(with(|m| m.map_entries = 1), Some(ManifestError::OutOfRange("map_entries")));
        assert_eq!(with(|m| m.name = "Bad_Name"), Some(ManifestError::Name));
        assert_eq!(with(|m| m.name = ""), Some(ManifestError::Name));
    }
}
