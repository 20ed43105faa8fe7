//! What pods say to each other cannot be read on the underlay.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_model::Encapsulation;
use weft_tests::outsider::tool;
use weft_tests::talk::{tcp_both_ways, udp_both_ways};
use weft_tests::{TestLab, can_run, eventually};

/// 16 bytes each, as many as `ping` takes for a pattern; for each family TCP, UDP, ICMP.
const MARKERS: [[&str; 3]; 2] = [
    ["weft-v4-tcp-mark", "weft-v4-udp-mark", "weft-v4-icm-mark"],
    ["weft-v6-tcp-mark", "weft-v6-udp-mark", "weft-v6-icm-mark"],
];

/// `tcpdump` on the bridge that every packet between nodes passes.
struct Capture {
    process: Child,
}

impl Capture {
    async fn start(lab: &TestLab, file: &Path) -> Result<Self> {
        let mut tcpdump = weft_tests::command_in(&lab.underlay_namespace(), "tcpdump")?;
        tcpdump.args(["-i", "underlay", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(file);
        tcpdump.stdout(Stdio::null()).stderr(Stdio::null());
        let capture = Self { process: tcpdump.spawn().context("cannot start tcpdump")? };
        eventually(Duration::from_secs(5), async || {
            // The header of the file is written once packets are being taken.
            ensure!(std::fs::metadata(file)?.len() >= 24, "tcpdump does not capture yet");
            Ok(())
        })
        .await?;
        Ok(capture)
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGINT)?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Markers that a capture of the underlay holds while pods exchange all of them.
async fn markers_on_the_wire(encapsulation: Encapsulation) -> Result<Vec<&'static str>> {
    let options = Options { nodes: 2, encapsulation, ..Options::default() };
    let lab = TestLab::with_pods(options, 1).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("underlay.pcap");
    let capture = Capture::start(&lab, &file).await?;
    let exchanged = exchange(&lab)?;
    capture.end()?;
    let bytes = std::fs::read(file)?;
    ensure!(bytes.len() > exchanged, "{} bytes captured of {exchanged} sent", bytes.len());
    let found = |marker: &&&str| memory_holds(&bytes, marker.as_bytes());
    Ok(MARKERS.as_flattened().iter().filter(found).copied().collect())
}

/// Returns how many bytes pods have sent to each other.
fn exchange(lab: &TestLab) -> Result<usize> {
    for (family, [tcp, udp, icmp]) in MARKERS.iter().enumerate() {
        let (from, to) = (lab.party("a1", family)?, lab.party("b1", family)?);
        tcp_both_ways(&from, &to, tcp.repeat(1000).as_bytes())?;
        udp_both_ways(&from, &to, udp.repeat(50).as_bytes())?;
        let pattern: String = icmp.bytes().map(|b| format!("{b:02x}")).collect();
        tool(&from.namespace, &format!("ping -c 2 -i 0.1 -s 400 -p {pattern} {}", to.address))?;
    }
    // TCP there and back in both families; the rest is on top.
    Ok(2 * 2 * 16 * 1000)
}

fn memory_holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Strict encryption: no protocol, no family, not even while the session is young.
#[tokio::test]
async fn wireguard_shows_nothing_of_what_pods_say() -> Result<()> {
    if !can_run(&["tcpdump", "ping"]) {
        return Ok(());
    }
    let found = markers_on_the_wire(Encapsulation::WireGuard).await?;
    ensure!(found.is_empty(), "in clear on the underlay: {found:?}");
    Ok(())
}

/// The capture that shows nothing above does show what is not encrypted.
#[tokio::test]
async fn vxlan_shows_everything_that_pods_say() -> Result<()> {
    if !can_run(&["tcpdump", "ping"]) {
        return Ok(());
    }
    let found = markers_on_the_wire(Encapsulation::Vxlan).await?;
    ensure!(found == MARKERS.as_flattened(), "only {found:?} are in the capture");
    Ok(())
}
