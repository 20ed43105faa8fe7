//! `weft`: every role and tool of the fabric as a subcommand. Wiring only.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod command;
mod output;
mod reference;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::EnvFilter;

/// Gives back what only a large change took; after one, the C library's keeps twice what is in use.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// A network fabric for Kubernetes that anyone can extend with WebAssembly.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    /// What to log: a level, or `target=level` pairs (error, warn, info, debug, trace).
    #[arg(long, global = true, env = "WEFT_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the hub: leases subnets, admits nodes, publishes the fabric's state.
    Hub(Box<command::hub::Arguments>),
    /// Runs a node's agent: control, CNI, routes.
    Agent(Box<command::agent::Arguments>),
    /// Runs a node's datapath: packets.
    Datapath(command::datapath::Arguments),
    /// Shows the fabric, or one node with `--node`.
    Status(command::status::Arguments),
    /// Loads, lists, replaces, unloads and configures Wasm plugins on the live fabric.
    #[command(subcommand)]
    Plugin(command::plugin::Command),
    /// Shows every Service with its addresses, ports and endpoints.
    Services(command::services::Arguments),
    /// Says whether policies let a connection pass, and which rule decides; nothing is sent.
    Explain(command::explain::Arguments),
    /// Shows the connections that plugins, network policies among them, dropped on this node of late.
    Drops(command::drops::Arguments),
    /// Names, as nodes answer them.
    #[command(subcommand)]
    Dns(command::dns::Command),
    /// Nodes of the fabric.
    #[command(subcommand)]
    Node(command::node::Command),
    /// Join tokens for agents, certificates for operators.
    #[command(subcommand)]
    Token(command::token::Command),
    /// WireGuard keys.
    #[command(subcommand)]
    Keys(command::keys::Command),
    /// Prints the definitions of Weft's own kinds, for `kubectl apply -f -`.
    Definitions,
    /// Prints every setting of the processes and of Weft's own kinds, as Markdown.
    #[command(hide = true)]
    Reference,
    /// Takes everything that Weft made off this node.
    Uninstall(Box<command::agent::UninstallArguments>),
    /// A whole fabric of network namespaces on this machine.
    #[command(subcommand)]
    Lab(command::lab::Command),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: error: {}", line(&error));
            ExitCode::FAILURE
        }
    }
}

/// A document of YAML for each.
fn definitions() -> anyhow::Result<String> {
    let all = weft_hub::definitions();
    let texts = all.iter().map(serde_yaml_ng::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}

/// The whole chain, outermost first, without causes that an outer error tells already.
fn line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

/// Help and version go to stdout whole; a mistake becomes one line.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let printed = output::print(&error.render().to_string());
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let text = error.to_string();
    let said = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:"));
    let said: Vec<&str> =
        said.filter(|l| !l.is_empty() && !l.starts_with("For more information")).collect();
    let line = said.join(" ");
    eprintln!("weft: {line}; `--help` shows what is possible");
    ExitCode::from(2)
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_new(&arguments.log)
        .map_err(|e| anyhow::anyhow!("--log {}: {e}", arguments.log))?;
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            // It has threads of its own.
            Command::Datapath(a) => tokio::task::block_in_place(|| a.run()),
            Command::Hub(a) => a.run().await,
            Command::Agent(a) => a.run().await,
            Command::Status(a) => a.run().await,
            Command::Plugin(c) => c.run().await,
            Command::Services(a) => a.run().await,
            Command::Explain(a) => return a.run().await,
            Command::Drops(a) => a.run().await,
            Command::Dns(c) => return c.run().await,
            Command::Node(c) => c.run().await,
            Command::Token(c) => c.run(),
            Command::Keys(c) => c.run().await,
            Command::Definitions => output::print(&definitions()?),
            Command::Reference => output::print(&reference::page()?),
            Command::Uninstall(a) => a.run().await,
            Command::Lab(c) => return c.run().await,
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

#[cfg(test)]
mod tests {
    /// `weft definitions` writes it.
    #[test]
    fn definitions_in_deploy_are_those_of_the_program() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/definitions.yaml");
        assert_eq!(std::fs::read_to_string(path).unwrap(), super::definitions().unwrap());
    }
}
