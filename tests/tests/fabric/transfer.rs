//! Bulk and the largest datagrams arrive as they were sent, in each encapsulation and family.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use weft_lab::Options;
use weft_model::{Encapsulation, Mtu};
use weft_tests::traffic::{EchoService, Family, Noise};
use weft_tests::{TestLab, can_run};

const TRANSFER: usize = 100 << 20;
const SHORT_TRANSFER: usize = 20 << 20;
const CHUNK: usize = 64 * 1024;
/// The largest payloads that UDP can carry: 65535 less the headers that count.
const LARGEST_V4: usize = 65_507;
const LARGEST_V6: usize = 65_527;

fn send(mut stream: &TcpStream, bytes: usize, seed: u64) -> Result<Vec<u8>> {
    let (mut noise, mut chunk, mut hash) = (Noise::new(seed), vec![0; CHUNK], Sha256::new());
    for _ in 0..bytes / CHUNK {
        noise.fill(&mut chunk);
        hash.update(&chunk);
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hash.finalize().to_vec())
}

fn receive(mut stream: &TcpStream) -> Result<(usize, Vec<u8>)> {
    let (mut total, mut chunk, mut hash) = (0, vec![0; CHUNK], Sha256::new());
    loop {
        let length = stream.read(&mut chunk).with_context(|| format!("after {total} bytes"))?;
        if length == 0 {
            return Ok((total, hash.finalize().to_vec()));
        }
        hash.update(&chunk[..length]);
        total += length;
    }
}

/// `bytes` each way at once, a multiple of 64 KiB.
pub(crate) fn transfer_both_ways(
    lab: &TestLab,
    pods: (&str, &str),
    family: Family,
    bytes: usize,
) -> Result<()> {
    let (a, b) = lab.connection(pods, family)?;
    let start = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let senders = [scope.spawn(|| send(&a, bytes, 1)), scope.spawn(|| send(&b, bytes, 2))];
        let receivers = [scope.spawn(|| receive(&b)), scope.spawn(|| receive(&a))];
        (
            senders.map(|t| t.join().expect("a thread of the transfer panicked")),
            receivers.map(|t| t.join().expect("a thread of the transfer panicked")),
        )
    });
    let took = start.elapsed();
    for (sent, received) in sent.into_iter().zip(received) {
        let (total, digest) = received?;
        ensure!(total == bytes, "{total} bytes arrived");
        ensure!(digest == sent?, "other bytes arrived");
    }
    println!("{} MiB each way at once, {pods:?}, {family:?}: {took:.2?}", bytes >> 20);
    Ok(())
}

pub(crate) fn largest_datagrams_echo(
    lab: &TestLab,
    (from, to): (&str, &str),
    family: Family,
) -> Result<()> {
    let service = EchoService::start(lab, to, family, 0)?;
    let socket = lab.datagrams(from, family, 0)?;
    let largest = if family == Family::V4 { LARGEST_V4 } else { LARGEST_V6 };
    let (mut sent, mut back) = (vec![0; largest], vec![0; 65_536]);
    for number in 0..10 {
        Noise::new(number).fill(&mut sent);
        socket.send_to(&sent, service.address()).context("send")?;
        let length = socket.recv(&mut back).with_context(|| {
            format!("datagram {number} of {largest} bytes from {from} to {to} did not come back")
        })?;
        ensure!(back[..length] == sent, "another datagram came back, of {length} bytes");
    }
    Ok(())
}

async fn everything_arrives(encapsulation: Encapsulation) -> Result<()> {
    if !can_run(&["nft"]) {
        return Ok(());
    }
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 2).await?;
    for family in [Family::V4, Family::V6] {
        for pods in [("a1", "b1"), ("b1", "a1"), ("a1", "a2")] {
            largest_datagrams_echo(&lab, pods, family)?;
        }
        transfer_both_ways(&lab, ("a1", "b1"), family, TRANSFER)?;
    }
    Ok(())
}

/// CNI-002, CNI-007
#[tokio::test]
async fn bulk_and_the_largest_datagrams_arrive_through_wireguard() -> Result<()> {
    everything_arrives(Encapsulation::WireGuard).await
}

/// CNI-002, CNI-007
#[tokio::test]
async fn bulk_and_the_largest_datagrams_arrive_through_vxlan() -> Result<()> {
    everything_arrives(Encapsulation::Vxlan).await
}

/// Pods get what the underlay's MTU leaves, to the byte, and can use it.
async fn pods_use_a_jumbo_underlay(encapsulation: Encapsulation) -> Result<()> {
    if !can_run(&["nft", "ping", "ip"]) {
        return Ok(());
    }
    let options = Options { nodes: 2, encapsulation, underlay_mtu: 9000, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let mtu = Mtu::inside(encapsulation, 9000, false, true)?.get();
    for place in ["a1", "b1"] {
        let link = lab.run(place, &["ip", "-o", "link", "show", "eth0"])?;
        ensure!(link.contains(&format!(" mtu {mtu} ")), "{mtu} expected: {link}");
    }
    for (family, headers) in [(Family::V4, 28), (Family::V6, 48)] {
        let size = (mtu - headers).to_string();
        let to = lab.address("b1", family)?.to_string();
        lab.run("a1", &["ping", "-c", "2", "-W", "2", "-M", "do", "-s", &size, &to])?;
        let over = (mtu - headers + 1).to_string();
        let output =
            lab.exec("a1", &["ping", "-c", "1", "-W", "1", "-M", "do", "-s", &over, &to])?;
        ensure!(!output.status.success(), "{family:?}: a packet larger than {mtu} went out");
        transfer_both_ways(&lab, ("a1", "b1"), family, SHORT_TRANSFER)?;
    }
    Ok(())
}

#[tokio::test]
async fn jumbo_underlay_is_used_to_the_byte_through_wireguard() -> Result<()> {
    pods_use_a_jumbo_underlay(Encapsulation::WireGuard).await
}

#[tokio::test]
async fn jumbo_underlay_is_used_to_the_byte_through_vxlan() -> Result<()> {
    pods_use_a_jumbo_underlay(Encapsulation::Vxlan).await
}
