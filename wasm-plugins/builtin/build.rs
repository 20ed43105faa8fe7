//! Builds the built-in plugins to WebAssembly, which needs another target and maybe another toolchain.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 8] = [
    "wasm-plugins/service",
    "wasm-plugins/policy",
    "wasm-plugins/dns",
    "policy-sdk/src",
    "policy-sdk/abi/src",
    "proto",
    "scripts/build-plugins",
    "Cargo.lock",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut build = Command::new(root.join("scripts/build-plugins"));
    build.arg("--only").arg("service policy dns").arg(&out);
    // What cargo says to build scripts is about the other build.
    for (name, _) in std::env::vars_os().filter(|(n, _)| is_of_cargo(&n.to_string_lossy())) {
        build.env_remove(name);
    }
    let status = build.status()?;
    if !status.success() {
        return Err(format!("scripts/build-plugins: {status}").into());
    }
    Ok(())
}

fn is_of_cargo(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR"];
    let prefixes = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "DEP_"];
    let names = ["OPT_LEVEL", "DEBUG", "PROFILE", "TARGET", "HOST", "NUM_JOBS", "RUSTUP_TOOLCHAIN"];
    !kept.contains(&name) && (prefixes.iter().any(|p| name.starts_with(p)) || names.contains(&name))
}
