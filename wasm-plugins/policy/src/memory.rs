//! What a flow remembers for the plugin, in the 16 bytes that it has for it.

use weft_policy_sdk::Flow;

use crate::address::Address;

/// First byte where it is no address of a pod: that of multicast.
const NO_ADDRESS: u8 = 0xff;

/// What a flow remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Nothing,
    /// This pod reaches itself, under an address of its node.
    ReachesItself(Address),
    /// Numbers that were told of at its two ends as what would drop it; 0 if none was.
    Watched {
        egress: u32,
        ingress: u32,
    },
}

impl Memory {
    pub(crate) fn of(flow: &Flow) -> Self {
        match flow.slot() {
            slot if slot == [0; 16] => Self::Nothing,
            [NO_ADDRESS, _, _, _, _, _, _, _, numbers @ ..] => {
                let [e0, e1, e2, e3, i0, i1, i2, i3] = numbers;
                Self::Watched {
                    egress: u32::from_be_bytes([e0, e1, e2, e3]),
                    ingress: u32::from_be_bytes([i0, i1, i2, i3]),
                }
            }
            mapped => Self::ReachesItself(Address::from_mapped(mapped)),
        }
    }

    pub(crate) fn keep(self, flow: &mut Flow) {
        let slot = match self {
            Self::Nothing => 0,
            Self::ReachesItself(pod) => pod.mapped(),
            Self::Watched { egress, ingress } => {
                u128::from(NO_ADDRESS) << 120 | u128::from(egress) << 32 | u128::from(ingress)
            }
        };
        flow.set_slot(slot.to_be_bytes());
    }
}

/// Remembers a number at one of a flow's ends; false if it was before.
pub(crate) fn is_news(flow: &mut Flow, is_egress: bool, number: u32) -> bool {
    let (egress, ingress) = match Memory::of(flow) {
        Memory::Watched { egress, ingress } => (egress, ingress),
        Memory::Nothing | Memory::ReachesItself(_) => (0, 0),
    };
    let (held, next) = if is_egress {
        (egress, Memory::Watched { egress: number, ingress })
    } else {
        (ingress, Memory::Watched { egress, ingress: number })
    };
    if held != number {
        next.keep(flow);
    }
    held != number
}
