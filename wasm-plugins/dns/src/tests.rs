mod aliases;
mod config;
mod messages;
mod negative;
mod packets;
mod records;
mod searched;
mod support;
