//! Labs keep to themselves: what is of one is lost by none, and what is of others is left alone.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::{Lab, Options};
use weft_netio::netns;
use weft_tests::{TestLab, binaries, can_run, eventually};

fn weft(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binaries()?.join("weft"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn one_node() -> Options {
    Options { nodes: 1, ..Options::default() }
}

#[tokio::test]
async fn pods_added_at_once_are_all_known_and_a_name_is_given_once() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let lab = TestLab::up(one_node()).await?;
    let add = |pod: String| {
        let name = lab.name().to_owned();
        tokio::spawn(async move { Lab::open(&name)?.pod_add("node-1", &pod).await })
    };
    let calls: Vec<_> = (0..8).map(|n| add(format!("p{}", n / 2))).collect();
    let mut made = 0;
    for call in calls {
        match call.await? {
            Ok(_) => made += 1,
            Err(error) => ensure!(error.to_string().contains("already"), "{error:#}"),
        }
    }
    ensure!(made == 4, "{made} calls made a pod");
    let known = Lab::open(lab.name())?;
    ensure!(known.pods().len() == 4, "{:?}", known.pods());
    let refused = Lab::open(lab.name())?.pod_add("node-1", "node-1").await;
    ensure!(refused.is_err_and(|e| e.to_string().contains("name of a node")));
    // One name for each pod.
    let refused = Lab::open(lab.name())?.pod_add("node-1", "default/p9").await;
    ensure!(refused.is_err_and(|e| e.to_string().contains("goes by its name alone")));
    Ok(())
}

#[tokio::test]
async fn lab_does_not_touch_what_is_of_others() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let lab = TestLab::up(one_node()).await?;
    let (shorter, _) = lab.name().rsplit_once('-').unwrap_or_default();
    Lab::down(shorter).await?;
    lab.wait_ready().await?;

    let other = format!("{}-x", lab.name());
    let foreign = format!("{other}.hub");
    netns::create(&foreign)?;
    let up = weft(&["lab", "up", "--nodes", "1", "--name", &other])?.output()?;
    let left = netns::list()?;
    netns::delete(&foreign)?;
    ensure!(!up.status.success() && error(&up).contains("is there already"), "{}", error(&up));
    ensure!(left.contains(&foreign), "the namespace of somebody else is gone");
    Ok(())
}

#[tokio::test]
async fn lab_that_cannot_come_up_says_why_in_one_line_and_soon() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let name = format!("t{}-bad", std::process::id());
    let cidrs = ["--pod-cidr", "10.1.0.0/16", "--pod-cidr", "10.1.1.0/24"];
    let up = weft(&["lab", "up", "--nodes", "1", "--name", &name])?.args(cidrs).output()?;
    let text = error(&up);
    ensure!(!up.status.success(), "came up");
    ensure!(text.trim_end().lines().count() == 1, "{text}");
    ensure!(text.contains("hub:") && text.contains("10.1.1.0/24"), "{text}");
    ensure!(!netns::list()?.iter().any(|n| n.starts_with(&name)), "namespaces are left behind");
    Ok(())
}

#[tokio::test]
async fn interrupted_lab_leaves_nothing_behind() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let name = format!("t{}-int", std::process::id());
    let up = weft(&["lab", "up", "--nodes", "2", "--name", &name])?.spawn()?;
    let mine = |n: &String| n.starts_with(&format!("{name}."));
    eventually(std::time::Duration::from_secs(10), async || {
        ensure!(netns::list()?.iter().any(mine), "no namespace yet");
        Ok(())
    })
    .await?;
    kill(Pid::from_raw(i32::try_from(up.id())?), Signal::SIGINT)?;
    let ended = up.wait_with_output()?;
    ensure!(error(&ended).contains("interrupted"), "{}", error(&ended));
    ensure!(!netns::list()?.iter().any(mine), "namespaces are left behind");
    ensure!(Lab::open(&name).is_err(), "the lab is left behind");
    Ok(())
}

#[tokio::test]
async fn command_in_a_pod_ends_as_it_ends_and_gets_signals() -> Result<()> {
    if !can_run(&[]) {
        return Ok(());
    }
    let lab = TestLab::with_pods(one_node(), 1).await?;
    let exec = |words: &[&str]| -> Result<Command> {
        let mut command = weft(&["lab", "exec", "--name", lab.name(), "a1", "--"])?;
        command.args(words);
        Ok(command)
    };
    let code = exec(&["sh", "-c", "exit 7"])?.status()?.code();
    ensure!(code == Some(7), "{code:?}");
    let mut sleeping = exec(&["sleep", "60"])?.spawn()?;
    eventually(std::time::Duration::from_secs(5), async || {
        let command = std::fs::read_to_string(format!("/proc/{}/comm", sleeping.id()))?;
        ensure!(command.trim() == "sleep", "{command}");
        Ok(())
    })
    .await?;
    kill(Pid::from_raw(i32::try_from(sleeping.id())?), Signal::SIGTERM)?;
    let signal = sleeping.wait()?.signal();
    ensure!(signal == Some(Signal::SIGTERM as i32), "{signal:?}");
    Ok(())
}
