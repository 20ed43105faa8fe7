//! What the pipeline knows of a plugin: what it wants to see, and one call.

use weft_abi::{Descriptor, RewriteFields};
use weft_model::{HookPosition, OnFault, PluginMode};

/// What a plugin wants to see and what becomes of a packet when it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Name in the fabric.
    pub name: String,
    /// Where it is asked.
    pub position: HookPosition,
    /// Order among plugins of one position: lower first, then by name.
    pub priority: i32,
    /// Bits of [`weft_abi::protocols`].
    pub protocols: u8,
    /// How often it is asked.
    pub mode: PluginMode,
    /// When a call faults.
    pub on_fault: OnFault,
    /// Rises when the plugin or its configuration changes, so that flows are asked about again.
    pub revision: u64,
}

/// What a plugin answered, checked: codes and lengths are in range, undeclared verdicts are faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Ask the next plugin.
    Continue,
    /// Ask no further plugin at this position.
    Accept,
    /// Drop it; the number is the plugin's own.
    Drop(u32),
    /// Drop it and tell the sender; 1: port unreachable.
    Reject(u32),
    /// Translate the flow.
    Rewrite(&'a RewriteFields),
    /// Send this packet back to the sender instead.
    Reply(&'a [u8]),
    /// Ask the next plugin, and tell that it would be dropped; the number is the plugin's own.
    WouldDrop(u32),
}

/// A verdict and the new value of the flow slot, if the plugin wrote one. Small, since it is handed
/// on for each packet: what is seldom there stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// What to do.
    pub verdict: Verdict<'a>,
    /// New value of the plugin's slot of the flow.
    pub slot: Option<&'a [u8; 16]>,
    /// Ask about the next packet of the flow as well, in [`PluginMode::Flow`] too.
    pub again: bool,
}

/// The call failed; the implementation has counted it and made itself usable again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginFault {
    /// Trap, or an answer that means nothing.
    #[error("trapped")]
    Trap,
    /// Passed its deadline.
    #[error("passed its deadline")]
    Deadline,
    /// Taken out after too many faults.
    #[error("taken out")]
    TakenOut,
}

/// One instance of a plugin, owned by one worker.
pub trait Plugin {
    /// What it wants to see. Constant for the life of the instance.
    fn interest(&self) -> &Interest;

    /// Asks about a packet. `packet` starts at the IP header and is whole; the implementation
    /// shows the plugin as much of it as the plugin's window holds.
    ///
    /// # Errors
    /// [`PluginFault`]; the pipeline then does as [`Interest::on_fault`] says.
    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault>;
}
