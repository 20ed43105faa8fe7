//! The `CNI_*` variables: which a verb needs, and what they may hold.

use std::path::PathBuf;

use weft_model::cni::PodIdentity;

use crate::error::code::INVALID_ENVIRONMENT;
use crate::{CniError, Environment};

/// Linux interface names hold 15 bytes and a terminator.
const IFNAME_MAX: usize = 15;

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// The variables of one call that is about an attachment, checked.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    /// Empty on a DEL whose namespace is gone.
    pub(crate) netns: String,
    pub(crate) path: Vec<PathBuf>,
    pub(crate) pod: Option<PodIdentity>,
}

pub(crate) fn verb(environment: Environment<'_>) -> Result<Verb, CniError> {
    match environment("CNI_COMMAND").as_deref() {
        Some("ADD") => Ok(Verb::Add),
        Some("DEL") => Ok(Verb::Del),
        Some("CHECK") => Ok(Verb::Check),
        Some("STATUS") => Ok(Verb::Status),
        Some("GC") => Ok(Verb::Gc),
        Some("VERSION") => Ok(Verb::Version),
        Some(other) => Err(invalid(format!("unknown CNI_COMMAND: {other}"))),
        None => Err(invalid("required environment variable missing: CNI_COMMAND")),
    }
}

impl Call {
    /// Reads what ADD, DEL and CHECK need; DEL can do without `CNI_NETNS`.
    pub(crate) fn read(environment: Environment<'_>, verb: Verb) -> Result<Self, CniError> {
        let get = |name: &str| environment(name).filter(|v| !v.is_empty());
        let mut needed = vec!["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"];
        if verb != Verb::Del {
            needed.push("CNI_NETNS");
        }
        required(environment, &needed)?;
        let container_id = get("CNI_CONTAINERID").unwrap_or_default();
        let ifname = get("CNI_IFNAME").unwrap_or_default();
        check_container_id(&container_id)?;
        check_ifname(&ifname)?;
        Ok(Self {
            container_id,
            ifname,
            netns: get("CNI_NETNS").unwrap_or_default(),
            path: search_path(environment),
            pod: pod_identity(&get("CNI_ARGS").unwrap_or_default())?,
        })
    }
}

/// Directories of plugins; none if the runtime names none.
pub(crate) fn search_path(environment: Environment<'_>) -> Vec<PathBuf> {
    let path = environment("CNI_PATH").filter(|path| !path.is_empty());
    path.iter().flat_map(std::env::split_paths).collect()
}

/// Refuses a call that lacks one of these variables.
pub(crate) fn required(environment: Environment<'_>, names: &[&str]) -> Result<(), CniError> {
    let missing = |name: &&&str| environment(name).is_none_or(|value| value.is_empty());
    let missing: Vec<&str> = names.iter().filter(missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(invalid(format!("required environment variables missing: {}", missing.join(", "))))
}

fn invalid(message: impl Into<String>) -> CniError {
    CniError::new(INVALID_ENVIRONMENT, message)
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if starts && rest {
        return Ok(());
    }
    Err(invalid(format!("CNI_CONTAINERID `{id}` is not alphanumerics, `_`, `.` and `-`")))
}

fn check_ifname(name: &str) -> Result<(), CniError> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() > IFNAME_MAX || name == "." || name == ".." || name.contains(bad) {
        return Err(invalid(format!("CNI_IFNAME `{name}` is no interface name")));
    }
    Ok(())
}

/// Reads `K=V;K=V` in any order. Keys that are not Kubernetes' are an error unless
/// `IgnoreUnknown` is set, as in the reference library.
fn pod_identity(args: &str) -> Result<Option<PodIdentity>, CniError> {
    let mut pod = PodIdentity::default();
    let mut unknown = Vec::new();
    let mut ignore_unknown = false;
    for pair in args.split(';').filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(format!("CNI_ARGS: `{pair}` is no KEY=VALUE")));
        };
        match key {
            "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true" | "True" | "TRUE"),
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => pod.uid = Some(value.to_owned()).filter(|u| !u.is_empty()),
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            other => unknown.push(other.to_owned()),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(invalid(format!("CNI_ARGS: unknown args {}", unknown.join(", "))));
    }
    Ok((!pod.name.is_empty()).then_some(pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Call, CniError> {
        let get = |name: &str| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        Call::read(&get, Verb::Add)
    }

    const GOOD: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "abc-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];

    /// CNI-024
    #[test]
    fn every_missing_variable_is_named() {
        let error = read(&[("CNI_IFNAME", "eth0")]).unwrap_err().to_string();
        for name in ["CNI_CONTAINERID", "CNI_PATH", "CNI_NETNS"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(error.contains("code 4"), "{error}");
    }

    /// CNI-025
    #[test]
    fn illegal_container_ids_and_interface_names_are_code_4() {
        for (name, value) in [
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "abcdefghijklmnop"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
        ] {
            let mut pairs = GOOD;
            pairs.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, v)| *v = value);
            let error = read(&pairs).unwrap_err().to_string();
            assert!(error.contains("code 4"), "{value}: {error}");
        }
    }

    /// CNI-028, CNI-101
    #[test]
    fn pod_identity_is_read_by_key_in_any_order() {
        let with =
            |args: &'static str| read(&[GOOD[0], GOOD[1], GOOD[2], GOOD[3], ("CNI_ARGS", args)]);
        let call = with("K8S_POD_UID=u;K8S_POD_NAME=web;IgnoreUnknown=1;X=y;K8S_POD_NAMESPACE=ns");
        let expected =
            PodIdentity { namespace: "ns".into(), name: "web".into(), uid: Some("u".into()) };
        assert_eq!(call.unwrap().pod, Some(expected));
        assert!(with("X=y").unwrap_err().to_string().contains("unknown args X"));
        assert!(with("IgnoreUnknown=1;broken").is_err());
    }
}
