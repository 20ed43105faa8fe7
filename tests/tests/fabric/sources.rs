//! Whom a server of the host itself sees behind a Service: clients outside, as they are.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_netio::netns;
use weft_tests::outsider::Outsider;
use weft_tests::service::{Over, Server, ask, udp_to};
use weft_tests::talk::{Party, accept, noise};
use weft_tests::{can_run, eventually};

use crate::services::{NODE_PORT, apply, balancer, cluster_ip, host, lab, pod, web};

const PATIENCE: Duration = Duration::from_secs(5);
const LOCAL: &str = "  externalTrafficPolicy: Local\n  selector: {app: web}\n";
/// As firewalld has it: who speaks must be reached where he is heard.
const STRICT: &str = "table inet strict { chain c { type filter hook prerouting priority mangle + 10; \
    ip saddr 198.18.0.200 fib saddr . mark . iif oif missing drop; \
    ip6 saddr fd00:198:18::200 fib saddr . mark . iif oif missing drop; }; }";

/// A pod `app: web` in the network of that node.
fn host_pod(node: &str) -> String {
    pod("server", "app: web")
        .replace("spec:\n", &format!("spec:\n  hostNetwork: true\n  nodeName: {node}\n"))
}

pub(crate) fn outside(outsider: &Outsider, family: usize) -> Result<IpAddr> {
    Ok(if family == 0 { outsider.underlay().parse()? } else { "fd00:198:18::200".parse()? })
}

/// SVC-067, SVC-132, SVC-160: a process of the host sees clients of a node port as they are, machines
/// outside and other nodes, and answers them by the way they came, also behind a strict firewall and
/// after the agent is back; who comes to it without the Service is nobody's business.
#[tokio::test(flavor = "multi_thread")]
async fn server_of_the_host_sees_who_comes_to_a_node_port() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    let nodes = lab.nodes();
    apply(&lab, &[web(LOCAL), host_pod(&nodes[0])]).await?;
    for family in [0, 1] {
        let (near, far) = (host(&lab, &nodes[0], family)?, host(&lab, &nodes[1], family)?);
        let client =
            Party { namespace: outsider.namespace.clone(), address: outside(&outsider, family)? };
        let node_port = SocketAddr::new(near.address, NODE_PORT);
        let direct = SocketAddr::new(near.address, 8080);
        let _server = Server::start(&near, 8080, "near")?;
        for strict in [false, true] {
            if strict {
                lab.run(&nodes[0], &["nft", STRICT])?;
            }
            for over in [Over::Tcp, Over::Udp] {
                for who in [&client, &far] {
                    for to in [direct, node_port, direct, node_port] {
                        let answer = ask(&who.namespace, over, to).with_context(|| {
                            format!("{} to {to} over {over:?}, strict: {strict}", who.namespace)
                        })?;
                        ensure!(answer.sees == who.address, "{to} over {over:?}: {answer:?}");
                    }
                }
                // The host itself and pods, by every way.
                let a1 = lab.party("a1", family)?;
                for to in [node_port, cluster_ip(family)] {
                    ask(&near.namespace, over, to).context("the host itself")?;
                    let answer = ask(&a1.namespace, over, to)?;
                    ensure!(answer.sees == a1.address, "a pod at {to}: {answer:?}");
                }
            }
        }
        lab.run(&nodes[0], &["nft", "delete table inet strict"])?;
    }
    Ok(())
}

/// SVC-132, SVC-194: answers are made for the way to the client, which may take larger packets than the
/// fabric, and nothing of them is lost on their way through it.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_of_the_host_reach_the_client() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    outsider.settle().await?;
    let node = &lab.nodes()[0];
    apply(&lab, &[web(LOCAL), host_pod(node)]).await?;
    for family in [0, 1] {
        let near = host(&lab, node, family)?;
        let node_port = SocketAddr::new(near.address, NODE_PORT);
        download(&near, &outsider.namespace, node_port)?;
        // As large as the underlay takes.
        let largest = if family == 0 { 1_472 } else { 1_452 };
        let at = SocketAddr::new(near.address, 8080);
        let server = netns::enter(&near.namespace, || UdpSocket::bind(at))??;
        server.set_read_timeout(Some(PATIENCE))?;
        let socket = udp_to(&outsider.namespace, node_port)?;
        socket.send(b"?")?;
        let (_, client) = server.recv_from(&mut [0; 8])?;
        server.send_to(&vec![7; largest], client)?;
        let length = socket.recv(&mut [0; 2048]).context("no large datagram")?;
        ensure!(length == largest, "{length}");
    }
    Ok(())
}

/// Some megabytes from a listener of the host, at port 8080, to a client of the Service.
fn download(near: &Party, client: &str, to: SocketAddr) -> Result<()> {
    let at = SocketAddr::new(near.address, 8080);
    let listener = netns::enter(&near.namespace, || TcpListener::bind(at))??;
    let data = noise(8 << 20);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| -> Result<()> {
            let (mut stream, _) = accept(&listener)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream.write_all(&data)?)
        });
        let stream = netns::enter(client, || TcpStream::connect_timeout(&to, PATIENCE))?;
        let mut stream = stream.context("no connection")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut taken = vec![0; data.len()];
        let read = stream.read_exact(&mut taken).context("the download stands still");
        sent.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        read?;
        ensure!(taken == data, "other bytes come");
        Ok(())
    })
}

/// SVC-132: the same at an address of a pool.
#[tokio::test(flavor = "multi_thread")]
async fn server_of_the_host_sees_who_comes_to_a_balancer() -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let lab = lab(1).await?;
    let outsider = Outsider::join(&lab)?;
    let node = &lab.nodes()[1];
    let near = host(&lab, node, 0)?;
    let _server = Server::start(&near, 8080, "near")?;
    let [pool, service] = balancer("  externalTrafficPolicy: Local\n");
    apply(&lab, &[pool, service, host_pod(node)]).await?;
    let to = SocketAddr::new("198.18.0.240".parse()?, 80);
    for over in [Over::Tcp, Over::Udp] {
        eventually(Duration::from_secs(15), async || {
            let answer = ask(&outsider.namespace, over, to)?;
            ensure!(answer.sees == outside(&outsider, 0)?, "{over:?}: {answer:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
