//! The plugin's 16 bytes of a flow.

use weft_abi::{Descriptor, flags};

/// The flow a packet belongs to, with the plugin's slot of it: 16 bytes, zero at first.
///
/// The fabric holds the slot for as long as the flow lives. It is the same on every worker and
/// outlives the plugin's instance, a new version of the plugin and a restart of the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    slot: [u8; 16],
    flags: u32,
    written: bool,
    again: bool,
}

impl Flow {
    /// The flow of a packet, as the host tells of it.
    #[must_use]
    #[inline]
    pub fn new(descriptor: &Descriptor) -> Self {
        Self { slot: descriptor.slot, flags: descriptor.flags, written: false, again: false }
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> [u8; 16] {
        self.slot
    }

    /// Writes the slot.
    pub fn set_slot(&mut self, slot: [u8; 16]) {
        self.slot = slot;
        self.written = true;
    }

    /// The packet is the first of the flow in its direction that the plugin is shown.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.flags & flags::FIRST != 0
    }

    /// The packet goes against the flow's first packet.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags & flags::REPLY != 0
    }

    /// Asks about the next packet of the flow as well, although the manifest says `per_flow`: for a
    /// plugin that looks into each packet of a few flows and into no others.
    pub fn ask_again(&mut self) {
        self.again = true;
    }

    /// The bit of the packet call's return value that says so.
    #[doc(hidden)]
    #[must_use]
    #[inline]
    pub fn asks_again(&self) -> bool {
        self.again
    }

    /// The slot if it was written.
    #[inline]
    pub(crate) fn written(&self) -> Option<[u8; 16]> {
        self.written.then_some(self.slot)
    }
}
