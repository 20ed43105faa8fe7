//! `weft-cni`: the executable that a container runtime calls.

use std::io::{Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = std::io::stdin().read_to_end(&mut stdin).map(|_| stdin);
    let reply = weft_cni::run(&|name| std::env::var(name).ok(), read);
    // A runtime that closed its end has no use for the answer, so a failed write changes nothing.
    let written = std::io::stdout().write_all(reply.stdout.as_bytes());
    ExitCode::from(if reply.failed || written.is_err() { 1 } else { 0 })
}
