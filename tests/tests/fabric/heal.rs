//! What somebody deletes under the fabric comes back; what the fabric made goes with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::Options;
use weft_netio::netns;
use weft_tests::outsider::{Outsider, tool};
use weft_tests::talk::{Party, udp_both_ways};
use weft_tests::{TestLab, binaries, can_run, eventually};

/// The aim is under a second; this is a bound for a machine that is busy with other things.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Deletes something on `node-1`, and waits until it is back and pods talk.
async fn comes_back(lab: &TestLab, delete: &str, shown_by: &str, sign: &str) -> Result<()> {
    let namespace = lab.namespace_of("node-1")?;
    let there = || tool(&namespace, shown_by).map(|text| text.contains(sign));
    ensure!(there()?, "`{shown_by}` does not show {sign}");
    tool(&namespace, delete)?;
    let begun = Instant::now();
    eventually(BACK_WITHIN, async || {
        ensure!(there().unwrap_or(false), "`{delete}`: {sign} is not back");
        Ok(())
    })
    .await?;
    let back = begun.elapsed();
    let pairs: [(Party, Party); 2] =
        [(lab.party("a1", 0)?, lab.party("b1", 0)?), (lab.party("a1", 1)?, lab.party("b1", 1)?)];
    for (from, to) in &pairs {
        udp_both_ways(from, to, b"still here").with_context(|| format!("after `{delete}`"))?;
        udp_both_ways(to, from, b"still here").with_context(|| format!("after `{delete}`"))?;
    }
    println!("`{delete}`: back after {back:?}, pods talk after {:?}", begun.elapsed());
    Ok(())
}

/// Rules, routes, redirects and tables are put back by themselves.
#[tokio::test]
async fn what_somebody_deletes_is_put_back() -> Result<()> {
    if !can_run(&["ip", "tc", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 2, ..Options::default() }, 1).await?;
    let node = lab.namespace_of("node-1")?;
    let links = tool(&node, "ip -o link")?;
    let port = links.split([' ', ':', '@']).find(|word| word.starts_with("veth"));
    let port = port.context("no port of a pod")?.to_owned();
    let cluster = lab.status().await?.cluster.context("no cluster")?;
    let shown = "nft list tables";
    comes_back(&lab, "nft delete table inet weft", shown, "table inet weft").await?;
    for (ip, v6) in [("ip", false), ("ip -6", true)] {
        let cidr = cluster.pod_cidrs.iter().find(|c| c.contains(':') == v6).context("no CIDR")?;
        let rules = format!("{ip} rule show");
        comes_back(&lab, &format!("{ip} rule del priority 101"), &rules, "101:").await?;
        comes_back(&lab, &format!("{ip} rule del priority 100"), &rules, "100:").await?;
        let delete = format!("{ip} route del {cidr} dev weft0 table 5100");
        comes_back(&lab, &delete, &format!("{ip} route show table 5100"), cidr).await?;
    }
    let filters = format!("tc filter show dev {port} ingress");
    comes_back(&lab, &format!("tc qdisc del dev {port} clsact"), &filters, "mirred").await?;
    let down = "ip link set weft0 down";
    comes_back(&lab, down, "ip route show table 5100", "weft0").await?;
    comes_back(&lab, "ip link del weft0", "ip route show table 5100", "weft0").await
}

/// A node that somebody set up by hand: a datapath and an agent on a machine that had none.
struct Node {
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Node {
    fn start(lab: &TestLab, machine: &Outsider) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut node = Self { directory, processes: Vec::new() };
        let token = lab.manifests().with_file_name("join-token");
        let hub = ["--hub=198.18.0.2:7443".to_owned(), format!("--token-file={}", token.display())];
        let cni = format!("--cni-binary={}", binaries()?.join("weft-cni").display());
        let directories = node.directories();
        let run_dir = directories.first().context("no run directory")?.clone();
        node.spawn(machine, "datapath", &[run_dir])?;
        let name = ["--node-name=by-hand".to_owned(), cni];
        node.spawn(machine, "agent", &[&name, &hub, directories.as_slice()].concat())?;
        Ok(node)
    }

    fn directories(&self) -> Vec<String> {
        let names = ["run-dir", "state-dir", "cni-conf-dir", "cni-bin-dir"];
        names.iter().map(|n| format!("--{n}={}", self.path(n).display())).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&mut self, machine: &Outsider, role: &str, arguments: &[String]) -> Result<()> {
        let log = File::create(self.path(role).with_extension("log"))?;
        let mut command = machine.command(binaries()?.join("weft"))?;
        command.arg(role).args(arguments).stdout(Stdio::null()).stderr(log);
        self.processes.push(command.spawn().with_context(|| format!("cannot start {role}"))?);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        for mut process in self.processes.drain(..).rev() {
            kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
            process.wait()?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Everything of a machine's network that a fabric could change, by what shows it.
fn picture(machine: &Outsider) -> Result<BTreeMap<String, String>> {
    let mut picture = BTreeMap::new();
    for shown_by in [
        "ip -o link",
        "ip -o address",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "tc qdisc",
    ] {
        let mut lines: Vec<_> = machine.tool(shown_by)?.lines().map(str::to_owned).collect();
        lines.sort();
        picture.insert(shown_by.to_owned(), lines.join("\n"));
    }
    let settings = netns::enter(&machine.namespace, || {
        let mut all = BTreeMap::new();
        for directory in ["/proc/sys/net/ipv4", "/proc/sys/net/ipv6"] {
            read_settings(Path::new(directory), &mut all);
        }
        all
    })?;
    ensure!(settings.len() > 100, "only {} settings can be read", settings.len());
    picture.extend(settings);
    Ok(picture)
}

fn read_settings(path: &Path, all: &mut BTreeMap<String, String>) {
    if let Ok(entries) = std::fs::read_dir(path) {
        entries.flatten().for_each(|entry| read_settings(&entry.path(), all));
    } else if let Ok(text) = std::fs::read_to_string(path)
        // Random at each reading, or a clock.
        && !path.ends_with("stable_secret")
    {
        all.insert(path.display().to_string(), text);
    }
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let keys = before.keys().chain(after.keys().filter(|k| !before.contains_key(*k)));
    let differs = keys.filter(|k| before.get(*k) != after.get(*k));
    differs.map(|k| format!("{k}\n was {:?}\n is  {:?}", before.get(k), after.get(k))).collect()
}

/// `weft uninstall` leaves a node as it was: links, addresses, rules, routes, tables, settings.
#[tokio::test]
async fn uninstall_leaves_a_node_as_it_was() -> Result<()> {
    if !can_run(&["ip", "tc", "nft"]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(Options { nodes: 1, ..Options::default() }, 1).await?;
    let machine = Outsider::join(&lab)?;
    // Addresses of the link itself come a moment after it.
    eventually(Duration::from_secs(5), async || {
        let addresses = machine.tool("ip -o -6 address show scope link dev eth0")?;
        ensure!(!addresses.is_empty() && !addresses.contains("tentative"), "{addresses}");
        Ok(())
    })
    .await?;
    let before = picture(&machine)?;
    let mut node = Node::start(&lab, &machine)?;
    let pod = lab.party("a1", 0)?;
    eventually(Duration::from_secs(15), async || {
        machine.tool(&format!("ping -c 1 -W 1 {}", pod.address)).map(drop)
    })
    .await?;
    let during = differences(&before, &picture(&machine)?);
    for changed in ["ip -o link", "ip rule", "ip -6 rule", "nft list ruleset", "ip_forward"] {
        ensure!(
            during.iter().any(|d| d.lines().next().is_some_and(|l| l.contains(changed))),
            "the picture does not show {changed}: {during:#?}"
        );
    }
    node.stop()?;
    let mut uninstall = machine.command(binaries()?.join("weft"))?;
    let output = uninstall.arg("uninstall").args(node.directories()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left = differences(&before, &picture(&machine)?);
    ensure!(left.is_empty(), "left behind: {left:#?}");
    for directory in ["run-dir", "state-dir"] {
        ensure!(!node.path(directory).exists(), "{directory} is still there");
    }
    for directory in ["cni-conf-dir", "cni-bin-dir"] {
        let left = std::fs::read_dir(node.path(directory))?.count();
        ensure!(left == 0, "{left} files are left in {directory}");
    }
    // Nothing to do is no error.
    let mut again = machine.command(binaries()?.join("weft"))?;
    let output = again.arg("uninstall").args(node.directories()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
