//! Time of a byte there and back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::streams::{self, Ends};

/// The scheduler and whoever heeds load settle.
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(400);

/// Times of a byte there and back in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrips {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Measures round trips on one connection, with both ends on the same CPU, or on `cpus` = 2.
pub(crate) fn ping_pong(ends: Ends<'_>, cpus: usize) -> Result<RoundTrips> {
    let available = cpus_of_this_thread()?;
    let at = |number: usize| available.get(number).copied();
    let client_cpu = at(0).context("no CPU")?;
    let server_cpu = at(cpus - 1).with_context(|| format!("this machine lacks {cpus} CPUs"))?;
    let (client, server) = streams::connect(ends)?;
    let mut times = std::thread::scope(|scope| {
        let echo = scope.spawn(move || pin(server_cpu).and_then(|()| echo(&server)));
        let asked = scope.spawn(move || pin(client_cpu).and_then(|()| ask(client))).join();
        let (echoed, asked) = (joined(echo.join()), joined(asked)?);
        echoed.map(|()| asked)
    })?;
    ensure!(times.len() >= 100, "only {} round trips in {MEASURED:?}", times.len());
    times.sort_unstable();
    let quantile = |part: f64| {
        let rank = ((times.len() - 1) as f64 * part).round() as usize;
        times[rank].as_secs_f64() * 1e6
    };
    Ok(RoundTrips { p50: quantile(0.5), p99: quantile(0.99) })
}

fn cpus_of_this_thread() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn echo(mut stream: &TcpStream) -> Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Ends the connection when it is done.
fn ask(mut stream: TcpStream) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(1 << 17);
    let begun = Instant::now();
    loop {
        let asked = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        let took = asked.elapsed();
        match asked - begun {
            early if early < WARM_UP => {}
            late if late > WARM_UP + MEASURED => return Ok(times),
            _ => times.push(took),
        }
    }
}

fn joined<T>(thread: std::thread::Result<Result<T>>) -> Result<T> {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
