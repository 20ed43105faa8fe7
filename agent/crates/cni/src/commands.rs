//! The verbs.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use weft_model::cni::{Attachment, Request, Response};

use crate::config::{NetworkConfig, SUPPORTED_VERSIONS};
use crate::delegate::{self, BRIDGE};
use crate::environment::{self, Call, Verb};
use crate::error::code::{
    CHECK_FAILED, DECODE, EXISTS, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_NETNS, IO,
    NOT_AVAILABLE, TRY_AGAIN,
};
use crate::interface::{self, Interface, Made};
use crate::record::{self, Record};
use crate::{CniError, Environment, agent, reservation, result};

/// Serves one call and returns what goes to stdout.
pub(crate) fn serve(
    environment: Environment<'_>,
    stdin: io::Result<Vec<u8>>,
) -> Result<String, CniError> {
    let verb = environment::verb(environment)?;
    if verb == Verb::Version {
        return Ok(version(stdin));
    }
    let stdin = || stdin.map_err(|e| CniError::new(IO, format!("cannot read stdin: {e}")));
    if matches!(verb, Verb::Status | Verb::Gc) {
        return of_network(environment, verb, &stdin()?);
    }
    let call = Call::read(environment, verb)?;
    let config = NetworkConfig::parse(&stdin()?)?;
    let attachment = Attachment {
        network: config.name.clone(),
        container_id: call.container_id.clone(),
        ifname: call.ifname.clone(),
    };
    let served = match verb {
        Verb::Add => add(&call, &config, &attachment),
        Verb::Del => del(&call, &config, &attachment),
        Verb::Check => check(&call, &config, &attachment),
        Verb::Status | Verb::Gc | Verb::Version => Ok(String::new()),
    };
    served.map_err(|e| e.in_version(&config.cni_version))
}

/// The verbs that are about no attachment in particular.
fn of_network(environment: Environment<'_>, verb: Verb, stdin: &[u8]) -> Result<String, CniError> {
    if verb == Verb::Gc {
        environment::required(environment, &["CNI_PATH"])?;
    }
    let path = environment::search_path(environment);
    let config = NetworkConfig::parse(stdin)?;
    let whole: Value =
        serde_json::from_slice(stdin).map_err(|e| CniError::new(DECODE, e.to_string()))?;
    let done = match verb {
        Verb::Status => status(&path, &config, &whole),
        _ => gc(&path, &config, &whole),
    };
    done.map(|()| String::new()).map_err(|e| e.in_version(&config.cni_version))
}

/// Whether ADD would succeed now.
fn status(path: &[PathBuf], config: &NetworkConfig, whole: &Value) -> Result<(), CniError> {
    config.require_latest("STATUS")?;
    let request = Request::Status { network: config.name.clone() };
    agent::ask(&config.socket, &request).map_err(|error| match error.code() {
        // Nobody who says more: pods that are there do without an agent.
        TRY_AGAIN => error.with_code(NOT_AVAILABLE),
        _ => error,
    })?;
    if !path.is_empty() {
        delegate::find_both(path, config.delegate_type())
            .map_err(|e| e.with_code(NOT_AVAILABLE))?;
    }
    delegate::forward(path, "STATUS", config, whole)
}

/// Takes away what is left of attachments that the runtime does not know. What cannot be done does not stop
/// the rest.
fn gc(path: &[PathBuf], config: &NetworkConfig, whole: &Value) -> Result<(), CniError> {
    config.require_latest("GC")?;
    let valid = config.valid_attachments()?;
    let mut errors = Vec::new();
    let (network, keep) = (config.name.clone(), valid.clone());
    errors.extend(agent::ask(&config.socket, &Request::Collect { network, valid: keep }).err());
    for attachment in record::all(&config.state_dir, &config.name)? {
        if valid.contains(&attachment) {
            continue;
        }
        let Attachment { container_id, ifname, .. } = attachment.clone();
        let (path, netns) = (path.to_vec(), String::new());
        let call = Call { container_id, ifname, netns, path, pod: None };
        errors.extend(forget(&call, config, &attachment).err());
    }
    let addresses = delegate::addresses(&config.state_dir).join(&config.name);
    errors.extend(reservation::free_all_but(&addresses, &valid).err());
    errors.extend(delegate::forward(path, "GC", config, whole).err());
    CniError::all(errors)
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
    let delegate_config = delegate::configuration(config, &delegation);
    // Before there is a record: DEL could not undo what it could not have done.
    delegate::find_both(&call.path, &delegate)?;
    let netns = vacant(call)?;
    let made = Some(Made { netns, interface: None });
    let mut record = Record { delegate, config: delegate_config, made };
    record::create(&config.state_dir, attachment, &record)?;
    let segments_max = delegation.segments_max;
    wire(call, config, attachment, &mut record, segments_max).inspect_err(|_| {
        // The first failure is what the runtime should hear; its DEL finds what this leaves.
        let _ = undo(call, config, attachment, &record);
    })
}

/// Makes sure that the namespace is one, and has no interface of the name; tells which it is.
fn vacant(call: &Call) -> Result<(u64, u64), CniError> {
    let Call { netns, ifname, .. } = call;
    let failed = |e: io::Error| {
        CniError::new(INVALID_NETNS, format!("{netns} is no network namespace: {e}"))
    };
    if interface::look(netns, ifname).map_err(failed)?.is_some() {
        let message = format!("{ifname} exists already in {netns}, and is left alone");
        return Err(CniError::new(EXISTS, message));
    }
    interface::namespace_id(netns).map_err(failed)
}

/// Takes away what the delegate made. An interface that somebody else made, in the same namespace or
/// in one that has its path by now, stays.
fn undo(
    call: &Call,
    config: &NetworkConfig,
    attachment: &Attachment,
    record: &Record,
) -> Result<(), CniError> {
    let ours = match &record.made {
        Some(made) => made.is_in(&call.netns, &call.ifname),
        None => interface::look(&call.netns, &call.ifname).is_ok(),
    };
    let netns = if ours { call.netns.as_str() } else { "" };
    delegate::run(call, "DEL", &record.delegate, &record.config, netns)?;
    record::remove(&config.state_dir, attachment)
}

fn wire(
    call: &Call,
    config: &NetworkConfig,
    attachment: &Attachment,
    record: &mut Record,
    segments_max: Option<u16>,
) -> Result<String, CniError> {
    let stdout = delegate::run(call, "ADD", &record.delegate, &record.config, &call.netns)?;
    let made: Value = serde_json::from_slice(&stdout).map_err(|e| {
        CniError::new(DECODE, "the delegate's result is no JSON").details(e.to_string())
    })?;
    let wiring = result::wiring(&made, &call.netns, bridge(record))?;
    if let Some(made) = &mut record.made {
        made.interface = Some(Interface::of(&wiring));
    }
    record::replace(&config.state_dir, attachment, record)?;
    if let Some(segments) = segments_max {
        // A pod does without, only slower: a kernel or driver may not let it be set.
        let _ = interface::limit_segments(&call.netns, &call.ifname, segments);
    }
    let pod = call.pod.clone();
    agent::ask(&config.socket, &Request::Attach { attachment: attachment.clone(), pod, wiring })?;
    Ok(result::of_request(made, config).to_string())
}

/// Succeeds for what is not there; fails only while something of the attachment is left, so that
/// the runtime calls again.
fn del(call: &Call, config: &NetworkConfig, attachment: &Attachment) -> Result<String, CniError> {
    // An agent that is away finds the interface gone when it is back, and forgets the attachment.
    let _ = agent::ask(&config.socket, &Request::Detach { attachment: attachment.clone() });
    forget(call, config, attachment)?;
    Ok(String::new())
}

fn forget(call: &Call, config: &NetworkConfig, attachment: &Attachment) -> Result<(), CniError> {
    match record::load(&config.state_dir, attachment)? {
        Some(record) => undo(call, config, attachment, &record),
        None => record::remove(&config.state_dir, attachment),
    }
}

/// The bridge that a delegate puts the pod on.
fn bridge(record: &Record) -> Option<&str> {
    let named = || record.config.get("bridge").and_then(Value::as_str).unwrap_or(BRIDGE);
    (record.delegate == "bridge").then(named)
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
    let wiring = result::wiring(previous, &call.netns, bridge(&record))?;
    let mut delegate_config = record.config;
    let version = delegate_config.get("cniVersion").cloned();
    delegate_config["prevResult"] = previous.clone();
    delegate_config["prevResult"]["cniVersion"] = version.unwrap_or_default();
    delegate::run(call, "CHECK", &record.delegate, &delegate_config, &call.netns)?;
    agent::ask(&config.socket, &Request::Check { attachment: attachment.clone(), wiring })?;
    Ok(String::new())
}

fn refuse_own_namespace(netns: &str) -> Result<(), CniError> {
    let of = |path: &str| {
        interface::namespace_id(path).map_err(|e| {
            CniError::new(INVALID_NETNS, format!("cannot open network namespace {path}: {e}"))
        })
    };
    if of(netns)? == of("/proc/self/ns/net")? {
        let message = format!("CNI_NETNS {netns} is the namespace of the node itself");
        return Err(CniError::new(INVALID_NETNS, message));
    }
    Ok(())
}
