//! What a plugin decides.

use std::net::IpAddr;

use weft_abi::{Answer, RewriteFields, VerdictCode};

use crate::Flow;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the next plugin.
    Continue,
    /// Let it pass and ask no further plugin at this position.
    Accept,
    /// Drop it silently; the number says why in counters and logs and is the plugin's own.
    Drop(u32),
    /// Drop it and tell the sender: TCP reset, else ICMP "administratively prohibited", or
    /// "port unreachable" for number 1.
    Reject(u32),
    /// Translate the flow and ask the next plugin. Needs [`crate::capability::REWRITE`].
    Rewrite(Rewrite),
    /// Send this packet, from its IP header on, back to the sender instead. No longer than the
    /// window. Needs [`crate::capability::REPLY`]. The number is counted and is the plugin's own.
    Reply(Vec<u8>, u32),
    /// Ask the next plugin, and tell that the packet would be dropped if the plugin did not only watch.
    /// It is counted and logged by its number as a drop is: so say it once for each flow.
    WouldDrop(u32),
}

/// New addresses and ports for a flow. Replies are translated back by the fabric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite(RewriteFields);

impl Rewrite {
    /// Changes nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends it to another address, of the same family.
    #[must_use]
    pub fn destination(mut self, address: IpAddr) -> Self {
        self.0.destination = Some(mapped(address));
        self
    }

    /// Sends it to another port.
    #[must_use]
    pub fn destination_port(mut self, port: u16) -> Self {
        self.0.destination_port = Some(port);
        self
    }

    /// Lets it come from another address, of the same family.
    #[must_use]
    pub fn source(mut self, address: IpAddr) -> Self {
        self.0.source = Some(mapped(address));
        self
    }

    /// Lets it come from another port; 0: from any that no other flow to the destination has.
    #[must_use]
    pub fn source_port(mut self, port: u16) -> Self {
        self.0.source_port = Some(port);
        self
    }

    /// The fields as the host reads them.
    #[must_use]
    pub fn fields(&self) -> RewriteFields {
        self.0
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Verdict {
    /// The return value and the answer beside it, as the ABI wants them.
    #[doc(hidden)]
    #[must_use]
    pub fn to_abi(&self, flow: &Flow) -> (VerdictCode, Answer) {
        let mut answer = Answer { slot: flow.written(), ..Answer::default() };
        let code = match self {
            Self::Continue => VerdictCode::Continue,
            Self::Accept => VerdictCode::Accept,
            Self::Drop(reason) => {
                answer.reason = *reason;
                VerdictCode::Drop
            }
            Self::Reject(reason) => {
                answer.reason = *reason;
                VerdictCode::Reject
            }
            Self::Rewrite(rewrite) => {
                answer.rewrite = rewrite.fields();
                VerdictCode::Rewrite
            }
            Self::Reply(packet, number) => {
                answer.reason = *number;
                answer.reply_len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
                VerdictCode::Reply
            }
            Self::WouldDrop(reason) => {
                answer.reason = *reason;
                VerdictCode::WouldDrop
            }
        };
        (code, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_abi::Descriptor;

    #[test]
    fn rewrite_names_ipv4_addresses_in_mapped_form() {
        let rewrite = Rewrite::new().destination([10, 0, 0, 1].into()).destination_port(80);
        let (code, answer) = Verdict::Rewrite(rewrite).to_abi(&Flow::new(&Descriptor::default()));
        assert_eq!(code, VerdictCode::Rewrite);
        let expected = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1];
        assert_eq!(answer.rewrite.destination, Some(expected));
        assert_eq!(answer.rewrite.destination_port, Some(80));
        assert_eq!(answer.rewrite.source, None);
    }

    #[test]
    fn slot_is_answered_only_if_it_was_written() {
        let mut flow = Flow::new(&Descriptor::default());
        assert_eq!(Verdict::Accept.to_abi(&flow).1.slot, None);
        flow.set_slot([7; 16]);
        assert_eq!(Verdict::Drop(3).to_abi(&flow).1.slot, Some([7; 16]));
    }
}
