//! The executable as a container runtime meets it.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn weft_cni(variables: &[(&str, &str)], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// CNI-023
#[test]
fn version_needs_no_other_variable_and_no_stdin() {
    for stdin in ["", "not JSON", r#"{"cniVersion":"9.9.9"}"#] {
        let output = weft_cni(&[("CNI_COMMAND", "VERSION")], stdin);
        assert!(output.status.success());
        assert!(stdout(&output)["supportedVersions"].as_array().unwrap().contains(&"1.0.0".into()));
    }
}

/// CNI-020, CNI-024
#[test]
fn errors_are_objects_on_stdout() {
    for (command, code) in [("ADD", 4), ("FROB", 4)] {
        let output = weft_cni(&[("CNI_COMMAND", command)], "{}");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stdout(&output)["code"], code);
        assert!(output.stderr.is_empty());
    }
}

/// CNI-048, CNI-031
#[test]
fn absent_agent_means_try_again_later() {
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        // Any file that is not this process's network namespace.
        ("CNI_NETNS", "/proc/self/ns/mnt"),
        ("CNI_PATH", "/nonexistent"),
    ];
    let config =
        r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","socket":"/nonexistent/s"}"#;
    let output = weft_cni(&variables, config);
    assert_eq!(stdout(&output)["code"], 11);
    assert_eq!(stdout(&output)["cniVersion"], "1.0.0");
}

/// CNI-060: nothing is left of an attachment that never was
#[test]
fn deletion_of_what_never_was_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nonexistent"),
    ];
    let state = dir.path().display();
    let config = format!(
        r#"{{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","socket":"/nonexistent/s","stateDir":"{state}"}}"#
    );
    for _ in 0..2 {
        let output = weft_cni(&variables, &config);
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}
