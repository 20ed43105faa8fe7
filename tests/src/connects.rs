//! TCP connections opened one after the other, as benches measure them.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_netio::netns;

use crate::talk::Party;

const MEASURED: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(3);

/// Connections a second that `from` opens to `to`, one after the other, each closed by the listener
/// that `to` leads to, which is in the namespace of `at`.
///
/// # Errors
/// If one fails.
pub fn connects(from: &Party, to: SocketAddr, at: &Party, listener: &TcpListener) -> Result<f64> {
    let stop = AtomicBool::new(false);
    let own = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| accept_until(listener, &stop));
        let rate = netns::enter(&from.namespace, || {
            let (mut count, begun) = (0_u32, Instant::now());
            while begun.elapsed() < MEASURED {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                ensure!(stream.read(&mut [0])? == 0, "the server said something");
                count += 1;
            }
            Ok(f64::from(count) / begun.elapsed().as_secs_f64())
        });
        stop.store(true, Ordering::Relaxed);
        // Wakes the server, which then sees that it shall stop.
        let woken = netns::enter(&at.namespace, || TcpStream::connect(own));
        woken?.context("the server does not end")?;
        server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        rate?
    })
}

fn accept_until(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        listener.accept()?;
    }
    Ok(())
}
