//! Flows: what they are found by, how long they live, what is remembered of them.

mod fragments;
mod key;
mod memory;
mod record;
mod sequence;
mod shard;
mod state;
mod table;

pub use key::FlowKey;
pub use memory::{PLUGINS_MAX, SLOT_LEN};
pub use record::{RECORD_LEN, RecordError};
pub use shard::Traffic;
pub use state::{
    Direction, FRAGMENT_TIMEOUT, FlowState, ICMP_TIMEOUT, OTHER_TIMEOUT, TCP_CLOSED_TIMEOUT,
    TCP_ESTABLISHED_TIMEOUT, TCP_FIN_TIMEOUT, TCP_PICKED_UP_TIMEOUT, TCP_SYN_RECEIVED_TIMEOUT,
    TCP_SYN_SENT_TIMEOUT, TCP_TIME_WAIT_TIMEOUT, UDP_REPLIED_TIMEOUT, UDP_UNREPLIED_TIMEOUT,
};
pub use table::{FlowInfo, FlowTable};

pub(crate) use fragments::FragmentId;
pub(crate) use memory::{Judged, Memory, Slots};
pub(crate) use sequence::Numbers;
pub(crate) use shard::{Seen, Translator};
pub(crate) use state::opens;
pub(crate) use table::{Found, NewFlow};
