//! The clock that ends calls which run too long: one thread for each engine.
//!
//! It advances the engine's epoch each [`TICK`]. When no call was made for [`IDLE`] it parks, and
//! the next call wakes it; to a call on a busy node this costs one read of a shared word.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

/// Granularity of deadlines: a call is ended one to two ticks after its own at the latest. Each tick is
/// a wake-up beside workers that are busy, so a finer one costs the packets of all.
pub(crate) const TICK: Duration = Duration::from_millis(4);

/// How long the clock goes on after it was last asked to. Longer than the longest deadline, so
/// that no call can be under way when it stops.
const IDLE: Duration = Duration::from_secs(3);

const PARKED: u8 = 0;
/// Running, but no call has been seen since the last look.
const DROWSY: u8 = 1;
const AWAKE: u8 = 2;
const STOPPED: u8 = 3;

/// The thread's handle; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

impl Ticker {
    /// Starts the thread, parked.
    pub(crate) fn start(engine: &wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: AtomicU8::new(PARKED), thread: OnceLock::new() });
        let (its, engine) = (Arc::clone(&shared), engine.weak());
        let handle = thread::Builder::new()
            .name("weft-deadlines".into())
            .spawn(move || run(&its, &engine))?;
        // Nobody else sets it.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self { shared })
    }

    /// Called before each call into a guest.
    #[inline]
    pub(crate) fn keep_awake(&self) {
        if self.shared.state.load(Ordering::Acquire) != AWAKE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.shared.state.swap(AWAKE, Ordering::SeqCst) == PARKED {
            self.unpark();
        }
    }

    fn unpark(&self) {
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }

    /// True if the thread sleeps until somebody calls.
    #[cfg(test)]
    pub(crate) fn is_parked(&self) -> bool {
        self.shared.state.load(Ordering::SeqCst) == PARKED
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.state.store(STOPPED, Ordering::SeqCst);
        self.unpark();
    }
}

fn run(shared: &Shared, engine: &wasmtime::EngineWeak) {
    let swap = |from, to| {
        shared.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    let ticks_to_idle = IDLE.as_micros() / TICK.as_micros();
    let mut idle_ticks = 0;
    loop {
        match shared.state.load(Ordering::SeqCst) {
            STOPPED => return,
            PARKED => {
                thread::park();
                idle_ticks = 0;
                continue;
            }
            _ => thread::sleep(TICK),
        }
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
        idle_ticks += 1;
        if idle_ticks == ticks_to_idle {
            idle_ticks = 0;
            // Nobody called for a whole round: every call has ended.
            if !swap(DROWSY, PARKED) {
                swap(AWAKE, DROWSY);
            }
        }
    }
}

/// Ticks that a call sees in `deadline` at least: two more than fit, as it sees at once the ones
/// before it, and one is under way.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.as_micros().div_ceil(TICK.as_micros());
    u64::try_from(ticks).unwrap_or(u64::MAX - 2) + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_sleeps_until_the_first_call_and_ends_with_the_engine() {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        let engine = wasmtime::Engine::new(&config).unwrap();
        let ticker = Ticker::start(&engine).unwrap();
        assert!(ticker.is_parked());
        ticker.keep_awake();
        assert!(!ticker.is_parked());
        let shared = Arc::downgrade(&ticker.shared);
        drop(ticker);
        while shared.strong_count() > 0 {
            thread::sleep(TICK);
        }
    }

    #[test]
    fn deadline_is_never_shorter_than_asked() {
        assert_eq!(ticks(Duration::from_millis(1)), 3);
        assert_eq!(ticks(Duration::from_micros(1)), 3);
        assert_eq!(ticks(Duration::from_micros(4001)), 4);
    }
}
