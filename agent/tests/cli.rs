//! The binary as a user meets it: help for every command, one line for every mistake.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn weft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).args(arguments).output().unwrap()
}

#[test]
fn every_command_explains_itself() {
    let commands: [&[&str]; 12] = [
        &["hub"],
        &["agent"],
        &["datapath"],
        &["status"],
        &["plugin", "load"],
        &["plugin", "config"],
        &["node", "remove"],
        &["token", "show"],
        &["keys", "rotate"],
        &["uninstall"],
        &["lab", "up"],
        &["lab", "pod", "add"],
    ];
    for command in commands {
        let output = weft(&[command, &["--help"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Usage: weft"), "{command:?}: {text}");
    }
}

#[test]
fn failure_is_one_line_and_a_status() {
    let output = weft(&["status", "--hub-socket", "/nonexistent/hub.sock"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("weft: error: ") && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains("/nonexistent/hub.sock"), "{stderr}");
}

#[test]
fn unknown_flag_is_a_usage_error() {
    assert_eq!(weft(&["status", "--no-such-flag"]).status.code(), Some(2));
}
