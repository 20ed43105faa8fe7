//! Keeps the processes of a lab running, as the kubelet keeps containers.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use weft_netio::{InNetNs, NetNs};

use crate::commands::{Process, processes, weft_binary};
use crate::fabric::load;
use crate::layout::Layout;

/// Name of the supervisor's own pid and log file.
const SUPERVISOR: &str = "supervisor";
/// Pause before an exited process is started again; doubles up to the maximum while it keeps
/// exiting at once.
const RESTART_PAUSE: Duration = Duration::from_millis(20);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A process that ran this long has come up: the pause starts over.
const SETTLED: Duration = Duration::from_secs(5);
/// How long a process may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a log's end that are looked at.
const LOG_TAIL: i64 = 4096;
/// How a line of `weft` begins that tells why it ended.
const FAILED: &str = "weft: error: ";
/// A process that failed this often will fail again.
const FAILURES_MAX: usize = 4;

/// Starts the supervisor of a lab as a process of its own, detached from this terminal.
pub(crate) fn start(layout: &Layout, binary: Option<PathBuf>) -> Result<()> {
    let log = log_file(layout, SUPERVISOR)?;
    let binary = binary.map_or_else(weft_binary, Ok)?;
    let child = std::process::Command::new(binary)
        .args(["lab", "supervise", "--name", layout.name()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("cannot start the supervisor")?;
    write_pid(layout, SUPERVISOR, child.id())
}

/// Runs in the supervisor process until SIGTERM: starts every process of the lab, starts again what
/// exits, and ends all of them at the end.
///
/// # Errors
/// If the lab is not there or a process cannot be started at all.
pub async fn supervise(name: &str) -> Result<()> {
    // Before anything is started that would be left behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let layout = Layout::new(name)?;
    let state = load(&layout)?;
    let (stop, stopped) = watch::channel(false);
    let mut keepers = Vec::new();
    for process in processes(&layout, &state)? {
        keepers.push(tokio::spawn(keep(layout.clone(), process.name, stopped.clone())));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.send_replace(true);
    for keeper in keepers {
        keeper.await??;
    }
    Ok(())
}

async fn keep(layout: Layout, name: String, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let mut pause = RESTART_PAUSE;
    while !*stopped.borrow() {
        let started = Instant::now();
        // Its arguments may have changed.
        let known = processes(&layout, &load(&layout)?)?;
        let process = known.iter().find(|p| p.name == name).context("a process of no lab")?;
        if !process.mounts.iter().all(|path| path.exists()) {
            tokio::select! {
                () = tokio::time::sleep(RESTART_PAUSE) => {}
                _ = stopped.changed() => {}
            }
            continue;
        }
        let mut child = spawn(&layout, process)?;
        tokio::select! {
            status = child.wait() => {
                tracing::warn!(process = name, status = ?status?, "exited, starting again");
            }
            _ = stopped.changed() => return end(&mut child).await,
        }
        pause = match started.elapsed() {
            t if t > SETTLED => RESTART_PAUSE,
            _ => (pause * 2).min(RESTART_PAUSE_MAX),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.changed() => {}
        }
    }
    Ok(())
}

fn spawn(layout: &Layout, process: &Process) -> Result<Child> {
    let log = log_file(layout, &process.name)?;
    let mut command = std::process::Command::new(weft_binary()?);
    command.args(&process.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.in_netns(&NetNs::open(&process.namespace)?);
    let child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", process.name))?;
    write_pid(layout, &process.name, child.id().unwrap_or_default())?;
    Ok(child)
}

async fn end(child: &mut Child) -> Result<()> {
    if let Some(id) = child.id() {
        signal_process(i32::try_from(id)?, Signal::SIGTERM)?;
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// Ends the supervisor, and what it may have left behind if it was killed.
pub(crate) async fn stop(layout: &Layout) -> Result<()> {
    stop_one(layout, SUPERVISOR).await?;
    // Only now nothing is started any more.
    let Ok(entries) = fs::read_dir(layout.dir().join("pids")) else { return Ok(()) };
    for name in entries.flatten().filter_map(|e| e.file_name().into_string().ok()) {
        stop_one(layout, &name).await?;
    }
    Ok(())
}

async fn stop_one(layout: &Layout, name: &str) -> Result<()> {
    let Some(pid) = read_pid(layout, name).filter(|pid| is_ours(layout, *pid)) else {
        return Ok(());
    };
    signal_process(pid, Signal::SIGTERM)?;
    let until = Instant::now() + 2 * STOP_TIMEOUT;
    while is_ours(layout, pid) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if is_ours(layout, pid) {
        signal_process(pid, Signal::SIGKILL)?;
        while is_ours(layout, pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

fn signal_process(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("cannot end process {pid}")),
    }
}

/// A pid may have been given to somebody else since: only a process that runs and carries the
/// lab's name or directory in its command line is ours.
fn is_ours(layout: &Layout, pid: i32) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let dir = format!("{}/", layout.dir().display());
    command.split(|b| *b == 0).any(|argument| {
        let text = String::from_utf8_lossy(argument);
        text == layout.name() || text.contains(&dir)
    })
}

fn write_pid(layout: &Layout, process: &str, pid: u32) -> Result<()> {
    let path = layout.pid_file(process);
    fs::write(&path, pid.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn read_pid(layout: &Layout, process: &str) -> Option<i32> {
    fs::read_to_string(layout.pid_file(process)).ok()?.trim().parse().ok()
}

fn log_file(layout: &Layout, process: &str) -> Result<fs::File> {
    let path = layout.log_file(process);
    let opened = fs::OpenOptions::new().create(true).append(true).open(&path);
    opened.with_context(|| format!("cannot write {}", path.display()))
}

/// What the process that failed said last, if one did: its name and its error.
pub(crate) fn last_error(layout: &Layout) -> Option<String> {
    let entries = fs::read_dir(layout.dir().join("logs")).ok()?;
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    // The hub's before those of the nodes that wait for it.
    paths.sort();
    paths.iter().find_map(|path| {
        let text = tail(path).ok()?;
        let line = text.lines().rev().find_map(|line| line.strip_prefix(FAILED))?;
        Some(format!("{}: {line}", path.file_stem()?.to_string_lossy()))
    })
}

/// Ends when a process has ended with an error several times, and not before.
pub(crate) async fn failing(layout: &Layout) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(entries) = fs::read_dir(layout.dir().join("logs")) else { continue };
        let failures = |path: &Path| {
            tail(path).map_or(0, |text| text.lines().filter(|l| l.starts_with(FAILED)).count())
        };
        if entries.flatten().any(|e| failures(&e.path()) >= FAILURES_MAX) {
            return;
        }
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = i64::try_from(file.metadata()?.len()).unwrap_or(LOG_TAIL);
    file.seek(SeekFrom::End(-length.min(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
