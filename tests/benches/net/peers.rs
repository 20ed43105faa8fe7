//! What Weft is compared with, on the same machines: set up as their operators would, not tuned.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_lab::Options;
use weft_tests::routed::{self, Node};
use weft_tests::{TestLab, command_in, eventually};

use crate::bed::{self, Bed};
use crate::names::{Case, Underlay};

const VXLAN_MACS: [&str; 2] = ["02:00:5e:00:02:01", "02:00:5e:00:02:02"];
const VXLAN_OVERHEAD: u32 = 50;
const WIREGUARD_PORT: u16 = 51820;
/// What `wg-quick` takes off, enough for an underlay of IPv6.
const WIREGUARD_OVERHEAD: u32 = 80;
const START_MAX: Duration = Duration::from_secs(10);
/// Built for the bench, before what the machine may have.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin");

/// A tunnel's process; ended when dropped.
pub(crate) struct Process {
    child: Child,
    control: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It had no time to remove it itself.
        let _ = std::fs::remove_file(&self.control);
    }
}

pub(crate) async fn make(case: Case, options: Options, underlay: Underlay) -> Result<Bed> {
    let lab = TestLab::machines(options).await?;
    bed::apply(underlay, &lab)?;
    let nodes = routed::nodes(&lab)?;
    let mut processes = Vec::new();
    let mtu = match case {
        Case::Routed => {
            routed::connect(&nodes)?;
            underlay.mtu
        }
        Case::KernelVxlan => {
            let mtu = underlay.mtu - VXLAN_OVERHEAD;
            nodes.iter().try_for_each(|node| vxlan(node, mtu))?;
            mtu
        }
        Case::WireGuardGo | Case::BoringTun => {
            let mtu = underlay.mtu - WIREGUARD_OVERHEAD;
            wireguard(case, &nodes, mtu, &mut processes).await?;
            mtu
        }
        Case::Weft(..) => bail!("no peer"),
    };
    let pods = routed::pods(&lab, &nodes, mtu)?;
    Ok(Bed::new(lab, processes, pods))
}

/// As Flannel's `vxlan` backend makes it.
fn vxlan(node: &Node, mtu: u32) -> Result<()> {
    let [own, other] = [VXLAN_MACS[node.number - 1], VXLAN_MACS[2 - node.number]];
    let gateway = format!("10.244.{}.0", 3 - node.number);
    node.tool(&format!(
        "ip link add vxlan0 address {own} mtu {mtu} type vxlan id 1 dstport 4789 local {} nolearning",
        node.address
    ))
    .context("no VXLAN device")?;
    node.tool(&format!("ip address add 10.244.{}.0/32 dev vxlan0", node.number))?;
    node.tool("ip link set vxlan0 up")?;
    node.tool(&format!("bridge fdb append {other} dev vxlan0 dst {}", node.other))?;
    node.tool(&format!("ip neighbour add {gateway} lladdr {other} dev vxlan0"))?;
    node.tool(&format!("ip route add {} via {gateway} dev vxlan0 onlink", node.other_subnet()))?;
    Ok(())
}

async fn wireguard(
    case: Case,
    nodes: &[Node; 2],
    mtu: u32,
    processes: &mut Vec<Process>,
) -> Result<()> {
    let mut keys = Vec::new();
    for node in nodes {
        // The control socket is named after the interface, on the whole machine.
        let kind = if case == Case::BoringTun { 'b' } else { 'g' };
        let interface = format!("w{kind}{}-{}", std::process::id(), node.number);
        processes.push(tunnel(case, node, &interface).await?);
        let directory = tempfile::tempdir()?;
        let key_file = directory.path().join("key");
        std::fs::write(&key_file, node.tool("wg genkey")?)?;
        let public_key = public_key(&key_file)?;
        let key_file = key_file.display();
        let settings = format!("private-key {key_file} listen-port {WIREGUARD_PORT}");
        node.tool(&format!("wg set {interface} {settings}"))?;
        node.tool(&format!("ip link set {interface} mtu {mtu} up"))?;
        node.tool(&format!("ip route add {} dev {interface}", node.other_subnet()))?;
        keys.push((interface, public_key));
    }
    for (node, other) in [(0, 1), (1, 0)] {
        let (interface, key, node) = (&keys[node].0, &keys[other].1, &nodes[node]);
        let endpoint = format!("endpoint {}:{WIREGUARD_PORT}", node.other);
        let allowed = node.other_subnet();
        node.tool(&format!("wg set {interface} peer {key} {endpoint} allowed-ips {allowed}"))?;
    }
    Ok(())
}

/// BoringTun does not tell it.
fn public_key(private: &Path) -> Result<String> {
    let mut command = Command::new("wg");
    let output = command.arg("pubkey").stdin(File::open(private)?).output()?;
    ensure!(output.status.success(), "`wg pubkey`: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Starts a tunnel's process; returns when it can be told its settings.
async fn tunnel(case: Case, node: &Node, interface: &str) -> Result<Process> {
    let (name, arguments) = match case {
        Case::BoringTun => ("boringtun-cli", &["--foreground", "--disable-drop-privileges"][..]),
        _ => ("wireguard-go", &["--foreground"][..]),
    };
    let mut said = tempfile::tempfile()?;
    let mut command: Command = command_in(&node.namespace, PathBuf::from(TOOLS).join(name))?;
    command.args(arguments).arg(interface);
    // It says that the kernel might do as well, unless told that this is known.
    command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
    command.stdout(said.try_clone()?).stderr(said.try_clone()?);
    let child = command.spawn();
    let child = child
        .with_context(|| format!("{name} was not built: see what scripts/bench-peers said"))?;
    let socket = format!("/{interface}.sock");
    let control = PathBuf::from(format!("/var/run/wireguard{socket}"));
    let mut process = Process { child, control };
    // `wg` takes away a socket that is there and not yet listened at, and then the process ends.
    let listening = eventually(START_MAX, async || {
        // Ended already: no need to wait longer, it is told below.
        if process.child.try_wait()?.is_some() {
            return Ok(false);
        }
        let sockets = node.tool("ss -xlH")?;
        ensure!(sockets.contains(&socket), "it is not listening");
        Ok(true)
    });
    let listening = listening.await;
    if !matches!(listening, Ok(true)) {
        let mut text = String::new();
        said.rewind().and_then(|()| said.read_to_string(&mut text))?;
        let text = text.trim();
        listening.with_context(|| format!("{name}: {text}"))?;
        bail!("{name} ended: {text}");
    }
    Ok(process)
}
