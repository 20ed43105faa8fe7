//! What the container runtime needs on disk: the `weft-cni` binary, the network configuration, and
//! `subnet.env` in flannel's form for plugins that expect it.
//!
//! Files of others are looked at by name only and never touched.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;
use weft_model::cni::Delegation;

use crate::config::AgentConfig;
use crate::durable;

/// File name of the network configuration.
pub(crate) const CONFLIST: &str = "10-weft.conflist";
/// File name of the plugin.
pub(crate) const BINARY: &str = "weft-cni";
/// File name of flannel's subnet file in the run directory.
pub(crate) const SUBNET_ENV: &str = "subnet.env";
/// Name of the network, in attachments and in the runtime's cache.
pub(crate) const NETWORK: &str = "weft";

/// Something that could not be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("cannot install {path}: {source}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the plugin to install, {path}: {source}")]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The network configuration as text. Older runtimes read `cniVersion` alone, newer ones choose from the
/// list.
pub(crate) fn conflist(config: &AgentConfig) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{
            "type": BINARY,
            "socket": config.socket(weft_model::cni::SOCKET),
            "stateDir": config.attachments_dir(),
            "delegate": { "type": config.delegate.binary() },
        }],
    });
    format!("{list:#}\n")
}

/// flannel's subnet file. `FLANNEL_IPMASQ` says that masquerading is done here already.
pub(crate) fn subnet_env(pod_cidrs: &[IpNet], delegation: &Delegation, masquerade: bool) -> String {
    let mut text = String::new();
    for range in &delegation.ranges {
        let v4 = range.gateway.is_ipv4();
        let prefix = if v4 { "FLANNEL" } else { "FLANNEL_IPV6" };
        if let Some(network) = pod_cidrs.iter().find(|c| c.contains(&range.subnet)) {
            text.push_str(&format!("{prefix}_NETWORK={network}\n"));
        }
        let length = range.subnet.prefix_len();
        text.push_str(&format!("{prefix}_SUBNET={}/{length}\n", range.gateway));
    }
    text.push_str(&format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={masquerade}\n", delegation.mtu));
    text
}

/// Keeps the three files in place.
#[derive(Debug)]
pub(crate) struct Installer {
    conflist: (PathBuf, String),
    subnet_env: PathBuf,
    binary: Option<(PathBuf, PathBuf)>,
    /// Size, inode and change time of the installed binary.
    installed: Option<(u64, u64, i64)>,
}

impl Installer {
    /// For the paths of `config`; nothing is written yet.
    pub(crate) fn new(config: &AgentConfig) -> Self {
        let target = config.cni_bin_dir.join(BINARY);
        Self {
            conflist: (config.conflist(), conflist(config)),
            subnet_env: config.socket(SUBNET_ENV),
            binary: config.cni_binary.clone().map(|source| (source, target)),
            installed: None,
        }
    }

    /// Puts in place whatever is missing or was changed, the binary first and the configuration
    /// last: where there is a configuration, ADD works. True if anything was written.
    pub(crate) fn ensure(&mut self, subnet_env: &str) -> Result<bool, InstallError> {
        let mut written = ensure_text(&self.subnet_env, subnet_env)?;
        if self.binary.is_some() {
            written |= self.ensure_binary()?;
            written |= ensure_text(&self.conflist.0, &self.conflist.1)?;
        }
        Ok(written)
    }

    fn ensure_binary(&mut self) -> Result<bool, InstallError> {
        let Some((source, target)) = &self.binary else { return Ok(false) };
        if self.installed.is_some() && stamp(target) == self.installed {
            return Ok(false);
        }
        let fresh = fs::read(source)
            .map_err(|e| InstallError::Source { path: source.clone(), source: e })?;
        let same = fs::read(target).is_ok_and(|there| there == fresh)
            && fs::metadata(target).is_ok_and(|m| m.permissions().mode() & 0o111 == 0o111);
        if !same {
            let failed = |e| InstallError::Write { path: target.clone(), source: e };
            make_parent(target).map_err(failed)?;
            durable::copy(source, target, durable::PROGRAM).map_err(failed)?;
        }
        self.installed = stamp(target);
        Ok(!same)
    }
}

/// One line for each thing that keeps the runtime from using the fabric.
pub(crate) fn problems(config: &AgentConfig) -> Vec<String> {
    if config.cni_binary.is_none() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if let Some(first) = sorts_first(&config.cni_conf_dir) {
        problems.push(format!(
            "{} sorts before {CONFLIST}: the container runtime uses that network, remove the file to use Weft",
            config.cni_conf_dir.join(first).display()
        ));
    }
    for binary in [config.delegate.binary(), "host-local"] {
        if !config.cni_bin_dir.join(binary).exists() {
            problems.push(format!(
                "the CNI plugin `{binary}` is not in {}: install the standard CNI plugins (containernetworking-plugins)",
                config.cni_bin_dir.display()
            ));
        }
    }
    problems
}

/// Another network's configuration that the runtime takes instead of ours. Runtimes sort by byte.
fn sorts_first(dir: &Path) -> Option<String> {
    let names = fs::read_dir(dir).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let read = |n: &String| [".conf", ".conflist", ".json"].iter().any(|s| n.ends_with(s));
    names.filter(read).min().filter(|first| first.as_str() < CONFLIST)
}

fn ensure_text(path: &Path, text: &str) -> Result<bool, InstallError> {
    let failed = |source| InstallError::Write { path: path.to_owned(), source };
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    make_parent(path).map_err(failed)?;
    durable::write(path, text.as_bytes(), durable::PUBLIC).map_err(failed)?;
    Ok(true)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn stamp(path: &Path) -> Option<(u64, u64, i64)> {
    fs::metadata(path).ok().map(|m| (m.len(), m.ino(), m.ctime()))
}

#[cfg(test)]
mod tests;
