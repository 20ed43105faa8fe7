//! Services and packets that no ordinary socket sends: segments that are wrong, and SCTP, which this
//! kernel need not know.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;
use weft_tests::raw::{self, Raw, SCTP, Segment, TCP};
use weft_tests::talk::{Party, noise};
use weft_tests::traffic::echo_once;
use weft_tests::{TestLab, can_run, eventually};

use crate::services::{CLUSTER_IPS, SELECTOR, SOON, apply, cluster_ip, lab, pod, web};

const PATIENCE: Duration = Duration::from_secs(2);

/// A connection through the Service, the client's end first.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    backend: Party,
    /// Every segment that comes to the client's pod.
    seen: Raw,
}

impl Connection {
    fn open(client: &Party, backend: &Party, family: usize) -> Result<Self> {
        let seen = Raw::open(client, TCP)?;
        let address = SocketAddr::new(backend.address, 8080);
        let listener = netns::enter(&backend.namespace, || TcpListener::bind(address))??;
        let stream = netns::enter(&client.namespace, || {
            TcpStream::connect_timeout(&cluster_ip(family), PATIENCE)
        })?;
        let (client, (server, _)) = (stream?, listener.accept()?);
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server, backend: backend.clone(), seen })
    }

    /// What the client would send next, without data, as the backend sees it.
    fn next_of_client(&mut self) -> Result<Segment> {
        let at_backend = Raw::open(&self.backend, TCP)?;
        echo_once(&mut self.client, &mut self.server, b"before")?;
        let port = self.client.local_addr()?.port();
        let segments = at_backend.until_quiet()?.into_iter();
        let mut segments = segments.filter_map(|(_, bytes)| Segment::parse(&bytes));
        let last = segments.rfind(|s| s.ports == (port, 8080));
        let last = last.context("the backend saw nothing of the client")?;
        let length = u32::try_from(last.payload.len())?;
        Ok(Segment { sequence: last.sequence.wrapping_add(length), payload: Vec::new(), ..last })
    }

    /// Sends what the client has to take for invalid from the backend, and looks at what comes of it.
    fn disturb(&mut self) -> Result<()> {
        const FAR: u32 = 1 << 30;
        const LONG_AGO: u32 = 100_000;
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        let next = self.next_of_client()?;
        let (here, there) = (self.server.local_addr()?.ip(), self.client.local_addr()?.ip());
        let old = next.acknowledgement.wrapping_sub(LONG_AGO);
        let beyond = next.acknowledgement.wrapping_add(FAR);
        let segments: Vec<_> = [
            (old, ACK, &b""[..]),
            (old, ACK, b"long ago"),
            (old, RST, b""),
            (old, RST | ACK, b""),
            (old, FIN | ACK, b""),
            (beyond, ACK, b"beyond the window"),
            (beyond, RST, b""),
            (beyond, FIN | ACK, b""),
            // No acknowledgement, which only a SYN or RST may lack.
            (next.acknowledgement, 0, b"bare"),
            (beyond, SYN, b""),
            (beyond, SYN | FIN, b""),
            // In place, but with a wrong checksum.
            (next.acknowledgement, ACK, b"broken"),
        ]
        .into_iter()
        .zip(20_000..)
        .map(|((sequence, flags, payload), window)| Segment {
            ports: (8080, next.ports.0),
            sequence,
            acknowledgement: next.sequence,
            flags,
            // Told apart by it: nobody on the way changes it.
            window,
            payload: payload.to_vec(),
        })
        .collect();
        let from = Raw::open(&self.backend, TCP)?;
        for segment in &segments {
            let mut bytes = segment.bytes(here, there);
            if segment.payload == b"broken" {
                bytes[16] ^= 0xff;
            }
            from.send(there, &bytes)?;
        }
        let windows = segments.iter().map(|s| s.window).collect();
        self.only_the_service_was_heard(&windows)
    }

    /// `marked` are windows of segments that have come.
    fn only_the_service_was_heard(&self, marked: &BTreeSet<u16>) -> Result<()> {
        let (port, service) = (self.client.local_addr()?.port(), self.client.peer_addr()?);
        let mut missing = marked.clone();
        for (from, bytes) in self.seen.until_quiet()? {
            let segment = Segment::parse(&bytes).context("no segment")?;
            if segment.ports.1 == port {
                let from = SocketAddr::new(from, segment.ports.0);
                ensure!(from == service, "{segment:?} comes from {from}, not from {service}");
                missing.remove(&segment.window);
            }
        }
        ensure!(missing.is_empty(), "these did not come: {missing:?}");
        Ok(())
    }
}

/// SVC-193: what is outside of a connection's window, or no proper segment, comes to the client from
/// the Service as all others do. The connection outlives it, however long it is idle then.
#[tokio::test(flavor = "multi_thread")]
async fn invalid_segments_come_from_the_service_and_do_no_harm() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    let mut connections = Vec::new();
    for backend in ["b1", "a2"] {
        apply(&lab, &[web(SELECTOR), pod(backend, "app: web")]).await?;
        for family in [0, 1] {
            let (client, backend) = (lab.party("a1", family)?, lab.party(backend, family)?);
            let mut connection = Connection::open(&client, &backend, family)?;
            connection.disturb().with_context(|| format!("{backend:?}"))?;
            connections.push(connection);
        }
    }
    for Connection { client, server, backend, .. } in &mut connections {
        echo_once(client, server, b"after").with_context(|| format!("{backend:?}"))?;
    }
    // Longer than a connection is remembered that was reset.
    tokio::time::sleep(weft_pipeline::TCP_CLOSED_TIMEOUT + Duration::from_secs(2)).await;
    for connection in &mut connections {
        let backend = connection.backend.clone();
        // The backend first, which nobody asked.
        connection.server.write_all(b"still there")?;
        let mut heard = [0; 11];
        let read = connection.client.read_exact(&mut heard);
        read.with_context(|| format!("from {backend:?}, idle for a while"))?;
        ensure!(heard == *b"still there", "{heard:?}");
        echo_once(&mut connection.client, &mut connection.server, b"and at last")?;
        connection.only_the_service_was_heard(&BTreeSet::new())?;
    }
    Ok(())
}

/// A Service of SCTP: one port that differs from its target's, one that does not.
fn signalling() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: signalling}}\nspec:\n  clusterIP: {0}\n  clusterIPs: [{0}, \"{1}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n{SELECTOR}  ports:\n  - {{name: other, protocol: SCTP, port: {2}, targetPort: {3}}}\n  - {{name: same, protocol: SCTP, port: {4}}}\n",
        CLUSTER_IPS[0], CLUSTER_IPS[1], OTHER.0, OTHER.1, SAME.0
    )
}

/// Ports of that Service and of its backends.
const OTHER: (u16, u16) = (9_000, 9_899);
const SAME: (u16, u16) = (9_900, 9_900);

/// INIT or INIT ACK with a padding parameter (RFC 4820) of that length.
pub(crate) fn init(kind: u8, padding: usize) -> Result<Vec<u8>> {
    let mut chunk = vec![kind, 0];
    chunk.extend(u16::try_from(20 + 4 + padding)?.to_be_bytes());
    // Initiate tag, window, streams out and in, first TSN.
    chunk.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 9]);
    chunk.extend(0x8005_u16.to_be_bytes());
    chunk.extend(u16::try_from(4 + padding)?.to_be_bytes());
    chunk.extend(noise(padding));
    Ok(chunk)
}

/// A chunk through the Service and the answer back, each with a right CRC32c and between the right two.
struct Association<'a> {
    client: &'a Party,
    backend: &'a Party,
    service: IpAddr,
    port: u16,
    ports: (u16, u16),
}

impl Association<'_> {
    fn exchange(&self, padding: usize) -> Result<()> {
        let (at_client, at_backend) =
            (Raw::open(self.client, SCTP)?, Raw::open(self.backend, SCTP)?);
        let (ask, answer) = (init(1, padding)?, init(2, padding)?);
        at_client.send(self.service, &raw::sctp((self.port, self.ports.0), 0, &ask))?;
        let (from, packet) = at_backend.receive().context("the backend hears nothing")?;
        ensure!(from == self.client.address, "{from} asks");
        let (ports, chunk) = raw::parse_sctp(&packet).context("at the backend")?;
        ensure!(ports == (self.port, self.ports.1), "at the backend {ports:?}");
        ensure!(chunk == ask, "another chunk comes to the backend");
        at_backend.send(from, &raw::sctp((ports.1, ports.0), 7, &answer))?;
        let (from, packet) = at_client.receive().context("the client hears nothing")?;
        ensure!(from == self.service, "{from} answers for {}", self.service);
        let (ports, chunk) = raw::parse_sctp(&packet).context("at the client")?;
        ensure!(ports == (self.ports.0, self.port), "at the client {ports:?}");
        ensure!(chunk == answer, "another chunk comes to the client");
        Ok(())
    }
}

/// SVC-203, and for SCTP SVC-020, SVC-022, SVC-170, SVC-174, SVC-187: an association is set up through
/// a cluster IP, with ports and CRC32c translated; it stays when its endpoint goes, and a new one is
/// refused then.
#[tokio::test(flavor = "multi_thread")]
async fn sctp_passes_through_a_cluster_ip() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(2).await?;
    // Each with ports of its own: an association stays with its backend.
    for (backend, first) in [("b1", 40_000), ("a2", 41_000)] {
        apply(&lab, &[signalling(), pod(backend, "app: web")]).await?;
        for (family, service) in CLUSTER_IPS.iter().enumerate() {
            let (client, backend) = (lab.party("a1", family)?, lab.party(backend, family)?);
            let service = service.parse()?;
            let through = |ports, port| Association {
                client: &client,
                backend: &backend,
                service,
                port,
                ports,
            };
            through(OTHER, first).exchange(0)?;
            through(OTHER, first).exchange(1_000)?;
            // Its CRC32c covers what is in other fragments, so only with the same port.
            through(SAME, first + 1).exchange(4_000).context("in fragments")?;
        }
    }
    let refused = |family: usize, port| -> Result<()> {
        let (client, service) = (lab.party("a1", family)?, CLUSTER_IPS[family].parse()?);
        let socket = Raw::open(&client, SCTP)?;
        socket.connect(service)?;
        socket.send(service, &raw::sctp((port, OTHER.0), 0, &init(1, 0)?))?;
        let heard = socket.receive().map_err(|e| e.kind());
        ensure!(heard == Err(ErrorKind::ConnectionRefused), "{heard:?}");
        Ok(())
    };
    apply(&lab, &[signalling()]).await?;
    for family in [0, 1] {
        refused(family, 40_002)?;
        open_stays_open(&lab, family)?;
    }
    apply(&lab, &[signalling(), pod("b1", "app: web")]).await?;
    for (family, service) in CLUSTER_IPS.iter().enumerate() {
        let (client, backend) = (lab.party("a1", family)?, lab.party("b1", family)?);
        let (service, ports) = (service.parse()?, OTHER);
        let again =
            Association { client: &client, backend: &backend, service, port: 40_002, ports };
        eventually(SOON, async || again.exchange(0)).await.context("once there is an endpoint")?;
    }
    Ok(())
}

/// The first association goes on with its backend, which the Service has no more.
fn open_stays_open(lab: &TestLab, family: usize) -> Result<()> {
    let (client, backend) = (lab.party("a1", family)?, lab.party("b1", family)?);
    let (service, ports) = (CLUSTER_IPS[family].parse()?, OTHER);
    let open = Association { client: &client, backend: &backend, service, port: 40_000, ports };
    open.exchange(100).context("an open association without its endpoint")
}
