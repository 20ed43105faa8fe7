//! Queries in datagrams and over connections.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use weft_dns::Transport;

use crate::Resolver;

/// Longest datagram that is read, in bytes.
const DATAGRAM_MAX: usize = 4096;
/// Open connections, over all clients.
const CONNECTIONS_MAX: usize = 4096;
/// Those of one client: it cannot keep others out.
const CONNECTIONS_OF_ONE_MAX: usize = 1024;
/// A connection that says nothing for so long is closed; also one that takes no answer.
const IDLE: Duration = Duration::from_secs(10);
/// Queries of one connection that wait for an answer at once; then no more are read.
const PIPELINED_MAX: usize = 32;
/// Pause after an error that may last, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers datagrams for ever.
pub async fn serve_udp(resolver: Arc<Resolver>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An answer that reached nobody is told here, too.
                tracing::debug!(%error, "no datagram received");
                sleep(PAUSE).await;
                continue;
            }
        };
        if !resolver.may_ask(client.ip()) {
            continue;
        }
        let message = buffer.get(..length).unwrap_or_default().to_vec();
        let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
        tokio::spawn(async move {
            let Some(reply) = resolver.answer(&message, Transport::Udp, client.ip()).await else {
                return;
            };
            if let Err(error) = socket.send_to(&reply, client).await {
                tracing::debug!(%error, %client, "no answer sent");
            }
        });
    }
}

/// Answers connections for ever.
pub async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let (places, clients) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::default());
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "no connection accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        // One connection too many is closed at once: its client is told, and not left waiting.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        if !resolver.may_ask(client.ip()) {
            continue;
        }
        let Some(of_client) = OfClient::begin(&clients, client.ip()) else { continue };
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            if let Err(error) = converse(resolver, stream, client.ip()).await {
                tracing::debug!(%error, %client, "connection ended");
            }
            drop((place, of_client));
        });
    }
}

/// Open connections of each client that has one.
type Clients = Mutex<HashMap<IpAddr, usize>>;

/// One of a client's connections.
struct OfClient {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl OfClient {
    /// `None`: it has as many as it may have.
    fn begin(clients: &Arc<Clients>, client: IpAddr) -> Option<Self> {
        let mut all = clients.lock();
        let count = all.entry(client).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Self { clients: Arc::clone(clients), client })
    }
}

impl Drop for OfClient {
    fn drop(&mut self) {
        let mut all = self.clients.lock();
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}

/// One connection: answers go out as they come, in any order.
async fn converse(resolver: Arc<Resolver>, stream: TcpStream, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let (replies, mut to_send) = mpsc::channel::<Vec<u8>>(PIPELINED_MAX);
    let write = async move {
        while let Some(reply) = to_send.recv().await {
            let length = u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes();
            let framed = [&length[..], &reply].concat();
            timeout(IDLE, writer.write_all(&framed)).await??;
        }
        Ok(())
    };
    let places = Arc::new(Semaphore::new(PIPELINED_MAX));
    let read = async move {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let Some(message) = timeout(IDLE, next_message(&mut reader)).await?? else {
                return Ok(());
            };
            let (resolver, replies) = (Arc::clone(&resolver), replies.clone());
            tokio::spawn(async move {
                if let Some(reply) = resolver.answer(&message, Transport::Tcp, client).await {
                    // If the connection is gone, nobody wants it.
                    let _gone = replies.send(reply).await;
                }
                drop(place);
            });
        }
    };
    let (read, written): (io::Result<()>, io::Result<()>) = tokio::join!(read, write);
    read.and(written)
}

/// `None` at the end.
async fn next_message(reader: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match reader.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    reader.read_exact(&mut message).await?;
    Ok(Some(message))
}
