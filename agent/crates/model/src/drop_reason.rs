//! Why a packet went no further.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet was dropped. The label is the metric label and the log field: stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in order of discriminant: `ALL[r as usize] == r`.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Metric label: lower case, underscores.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// Not a well-formed IPv4 or IPv6 packet, or its transport header is cut short.
    Malformed = "malformed",
    /// A pod or the host sent with a source address that is not its own.
    SpoofedSource = "spoofed_source",
    /// A peer sent with an inner source address outside its AllowedIPs.
    NotAllowedIp = "not_allowed_ip",
    /// No pod, node or peer has the destination address.
    NoRoute = "no_route",
    /// Strict encryption: no WireGuard session with the peer, and the queue is full.
    NoSession = "no_session",
    /// The peer is known, its address is not.
    NoPeerEndpoint = "no_peer_endpoint",
    /// A datagram from an address or index that belongs to no peer.
    UnknownPeer = "unknown_peer",
    /// WireGuard: authentication, replay or framing failed.
    BadDatagram = "bad_datagram",
    /// VXLAN: flags, VNI or inner frame are not ours.
    BadVxlan = "bad_vxlan",
    /// A plugin said so.
    Plugin = "plugin",
    /// A plugin rejected the packet and the sender was told.
    PluginReject = "plugin_reject",
    /// A plugin trapped or passed its deadline, and its `on_fault` is `drop`.
    PluginFault = "plugin_fault",
    /// Hop limit reached zero.
    HopLimit = "hop_limit",
    /// Larger than the MTU and not to be fragmented; the sender was told.
    TooBig = "too_big",
    /// A plugin rejected the packet, or it was too big, and the sender was not told: he has been often
    /// enough of late.
    NotTold = "not_told",
    /// A fragment whose first fragment was not seen, or was dropped.
    OrphanFragment = "orphan_fragment",
    /// A translation would have given two flows one reply tuple.
    TranslationClash = "translation_clash",
    /// A device or socket refused the write.
    WriteFailed = "write_failed",
    /// Tables are not there yet.
    NotReady = "not_ready",
    /// A bug: an invariant did not hold for this packet.
    Internal = "internal",
}
