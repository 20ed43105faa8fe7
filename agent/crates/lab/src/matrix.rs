//! Who reaches whom: every pair of pods, each protocol, each family, with real sockets.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_netio::{InNetNs, NetNs, netns};

use crate::Pod;

/// Port that pods answer on while a matrix is made.
const ECHO_PORT: u16 = 7007;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A lost UDP datagram is sent again this often before the cell fails.
const UDP_TRIES: usize = 3;
const QUESTION: &[u8] = b"weft";

/// What a cell tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection with an echoed message.
    Tcp,
    /// An echoed datagram.
    Udp,
    /// `ping`.
    Icmp,
}

/// One try.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Name of the asking pod.
    pub from: String,
    /// Name of the asked pod.
    pub to: String,
    /// With which protocol.
    pub protocol: Protocol,
    /// At which address.
    pub address: IpAddr,
    /// Why not, if not.
    pub failure: Option<String>,
}

/// Every try.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// In order of asking pod, asked pod, address, protocol.
    pub cells: Vec<Cell>,
}

impl Matrix {
    /// Asks from every pod to every other, at each of its addresses, with TCP, UDP and ICMP.
    ///
    /// # Errors
    /// If a pod's namespace cannot be entered; a pod that does not answer is a failed cell.
    pub fn run(pods: &[Pod]) -> Result<Self> {
        let echoes: Vec<Echo> = pods.iter().map(Echo::start).collect::<Result<_>>()?;
        let rows: Vec<_> = pods
            .iter()
            .map(|from| {
                let others: Vec<Pod> =
                    pods.iter().filter(|p| p.name != from.name).cloned().collect();
                let from = from.clone();
                std::thread::spawn(move || row(&from, &others))
            })
            .collect();
        let mut cells = Vec::new();
        for row in rows {
            cells.extend(row.join().map_err(|_| anyhow::anyhow!("a matrix row panicked"))??);
        }
        drop(echoes);
        Ok(Self { cells })
    }

    /// The tries that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|c| c.failure.is_some())
    }
}

fn row(from: &Pod, others: &[Pod]) -> Result<Vec<Cell>> {
    let (name, namespace) = (from.name.clone(), from.namespace.clone());
    let others = others.to_vec();
    netns::enter(&from.namespace, move || {
        let mut cells = Vec::new();
        for to in &others {
            for address in &to.addresses {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                    let failure =
                        ask(protocol, *address, &namespace).err().map(|e| format!("{e:#}"));
                    let (from, to) = (name.clone(), to.name.clone());
                    cells.push(Cell { from, to, protocol, address: *address, failure });
                }
            }
        }
        cells
    })
    .context("cannot enter the pod")
}

fn ask(protocol: Protocol, address: IpAddr, namespace: &str) -> Result<()> {
    let server = SocketAddr::new(address, ECHO_PORT);
    let mut answer = [0; QUESTION.len()];
    match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&server, ANSWER_TIMEOUT)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.write_all(QUESTION)?;
            stream.read_exact(&mut answer)?;
            let seen = stream.local_addr()?.ip();
            anyhow::ensure!(answer == *QUESTION, "the answer from {seen} is garbled");
        }
        Protocol::Udp => udp_echo(server)?,
        Protocol::Icmp => {
            let mut ping = Command::new("ping");
            ping.args(["-c1", "-W1", &address.to_string()]).stdout(Stdio::null());
            ping.in_netns(&NetNs::open(namespace)?);
            let status = ping.status().context("cannot run ping")?;
            anyhow::ensure!(status.success(), "no echo reply");
        }
    }
    Ok(())
}

fn udp_echo(server: SocketAddr) -> Result<()> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT / 2))?;
    socket.connect(server)?;
    let mut answer = [0; 64];
    let mut last = None;
    for _ in 0..UDP_TRIES {
        match socket.send(QUESTION).and_then(|_| socket.recv(&mut answer)) {
            Ok(length) => {
                anyhow::ensure!(answer.get(..length) == Some(QUESTION), "the answer is garbled");
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("not tried"), Into::into))
}

/// TCP and UDP echo in a pod, until dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    fn start(pod: &Pod) -> Result<Self> {
        let bound = netns::enter(&pod.namespace, || {
            let any = SocketAddr::from(([0u16; 8], ECHO_PORT));
            Ok::<_, std::io::Error>((TcpListener::bind(any)?, UdpSocket::bind(any)?))
        })?;
        let (tcp, udp) = bound.with_context(|| format!("cannot listen in pod {}", pod.name))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_tcp, stop_udp) = (stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || serve_tcp(&tcp, &stop_tcp)),
            std::thread::spawn(move || serve_udp(&udp, &stop_udp)),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let mut message = [0; QUESTION.len()];
                let served = stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_read_timeout(Some(ANSWER_TIMEOUT)))
                    .and_then(|()| stream.read_exact(&mut message))
                    .and_then(|()| stream.write_all(&message));
                // The asker sees the failure and reports it.
                drop(served);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut message = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut message) {
            Ok((length, from)) => {
                let _ = socket.send_to(message.get(..length).unwrap_or_default(), from);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

impl fmt::Display for Matrix {
    /// One line for each pair: a mark for each family and protocol, then the summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs: Vec<(&str, &str)> =
            self.cells.iter().map(|c| (c.from.as_str(), c.to.as_str())).collect();
        pairs.dedup();
        for (from, to) in pairs {
            let of_pair = |v6: bool| {
                let cells = self
                    .cells
                    .iter()
                    .filter(move |c| c.from == from && c.to == to && c.address.is_ipv6() == v6);
                let words = cells.map(|c| {
                    let mark = if c.failure.is_some() { "FAILED" } else { "ok" };
                    format!("{:?} {mark}", c.protocol).to_lowercase()
                });
                words.collect::<Vec<_>>().join(", ")
            };
            writeln!(f, "{from:>10} -> {to:<10} v4: {:<32} v6: {}", of_pair(false), of_pair(true))?;
        }
        let failed = self.failures().count();
        writeln!(f, "{} of {} ok", self.cells.len() - failed, self.cells.len())?;
        for cell in self.failures() {
            let why = cell.failure.as_deref().unwrap_or_default();
            writeln!(
                f,
                "  {} -> {} {} {:?}: {why}",
                cell.from, cell.to, cell.address, cell.protocol
            )?;
        }
        Ok(())
    }
}
