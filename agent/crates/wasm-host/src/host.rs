//! The functions that a plugin may import, and the state behind them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Caller, Linker, Memory, ResourceLimiter, UpdateDeadline};
use weft_abi::{
    BUCKETS_MAX, Draw, IMPORT_LOG, IMPORT_MAP_GET, IMPORT_MAP_PUT, IMPORT_MAP_REMOVE,
    IMPORT_MAP_SWAP, IMPORT_MAP_TAKE, IMPORT_MODULE, LOG_LINE_MAX, MAP_KEY_MAX, MAP_VALUE_MAX,
};
use weft_model::Timestamp;

use crate::map::MapError;
use crate::shared::SharedState;
use crate::{TABLE_ELEMENTS_MAX, clock};

/// What belongs to one instance on the host's side.
pub(crate) struct HostState {
    pub(crate) shared: Arc<SharedState>,
    /// `None` while the instance is made.
    pub(crate) memory: Option<Memory>,
    /// Time of the packet.
    pub(crate) now: Timestamp,
    /// Ticks of the clock after which the call under way is ended.
    pub(crate) ticks: u64,
    /// The call was ended by its deadline.
    pub(crate) deadline_passed: bool,
    pub(crate) memory_max: usize,
}

impl HostState {
    /// Notes that a call begins, which is ended after `ticks` of the clock.
    #[inline]
    pub(crate) fn begin(&mut self, ticks: u64) {
        self.ticks = ticks;
        self.deadline_passed = false;
    }

    /// The clock of some thread has ticked since the last time; that of this one counts.
    pub(crate) fn tick(&mut self) -> UpdateDeadline {
        if clock::ticked() >= self.ticks {
            self.deadline_passed = true;
            return UpdateDeadline::Interrupt;
        }
        UpdateDeadline::Continue(1)
    }
}

impl ResourceLimiter for HostState {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.memory_max)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }
}

const NONE: i32 = -1;
const FULL: i32 = -1;
const NO_FIT: i32 = -2;

impl MapError {
    fn code(self) -> i32 {
        match self {
            Self::Full => FULL,
            Self::TooLong => NO_FIT,
        }
    }
}

/// Offers every import to modules that are linked with `linker`.
pub(crate) fn define(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    linker.func_wrap(IMPORT_MODULE, IMPORT_LOG, log)?;
    linker.func_wrap(IMPORT_MODULE, IMPORT_MAP_GET, map_get)?;
    linker.func_wrap(IMPORT_MODULE, IMPORT_MAP_PUT, map_put)?;
    linker.func_wrap(IMPORT_MODULE, IMPORT_MAP_SWAP, map_swap)?;
    linker.func_wrap(IMPORT_MODULE, IMPORT_MAP_TAKE, map_take)?;
    linker.func_wrap(IMPORT_MODULE, IMPORT_MAP_REMOVE, map_remove)?;
    Ok(())
}

type Guest<'a> = Caller<'a, HostState>;

fn log(mut guest: Guest<'_>, level: i32, ptr: i32, len: i32) -> wasmtime::Result<()> {
    let (memory, state) = split(&mut guest)?;
    let line = read(memory, ptr, len)?;
    let Some(dropped) = state.shared.take_log_line(state.now) else { return Ok(()) };
    let line = String::from_utf8_lossy(line.get(..LOG_LINE_MAX).unwrap_or(line));
    // A plugin must not be able to forge lines of others.
    let line = line.replace(char::is_control, " ");
    let plugin = state.shared.name();
    match level {
        ..=1 => tracing::error!(target: "weft::plugin", plugin, dropped, "{line}"),
        2 => tracing::warn!(target: "weft::plugin", plugin, dropped, "{line}"),
        3 => tracing::info!(target: "weft::plugin", plugin, dropped, "{line}"),
        4 => tracing::debug!(target: "weft::plugin", plugin, dropped, "{line}"),
        5.. => tracing::trace!(target: "weft::plugin", plugin, dropped, "{line}"),
    }
    Ok(())
}

fn map_get(
    mut guest: Guest<'_>,
    key: i32,
    key_len: i32,
    value: i32,
    capacity: i32,
) -> wasmtime::Result<i32> {
    let (memory, state) = split(&mut guest)?;
    let Some(key) = Short::<MAP_KEY_MAX>::read(memory, key, key_len)? else { return Ok(NONE) };
    let out = write(memory, value, capacity)?;
    let copied = state.shared.map().get(key.bytes(), state.now, |value| {
        let len = i32::try_from(value.len()).unwrap_or(NO_FIT);
        out.get_mut(..value.len()).map_or(NO_FIT, |out| {
            out.copy_from_slice(value);
            len
        })
    });
    Ok(copied.unwrap_or(NONE))
}

fn map_put(
    mut guest: Guest<'_>,
    key: i32,
    key_len: i32,
    value: i32,
    value_len: i32,
    ttl_ms: i64,
) -> wasmtime::Result<i32> {
    let (memory, state) = split(&mut guest)?;
    let (key, value) = (read(memory, key, key_len)?, read(memory, value, value_len)?);
    let stored = state.shared.map().put(key, value, ttl(ttl_ms)?, state.now);
    state.shared.see(state.now);
    Ok(stored.map_or_else(MapError::code, |()| 0))
}

#[expect(clippy::too_many_arguments, reason = "the ABI's signature")]
fn map_swap(
    mut guest: Guest<'_>,
    key: i32,
    key_len: i32,
    old: i32,
    old_len: i32,
    new: i32,
    new_len: i32,
    ttl_ms: i64,
) -> wasmtime::Result<i32> {
    let (memory, state) = split(&mut guest)?;
    let key = read(memory, key, key_len)?;
    let (old, new) = (read(memory, old, old_len)?, read(memory, new, new_len)?);
    let swapped = state.shared.map().swap(key, old, new, ttl(ttl_ms)?, state.now);
    state.shared.see(state.now);
    Ok(swapped.map_or_else(MapError::code, i32::from))
}

fn map_take(
    mut guest: Guest<'_>,
    key: i32,
    key_len: i32,
    draws: i32,
    count: i32,
) -> wasmtime::Result<i32> {
    let (memory, state) = split(&mut guest)?;
    let count = match usize::try_from(count) {
        Ok(count) if count <= BUCKETS_MAX => count,
        _ => return Ok(NO_FIT),
    };
    let key = read(memory, key, key_len)?;
    let (bytes, _) = range(draws, 0)
        .and_then(|r| memory.get(r.start..r.start + count * Draw::LEN))
        .ok_or_else(outside)?
        .as_chunks::<{ Draw::LEN }>();
    let mut draws = [Draw::default(); BUCKETS_MAX];
    draws.iter_mut().zip(bytes).for_each(|(draw, bytes)| *draw = Draw::from_bytes(bytes));
    let taken = state.shared.map().take(key, draws.get(..count).unwrap_or_default(), state.now);
    state.shared.see(state.now);
    Ok(taken.map_or_else(MapError::code, i32::from))
}

fn map_remove(mut guest: Guest<'_>, key: i32, key_len: i32) -> wasmtime::Result<i32> {
    let (memory, state) = split(&mut guest)?;
    let key = read(memory, key, key_len)?;
    Ok(i32::from(state.shared.map().remove(key, state.now)))
}

fn split<'a>(guest: &'a mut Guest<'_>) -> wasmtime::Result<(&'a mut [u8], &'a mut HostState)> {
    let Some(memory) = guest.data().memory else {
        return Err(wasmtime::Error::msg("host function called by the start function"));
    };
    Ok(memory.data_and_store_mut(guest))
}

/// Addresses of the guest are unsigned.
pub(crate) fn range(ptr: i32, len: i32) -> Option<Range<usize>> {
    let start = usize::try_from(ptr.cast_unsigned()).ok()?;
    let len = usize::try_from(len.cast_unsigned()).ok()?;
    Some(start..start.checked_add(len)?)
}

fn read(memory: &[u8], ptr: i32, len: i32) -> wasmtime::Result<&[u8]> {
    range(ptr, len).and_then(|r| memory.get(r)).ok_or_else(outside)
}

fn write(memory: &mut [u8], ptr: i32, len: i32) -> wasmtime::Result<&mut [u8]> {
    range(ptr, len).and_then(|r| memory.get_mut(r)).ok_or_else(outside)
}

fn outside() -> wasmtime::Error {
    wasmtime::Error::msg("an address given to the host is outside the memory")
}

fn ttl(ms: i64) -> wasmtime::Result<Option<Duration>> {
    let ms = u64::try_from(ms).map_err(|_| wasmtime::Error::msg("a time to live is negative"))?;
    Ok((ms != 0).then(|| Duration::from_millis(ms)))
}

/// A copy of up to `N` guest bytes, for where the guest's memory is written at the same time.
struct Short<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Short<N> {
    /// `None` if it is longer.
    fn read(memory: &[u8], ptr: i32, len: i32) -> wasmtime::Result<Option<Self>> {
        let source = read(memory, ptr, len)?;
        let mut bytes = [0; N];
        let Some(target) = bytes.get_mut(..source.len()) else { return Ok(None) };
        target.copy_from_slice(source);
        Ok(Some(Self { bytes, len: source.len() }))
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

const _: () = assert!(MAP_VALUE_MAX < i32::MAX as usize);
