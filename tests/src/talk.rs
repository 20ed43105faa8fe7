//! Traffic between namespaces with plain sockets, every byte of it compared.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;

/// How long a connection may take, or stand still.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an echo may take before the datagram is sent again.
const ECHO_PATIENCE: Duration = Duration::from_millis(700);
const ECHO_TRIES: usize = 5;
/// Larger than a segment, smaller than a socket buffer.
const CHUNK: usize = 64 << 10;

/// Somebody who can send: a namespace and the address used in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Network namespace.
    pub namespace: String,
    /// Its address.
    pub address: IpAddr,
}

impl Party {
    /// A UDP socket at the party's address.
    ///
    /// # Errors
    /// If the namespace or the address is not there.
    pub fn udp(&self) -> Result<UdpSocket> {
        let at = SocketAddr::new(self.address, 0);
        let socket = netns::enter(&self.namespace, || UdpSocket::bind(at))?;
        let socket = socket.with_context(|| format!("no {at} in {}", self.namespace))?;
        socket.set_read_timeout(Some(ECHO_PATIENCE))?;
        Ok(socket)
    }

    /// A TCP listener at the party's address; port 0 takes a free one.
    ///
    /// # Errors
    /// If the namespace or the address is not there, or the port is taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let at = SocketAddr::new(self.address, port);
        let bound = netns::enter(&self.namespace, || TcpListener::bind(at))?;
        bound.with_context(|| format!("no {at} in {}", self.namespace))
    }
}

/// `length` bytes without a pattern that a mistake could repeat.
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `from` opens a connection to `to`; `data` goes there and comes back, at the same time, and both
/// see each other's own address.
///
/// # Errors
/// If the connection fails, stands still for 5 seconds, or a byte or address differs.
pub fn tcp_both_ways(from: &Party, to: &Party, data: &[u8]) -> Result<()> {
    let listener = to.listen(0)?;
    let server = listener.local_addr()?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || serve_one(&listener, data.len()));
        let stream =
            netns::enter(&from.namespace, || TcpStream::connect_timeout(&server, PATIENCE))?;
        let stream = stream.with_context(|| format!("no connection from {from:?} to {server}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut writer = stream.try_clone()?;
        let writing = scope.spawn(move || data.chunks(CHUNK).try_for_each(|c| writer.write_all(c)));
        let back = read_all(&stream, data.len())?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let peer = echo.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        ensure!(back == data, "{} bytes came back changed", data.len());
        ensure!(peer.ip() == from.address, "{to:?} sees {peer} instead of {from:?}");
        Ok(())
    })
}

fn serve_one(listener: &TcpListener, length: usize) -> Result<SocketAddr> {
    let (stream, peer) = accept(listener)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut left, mut chunk) = (length, vec![0; CHUNK]);
    while left > 0 {
        let read = (&stream).read(&mut chunk)?;
        ensure!(read > 0, "the connection ended {left} bytes early");
        (&stream).write_all(chunk.get(..read).unwrap_or_default())?;
        left = left.saturating_sub(read);
    }
    Ok(peer)
}

/// The next connection.
///
/// # Errors
/// If there is none for 5 seconds.
pub fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, peer));
            }
            Err(e) if std::time::Instant::now() > until => {
                return Err(e).context("nobody connects");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn read_all(mut stream: &TcpStream, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).context("the bytes do not come back")?;
    Ok(bytes)
}

/// `from` sends a datagram to `to`, which sends it back; a lost one is sent again.
///
/// # Errors
/// If none of five comes back, or a byte or address differs.
pub fn udp_both_ways(from: &Party, to: &Party, data: &[u8]) -> Result<()> {
    let (client, server) = (from.udp()?, to.udp()?);
    let server_address = server.local_addr()?;
    let mut buffer = vec![0; 65536];
    let mut last = None;
    for _ in 0..ECHO_TRIES {
        client.send_to(data, server_address)?;
        let answer = server.recv_from(&mut buffer).and_then(|(length, peer)| {
            server.send_to(buffer.get(..length).unwrap_or_default(), peer)?;
            let (length, back) = client.recv_from(&mut buffer)?;
            Ok((length, peer, back))
        });
        match answer {
            Ok((length, peer, back)) => {
                ensure!(
                    buffer.get(..length) == Some(data),
                    "{} bytes came back changed",
                    data.len()
                );
                ensure!(peer.ip() == from.address, "{to:?} sees {peer} instead of {from:?}");
                ensure!(back == server_address, "{from:?} hears from {back}, not {server_address}");
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
    }
    let bytes = data.len();
    Err(last.map_or_else(|| anyhow::anyhow!("not tried"), anyhow::Error::from))
        .with_context(|| format!("no echo of {bytes} bytes between {from:?} and {to:?}"))
}
