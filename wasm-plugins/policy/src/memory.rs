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
    Judged(Judged),
}

/// What was found when the flow was judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Number of the name that it passed by last at egress; 0 if there was none.
    name: u64,
    /// Numbers that were told of at its two ends as what would drop it; 0 if none was.
    egress: u32,
    ingress: u32,
}

/// Numbers of names are less: they have 7 bytes.
pub(crate) const NAMES_END: u64 = 1 << 56;

impl Memory {
    pub(crate) fn of(flow: &Flow) -> Self {
        match flow.slot() {
            slot if slot == [0; 16] => Self::Nothing,
            slot @ [NO_ADDRESS, ..] => {
                let number = u128::from_be_bytes(slot);
                Self::Judged(Judged {
                    name: (number >> 64) as u64 & (NAMES_END - 1),
                    egress: (number >> 32) as u32,
                    ingress: number as u32,
                })
            }
            mapped => Self::ReachesItself(Address::from_mapped(mapped)),
        }
    }

    pub(crate) fn keep(self, flow: &mut Flow) {
        let slot = match self {
            Self::Nothing => 0,
            Self::ReachesItself(pod) => pod.mapped(),
            Self::Judged(Judged { name, egress, ingress }) => {
                u128::from(NO_ADDRESS) << 120
                    | u128::from(name) << 64
                    | u128::from(egress) << 32
                    | u128::from(ingress)
            }
        };
        flow.set_slot(slot.to_be_bytes());
    }
}

impl Judged {
    fn of(flow: &Flow) -> Self {
        match Memory::of(flow) {
            Memory::Judged(judged) => judged,
            Memory::Nothing | Memory::ReachesItself(_) => Self::default(),
        }
    }
}

/// Remembers a number at one of a flow's ends; false if it was before.
pub(crate) fn is_news(flow: &mut Flow, is_egress: bool, number: u32) -> bool {
    let mut judged = Judged::of(flow);
    let told = if is_egress { &mut judged.egress } else { &mut judged.ingress };
    let before = std::mem::replace(told, number);
    if before != number {
        Memory::Judged(judged).keep(flow);
    }
    before != number
}

/// The name that a flow passed by last.
pub(crate) fn name_of(flow: &Flow) -> Option<u64> {
    Some(Judged::of(flow).name).filter(|name| *name != 0)
}

/// Remembers the name that a flow passes by.
pub(crate) fn passes_by(flow: &mut Flow, name: u64) {
    Memory::Judged(Judged { name, ..Judged::of(flow) }).keep(flow);
}
