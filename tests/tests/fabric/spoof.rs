//! Who sends under another's address is not heard, and counted.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::Options;
use weft_model::{DropReason, Encapsulation};
use weft_tests::outsider::{Outsider, tool};
use weft_tests::talk::{Party, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

const SENT: u64 = 5;
/// A forged packet that got through would be there by then.
const SILENCE: Duration = Duration::from_millis(300);

/// Sends under `claimed` what must not arrive, among what must.
fn only_the_honest_are_heard(honest: &Party, claimed: &Party, to: &Party) -> Result<()> {
    // The session is there, so that what follows comes at once.
    udp_both_ways(honest, to, b"hello")?;
    let server = to.udp()?;
    let at = server.local_addr()?;
    let (liar, sender) = (claimed.udp()?, honest.udp()?);
    for _ in 0..SENT {
        liar.send_to(b"forged", at)?;
        sender.send_to(b"honest", at)?;
    }
    server.set_read_timeout(Some(SILENCE))?;
    let heard = everything(&server);
    let forged = heard.iter().filter(|(bytes, _)| bytes == b"forged").count();
    ensure!(forged == 0, "{forged} forged packets arrived");
    ensure!(heard.len() as u64 == SENT, "{} of {SENT} honest packets arrived", heard.len());
    ensure!(heard.iter().all(|(_, from)| from.ip() == honest.address), "{heard:?}");
    udp_both_ways(honest, to, b"still here")
}

fn everything(socket: &UdpSocket) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 100];
    let mut heard = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        heard.push((buffer[..length].to_vec(), from));
    }
    heard
}

async fn at_ports(lab: &TestLab) -> Result<u64> {
    Ok(lab.agent_status("node-1").await?.spoofed_at_ports)
}

async fn dropped(lab: &TestLab, node: &str, reason: DropReason) -> Result<u64> {
    let status = lab.agent_status(node).await?.datapath.context("no datapath")?;
    Ok(status.drops.iter().filter(|d| d.reason == reason.label()).map(|d| d.packets).sum())
}

/// CNI-009, DNS-128, NP-112: at the port of a pod, towards pods of this and of another node.
#[tokio::test]
async fn pod_cannot_send_from_the_address_of_another() -> Result<()> {
    if !can_run(&["ip"]) {
        return Ok(());
    }
    let mut lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    lab.pod_add("node-1", "a2").await?;
    lab.pod_add("node-1", "a3").await?;
    for family in [0, 1] {
        let (honest, victim) = (lab.party("a1", family)?, lab.party("a2", family)?);
        let add = format!("ip address add {} dev eth0", victim.address);
        let no_wait = if family == 1 { " nodad" } else { "" };
        tool(&honest.namespace, &format!("{add}{no_wait}"))?;
        let claimed = Party { address: victim.address, ..honest.clone() };
        for to in ["b1", "a3"] {
            let before = at_ports(&lab).await?;
            only_the_honest_are_heard(&honest, &claimed, &lab.party(to, family)?)?;
            eventually(Duration::from_secs(3), async || {
                let counted = at_ports(&lab).await? - before;
                ensure!(counted >= SENT, "{counted} of {SENT} counted");
                Ok(())
            })
            .await?;
        }
        udp_both_ways(&victim, &lab.party("b1", family)?, b"the real one")?;
    }
    Ok(())
}

/// An inner source of nobody, and one of a pod on another node.
async fn peer_is_held_to_its_subnets(lab: &TestLab, outsider: &Outsider) -> Result<()> {
    for family in [0, 1] {
        let honest = outsider.party(family)?;
        let nobody = ["10.244.201.9", "fd00:10:244:c9::9"][family].parse()?;
        for address in [nobody, lab.party("a1", family)?.address] {
            let no_wait = if family == 1 { " nodad" } else { "" };
            outsider.tool(&format!("ip address add {address} dev lo{no_wait}"))?;
            let claimed = Party { address, ..honest.clone() };
            let before = dropped(lab, "node-2", DropReason::NotAllowedIp).await?;
            only_the_honest_are_heard(&honest, &claimed, &lab.party("b1", family)?)?;
            eventually(Duration::from_secs(3), async || {
                let counted = dropped(lab, "node-2", DropReason::NotAllowedIp).await? - before;
                ensure!(counted == SENT, "{counted} of {SENT} from {address} counted");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

/// The WireGuard rule of AllowedIPs, against a peer that others wrote.
#[tokio::test]
async fn wireguard_peer_cannot_send_from_outside_its_subnets() -> Result<()> {
    if !can_run(&["ip", "wireguard-go", "wg"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let peer = crate::peers::WireGuardGo::start(&lab).await?;
    peer_is_held_to_its_subnets(&lab, &peer.outsider).await
}

/// The same rule holds where nothing is encrypted.
#[tokio::test]
async fn vxlan_peer_cannot_send_from_outside_its_subnets() -> Result<()> {
    if !can_run(&["ip", "bridge", "ethtool"]) {
        return Ok(());
    }
    let encapsulation = Encapsulation::Vxlan;
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let outsider = crate::peers::kernel_vxlan(&lab).await?;
    peer_is_held_to_its_subnets(&lab, &outsider).await
}
