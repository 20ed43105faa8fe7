//! CNI: the server on the socket, and what is kept of each attachment.

mod records;

pub(crate) use records::{Record, Records, key};
