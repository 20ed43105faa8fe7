//! Queries for names over plain sockets, as stub resolvers send them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::talk::Party;

/// Types of records.
pub const A: u16 = 1;
/// See [`A`].
pub const AAAA: u16 = 28;

const HEADER: usize = 12;
/// Flag of an answer.
const RESPONSE: u8 = 0x80;
/// Recursion desired.
const RECURSION: u8 = 1;

/// A query of class IN for a whole name, without a dot at its end.
#[must_use]
pub fn query(id: u16, name: &str, rtype: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([RECURSION, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(rtype.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    message
}

/// # Errors
/// If this does not answer the query with one record.
fn check(query: &[u8], answer: &[u8]) -> Result<()> {
    let head = answer.get(..HEADER).context("no header")?;
    ensure!(head[2] & RESPONSE != 0 && head[3] & 0xf == 0, "flags {:x?}", &head[2..4]);
    ensure!(head[4..8] == [0, 1, 0, 1], "counts {:x?}", &head[4..]);
    ensure!(answer.get(HEADER..query.len()) == query.get(HEADER..), "another question");
    Ok(())
}

/// The address of an answer whose only record, of that type, is the last of all.
fn only_address(query: &[u8], answer: &[u8], rtype: u16) -> Result<IpAddr> {
    check(query, answer)?;
    let (length, v4) = if rtype == A { (4, true) } else { (16, false) };
    let data = answer.len().checked_sub(length).and_then(|at| answer.get(at..));
    let data = data.context("no data")?;
    Ok(match v4 {
        true => <[u8; 4]>::try_from(data).map(Ipv4Addr::from)?.into(),
        false => <[u8; 16]>::try_from(data).map(Ipv6Addr::from)?.into(),
    })
}

/// What became of pairs of queries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pairs {
    /// Queries that got no answer in time.
    pub lost: usize,
    /// Longest time until both answers of a pair were there.
    pub slowest: Duration,
}

/// Asks for both families of a name from one socket, both at once, as glibc does, one pair after the other.
///
/// # Errors
/// The sockets', or an answer that is not one of `addresses`.
pub fn pairs(
    client: &Party,
    server: SocketAddr,
    name: &str,
    addresses: [IpAddr; 2],
    count: usize,
    patience: Duration,
) -> Result<Pairs> {
    let socket = client.udp()?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    let types = [A, AAAA];
    let mut pairs = Pairs::default();
    let mut ids = (0..=u16::MAX).cycle();
    for _ in 0..count {
        let begun = Instant::now();
        let asked = types.map(|rtype| query(ids.next().unwrap_or_default(), name, rtype));
        for message in &asked {
            socket.send(message)?;
        }
        let mut waiting = [true; 2];
        while waiting.contains(&true) {
            let Some(answer) = receive(&socket)? else { break };
            let of = asked.iter().position(|query| answer.get(..2) == query.get(..2));
            // An answer that comes late is that of a query that is lost already.
            let Some(of) = of.filter(|of| waiting[*of]) else { continue };
            let address = only_address(&asked[of], &answer, types[of])?;
            ensure!(address == addresses[of], "{address} instead of {}", addresses[of]);
            waiting[of] = false;
        }
        pairs.lost += waiting.iter().filter(|waits| **waits).count();
        pairs.slowest = pairs.slowest.max(begun.elapsed());
    }
    Ok(pairs)
}

/// Times of queries for one address, one after the other.
///
/// # Errors
/// The sockets', or no answer in time.
pub fn round_trips(client: &Party, server: SocketAddr, names: &[String]) -> Result<Vec<Duration>> {
    let socket = client.udp()?;
    socket.connect(server)?;
    let mut times = Vec::with_capacity(names.len());
    for (id, name) in (0..=u16::MAX).cycle().zip(names) {
        let begun = Instant::now();
        let asked = query(id, name, A);
        socket.send(&asked)?;
        let answer = receive(&socket)?.with_context(|| format!("no answer about {name}"))?;
        check(&asked, &answer).with_context(|| name.clone())?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// `None`: nothing came in time.
fn receive(socket: &UdpSocket) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 4096];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
