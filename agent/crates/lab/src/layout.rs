//! Where everything of a lab is.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Directory that holds one directory for each lab.
const ROOT: &str = "/run/weft-lab";
/// Longest lab name: namespace names carry it, and so do unix socket paths (108 bytes).
const NAME_MAX: usize = 24;

/// Paths and names of one lab.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    name: String,
}

impl Layout {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let legal = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if name.is_empty() || name.len() > NAME_MAX || !legal || name.starts_with('-') {
            bail!("`{name}` is no lab name: up to {NAME_MAX} lower-case letters, digits and `-`");
        }
        Ok(Self { name: name.to_owned() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// Locked while [`Self::state_file`] is read and written again.
    pub(crate) fn lock_file(&self) -> PathBuf {
        self.dir().join("lock")
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir().join("lab.json")
    }

    /// Process id of a supervised process, or of the supervisor itself.
    pub(crate) fn pid_file(&self, process: &str) -> PathBuf {
        self.dir().join("pids").join(process)
    }

    pub(crate) fn log_file(&self, process: &str) -> PathBuf {
        self.dir().join("logs").join(format!("{process}.log"))
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }

    pub(crate) fn hub_state(&self) -> PathBuf {
        self.dir().join("hub/state")
    }

    pub(crate) fn hub_run(&self) -> PathBuf {
        self.dir().join("hub/run")
    }

    /// What a pod has for its `/etc/resolv.conf`.
    pub(crate) fn resolv_conf(&self, pod: &str) -> PathBuf {
        self.dir().join("resolv").join(pod.replace('/', "."))
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir().join("join-token")
    }

    /// What the names of this lab's namespaces begin with, and of no other's: a lab's name has no dot.
    pub(crate) fn namespace_prefix(&self) -> String {
        format!("{}.", self.name)
    }

    pub(crate) fn underlay_namespace(&self) -> String {
        self.namespace("net")
    }

    pub(crate) fn hub_namespace(&self) -> String {
        self.namespace("hub")
    }

    pub(crate) fn node(&self, node: &str) -> NodeLayout {
        let dir = self.dir().join("nodes").join(node);
        NodeLayout { namespace: self.namespace(node), dir }
    }

    /// Of pods, no part of whose names has a dot.
    pub(crate) fn pod_namespace(&self, pod: &str) -> String {
        self.namespace(&format!("pod.{}", pod.replace('/', ".")))
    }

    fn namespace(&self, of: &str) -> String {
        format!("{}{of}", self.namespace_prefix())
    }
}

/// Paths of one node of a lab.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    /// Its network namespace.
    pub namespace: String,
    dir: PathBuf,
}

impl NodeLayout {
    /// The agent's and datapath's `--state-dir`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The agent's and datapath's `--run-dir`.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The runtime's directory of network configurations.
    #[must_use]
    pub fn cni_conf(&self) -> PathBuf {
        self.dir.join("cni/net.d")
    }

    /// The runtime's directory of plugin binaries.
    #[must_use]
    pub fn cni_bin(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    pub(crate) fn directories(&self) -> [PathBuf; 4] {
        [self.state(), self.run(), self.cni_conf(), self.cni_bin()]
    }
}
