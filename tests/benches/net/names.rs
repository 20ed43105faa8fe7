//! What can be measured: the names in the tables, in `net.json` and on the command line.

use std::fmt;
use std::str::FromStr;

use weft_model::Encapsulation;

/// A network between two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// Nodes that route between pods and the underlay: no overlay.
    Routed,
    /// The kernel's VXLAN device.
    KernelVxlan,
    WireGuardGo,
    BoringTun,
    Weft(Encapsulation, Plugins),
}

/// What a fabric's packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugins {
    /// None at all.
    None,
    /// Three of a user's, asked about every packet.
    ThreeWasm,
    /// What a fabric has without being asked for it.
    BuiltIn,
}

/// The surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Two nodes; the underlay's links leave segmentation and checksums to the receiver.
    Veth1500,
    /// Two nodes; what the underlay carries has the length of its MTU, as on a cable.
    Wire1500,
    Veth9000,
    /// Two pods of one node.
    SameNode,
}

/// One figure of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Tcp1,
    CpuPerGigabyte,
    Tcp4,
    Udp64,
    Udp1350,
    Rr50,
    Rr99,
    Rr2At50,
    Rr2At99,
    Connects,
}

impl Case {
    pub(crate) const ALL: [Self; 10] = {
        use Encapsulation::{Vxlan, WireGuard};
        [
            Self::Routed,
            Self::KernelVxlan,
            Self::WireGuardGo,
            Self::BoringTun,
            Self::Weft(Vxlan, Plugins::None),
            Self::Weft(Vxlan, Plugins::ThreeWasm),
            Self::Weft(Vxlan, Plugins::BuiltIn),
            Self::Weft(WireGuard, Plugins::None),
            Self::Weft(WireGuard, Plugins::ThreeWasm),
            Self::Weft(WireGuard, Plugins::BuiltIn),
        ]
    };

    pub(crate) fn name(self) -> &'static str {
        use Encapsulation::{Vxlan, WireGuard};
        match self {
            Self::Routed => "routed",
            Self::KernelVxlan => "kernel-vxlan",
            Self::WireGuardGo => "wireguard-go",
            Self::BoringTun => "boringtun",
            Self::Weft(Vxlan, Plugins::None) => "weft-vxlan",
            Self::Weft(Vxlan, Plugins::ThreeWasm) => "weft-vxlan+3wasm",
            Self::Weft(Vxlan, Plugins::BuiltIn) => "weft-vxlan+builtin",
            Self::Weft(WireGuard, Plugins::None) => "weft-wireguard",
            Self::Weft(WireGuard, Plugins::ThreeWasm) => "weft-wireguard+3wasm",
            Self::Weft(WireGuard, Plugins::BuiltIn) => "weft-wireguard+builtin",
        }
    }

    pub(crate) fn is_weft(self) -> bool {
        matches!(self, Self::Weft(..))
    }

    /// Inside one node a tunnel changes nothing for pods of the peers: that is `routed`.
    pub(crate) fn has(self, variant: Variant) -> bool {
        variant != Variant::SameNode || self.is_weft() || self == Self::Routed
    }
}

impl Variant {
    pub(crate) const ALL: [Self; 4] =
        [Self::Veth1500, Self::SameNode, Self::Wire1500, Self::Veth9000];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Veth1500 => "veth-1500",
            Self::Wire1500 => "wire-1500",
            Self::Veth9000 => "veth-9000",
            Self::SameNode => "same-node",
        }
    }

    pub(crate) fn underlay(self) -> Underlay {
        match self {
            Self::Veth1500 | Self::SameNode => Underlay { mtu: 1500, offloads: true },
            Self::Wire1500 => Underlay { mtu: 1500, offloads: false },
            Self::Veth9000 => Underlay { mtu: 9000, offloads: true },
        }
    }
}

/// What nodes are connected with. Variants of one underlay are measured on the same set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    pub(crate) mtu: u32,
    pub(crate) offloads: bool,
}

impl Metric {
    pub(crate) const ALL: [Self; 10] = [
        Self::Tcp1,
        Self::CpuPerGigabyte,
        Self::Tcp4,
        Self::Udp64,
        Self::Udp1350,
        Self::Rr50,
        Self::Rr99,
        Self::Rr2At50,
        Self::Rr2At99,
        Self::Connects,
    ];

    pub(crate) fn name(self) -> &'static str {
        self.name_and_unit().0
    }

    pub(crate) fn name_and_unit(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp1 => ("tcp1_gbps", "Gbit/s"),
            Self::CpuPerGigabyte => ("cpu_s_per_gb", "s/GB"),
            Self::Tcp4 => ("tcp4_gbps", "Gbit/s"),
            Self::Udp64 => ("udp64_kpps", "kpps"),
            Self::Udp1350 => ("udp1350_kpps", "kpps"),
            Self::Rr50 => ("rr_p50_us", "us"),
            Self::Rr99 => ("rr_p99_us", "us"),
            Self::Rr2At50 => ("rr2_p50_us", "us"),
            Self::Rr2At99 => ("rr2_p99_us", "us"),
            Self::Connects => ("connect_per_s", "1/s"),
        }
    }

    /// The measurement it comes from.
    pub(crate) fn load(self) -> Load {
        match self {
            Self::Tcp1 | Self::CpuPerGigabyte => Load::Streams(1),
            Self::Tcp4 => Load::Streams(4),
            Self::Udp64 => Load::Datagrams(64),
            Self::Udp1350 => Load::Datagrams(1350),
            Self::Rr50 | Self::Rr99 => Load::PingPong { cpus: 1 },
            Self::Rr2At50 | Self::Rr2At99 => Load::PingPong { cpus: 2 },
            Self::Connects => Load::Connects,
        }
    }
}

/// What is done to a network to measure it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// That many TCP streams.
    Streams(usize),
    /// Datagrams of that payload, at the highest rate that gets through.
    Datagrams(usize),
    /// One byte there and back over TCP, both ends on one CPU or on two.
    PingPong { cpus: usize },
    /// TCP connections, one after the other.
    Connects,
}

/// Names that a list on the command line may have.
macro_rules! named {
    ($type:ty, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|one| one.name()).collect();
                    format!("there is no {} `{text}`: there are {}", $what, all.join(", "))
                })
            }
        }
    };
}

named!(Case, "case");
named!(Variant, "variant");
named!(Metric, "metric");
