//! Services and ICMP errors about what was sent to them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;
use weft_tests::outsider::{Outsider, tool};
use weft_tests::raw::{Heard, keep_errors, next_error};
use weft_tests::service::{Server, udp_to};
use weft_tests::talk::{Party, accept, noise};
use weft_tests::{TestLab, can_run, eventually};

use crate::services::{
    NODE_PORT, SELECTOR, SOON, apply, cluster_ip, host, lab, node_address, pod, web,
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Of the last link before the backend, which nobody but its node knows.
const NARROW: u32 = 1_300;
/// Fits every link but that one, in either family.
const TOO_LARGE: usize = 1_340;

/// Who sends where.
struct Way {
    namespace: String,
    to: SocketAddr,
}

impl Way {
    fn tool(&self, command: &str) -> Result<String> {
        tool(&self.namespace, command)
    }

    /// The MTU that the sender's kernel has heard of.
    fn mtu_is(&self, mtu: u32) -> Result<()> {
        let route = self.tool(&format!("ip route get {}", self.to.ip()))?;
        ensure!(route.contains(&format!(" mtu {mtu}")), "{}: {route}", self.namespace);
        Ok(())
    }

    fn forget_mtu(&self) -> Result<()> {
        self.tool("ip route flush cache")?;
        // Of table `main` only, unless another is named.
        self.tool("ip -6 route flush cached table all")?;
        ensure!(self.mtu_is(NARROW).is_err(), "it is not forgotten");
        Ok(())
    }

    /// Sends datagrams until one meets an error, and returns what is heard of it.
    async fn hears(&self, payload: &[u8]) -> Result<Heard> {
        let socket = udp_to(&self.namespace, self.to)?;
        keep_errors(&socket)?;
        eventually(SOON, async || {
            // The error of an earlier one shows here.
            let _ = socket.send(payload);
            tokio::time::sleep(Duration::from_millis(100)).await;
            next_error(&socket)
        })
        .await
        .with_context(|| format!("{} to {}", self.namespace, self.to))
    }

    /// What an error says, and that it is about what was sent to the Service.
    fn check(&self, heard: &Heard, kinds: [(u8, u8); 2]) -> Result<()> {
        let about = (heard.about.ip(), heard.about.port());
        let right = about == (self.to.ip(), self.to.port());
        ensure!(right, "{} sends to {} and hears {heard:?}", self.namespace, self.to);
        let kind = kinds[usize::from(self.to.is_ipv6())];
        ensure!(heard.kind == kind, "{heard:?}");
        Ok(())
    }
}

/// Destination unreachable, fragmentation needed; packet too big.
const BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];
/// Port unreachable.
const NO_PORT: [(u8, u8); 2] = [(3, 3), (1, 4)];

/// Bytes that are more than one window, through the Service to a listener behind it.
fn upload(way: &Way, listener: &TcpListener, data: &[u8]) -> Result<()> {
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| -> Result<Vec<u8>> {
            let (mut stream, _) = accept(listener)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut taken = vec![0; data.len()];
            stream.read_exact(&mut taken).context("the upload stands still")?;
            stream.write_all(b"!")?;
            Ok(taken)
        });
        let stream = netns::enter(&way.namespace, || TcpStream::connect_timeout(&way.to, PATIENCE));
        let mut stream = stream?.context("no connection")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(data).context("the upload stands still")?;
        let answered = stream.read_exact(&mut [0]);
        let taken = taken.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        answered?;
        ensure!(taken == data, "other bytes come");
        Ok(())
    })
}

/// The link of the only pod of a node, from the node's side.
fn narrow(lab: &TestLab, node: &str, mtu: u32) -> Result<()> {
    let links = lab.run(node, &["ip", "-o", "link"])?;
    let port = links.split([' ', ':', '@']).find(|word| word.starts_with("veth"));
    lab.run(node, &["ip", "link", "set", port.context("no pod")?, "mtu", &mtu.to_string()])?;
    Ok(())
}

/// The host of the backend itself, and who comes to it from outside.
fn ways_past_the_mesh(lab: &TestLab, outsider: &Outsider, family: usize) -> Result<[Way; 2]> {
    let far = host(lab, &lab.nodes()[1], family)?;
    let to = SocketAddr::new(far.address, NODE_PORT);
    Ok([
        Way { namespace: far.namespace, to: cluster_ip(family) },
        Way { namespace: outsider.namespace.clone(), to },
    ])
}

/// Pods, hosts and machines outside.
fn ways(lab: &TestLab, outsider: &Outsider, family: usize) -> Result<Vec<Way>> {
    let near = host(lab, &lab.nodes()[0], family)?.namespace;
    let node_port = SocketAddr::new(node_address(lab, &lab.nodes()[0], family)?, NODE_PORT);
    let a1 = lab.namespace_of("a1")?;
    let way = |namespace: &String, to| Way { namespace: namespace.clone(), to };
    Ok(vec![
        way(&a1, cluster_ip(family)),
        way(&a1, node_port),
        way(&near, cluster_ip(family)),
        way(&outsider.namespace, node_port),
    ])
}

/// SVC-194: an error about what was sent to a Service names the Service, whoever on the way sends it,
/// so that the sender learns of a link's MTU, and that nobody listens.
#[tokio::test(flavor = "multi_thread")]
async fn errors_about_a_flow_name_the_service() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    apply(&lab, &[web(SELECTOR), pod("b1", "app: web")]).await?;
    narrow(&lab, &lab.nodes()[1], NARROW)?;
    for family in [0, 1] {
        let b1 = lab.party("b1", family)?;
        let past_the_mesh = ways_past_the_mesh(&lab, &outsider, family)?;
        for way in ways(&lab, &outsider, family)?.into_iter().chain(past_the_mesh) {
            let told = format!("{} to {}", way.namespace, way.to);
            learn_of_the_link(&way, &b1).await.with_context(|| told.clone())?;
            let heard = way.hears(b"?").await?;
            way.check(&heard, NO_PORT)?;
            ensure!(heard.from == Some(way.to.ip()), "{told}: {heard:?}");
        }
    }
    // In the fabric itself: who believes in a larger MTU than the mesh has.
    let link = lab.run("a1", &["ip", "-o", "link", "show", "eth0"])?;
    let mesh = link.split(" mtu ").nth(1).and_then(|rest| rest.split(' ').next());
    let mesh: u32 = mesh.context("a pod's interface without an MTU")?.parse()?;
    narrow(&lab, &lab.nodes()[0], 1_500)?;
    lab.run("a1", &["ip", "link", "set", "eth0", "mtu", "1500"])?;
    for family in [0, 1] {
        for way in ways(&lab, &outsider, family)? {
            if way.namespace == lab.namespace_of(&lab.nodes()[0])? {
                // Its kernel knows the interface's MTU.
                continue;
            }
            way.forget_mtu()?;
            let heard = way.hears(&[7; 1_450]).await?;
            way.check(&heard, BIG)?;
            ensure!(heard.mtu == mesh, "{heard:?}, not {mesh}");
        }
    }
    Ok(())
}

/// What is sent over a link that only the backend's node knows, whose kernel sends the errors.
async fn learn_of_the_link(way: &Way, backend: &Party) -> Result<()> {
    let at = SocketAddr::new(backend.address, 8080);
    // The cache is the namespace's, so that it may know from another way.
    way.forget_mtu()?;
    let listener = netns::enter(&backend.namespace, || TcpListener::bind(at))??;
    upload(way, &listener, &noise(1 << 20)).context("TCP")?;
    way.mtu_is(NARROW).context("TCP")?;
    drop(listener);
    way.forget_mtu()?;
    let _server = Server::start(backend, 8080, "b1")?;
    let heard = way.hears(&[7; TOO_LARGE]).await?;
    way.check(&heard, BIG)?;
    ensure!(heard.mtu == NARROW, "{heard:?}");
    way.mtu_is(NARROW)?;
    // Cut to what fits.
    let socket = udp_to(&way.namespace, way.to)?;
    socket.send(&[7; TOO_LARGE])?;
    socket.recv(&mut [0; 64]).context("no answer to a datagram that was cut")?;
    Ok(())
}
