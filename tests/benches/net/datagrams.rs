//! The highest rate of UDP datagrams of which at most one in a hundred is lost.
//!
//! A search: probes at one rate each, further up or down until a rate that passes and one that does
//! not are next to each other. What passed is tried once more for longer.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_timerslack;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use weft_tests::talk::Party;

const LOSS_MAX: f64 = 0.01;
const PROBE: Duration = Duration::from_millis(200);
const CONFIRMATION: Duration = Duration::from_millis(400);
/// No datagram comes after the last for so long: the rest is lost.
const SILENCE: Duration = Duration::from_millis(25);

/// Where a search begins that knows nothing, in datagrams a second.
const FIRST: f64 = 20_000.0;
/// First step away from what an earlier search found; they grow to the largest.
const STEP: f64 = 1.12;
const STEP_MAX: f64 = 2.0;
/// Rates next to each other: what a probe of this length can still tell apart.
const PRECISION: f64 = 1.06;
const RATE_MIN: f64 = 200.0;
/// A sender that stays this far behind what it was told cannot do more.
const SENDER_LIMIT: f64 = 0.9;
const CONFIRMATIONS_MAX: usize = 6;

/// Bytes of the receiver's buffer: a receiver that waits for a CPU must not be what loses them.
const RECEIVE_BUFFER: usize = 8 << 20;
const DRAINED_EVERY: Duration = Duration::from_micros(200);
/// How long the sender sleeps when it is ahead, and how much it makes up for at most when it was
/// held up: more at once than a queue on the way takes would measure that queue.
const PAUSE: Duration = Duration::from_micros(50);
const MADE_UP: Duration = Duration::from_millis(1);

/// Datagrams a second. `earlier` is what a search on the same network found.
pub(crate) fn highest_rate(
    from: &Party,
    to: &Party,
    payload: usize,
    earlier: Option<f64>,
) -> Result<f64> {
    let probe = |rate: f64, length: Duration| Probe::run(from, to, payload, rate, length);
    let mut rate = find(earlier, |rate| probe(rate, PROBE))?;
    for _ in 0..CONFIRMATIONS_MAX {
        let confirmed = probe(rate, CONFIRMATION)?;
        if confirmed.passed() {
            return Ok(confirmed.delivered);
        }
        rate /= PRECISION;
    }
    bail!("what passes a short probe at {rate:.0} datagrams a second does not pass a longer one")
}

fn find(earlier: Option<f64>, mut probe: impl FnMut(f64) -> Result<Probe>) -> Result<f64> {
    let (mut rate, mut step) = earlier.map_or((FIRST, STEP_MAX), |rate| (rate, STEP));
    let (mut passes, mut fails) = (None, None);
    loop {
        let mut seen = probe(rate)?;
        if !seen.passed() || seen.offered < SENDER_LIMIT * rate {
            // Once more: somebody else may have had the CPU for a moment.
            seen = seen.better_of(probe(rate)?);
        }
        if !seen.passed() {
            fails = Some(rate);
        } else if seen.offered < SENDER_LIMIT * rate {
            return Ok(seen.offered);
        } else {
            passes = Some(rate);
        }
        rate = match (passes, fails) {
            (Some(low), Some(high)) if high <= low * PRECISION => return Ok(low),
            (Some(low), Some(high)) => (low * high).sqrt(),
            (Some(low), None) => low * step,
            (None, _) if rate < RATE_MIN => bail!("even {rate:.0} datagrams a second are lost"),
            (None, _) => rate / step,
        };
        // What is found may be far from where the search began.
        step = (step * step).min(STEP_MAX);
    }
}

/// What one rate did. All in datagrams a second.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// What was really sent.
    offered: f64,
    delivered: f64,
}

impl Probe {
    fn run(from: &Party, to: &Party, payload: usize, rate: f64, length: Duration) -> Result<Self> {
        let (sender, receiver) = (from.udp()?, to.udp()?);
        sender.connect(receiver.local_addr()?)?;
        setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("receive buffer")?;
        receiver.set_nonblocking(true)?;
        let all_sent = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let counting = scope.spawn(|| count(&receiver, &all_sent));
            let sending = scope.spawn(|| send(&sender, &vec![0x5a; payload], rate, length)).join();
            all_sent.store(true, Ordering::Relaxed);
            let received = joined(counting.join())?;
            let (sent, took) = joined(sending)?;
            let per_second = |count: u64| count as f64 / took.as_secs_f64();
            Ok(Self { offered: per_second(sent), delivered: per_second(received) })
        })
    }

    fn better_of(self, other: Self) -> Self {
        match (self.passed(), other.passed()) {
            (true, false) => self,
            (false, true) => other,
            _ if self.delivered >= other.delivered => self,
            _ => other,
        }
    }

    fn passed(&self) -> bool {
        self.delivered >= (1.0 - LOSS_MAX) * self.offered
    }
}

/// Sends at an even rate; returns how many, and how long it took.
fn send(
    socket: &UdpSocket,
    datagram: &[u8],
    rate: f64,
    length: Duration,
) -> Result<(u64, Duration)> {
    // The default of 50 us would make the pauses, and so the bursts, twice as long.
    set_timerslack(1)?;
    let (mut sent, mut given_up) = (0_u64, 0_u64);
    let debt_max = (rate * MADE_UP.as_secs_f64()).max(1.0) as u64;
    let begun = Instant::now();
    loop {
        let elapsed = begun.elapsed();
        if elapsed >= length {
            return Ok((sent, elapsed));
        }
        let due = (elapsed.as_secs_f64() * rate) as u64;
        let debt = due.saturating_sub(sent + given_up);
        given_up += debt.saturating_sub(debt_max);
        if debt == 0 {
            std::thread::sleep(PAUSE);
        }
        for _ in 0..debt.min(debt_max) {
            match socket.send(datagram) {
                // A queue that is full is a loss on the way.
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {}
                Err(e) => return Err(e).context("send"),
            }
            sent += 1;
        }
    }
}

/// Takes what has come and sleeps, so that no sender pays for waking the receiver at each datagram.
fn count(socket: &UdpSocket, all_sent: &AtomicBool) -> Result<u64> {
    set_timerslack(1)?;
    let (mut received, mut buffer, mut last) = (0, [0; 2048], Instant::now());
    loop {
        // Before the look, so that what was sent last has the whole of the silence.
        let waiting_for_last = all_sent.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(_) => (received, last) = (received + 1, Instant::now()),
            Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e).context("receive"),
            Err(_) if !waiting_for_last => {
                last = Instant::now();
                std::thread::sleep(DRAINED_EVERY);
            }
            Err(_) if last.elapsed() > SILENCE => return Ok(received),
            Err(_) => std::thread::sleep(DRAINED_EVERY),
        }
    }
}

fn joined<T>(thread: std::thread::Result<Result<T>>) -> Result<T> {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
