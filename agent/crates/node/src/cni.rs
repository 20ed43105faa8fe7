//! CNI: the server on the socket, and what is kept of each attachment.

mod attachments;
mod records;
mod server;

pub(crate) use attachments::{Attachments, Ports};
pub(crate) use records::{Record, Records};
pub(crate) use server::serve;

#[cfg(test)]
pub(crate) mod tests;
