//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_netio::netns;

use crate::talk::Party;

/// How long a client waits for an answer. Machines are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// No answer for so long counts as none, where there should be none.
pub const SILENCE: Duration = Duration::from_secs(1);
/// How soon a server notices that it shall stop.
const GLANCE: Duration = Duration::from_millis(20);

/// What a client asks over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A connection for each question.
    Tcp,
    /// A socket for each question.
    Udp,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub by: String,
    /// Whom it takes for the client.
    pub sees: IpAddr,
}

/// Answers on TCP and UDP, at one address and port, until it is dropped.
#[derive(Debug)]
pub struct Server(Arc<AtomicBool>);

impl Server {
    /// Starts at the party's address.
    ///
    /// # Errors
    /// If the namespace is not there or the port is taken.
    pub fn start(at: &Party, port: u16, name: &str) -> Result<Self> {
        let address = SocketAddr::new(at.address, port);
        let bound = netns::enter(&at.namespace, || {
            Ok::<_, io::Error>((TcpListener::bind(address)?, UdpSocket::bind(address)?))
        })?;
        let (listener, socket) = bound.with_context(|| format!("no {address}"))?;
        listener.set_nonblocking(true)?;
        socket.set_read_timeout(Some(GLANCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, its_name) = (Arc::clone(&stop), name.to_owned());
        thread::spawn(move || serve_tcp(&listener, &its_name, &stopped));
        let (stopped, its_name) = (Arc::clone(&stop), name.to_owned());
        thread::spawn(move || serve_udp(&socket, &its_name, &stopped));
        Ok(Self(stop))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn line(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", client.ip().to_canonical())
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, client)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let (answer, stop) = (line(name, client), Arc::clone(stop));
        thread::spawn(move || answer_each(&stream, &answer, &stop));
    }
}

fn answer_each(mut stream: &TcpStream, answer: &str, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(GLANCE))?;
    let mut question = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut question) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(answer.as_bytes())?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut question = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut question) {
            // A client that is gone is not the server's concern.
            let _ = socket.send_to(line(name, client).as_bytes(), client);
        }
    }
}

fn parse(text: &str) -> io::Result<Answer> {
    let mut words = text.split_whitespace();
    let answer = words.next().zip(words.next().and_then(|a| a.parse().ok()));
    let (by, sees) = answer.ok_or_else(|| io::Error::other(format!("no answer: `{text}`")))?;
    Ok(Answer { by: by.to_owned(), sees })
}

/// A connection that can ask again and again.
#[derive(Debug)]
pub struct Conversation(TcpStream);

impl Conversation {
    /// Opens it.
    ///
    /// # Errors
    /// As for a connection; `TimedOut` after [`PATIENCE`].
    pub fn open(namespace: &str, to: SocketAddr) -> io::Result<Self> {
        let stream = netns::enter(namespace, || TcpStream::connect_timeout(&to, PATIENCE))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Asks once.
    ///
    /// # Errors
    /// If the connection is broken, or silent for [`PATIENCE`].
    pub fn ask(&mut self) -> io::Result<Answer> {
        self.0.write_all(b"?")?;
        let mut answer = [0; 128];
        let length = self.0.read(&mut answer)?;
        parse(&String::from_utf8_lossy(answer.get(..length).unwrap_or_default()))
    }
}

/// A UDP socket that keeps its port, connected to `to` so that it hears of errors.
///
/// # Errors
/// The kernel's.
pub fn udp_to(namespace: &str, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = netns::enter(namespace, || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to).map(|()| socket)
    })??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks once over a socket from [`udp_to`].
///
/// # Errors
/// The kernel's; `WouldBlock` if there is no answer for [`PATIENCE`].
pub fn ask_over(socket: &UdpSocket) -> io::Result<Answer> {
    socket.send(b"?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    parse(&String::from_utf8_lossy(answer.get(..length).unwrap_or_default()))
}

/// Asks once over a new socket, and expects [`SILENCE`]: true if there is no answer, or an error.
///
/// # Errors
/// There is no such namespace, or no socket for it.
pub fn is_silent(namespace: &str, to: SocketAddr) -> io::Result<bool> {
    let socket = udp_to(namespace, to)?;
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(ask_over(&socket).is_err())
}

/// Asks once, over a new connection or socket.
///
/// # Errors
/// As for [`Conversation`] and [`ask_over`].
pub fn ask(namespace: &str, over: Over, to: SocketAddr) -> io::Result<Answer> {
    match over {
        Over::Tcp => Conversation::open(namespace, to)?.ask(),
        Over::Udp => ask_over(&udp_to(namespace, to)?),
    }
}
