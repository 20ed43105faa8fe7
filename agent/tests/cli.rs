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
    for mistake in [
        &["status", "--no-such-flag"][..],
        &["hub", "--vni", "x"],
        &["plugin", "load", "", "module.wasm"],
        &["frobnicate"],
    ] {
        let output = weft(mistake);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr.starts_with("weft: error: ") && stderr.lines().count() == 1, "{stderr}");
        assert_eq!(stderr.matches("--help").count(), 1, "{stderr}");
    }
}

#[test]
fn settings_that_cannot_work_are_one_line_and_make_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let hub = |extra: &[&str]| {
        let (state, manifests) = (state.to_str().unwrap(), dir.path().to_str().unwrap());
        let flags = ["hub", "--manifests", manifests, "--state-dir", state, "--run-dir", state];
        weft(&[&flags, extra].concat())
    };
    for (flags, says) in [
        (&["--pod-cidr", "10.0.0.0/8,10.1.0.0/16"][..], "10.1.0.0/16"),
        (&["--pod-cidr", "10.244.0.0/16,192.168.0.0/16"], "one family"),
        (&["--pod-cidr", "10.244.0.1/16"], "10.244.0.0/16"),
        (&["--pod-cidr", "10.244.0.0/16", "--node-prefix-v4", "8"], "prefix"),
        (&["--vni", "0"], "network identifier"),
        (&["--listen", "192.0.2.1:7443"], "192.0.2.1:7443"),
    ] {
        let output = hub(flags);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let error: Vec<&str> = stderr.lines().filter(|l| l.starts_with("weft: error: ")).collect();
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {stderr}");
        assert_eq!(error.len(), 1, "{flags:?}: {stderr}");
        assert!(error[0].contains(says), "{flags:?}: {stderr}");
    }
}

#[test]
fn certificate_of_an_operator_is_renewed_in_place_and_only_beside_a_hub() {
    let dir = tempfile::tempdir().unwrap();
    let [state, out] = ["state", "out/ann"].map(|d| dir.path().join(d).display().to_string());
    let issue = || weft(&["token", "admin", "ann", "--state-dir", &state, "--out", &out]);
    let stderr = String::from_utf8(issue().stderr).unwrap();
    assert!(stderr.contains("--state-dir") && stderr.lines().count() == 1, "{stderr}");
    assert!(weft(&["token", "show", "--state-dir", &state]).status.success());
    for _ in 0..2 {
        let output = issue();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut files: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["admin.key", "admin.pem", "ca.pem"]);
}

#[test]
fn garbled_token_is_refused_before_anything_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "not a token").unwrap();
    let [state, run] = ["state", "run"].map(|d| dir.path().join(d).display().to_string());
    let output = weft(&[
        "agent",
        "--hub=127.0.0.1:1",
        "--node-name=a",
        &format!("--token-file={}", token.display()),
        &format!("--state-dir={state}"),
        &format!("--run-dir={run}"),
    ]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().last().is_some_and(|l| l.starts_with("weft: error: ")), "{stderr}");
    assert!(stderr.contains("token"), "{stderr}");
}
