//! Why a packet goes no further, and what its sender is told.

use weft_model::DropReason;
use weft_packet::{
    Headers, Meta, Unreachable, icmp_unreachable, packet_too_big, protocol, rewrite, tcp_reset,
};

use crate::flow::FlowKey;
use crate::limit::Answer;
use crate::passage::Passage;

/// [`weft_abi::VerdictCode::Reject`] with this number is a port unreachable.
const REJECT_PORT: u32 = 1;

/// A packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Drop(DropReason),
    Reject {
        /// The plugin's number.
        code: u32,
    },
    /// The answer is there.
    Reply,
    TooBig {
        mtu: u16,
    },
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl Stop {
    /// `None` if a plugin replied.
    pub(crate) fn reason(self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) => Some(reason),
            Self::Reject { .. } => Some(DropReason::PluginReject),
            Self::Reply => None,
            Self::TooBig { .. } => Some(DropReason::TooBig),
        }
    }

    /// How the sender of a packet of that protocol is told, unless a plugin did.
    pub(crate) fn answer(self, protocol: u8) -> Option<Answer> {
        match self {
            Self::Drop(_) | Self::Reply => None,
            Self::Reject { .. } if protocol != protocol::TCP => Some(Answer::Error),
            Self::Reject { .. } | Self::TooBig { .. } => Some(Answer::Prompt),
        }
    }
}

/// Leaves in `out` what the sender is told, about the packet as he sent it; false if nothing.
pub(crate) fn answer(p: &mut Passage<'_>, stop: Stop, out: &mut Vec<u8>) -> bool {
    if stop == Stop::Reply {
        return reply(p, out);
    }
    if matches!(stop, Stop::Drop(_)) || p.restore().is_err() {
        return false;
    }
    // In the name of the destination: the fabric has no address of its own on the packet's way,
    // and a peer takes from this node only what its pods and itself may send.
    let from = p.headers.destination;
    match stop {
        Stop::Drop(_) | Stop::Reply => false,
        Stop::Reject { .. } if p.headers.protocol == protocol::TCP => {
            tcp_reset(p.packet, p.headers, out)
        }
        Stop::Reject { code: REJECT_PORT } => {
            icmp_unreachable(p.packet, p.headers, from, Unreachable::Port, out)
        }
        Stop::Reject { .. } => {
            icmp_unreachable(p.packet, p.headers, from, Unreachable::Prohibited, out)
        }
        Stop::TooBig { mtu } => packet_too_big(p.packet, p.headers, from, mtu, out),
    }
}

/// A plugin answers the packet as it saw it; the sender knows it as he sent it. Nothing but an
/// answer to the sender may go out.
fn reply(p: &Passage<'_>, out: &mut [u8]) -> bool {
    let meta = Meta::default();
    let Ok(mut headers) = Headers::parse(out, &meta) else { return false };
    if headers.total_length != out.len() {
        return false;
    }
    let key = FlowKey::from(headers.five_tuple());
    if key == p.key.reversed() {
        let change = key.rewrite_to(p.wire_key.reversed());
        if rewrite(out, &meta, &mut headers, &change).is_err() {
            return false;
        }
    }
    headers.destination == p.wire_key.source().ip()
}
