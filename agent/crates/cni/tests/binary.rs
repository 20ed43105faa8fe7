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

/// CNI-022, CNI-072: nothing but the command is needed.
#[test]
fn status_needs_version_1_1_and_an_agent() {
    for (version, code) in [("1.0.0", 1), ("1.1.0", 50)] {
        let config =
            format!(r#"{{"cniVersion":"{version}","name":"weft","socket":"/nonexistent/s"}}"#);
        let output = weft_cni(&[("CNI_COMMAND", "STATUS")], &config);
        assert_eq!(stdout(&output)["code"], code, "{version}");
        assert_eq!(stdout(&output)["cniVersion"], version);
    }
}

/// CNI-022, CNI-074: a list that is not there is not an empty one, and nothing is freed.
#[test]
fn gc_needs_version_1_1_and_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().display();
    let gc = |version: &str, rest: &str, variables: &[(&str, &str)]| {
        let config = format!(
            r#"{{"cniVersion":"{version}","name":"weft","socket":"/nonexistent/s","stateDir":"{state}"{rest}}}"#
        );
        weft_cni(&[&[("CNI_COMMAND", "GC")], variables].concat(), &config)
    };
    let path = [("CNI_PATH", "/nonexistent")];
    let empty = r#","cni.dev/valid-attachments":[]"#;
    let given = dir.path().join("addresses/weft");
    std::fs::create_dir_all(&given).unwrap();
    std::fs::write(given.join("lock"), "").unwrap();
    std::fs::write(
        given.join("10.1.0.2"),
        "c1
eth0",
    )
    .unwrap();
    assert_eq!(stdout(&gc("1.1.0", empty, &[]))["code"], 4);
    assert_eq!(stdout(&gc("1.0.0", empty, &path))["code"], 1);
    assert_eq!(stdout(&gc("1.1.0", "", &path))["code"], 7);
    assert!(given.join("10.1.0.2").exists());
    // The agent is away, which is told; what can be done without it is done.
    assert_eq!(stdout(&gc("1.1.0", empty, &path))["code"], 11);
    assert!(!given.join("10.1.0.2").exists());
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
