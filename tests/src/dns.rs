//! A client of DNS that does something with an answer at once, and another server for it to ask.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use hickory_proto::rr::RecordType;
use weft_netio::netns;

use crate::names::{addresses, query};
use crate::service::{Over, udp_to};
use crate::{TestLab, command_in};

/// Usual port of a [`DnsServer`].
pub const UPSTREAM_PORT: u16 = 5353;

/// A `dnsmasq`; ended when dropped.
#[derive(Debug)]
pub struct DnsServer(Child);

impl DnsServer {
    /// In the hub's namespace at that port; knows what the arguments say.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(lab: &TestLab, port: u16, arguments: &[String]) -> Result<Self> {
        Self::start_in(&lab.hub_namespace(), "root", port, arguments)
    }

    /// In a namespace and as a user.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_in(namespace: &str, user: &str, port: u16, arguments: &[String]) -> Result<Self> {
        let mut command = command_in(namespace, "dnsmasq")?;
        command
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
            .args(["--pid-file=", "--log-facility=-"])
            .arg(format!("--user={user}"))
            .arg(format!("--port={port}"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn().context("dnsmasq")?))
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Addresses of a name in the family of `family` (0: IPv4), as a server says at once; none if there are none.
///
/// # Errors
/// No answer within [`crate::service::PATIENCE`], or one that says that something failed.
pub fn resolve(
    namespace: &str,
    server: IpAddr,
    over: Over,
    name: &str,
    family: usize,
) -> Result<Vec<IpAddr>> {
    let rtype = if family == 0 { RecordType::A } else { RecordType::AAAA };
    let query = query(0x1234, name, rtype)?;
    let to = SocketAddr::new(server, 53);
    let reply = match over {
        Over::Udp => {
            let socket = udp_to(namespace, to)?;
            socket.send(&query)?;
            let mut reply = vec![0; 4096];
            let length = socket.recv(&mut reply)?;
            reply.truncate(length);
            reply
        }
        Over::Tcp => {
            let mut stream = netns::enter(namespace, || TcpStream::connect(to))??;
            let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
            stream.write_all(&[&length.to_be_bytes()[..], &query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut reply)?;
            reply
        }
    };
    addresses(&query, &reply).with_context(|| name.to_owned())
}
