//! The standard plugin that wires the pod: its configuration, and running it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use weft_model::cni::{Delegation, RESERVATIONS};

use crate::CniError;
use crate::config::{LATEST, NetworkConfig};
use crate::environment::Call;
use crate::error::code::{DECODE, IO};

/// Delegate that gives pods addresses.
const IPAM: &str = "host-local";
/// Bridge that `bridge` wiring puts pods on.
pub(crate) const BRIDGE: &str = "weft-br0";

/// Makes the delegate's configuration. What the operator set in `delegate` wins over defaults, but
/// not over what the fabric rests on: name, addresses, MTU.
pub(crate) fn configuration(config: &NetworkConfig, delegation: &Delegation) -> Value {
    let kind = config.delegate_type();
    let mut delegate = Map::new();
    if kind == "bridge" {
        delegate.insert("bridge".into(), json!(BRIDGE));
        delegate.insert("isGateway".into(), json!(true));
        delegate.insert("isDefaultGateway".into(), json!(true));
        delegate.insert("hairpinMode".into(), json!(true));
    }
    delegate.extend(config.delegate.clone());
    if let Some(runtime) = &config.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    delegate.insert("cniVersion".into(), json!(config.delegate_version()));
    delegate.insert("name".into(), json!(config.name));
    delegate.insert("type".into(), json!(kind));
    delegate.insert("mtu".into(), json!(delegation.mtu));
    // Leaving the cluster is the agent's table's business.
    delegate.insert("ipMasq".into(), json!(false));
    delegate.insert("ipam".into(), ipam(&config.state_dir, kind, delegation));
    Value::Object(delegate)
}

/// Where that keeps what it gave, a directory for each network.
pub(crate) fn addresses(state_dir: &Path) -> PathBuf {
    state_dir.join(RESERVATIONS)
}

fn ipam(state_dir: &Path, kind: &str, delegation: &Delegation) -> Value {
    let ranges: Vec<Value> = delegation
        .ranges
        .iter()
        .map(|r| json!([{ "subnet": r.subnet.to_string(), "gateway": r.gateway.to_string() }]))
        .collect();
    let defaults: Vec<Value> = delegation
        .ranges
        .iter()
        .map(|r| json!({ "dst": if r.subnet.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } }))
        .collect();
    // `bridge` makes the default route itself and refuses to make it twice.
    let routes = if kind == "bridge" { Vec::new() } else { defaults };
    json!({
        "type": IPAM,
        "dataDir": addresses(state_dir),
        "ranges": ranges,
        "routes": routes,
    })
}

/// Finds a delegate as the runtime finds plugins.
///
/// # Errors
/// Code 5 if it is in none of the directories.
pub(crate) fn find(path: &[PathBuf], kind: &str) -> Result<PathBuf, CniError> {
    path.iter().map(|d| d.join(kind)).find(|p| p.is_file()).ok_or_else(|| {
        let dirs: Vec<String> = path.iter().map(|p| p.display().to_string()).collect();
        let message = format!(
            "CNI plugin `{kind}` not found in {}: install the standard plugins (Debian: containernetworking-plugins)",
            dirs.join(":")
        );
        CniError::new(IO, message)
    })
}

/// Finds the delegate that wires pods, and the one that gives them addresses.
///
/// # Errors
/// As [`find`].
pub(crate) fn find_both(path: &[PathBuf], kind: &str) -> Result<(), CniError> {
    [kind, IPAM].into_iter().try_for_each(|kind| find(path, kind).map(drop))
}

/// Runs a delegate for the attachment of a call, in the namespace `netns`, with `config` on stdin; its stderr
/// passes through. Returns its stdout.
///
/// A DEL without a namespace frees the addresses only.
///
/// # Errors
/// Code 5 if it cannot be found or run; else the delegate's own error object.
pub(crate) fn run(
    call: &Call,
    verb: &str,
    kind: &str,
    config: &Value,
    netns: &str,
) -> Result<Vec<u8>, CniError> {
    let Call { container_id, ifname, path, .. } = call;
    let variables =
        [("CNI_CONTAINERID", container_id.as_str()), ("CNI_IFNAME", ifname), ("CNI_NETNS", netns)];
    execute(path, verb, kind, config, &variables)
}

/// Has the delegates that know `verb`, which is about no attachment, do it too.
///
/// # Errors
/// Of every delegate that fails.
pub(crate) fn forward(
    path: &[PathBuf],
    verb: &str,
    network: &NetworkConfig,
    stdin: &Value,
) -> Result<(), CniError> {
    let ipam = json!({ "type": IPAM, "dataDir": addresses(&network.state_dir) });
    let mut errors = Vec::new();
    for kind in [network.delegate_type(), IPAM] {
        if !speaks(path, kind, LATEST) {
            continue;
        }
        let mut config = stdin.clone();
        config["type"] = json!(kind);
        config["ipam"] = ipam.clone();
        errors.extend(execute(path, verb, kind, &config, &[]).err());
    }
    CniError::all(errors)
}

/// Whether a delegate says that it knows this version.
fn speaks(path: &[PathBuf], kind: &str, version: &str) -> bool {
    let asked = json!({ "cniVersion": version });
    let answer = execute(path, "VERSION", kind, &asked, &[]).ok();
    let answer: Option<Value> = answer.and_then(|answer| serde_json::from_slice(&answer).ok());
    let known = answer.as_ref().and_then(|answer| answer.get("supportedVersions")?.as_array());
    known.is_some_and(|known| known.iter().any(|one| one == version))
}

fn execute(
    path: &[PathBuf],
    verb: &str,
    kind: &str,
    config: &Value,
    variables: &[(&str, &str)],
) -> Result<Vec<u8>, CniError> {
    let binary = find(path, kind)?;
    let failed =
        |e: std::io::Error| CniError::new(IO, format!("cannot run {}: {e}", binary.display()));
    let mut child = Command::new(&binary)
        .env("CNI_COMMAND", verb)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A delegate that fails early may not read it all; its exit status says more.
        let _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(Value::Object(object)) => CniError::of_delegate(object),
        _ => CniError::new(
            DECODE,
            format!("{kind} failed ({}) without an error object", output.status),
        ),
    })
}
