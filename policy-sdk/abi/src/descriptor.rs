//! What a plugin is told of a packet beside its bytes.

/// Bits of [`Descriptor::flags`].
pub mod flags {
    /// The packet goes against the flow's first packet.
    pub const REPLY: u32 = 1 << 0;
    /// First packet of the flow in this direction that the plugin is shown.
    pub const FIRST: u32 = 1 << 1;
    /// Asked at the egress position (a pod or the host sends); else at ingress (a pod receives).
    pub const EGRESS: u32 = 1 << 2;
    /// The source is a pod of this node.
    pub const SOURCE_LOCAL_POD: u32 = 1 << 3;
    /// The destination is a pod of this node.
    pub const DESTINATION_LOCAL_POD: u32 = 1 << 4;
    /// It came from another node.
    pub const FROM_MESH: u32 = 1 << 5;
    /// A fragment that is not the first: no transport header; ports are those of the first fragment.
    pub const LATER_FRAGMENT: u32 = 1 << 6;
    /// Any fragment.
    pub const FRAGMENT: u32 = 1 << 7;
    /// The source is this node itself.
    pub const SOURCE_HOST: u32 = 1 << 8;
}

macro_rules! layout {
    ($($(#[$doc:meta])* $offset:literal $name:ident: $kind:ident,)*) => {
        /// A packet as its headers say, after translation by the plugins before.
        ///
        /// IPv4 addresses are IPv4-mapped (`::ffff:a.b.c.d`). Ports are zero where the protocol
        /// has none; for ICMP echo both are the identifier.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Descriptor { $($(#[$doc])* pub $name: layout!(@type $kind),)* }

        impl Descriptor {
            /// Writes the layout. Bytes between fields are zero.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; Self::LEN] {
                let mut bytes = [0; Self::LEN];
                self.write_to(&mut bytes);
                bytes
            }

            /// Writes the layout where it is read. Bytes between fields stay as they are.
            ///
            /// Field by field, as a copy made at once of what was written in pieces would wait for
            /// them.
            #[inline]
            pub fn write_to(&self, bytes: &mut [u8; Self::LEN]) {
                $(layout!(@put bytes, $offset, self.$name, $kind);)*
            }

            /// Reads the layout; every bit pattern is a descriptor.
            ///
            /// Always inlined: a plugin reads a few fields, and the others need no copy then.
            #[must_use]
            #[inline(always)]
            pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
                Self { $($name: layout!(@get bytes, $offset, $kind),)* }
            }
        }
    };
    (@type bytes16) => { [u8; 16] };
    (@type $int:ident) => { $int };
    (@put $b:ident, $o:literal, $v:expr, bytes16) => { $b[$o..$o + 16].copy_from_slice(&$v) };
    (@put $b:ident, $o:literal, $v:expr, $int:ident) => {
        $b[$o..$o + core::mem::size_of::<$int>()].copy_from_slice(&$v.to_le_bytes())
    };
    (@get $b:ident, $o:literal, bytes16) => {{
        let mut field = [0; 16];
        field.copy_from_slice(&$b[$o..$o + 16]);
        field
    }};
    (@get $b:ident, $o:literal, $int:ident) => {{
        let mut field = [0; core::mem::size_of::<$int>()];
        field.copy_from_slice(&$b[$o..$o + core::mem::size_of::<$int>()]);
        <$int>::from_le_bytes(field)
    }};
}

layout! {
    /// Length of the packet in bytes; a super-packet may have up to 65 535 and more with headers.
    0 length: u32,
    /// Bytes of it that the window holds.
    4 window: u32,
    /// See [`flags`].
    8 flags: u32,
    /// Bytes of payload in each segment of a super-packet; 0 for an ordinary packet.
    12 segment_size: u16,
    /// Offset of the transport header.
    14 transport_offset: u16,
    /// Offset of the payload.
    16 payload_offset: u16,
    /// Source port in host order.
    18 source_port: u16,
    /// Destination port in host order.
    20 destination_port: u16,
    /// 4 or 6.
    22 ip_version: u8,
    /// IANA protocol number of the transport header, after IPv6 extension headers.
    23 protocol: u8,
    /// TCP flags byte; ICMP: the type.
    24 tcp_flags: u8,
    /// ICMP: the code.
    25 icmp_code: u8,
    /// Source address.
    32 source: bytes16,
    /// Destination address.
    48 destination: bytes16,
    /// Nanoseconds since boot.
    64 now: u64,
    /// The plugin's slot of the flow: zero until it writes one. Host-held, survives everything but
    /// the flow.
    72 slot: bytes16,
    /// Number of segments: 1 for an ordinary packet.
    88 segments: u16,
}

impl Descriptor {
    /// Bytes in the exchange area.
    pub const LEN: usize = 96;
}
