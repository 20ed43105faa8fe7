//! Traffic between pods over plain sockets that this process holds in the pods' namespaces.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use weft_netio::NetNs;

use crate::TestLab;

/// How long a socket waits before a test gives up.
const PATIENCE: Duration = Duration::from_secs(15);
const CHUNK: usize = 64 * 1024;
/// Datagrams of an [`Echoes`] stream that may be under way at once.
const IN_FLIGHT_MAX: usize = 16;

/// Family of the addresses that pods talk with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl TestLab {
    /// Runs `work` in the namespace of a node or pod; sockets it opens stay there.
    ///
    /// # Errors
    /// If there is no such node or pod.
    pub fn inside<T: Send>(&self, target: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(NetNs::open(&self.namespace_of(target)?)?.enter(work)?)
    }

    /// A pod's address of a family.
    ///
    /// # Errors
    /// If there is no such pod, or it has none.
    pub fn address(&self, pod: &str, family: Family) -> Result<IpAddr> {
        match family {
            Family::V4 => self.pod_v4(pod),
            Family::V6 => self.pod_v6(pod),
        }
    }

    /// A listener in a pod; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn listen(&self, pod: &str, family: Family, port: u16) -> Result<TcpListener> {
        let address = SocketAddr::new(self.address(pod, family)?, port);
        Ok(self.inside(pod, || TcpListener::bind(address))??)
    }

    /// Tries a connection from a pod.
    ///
    /// # Errors
    /// Of the lab; the inner one is what the connection met.
    pub fn connect(&self, pod: &str, to: SocketAddr) -> Result<std::io::Result<TcpStream>> {
        self.inside(pod, || TcpStream::connect_timeout(&to, Duration::from_secs(3)))
    }

    /// Connections between two pods, the client's end first.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn connections(
        &self,
        (from, to): (&str, &str),
        family: Family,
        count: usize,
    ) -> Result<Vec<(TcpStream, TcpStream)>> {
        let listener = self.listen(to, family, 0)?;
        let address = listener.local_addr()?;
        let mut all = Vec::new();
        for _ in 0..count {
            let client = self.connect(from, address)?.context("cannot connect")?;
            let server = listener.accept()?.0;
            for end in [&client, &server] {
                end.set_read_timeout(Some(PATIENCE))?;
                end.set_write_timeout(Some(PATIENCE))?;
                end.set_nodelay(true)?;
            }
            all.push((client, server));
        }
        Ok(all)
    }

    /// One connection between two pods, the client's end first.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn connection(&self, pods: (&str, &str), family: Family) -> Result<(TcpStream, TcpStream)> {
        self.connections(pods, family, 1)?.pop().context("no connection")
    }

    /// A datagram socket in a pod; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn datagrams(&self, pod: &str, family: Family, port: u16) -> Result<UdpSocket> {
        let address = SocketAddr::new(self.address(pod, family)?, port);
        let socket = self.inside(pod, || UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(socket)
    }
}

/// Bytes without end that look random; the same for the same seed.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// The bytes of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills the buffer with the next bytes; lengths other than multiples of 8 end the stream.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.to_le_bytes();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }
}

/// Sends a text from one end of a connection to the other and back.
///
/// # Errors
/// If it does not come back as it was, or the connection is gone.
pub fn echo_once(client: &mut TcpStream, server: &mut TcpStream, text: &[u8]) -> Result<()> {
    let mut there = vec![0; text.len()];
    client.write_all(text).context("client's write")?;
    server.read_exact(&mut there).context("server's read")?;
    server.write_all(&there).context("server's write")?;
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).context("client's read")?;
    ensure!(back == text, "another text came back");
    Ok(())
}

/// A TCP transfer that goes on, as fast as it can, until it is stopped; every byte is compared.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    meter: Arc<Mutex<Meter>>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

#[derive(Debug)]
struct Meter {
    last: Instant,
    longest: Duration,
}

impl Meter {
    fn mark(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

impl Transfer {
    /// Starts it on a connection, from the first end to the second.
    #[must_use]
    pub fn start((mut from, mut to): (TcpStream, TcpStream)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let meter = Meter { last: Instant::now(), longest: Duration::ZERO };
        let meter = Arc::new(Mutex::new(meter));
        let (stopped, marked) = (stop.clone(), meter.clone());
        let sender = std::thread::spawn(move || send_until(&mut from, &stopped));
        let receiver = std::thread::spawn(move || receive_all(&mut to, &marked));
        Self { stop, meter, sender, receiver }
    }

    /// Longest time without a byte since the last call, also one that has not ended.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = meter.longest.max(meter.last.elapsed());
        meter.longest = Duration::ZERO;
        longest
    }

    /// Stops it and gives the number of bytes that went through.
    ///
    /// # Errors
    /// If the connection broke, or bytes were lost or changed.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender).context("sender")?;
        let received = join(self.receiver).context("receiver")?;
        ensure!(sent == received, "{sent} bytes sent, {received} received");
        Ok(received)
    }
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn send_until(stream: &mut TcpStream, stop: &AtomicBool) -> Result<u64> {
    let (mut noise, mut chunk, mut sent) = (Noise::new(7), vec![0; CHUNK], 0);
    while !stop.load(Ordering::Relaxed) {
        noise.fill(&mut chunk);
        stream.write_all(&chunk).with_context(|| format!("after {sent} bytes"))?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive_all(stream: &mut TcpStream, meter: &Mutex<Meter>) -> Result<u64> {
    let (mut noise, mut expected) = (Noise::new(7), vec![0; CHUNK]);
    let (mut chunk, mut received) = (vec![0; CHUNK], 0);
    loop {
        let at = received % CHUNK;
        let length = stream.read(&mut chunk[at..]).with_context(|| format!("at {received}"))?;
        meter.lock().unwrap_or_else(PoisonError::into_inner).mark();
        if length == 0 {
            return Ok(received as u64);
        }
        if at == 0 {
            noise.fill(&mut expected);
        }
        let end = at + length;
        ensure!(chunk[at..end] == expected[at..end], "other bytes at {received}");
        received += length;
    }
}

/// A pod's UDP service that sends every datagram back; ends when dropped.
#[derive(Debug)]
pub struct EchoService {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
}

impl EchoService {
    /// Starts it; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn start(lab: &TestLab, pod: &str, family: Family, port: u16) -> Result<Self> {
        let socket = lab.datagrams(pod, family, port)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let service = Self { stop: stop.clone(), address: socket.local_addr()? };
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::Relaxed) {
                // An ICMP error of an earlier answer shows here as well: it is the client's matter.
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(service)
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EchoService {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Datagrams that go to an [`EchoService`] and back until stopped, about 1000 a second.
#[derive(Debug)]
pub struct Echoes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(usize, usize)>>,
}

impl Echoes {
    /// Starts them from a pod.
    ///
    /// # Errors
    /// If the pod is unknown.
    pub fn start(lab: &TestLab, pod: &str, service: &EchoService) -> Result<Self> {
        let family = if service.address.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = lab.datagrams(pod, family, 0)?;
        socket.connect(service.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || echo_until(&socket, &stopped));
        Ok(Self { stop, thread })
    }

    /// Stops them and gives how many were sent and how many came back.
    ///
    /// # Errors
    /// If the socket met an error, or a datagram came back twice.
    pub fn stop(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.thread)
    }
}

/// Keeps few datagrams under way, so that no buffer can be what loses one.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) -> Result<(usize, usize)> {
    let (mut back, mut received, mut last) = (Vec::new(), 0, Instant::now());
    let mut buffer = [0; 64];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let under_way = back.len() - received;
        if !stopping && under_way < IN_FLIGHT_MAX {
            socket.send(&back.len().to_be_bytes()).context("send")?;
            back.push(false);
        }
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let number = usize::from_be_bytes(buffer[..8].try_into()?);
                let seen = back.get_mut(number).context("a datagram nobody sent")?;
                ensure!(!*seen, "datagram {number} came back twice");
                (*seen, received, last) = (true, received + 1, Instant::now());
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(other) => bail!("{other} bytes came back"),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).context("receive"),
        }
        let lost = last.elapsed() > Duration::from_secs(2);
        if (stopping && back.len() == received) || (lost && (stopping || under_way > 0)) {
            return Ok((back.len(), received));
        }
    }
}
