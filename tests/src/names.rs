//! Queries for names over plain sockets, as stub resolvers send them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use crate::talk::Party;

/// A query of class IN for a whole name, without a dot at its end.
///
/// # Errors
/// It is no name, or too long for one.
pub fn query(id: u16, name: &str, rtype: RecordType) -> Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, rtype));
    Ok(message.to_vec()?)
}

/// The addresses of that query's answer, none if it has none.
///
/// # Errors
/// It is no answer to the query, or says that something failed.
pub fn addresses(query: &[u8], answer: &[u8]) -> Result<Vec<IpAddr>> {
    let (query, answer) = (Message::from_vec(query)?, Message::from_vec(answer)?);
    let head = &answer.metadata;
    ensure!(head.message_type == MessageType::Response, "no answer: {answer:?}");
    ensure!(head.response_code == ResponseCode::NoError, "{}", head.response_code);
    ensure!((head.id, &answer.queries) == (query.metadata.id, &query.queries), "of another");
    Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
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
/// The sockets', or an answer that is not the one `expected` of its family.
pub fn pairs(
    client: &Party,
    server: SocketAddr,
    name: &str,
    expected: [IpAddr; 2],
    count: usize,
    patience: Duration,
) -> Result<Pairs> {
    let socket = client.udp()?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    let mut pairs = Pairs::default();
    let mut ids = (0..=u16::MAX).cycle();
    for _ in 0..count {
        let begun = Instant::now();
        let mut next = |rtype| query(ids.next().unwrap_or_default(), name, rtype);
        let asked = [next(RecordType::A)?, next(RecordType::AAAA)?];
        for message in &asked {
            socket.send(message)?;
        }
        let mut waiting = [true; 2];
        while waiting.contains(&true) {
            let Some(answer) = receive(&socket)? else { break };
            let of = asked.iter().position(|query| answer.get(..2) == query.get(..2));
            // An answer that comes late is that of a query that is lost already.
            let Some(of) = of.filter(|of| waiting[*of]) else { continue };
            let found = addresses(&asked[of], &answer)?;
            ensure!(found == [expected[of]], "{found:?} instead of {}", expected[of]);
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
        let asked = query(id, name, RecordType::A)?;
        socket.send(&asked)?;
        let answer = receive(&socket)?.with_context(|| format!("no answer about {name}"))?;
        times.push(begun.elapsed());
        let found = addresses(&asked, &answer).with_context(|| name.clone())?;
        ensure!(found.len() == 1, "{name}: {found:?}");
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
