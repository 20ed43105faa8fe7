//! What the host and a plugin agree on: layouts, numbers, names. Shared by both, `no_std`, no code
//! that could differ between them.
//!
//! A plugin is a core Wasm module for `wasm32-unknown-unknown` that imports from module `weft` only
//! and exports `memory`, [`EXPORT_EXCHANGE`], [`EXPORT_ON_PACKET`], [`EXPORT_ALLOCATE`] and
//! [`EXPORT_CONFIGURE`]. It carries a [`Manifest`] in the custom section [`MANIFEST_SECTION`].
//!
//! For each packet the host writes a [`Descriptor`] and the first [`Manifest::window`] bytes of the
//! packet to the exchange area, calls [`EXPORT_ON_PACKET`] and reads the [`Answer`] from there.
//! All numbers are little-endian, as Wasm's own.

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod descriptor;
mod draw;
mod manifest;

pub use answer::{ANSWERED, ASK_AGAIN, Answer, AnswerError, RewriteFields, VerdictCode};
pub use descriptor::{Descriptor, flags};
pub use draw::Draw;
pub use manifest::{MANIFEST_LEN, Manifest, ManifestError, capability, hooks, protocols};

/// Version of everything in this crate. A module of another version is refused.
pub const ABI_VERSION: u16 = 2;

/// Custom section that holds the [`Manifest`].
pub const MANIFEST_SECTION: &str = "weft.manifest";

/// `() -> i32`: address of the exchange area: [`Descriptor::LEN`] bytes of descriptor,
/// [`Answer::LEN`] bytes of answer, then [`Manifest::window`] bytes of packet. Must not change
/// during the life of an instance; the host asks once.
pub const EXPORT_EXCHANGE: &str = "weft_exchange";
/// `() -> i32`: looks at the packet in the exchange area, returns a [`VerdictCode`], plus
/// [`ANSWERED`] if it wrote an [`Answer`] and [`ASK_AGAIN`] if it wants to see the next packet too.
pub const EXPORT_ON_PACKET: &str = "weft_on_packet";
/// `(len: i32) -> i32`: address of a buffer of `len` bytes for [`EXPORT_CONFIGURE`]; 0 if there is
/// no memory for it.
pub const EXPORT_ALLOCATE: &str = "weft_allocate";
/// `(len: i32, kind: i32) -> i64`: takes the configuration written to the buffer. `kind` is
/// [`CONFIGURE_FULL`] or [`CONFIGURE_DELTA`]. Returns 0 if it is accepted; else address << 32 |
/// length of a UTF-8 text that says why not, and the configuration in force stays.
pub const EXPORT_CONFIGURE: &str = "weft_configure";

/// The configuration replaces the one in force.
pub const CONFIGURE_FULL: i32 = 0;
/// The configuration changes the one in force.
pub const CONFIGURE_DELTA: i32 = 1;

/// Module name of every import.
pub const IMPORT_MODULE: &str = "weft";
/// `(level: i32, ptr: i32, len: i32)`: a line of UTF-8 for the host's log. Levels 1 (error) to
/// 5 (trace). Lines over [`LOG_LINE_MAX`] bytes are cut, and lines over a rate are dropped.
pub const IMPORT_LOG: &str = "log";
/// `(key: i32, key_len: i32, value: i32, capacity: i32) -> i32`: copies the value, returns its
/// length, or -1 if there is none, or -2 if it does not fit.
pub const IMPORT_MAP_GET: &str = "map_get";
/// `(key: i32, key_len: i32, value: i32, value_len: i32, ttl_ms: i64) -> i32`: stores a value for
/// `ttl_ms` (0: until it is removed). 0, or -1 if the map is full, or -2 if key or value is too long.
pub const IMPORT_MAP_PUT: &str = "map_put";
/// `(key: i32, key_len: i32, old: i32, old_len: i32, new: i32, new_len: i32, ttl_ms: i64) -> i32`:
/// stores `new` if the value is `old` (`old_len` 0: if there is none). 1 if it did, 0 if the value
/// was another, or as [`IMPORT_MAP_PUT`] on failure.
pub const IMPORT_MAP_SWAP: &str = "map_swap";
/// `(key: i32, key_len: i32) -> i32`: 1 if there was one, else 0.
pub const IMPORT_MAP_REMOVE: &str = "map_remove";
/// `(key: i32, key_len: i32, draws: i32, count: i32) -> i32`: takes tokens from each of `count`
/// buckets (1 to [`BUCKETS_MAX`]) that the key holds, or from none; `draws` is the address of as
/// many [`Draw`]s. A value that is not of `count` buckets counts as none. 1 if it did, 0 if a bucket
/// does not hold enough, or as [`IMPORT_MAP_PUT`] on failure. The entry goes when all are full.
pub const IMPORT_MAP_TAKE: &str = "map_take";

/// Most token buckets in one entry of a plugin's map.
pub const BUCKETS_MAX: usize = 4;
/// Longest key of a plugin's map in bytes.
pub const MAP_KEY_MAX: usize = 64;
/// Longest value of a plugin's map in bytes.
pub const MAP_VALUE_MAX: usize = 256;
/// Longest line of a plugin's log in bytes.
pub const LOG_LINE_MAX: usize = 512;
/// Least packet window in bytes: every header of an ordinary packet.
pub const HEADER_WINDOW: u32 = 128;
/// Greatest packet window in bytes: a whole super-packet.
pub const WINDOW_MAX: u32 = 65_536;
