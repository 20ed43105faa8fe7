//! A machine on which somebody starts Weft by hand, and what can be seen of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_netio::netns;

use crate::outsider::tool;
use crate::{TestLab, binaries, command_in, eventually};

const DIRECTORIES: [&str; 4] = ["run-dir", "state-dir", "cni-conf-dir", "cni-bin-dir"];

/// A datapath and an agent on a machine that had none. What runs is ended when dropped.
#[derive(Debug)]
pub struct Node {
    namespace: String,
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Node {
    /// On the machine with that network namespace; nothing runs yet.
    ///
    /// # Errors
    /// If no directory can be made.
    pub fn at(namespace: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        Ok(Self { namespace: namespace.to_owned(), directory, processes: Vec::new() })
    }

    /// Starts datapath and agent; the agent joins the lab.
    ///
    /// # Errors
    /// If a process cannot be started.
    pub fn start(&mut self, lab: &TestLab) -> Result<()> {
        for command in [self.weft("datapath")?, self.joining(&token(lab))?] {
            self.spawn(command)?;
        }
        Ok(())
    }

    /// Starts a command in the background; its stderr goes to a file.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = File::create(self.path(&format!("{}.log", self.processes.len())))?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn();
        self.processes.push(child.with_context(|| format!("cannot start {command:?}"))?);
        Ok(())
    }

    /// `weft ROLE` with the flags for this machine's directories.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn weft(&self, role: &str) -> Result<Command> {
        let mut command = command_in(&self.namespace, binaries()?.join("weft"))?;
        command.arg(role);
        let count = if role == "datapath" { 1 } else { DIRECTORIES.len() };
        for name in DIRECTORIES.iter().take(count) {
            command.arg(format!("--{name}={}", self.path(name).display()));
        }
        Ok(command)
    }

    /// `weft agent` that joins the hub of a lab with the token in a file.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn joining(&self, token: &Path) -> Result<Command> {
        let mut command = self.weft("agent")?;
        command.args(["--node-name=by-hand", "--hub=198.18.0.2:7443"]);
        command.arg(format!("--token-file={}", token.display()));
        command.arg(format!("--cni-binary={}", binaries()?.join("weft-cni").display()));
        Ok(command)
    }

    /// A directory by the name of its flag, or any other path beside them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Ends what was started, the last first.
    ///
    /// # Errors
    /// If a process cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        for mut process in self.processes.drain(..).rev() {
            kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
            process.wait()?;
        }
        Ok(())
    }

    /// Waits until what was started last ends, with a status other than 0, and returns its last line.
    ///
    /// # Errors
    /// If it does not end within 15 seconds, or as if nothing had happened.
    pub async fn ended_by_itself(&mut self) -> Result<String> {
        let log = self.path(&format!("{}.log", self.processes.len().saturating_sub(1)));
        let process = self.processes.last_mut().context("nothing was started")?;
        let status = eventually(Duration::from_secs(15), async || {
            process.try_wait()?.context("it runs still")
        })
        .await?;
        self.processes.pop();
        let said = std::fs::read_to_string(log)?;
        ensure!(status.code().is_some_and(|c| c > 0), "{status}: {said}");
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }

    /// Everything that could be left behind: of the network, and the files.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn traces(&self) -> Result<BTreeMap<String, String>> {
        let mut traces = picture(&self.namespace)?;
        files(self.directory.path(), &mut traces)?;
        Ok(traces)
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

/// File with the join token of a lab.
#[must_use]
pub fn token(lab: &TestLab) -> PathBuf {
    lab.manifests().with_file_name("join-token")
}

fn files(directory: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        all.insert(path.display().to_string(), String::new());
        if path.is_dir() {
            files(&path, all)?;
        }
    }
    Ok(())
}

/// Everything of a machine's network that a fabric could change, by what shows it.
///
/// # Errors
/// If something cannot be read.
pub fn picture(namespace: &str) -> Result<BTreeMap<String, String>> {
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
        let mut lines: Vec<_> = tool(namespace, shown_by)?.lines().map(str::to_owned).collect();
        lines.sort();
        picture.insert(shown_by.to_owned(), lines.join("\n"));
    }
    let settings = netns::enter(namespace, || {
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

/// What differs between two pictures.
#[must_use]
pub fn differences(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let keys = before.keys().chain(after.keys().filter(|k| !before.contains_key(*k)));
    let differs = keys.filter(|k| before.get(*k) != after.get(*k));
    differs.map(|k| format!("{k}\n was {:?}\n is  {:?}", before.get(k), after.get(k))).collect()
}
