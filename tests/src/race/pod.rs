//! What runs in a pod: it sends to everybody at once, and hears what comes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::libc::EINPROGRESS;
use socket2::{Domain, Protocol, Socket, Type};
use weft_netio::NetNs;

use super::ear::Ear;
use super::{Class, FIRST_PORT, GLANCE, POD_PORT, Seen, Who, Witness};
use crate::raw::{SCTP, sctp};

/// Where it sends to, on TCP, UDP and SCTP.
const PORT: u16 = 7_000;
/// What begins an association (RFC 9260, 3.3.2): initiate tag, window, streams out and in, first TSN.
const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 9];

/// Something that runs in a pod's namespace, whether there is a network or not yet.
pub(super) struct Process {
    pod: usize,
    stop: Stop,
    /// By [`Who`].
    heard: Arc<[AtomicBool; 4]>,
    thread: JoinHandle<Result<usize>>,
}

/// Ends what looks at it.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Process {
    /// Returns when it has tried to send for the first time.
    pub(super) fn start(namespace: &str, pod: usize, witnesses: &[Witness]) -> Result<Self> {
        let namespace = NetNs::open(namespace)?;
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(<[AtomicBool; 4]>::default());
        let (begin, begun) = mpsc::channel();
        let mut talk = Talk {
            port: FIRST_PORT + u16::try_from(pod)?,
            witnesses: witnesses.to_vec(),
            connections: Vec::new(),
            stop: Arc::clone(&stop),
            heard: Arc::clone(&heard),
        };
        let thread = std::thread::spawn(move || namespace.enter(|| talk.go_on(&begin))?);
        begun.recv().context("nothing can run in the pod")?;
        Ok(Self { pod, stop: Stop(stop), heard, thread })
    }

    pub(super) fn has_heard(&self, who: Who) -> bool {
        self.heard[who as usize].load(Ordering::Relaxed)
    }

    /// Ends it; returns how many packets it sent.
    pub(super) fn end(self, seen: &Seen) -> Result<usize> {
        drop(self.stop);
        let class = Class::of(self.pod);
        let all = [Who::Foe, Who::Friend, Who::Guarded, Who::Outsider];
        let sent = self.thread.join().map_err(|_| anyhow::anyhow!("a pod's process failed"))??;
        for who in all {
            let heard = self.heard[who as usize].load(Ordering::Relaxed);
            if heard && !class.may_get(who) {
                seen.forbid(format!("pod {} ({class:?}) got a packet from {who:?}", self.pod));
            }
        }
        Ok(sent)
    }
}

/// What it does.
struct Talk {
    port: u16,
    witnesses: Vec<Witness>,
    /// Being made; each lives until the next one to the same address.
    connections: Vec<Socket>,
    stop: Arc<AtomicBool>,
    heard: Arc<[AtomicBool; 4]>,
}

impl Talk {
    fn go_on(&mut self, begin: &mpsc::Sender<()>) -> Result<usize> {
        let mut ear = Ear::open()?;
        let datagrams = [
            self.socket(Type::DGRAM, Ipv4Addr::UNSPECIFIED.into())?,
            self.socket(Type::DGRAM, Ipv6Addr::UNSPECIFIED.into())?,
        ];
        // The kernel need not know the protocol.
        let crafted = [raw_sctp(Domain::IPV4)?, raw_sctp(Domain::IPV6)?];
        let init = sctp((self.port, PORT), 0, &INIT);
        let mut sent = 0;
        while !self.stop.load(Ordering::Relaxed) {
            self.connections.clear();
            let targets: Vec<_> = self.witnesses.iter().flat_map(|w| w.addresses.clone()).collect();
            for to in targets {
                let socket = &datagrams[usize::from(to.is_ipv6())];
                // Without a network nothing can be sent yet, or any longer.
                sent +=
                    usize::from(socket.send_to(b"?", &SocketAddr::new(to, PORT).into()).is_ok());
                sent += usize::from(self.connect(to).is_ok());
                let raw = &crafted[usize::from(to.is_ipv6())];
                sent += usize::from(raw.send_to(&init, &SocketAddr::new(to, 0).into()).is_ok());
            }
            let _ = begin.send(());
            ear.drain(|packet| {
                let from = self.witnesses.iter().find(|w| w.addresses.contains(&packet.from));
                if let Some(witness) = from.filter(|_| packet.ports.1 == POD_PORT) {
                    self.heard[witness.who as usize].store(true, Ordering::Relaxed);
                }
            })?;
            std::thread::sleep(GLANCE);
        }
        Ok(sent)
    }

    fn connect(&mut self, to: IpAddr) -> io::Result<()> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.socket(Type::STREAM, any)?;
        match socket.connect(&SocketAddr::new(to, PORT).into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error),
            _ => {}
        }
        self.connections.push(socket);
        Ok(())
    }

    fn socket(&self, kind: Type, any: IpAddr) -> io::Result<Socket> {
        let at = SocketAddr::new(any, self.port);
        let socket = Socket::new(Domain::for_address(at), kind, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if any.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        Ok(socket)
    }
}

fn raw_sctp(family: Domain) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(SCTP));
    let socket = Socket::new(family, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
