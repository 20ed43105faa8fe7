//! The verbs.

use std::io;

use nix::sys::stat::stat;
use serde_json::{Value, json};
use weft_model::cni::{Attachment, Request, Response};

use crate::config::{NetworkConfig, SUPPORTED_VERSIONS};
use crate::delegate::{self, BRIDGE};
use crate::environment::{self, Call, Verb};
use crate::error::code::{
    CHECK_FAILED, DECODE, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_NETNS, IO,
};
use crate::record::{self, Record};
use crate::{CniError, Environment, agent, result};

/// Serves one call and returns what goes to stdout.
pub(crate) fn serve(
    environment: Environment<'_>,
    stdin: io::Result<Vec<u8>>,
) -> Result<String, CniError> {
    let verb = environment::verb(environment)?;
    if verb == Verb::Version {
        return Ok(version(stdin));
    }
    let call = Call::read(environment, verb)?;
    let stdin = stdin.map_err(|e| CniError::new(IO, format!("cannot read stdin: {e}")))?;
    let config = NetworkConfig::parse(&stdin)?;
    let attachment = Attachment {
        network: config.name.clone(),
        container_id: call.container_id.clone(),
        ifname: call.ifname.clone(),
    };
    let served = match verb {
        Verb::Add => add(&call, &config, &attachment),
        Verb::Del => del(&call, &config, &attachment),
        Verb::Check => check(&call, &config, &attachment),
        Verb::Version => Ok(String::new()),
    };
    served.map_err(|e| e.in_version(&config.cni_version))
}

/// Answers whatever stdin holds: nothing, no JSON, an unknown version.
fn version(stdin: io::Result<Vec<u8>>) -> String {
    let asked: Option<Value> = stdin.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let known = asked
        .as_ref()
        .and_then(|v| v.get("cniVersion")?.as_str())
        .filter(|v| SUPPORTED_VERSIONS.contains(v))
        .unwrap_or(SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1]);
    json!({ "cniVersion": known, "supportedVersions": SUPPORTED_VERSIONS }).to_string()
}

fn add(call: &Call, config: &NetworkConfig, attachment: &Attachment) -> Result<String, CniError> {
    refuse_own_namespace(&call.netns)?;
    let answer = agent::ask(&config.socket, &Request::Prepare { attachment: attachment.clone() })?;
    let Response::Prepared(delegation) = answer else {
        return Err(CniError::new(DECODE, "the agent gave an answer to another question"));
    };
    let delegate = config.delegate_type().to_owned();
    // Before there is a record: DEL could not undo what it could not have done.
    delegate::find(&call.path, &delegate)?;
    let delegate_config = delegate::configuration(config, &delegation);
    let record = Record { delegate, config: delegate_config };
    record::create(&config.state_dir, attachment, &record)?;
    wire(call, config, attachment, &record).inspect_err(|_| {
        // The first failure is what the runtime should hear; its DEL finds what this leaves.
        if delegate::run(&call.path, "DEL", &record.delegate, &record.config).is_ok() {
            let _ = record::remove(&config.state_dir, attachment);
        }
    })
}

fn wire(
    call: &Call,
    config: &NetworkConfig,
    attachment: &Attachment,
    record: &Record,
) -> Result<String, CniError> {
    let stdout = delegate::run(&call.path, "ADD", &record.delegate, &record.config)?;
    let made: Value = serde_json::from_slice(&stdout).map_err(|e| {
        CniError::new(DECODE, "the delegate's result is no JSON").details(e.to_string())
    })?;
    let bridge = record.config.get("bridge").and_then(Value::as_str).unwrap_or(BRIDGE);
    let wiring = result::wiring(&made, &call.netns, bridge)?;
    let pod = call.pod.clone();
    agent::ask(&config.socket, &Request::Attach { attachment: attachment.clone(), pod, wiring })?;
    Ok(made.to_string())
}

/// Succeeds for what is not there; fails only while something of the attachment is left, so that
/// the runtime calls again.
fn del(call: &Call, config: &NetworkConfig, attachment: &Attachment) -> Result<String, CniError> {
    // An agent that is away finds the interface gone when it is back, and forgets the attachment.
    let _ = agent::ask(&config.socket, &Request::Detach { attachment: attachment.clone() });
    if let Some(record) = record::load(&config.state_dir, attachment)? {
        delegate::run(&call.path, "DEL", &record.delegate, &record.config)?;
    }
    record::remove(&config.state_dir, attachment)?;
    Ok(String::new())
}

fn check(call: &Call, config: &NetworkConfig, attachment: &Attachment) -> Result<String, CniError> {
    if matches!(config.cni_version.as_str(), "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1") {
        let message = format!("CHECK needs cniVersion 0.4.0 or later, not {}", config.cni_version);
        return Err(CniError::new(INCOMPATIBLE_VERSION, message));
    }
    let previous = config
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::new(INVALID_CONFIG, "CHECK needs the prevResult of the ADD"))?;
    let Some(record) = record::load(&config.state_dir, attachment)? else {
        let message = format!("{} of container {} is not attached", call.ifname, call.container_id);
        return Err(CniError::new(CHECK_FAILED, message));
    };
    let bridge = record.config.get("bridge").and_then(Value::as_str).unwrap_or(BRIDGE);
    let wiring = result::wiring(previous, &call.netns, bridge)?;
    let mut delegate_config = record.config;
    delegate_config["prevResult"] = previous.clone();
    delegate::run(&call.path, "CHECK", &record.delegate, &delegate_config)?;
    agent::ask(&config.socket, &Request::Check { attachment: attachment.clone(), wiring })?;
    Ok(String::new())
}

fn refuse_own_namespace(netns: &str) -> Result<(), CniError> {
    let of = |path: &str| {
        stat(path).map(|s| (s.st_dev, s.st_ino)).map_err(|e| {
            CniError::new(INVALID_NETNS, format!("cannot open network namespace {path}: {e}"))
        })
    };
    if of(netns)? == of("/proc/self/ns/net")? {
        let message = format!("CNI_NETNS {netns} is the namespace of the node itself");
        return Err(CniError::new(INVALID_NETNS, message));
    }
    Ok(())
}
