//! What the host does for a plugin: log lines and the map.

use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use weft_abi::{Draw, LOG_LINE_MAX, MAP_VALUE_MAX};

/// Severity of a line of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something is lost.
    Error = 1,
    /// Someone should look.
    Warn = 2,
    /// A change of state.
    Info = 3,
    /// An odd turn.
    Debug = 4,
    /// Anything done for each packet.
    Trace = 5,
}

/// Why the map did not store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It holds as many entries as the manifest asked for.
    Full,
    /// Key over 64 or value over 256 bytes, an empty key, no bucket or over 4.
    TooLong,
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "the map is full",
            Self::TooLong => "key or value is too long",
        })
    }
}

impl std::error::Error for MapError {}

/// What the host does for a plugin.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    #[cfg(not(target_arch = "wasm32"))]
    calls: &'a dyn HostCalls,
    marker: PhantomData<&'a ()>,
}

impl<'a> Host<'a> {
    /// Writes a line to the host's log. Lines over 512 bytes are cut, and lines over a rate are
    /// dropped. Needs [`crate::capability::LOG`].
    pub fn log(&self, level: Level, line: &str) {
        let end = line.floor_char_boundary(LOG_LINE_MAX);
        self.call_log(level, line.get(..end).unwrap_or_default());
    }

    /// The plugin's map. Needs [`crate::capability::MAP`].
    #[must_use]
    pub fn map(&self) -> Map<'a> {
        Map { host: *self }
    }
}

/// The plugin's map: shared by its instances on all workers, held by the host, bounded. A replaced
/// plugin finds the map of the one before.
#[derive(Clone, Copy)]
pub struct Map<'a> {
    host: Host<'a>,
}

/// A value of the map, up to 256 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    bytes: [u8; MAP_VALUE_MAX],
    len: usize,
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Map<'_> {
    /// The value of `key`, if there is one.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Value> {
        let mut value = Value { bytes: [0; MAP_VALUE_MAX], len: 0 };
        value.len = self.host.call_get(key, &mut value.bytes)?;
        Some(value)
    }

    /// Stores a value, for `ttl` (rounded up to milliseconds) if given.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    pub fn put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<(), MapError> {
        self.host.call_put(key, value, ttl)
    }

    /// Stores `new` if the value is `old`, or, if `old` is empty, if there is none. Tells if it
    /// did: if not, another worker was faster.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    pub fn swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, MapError> {
        self.host.call_swap(key, old, new, ttl)
    }

    /// Takes tokens from each of up to 4 buckets that `key` holds, or from none of them, in one
    /// step. Tells if it could. [`TokenBucket::draw`](crate::TokenBucket::draw) makes the draws.
    ///
    /// Buckets that are not there, or not as many, are full ones. Their entry goes when all are
    /// full again, so only keys that are in use take room.
    ///
    /// # Errors
    /// [`MapError`]; nothing is taken then.
    pub fn take(&self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError> {
        self.host.call_take(key, draws)
    }

    /// Removes a value; tells if there was one.
    pub fn remove(&self, key: &[u8]) -> bool {
        self.host.call_remove(key)
    }
}

/// The host's side of the calls where a plugin runs natively, in tests.
#[cfg(not(target_arch = "wasm32"))]
pub trait HostCalls {
    /// Takes a line of log.
    fn log(&self, level: Level, line: &str);
    /// The value of `key`.
    fn map_get(&self, key: &[u8]) -> Option<Vec<u8>>;
    /// Stores a value.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    fn map_put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<(), MapError>;
    /// Stores `new` if the value is `old`, or if there is none and `old` is empty.
    ///
    /// # Errors
    /// [`MapError`]; nothing is stored then.
    fn map_swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, MapError>;
    /// Takes from every bucket of `key` or from none.
    ///
    /// # Errors
    /// [`MapError`]; nothing is taken then.
    fn map_take(&self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError>;
    /// Removes a value; tells if there was one.
    fn map_remove(&self, key: &[u8]) -> bool;
}

#[cfg(not(target_arch = "wasm32"))]
impl<'a> Host<'a> {
    /// A host for native runs.
    #[must_use]
    pub fn new(calls: &'a dyn HostCalls) -> Self {
        Self { calls, marker: PhantomData }
    }

    fn call_log(&self, level: Level, line: &str) {
        self.calls.log(level, line);
    }

    fn call_get(&self, key: &[u8], out: &mut [u8; MAP_VALUE_MAX]) -> Option<usize> {
        let value = self.calls.map_get(key)?;
        out.get_mut(..value.len())?.copy_from_slice(&value);
        Some(value.len())
    }

    fn call_put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<(), MapError> {
        self.calls.map_put(key, value, ttl)
    }

    fn call_swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, MapError> {
        self.calls.map_swap(key, old, new, ttl)
    }

    fn call_take(&self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError> {
        self.calls.map_take(key, draws)
    }

    fn call_remove(&self, key: &[u8]) -> bool {
        self.calls.map_remove(key)
    }
}

#[cfg(target_arch = "wasm32")]
mod imports {
    #[link(wasm_import_module = "weft")]
    unsafe extern "C" {
        pub(super) fn log(level: i32, ptr: *const u8, len: usize);
        pub(super) fn map_get(key: *const u8, key_len: usize, value: *mut u8, len: usize) -> i32;
        pub(super) fn map_put(
            key: *const u8,
            key_len: usize,
            value: *const u8,
            value_len: usize,
            ttl_ms: i64,
        ) -> i32;
        pub(super) fn map_swap(
            key: *const u8,
            key_len: usize,
            old: *const u8,
            old_len: usize,
            new: *const u8,
            new_len: usize,
            ttl_ms: i64,
        ) -> i32;
        pub(super) fn map_take(
            key: *const u8,
            key_len: usize,
            draws: *const weft_abi::Draw,
            count: usize,
        ) -> i32;
        pub(super) fn map_remove(key: *const u8, key_len: usize) -> i32;
    }
}

// An import is linked in only if its function below is used, so a plugin imports what it calls.
#[cfg(target_arch = "wasm32")]
impl Host<'_> {
    pub(crate) fn imported() -> Self {
        Self { marker: PhantomData }
    }

    fn call_log(&self, level: Level, line: &str) {
        // SAFETY: the host reads `line.len()` bytes at the pointer during the call only.
        unsafe { imports::log(level as i32, line.as_ptr(), line.len()) }
    }

    fn call_get(&self, key: &[u8], out: &mut [u8; MAP_VALUE_MAX]) -> Option<usize> {
        // SAFETY: the host reads the key, and writes up to `out.len()` bytes to `out`, during the
        // call only.
        let len = unsafe { imports::map_get(key.as_ptr(), key.len(), out.as_mut_ptr(), out.len()) };
        usize::try_from(len).ok()
    }

    fn call_put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<(), MapError> {
        // SAFETY: the host reads key and value during the call only.
        let code = unsafe {
            imports::map_put(key.as_ptr(), key.len(), value.as_ptr(), value.len(), millis(ttl))
        };
        stored(code).map(drop)
    }

    fn call_swap(
        &self,
        key: &[u8],
        old: &[u8],
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, MapError> {
        // SAFETY: the host reads key and values during the call only.
        let code = unsafe {
            imports::map_swap(
                key.as_ptr(),
                key.len(),
                old.as_ptr(),
                old.len(),
                new.as_ptr(),
                new.len(),
                millis(ttl),
            )
        };
        stored(code)
    }

    fn call_take(&self, key: &[u8], draws: &[Draw]) -> Result<bool, MapError> {
        // SAFETY: the host reads key and draws during the call only.
        let code =
            unsafe { imports::map_take(key.as_ptr(), key.len(), draws.as_ptr(), draws.len()) };
        stored(code)
    }

    fn call_remove(&self, key: &[u8]) -> bool {
        // SAFETY: the host reads the key during the call only.
        unsafe { imports::map_remove(key.as_ptr(), key.len()) == 1 }
    }
}

#[cfg(target_arch = "wasm32")]
fn stored(code: i32) -> Result<bool, MapError> {
    match code {
        -1 => Err(MapError::Full),
        -2 => Err(MapError::TooLong),
        code => Ok(code == 1),
    }
}

/// Zero means forever, so a shorter time than a millisecond is one.
#[cfg(target_arch = "wasm32")]
fn millis(ttl: Option<Duration>) -> i64 {
    let up = |ttl: Duration| ttl.as_nanos().div_ceil(1_000_000).max(1);
    ttl.map_or(0, |ttl| i64::try_from(up(ttl)).unwrap_or(i64::MAX))
}
