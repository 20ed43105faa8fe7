//! IP fragments, which only the first of has ports: made by pods, or on the way.

use anyhow::{Result, ensure};
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_tests::talk::{noise, udp_both_ways};
use weft_tests::{TestLab, can_run};

/// Pairs on one node and on two.
const PAIRS: [(&str, &str); 3] = [("a1", "b1"), ("b1", "a1"), ("a1", "a2")];

async fn fragments_arrive(encapsulation: Encapsulation) -> Result<()> {
    if !can_run(&["nft", "ping", "ip"]) {
        return Ok(());
    }
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 2).await?;
    for (from, to) in PAIRS {
        for family in [0, 1] {
            let (sender, receiver) = (lab.party(from, family)?, lab.party(to, family)?);
            let address = receiver.address.to_string();
            let ping = ["ping", "-c", "5", "-i", "0.05", "-W", "2", "-s", "8000", &address];
            let said = lab.run(from, &ping)?;
            ensure!(said.contains(" 5 received"), "{from} to {to}: {said}");
            // Two fragments, the second of a few bytes; then many.
            for length in [1500, 4000, 30_000] {
                udp_both_ways(&sender, &receiver, &noise(length))?;
            }
        }
    }
    for node in lab.nodes() {
        let datapath = lab.agent_status(&node).await?.datapath.unwrap_or_default();
        let orphans: Vec<_> =
            datapath.drops.iter().filter(|d| d.reason.contains("fragment")).collect();
        ensure!(orphans.is_empty(), "{node}: {orphans:?}");
    }
    larger_than_the_tunnel(&lab)
}

/// A pod that believes in a larger MTU: IPv4 that may be fragmented is, by the datapath; what may
/// not is answered with the MTU that fits.
fn larger_than_the_tunnel(lab: &TestLab) -> Result<()> {
    let links = lab.run("node-1", &["ip", "-o", "link"])?;
    let ports = links.split([' ', ':', '@']).filter(|word| word.starts_with("veth"));
    for port in ports {
        lab.run("node-1", &["ip", "link", "set", port, "mtu", "1500"])?;
    }
    lab.run("a1", &["ip", "link", "set", "eth0", "mtu", "1500"])?;
    let v4 = lab.pod_v4("b1")?.to_string();
    let whole = ["ping", "-c", "3", "-i", "0.1", "-W", "2", "-s", "1472", &v4];
    let may = lab.run("a1", &[&whole[..1], &["-M", "dont"], &whole[1..]].concat())?;
    ensure!(may.contains(" 3 received"), "{may}");
    for (address, size) in [(v4.as_str(), "1472"), (&lab.pod_v6("b1")?.to_string(), "1452")] {
        let told = ["ping", "-c", "2", "-i", "0.1", "-W", "2", "-M", "do", "-s", size, address];
        let output = lab.exec("a1", &told)?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let told = text.contains("mtu") || text.contains("Packet too big");
        ensure!(!output.status.success() && told, "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn fragments_arrive_through_wireguard_and_on_one_node() -> Result<()> {
    fragments_arrive(Encapsulation::WireGuard).await
}

#[tokio::test]
async fn fragments_arrive_through_vxlan_and_on_one_node() -> Result<()> {
    fragments_arrive(Encapsulation::Vxlan).await
}
