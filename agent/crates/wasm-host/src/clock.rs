//! The clock that ends calls which run too long: a timer of CPU time for each thread that calls.
//!
//! A thread is interrupted after each [`TICK`] of CPU time that it used; the handler advances the
//! epoch of the engine whose call is under way there. No other thread has to be woken for it, which
//! would disturb workers that are busy beside, and a thread that sleeps or waits for its CPU is left
//! alone.

#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::io;
use std::marker::PhantomData;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use libc::{c_int, timer_t};

/// CPU time between two ticks; the kernel looks at it with its own tick, which may be coarser.
const TICK: Duration = Duration::from_millis(4);

/// Nothing else uses it, and a process that runs plugins needs it for this.
const SIGNAL: c_int = libc::SIGVTALRM;

thread_local! {
    /// The engine of the call under way; null if there is none.
    static UNDER_WAY: Cell<*const wasmtime::Engine> = const { Cell::new(null()) };
    /// Ticks since that call began.
    static TICKS: Cell<u64> = const { Cell::new(0) };
    /// This thread's timer, once it has called for a packet.
    static TIMER: OnceCell<Timer> = const { OnceCell::new() };
}

/// Ticks after which a call has had `deadline`: one more than fit, as the first may come at once.
pub(crate) fn ticks(deadline: Duration) -> u64 {
    let ticks = deadline.as_micros().div_ceil(TICK.as_micros());
    u64::try_from(ticks).unwrap_or(u64::MAX - 1) + 1
}

/// Ticks since the call began that is under way on this thread.
pub(crate) fn ticked() -> u64 {
    TICKS.get()
}

/// Lets this thread's calls be ended for as long as it lives. Cheap if they can be already.
///
/// # Errors
/// The kernel's, if it has no timer left.
#[inline]
pub(crate) fn watch_thread() -> io::Result<()> {
    TIMER.with(|timer| {
        if timer.get().is_none() {
            // Set by nobody else: the cell is this thread's.
            let _ = timer.set(Timer::start()?);
        }
        Ok(())
    })
}

/// Lets this thread's calls be ended until what is returned is dropped, if they cannot be already.
///
/// # Errors
/// The kernel's, if it has no timer left.
pub(crate) fn watch() -> io::Result<Option<Timer>> {
    if TIMER.with(|timer| timer.get().is_some()) { Ok(None) } else { Timer::start().map(Some) }
}

/// A call into a guest of `engine`, from its beginning to the drop of this.
pub(crate) struct Call<'e>(PhantomData<(&'e wasmtime::Engine, *const ())>);

impl<'e> Call<'e> {
    #[inline]
    pub(crate) fn begin(engine: &'e wasmtime::Engine) -> Self {
        TICKS.set(0);
        UNDER_WAY.set(engine);
        // The handler runs on this thread: the compiler alone must keep the order.
        compiler_fence(Ordering::SeqCst);
        Self(PhantomData)
    }
}

impl Drop for Call<'_> {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        UNDER_WAY.set(null());
    }
}

/// Interrupts the thread that made it, which alone may drop it: then no signal of it is pending.
pub(crate) struct Timer {
    id: timer_t,
    of_this_thread: PhantomData<*const ()>,
}

impl Timer {
    fn start() -> io::Result<Self> {
        install()?;
        // SAFETY: plain C structures for which all zeroes is a value; the calls read them, and write
        // the timer's id and nothing else. The signal has its handler.
        unsafe {
            let mut signals: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, SIGNAL);
            match libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const signals, null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_notify_thread_id = libc::gettid();
            let mut id: timer_t = null_mut();
            let clock = libc::CLOCK_THREAD_CPUTIME_ID;
            check(libc::timer_create(clock, &raw mut event, &raw mut id))?;
            let timer = Self { id, of_this_thread: PhantomData };
            let mut period: libc::itimerspec = zeroed();
            period.it_interval.tv_nsec = libc::c_long::from(TICK.subsec_nanos().cast_signed());
            period.it_value = period.it_interval;
            check(libc::timer_settime(timer.id, 0, &raw const period, null_mut()))?;
            Ok(timer)
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is this one's, and it is deleted once.
        unsafe { libc::timer_delete(self.id) };
    }
}

/// Gives the signal its handler, once in the life of the process.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: as in `Timer::start`; the handler does nothing that a signal handler may not.
        let installed = unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = tick as extern "C" fn(c_int) as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            check(libc::sigaction(SIGNAL, &raw const action, null_mut()))
        };
        installed.map_err(|error| error.raw_os_error().unwrap_or_default())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The signal handler: atomic and thread-local words only.
extern "C" fn tick(_: c_int) {
    TICKS.set(TICKS.get() + 1);
    // SAFETY: a call that is under way borrows its engine, and this runs on the call's thread.
    if let Some(engine) = unsafe { UNDER_WAY.get().as_ref() } {
        engine.increment_epoch();
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    /// Ticks that come while this thread computes; fails if `count` do not come in 10 s.
    fn compute(count: u64) {
        let begun = Instant::now();
        while ticked() < count {
            black_box((0..1000).sum::<u64>());
            assert!(begun.elapsed() < Duration::from_secs(10), "no tick");
        }
    }

    #[test]
    fn only_a_thread_that_computes_is_interrupted() {
        let engine = wasmtime::Engine::default();
        let watched = watch().unwrap();
        let call = Call::begin(&engine);
        compute(3);
        TICKS.set(0);
        std::thread::sleep(TICK * 20);
        assert!(ticked() <= 1, "{} ticks asleep", ticked());
        drop((call, watched));
        TICKS.set(0);
        let begun = Instant::now();
        while begun.elapsed() < TICK * 10 {
            black_box((0..1000).sum::<u64>());
        }
        assert_eq!(ticked(), 0, "the timer is gone");
    }

    #[test]
    fn deadline_is_never_shorter_than_asked() {
        assert_eq!(ticks(Duration::from_millis(1)), 2);
        assert_eq!(ticks(Duration::from_micros(1)), 2);
        assert_eq!(ticks(Duration::from_micros(4001)), 3);
    }
}
