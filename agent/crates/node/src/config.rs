//! What the agent is told: plain data, checked once before anything is made.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_model::{Mtu, NodeName};

/// Standard CNI plugin that wires a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DelegateKind {
    /// One routed veth pair for each pod.
    #[default]
    Ptp,
    /// All pods of the node on one Linux bridge.
    Bridge,
}

impl DelegateKind {
    /// `type` of the delegate in CNI terms, which is also the name of its binary.
    #[must_use]
    pub fn binary(self) -> &'static str {
        match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }
}

/// Where the address that peers send to comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// The source address towards the hub.
    #[default]
    TowardsHub,
    /// The first global address of this interface.
    Interface(String),
    /// Exactly this address.
    Address(IpAddr),
}

/// Where the hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubAddress {
    /// `host:port`.
    Fixed(String),
    /// A file with that, read before each connection.
    File(PathBuf),
}

impl HubAddress {
    /// `host:port` of now.
    ///
    /// # Errors
    /// One line, if the file cannot be read.
    pub(crate) fn read(&self) -> anyhow::Result<String> {
        match self {
            Self::Fixed(address) => Ok(address.clone()),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(e) => anyhow::bail!("cannot read the hub's address in {}: {e}", path.display()),
            },
        }
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => f.write_str(address),
            Self::File(path) => write!(f, "the address in {}", path.display()),
        }
    }
}

impl From<&str> for HubAddress {
    fn from(address: &str) -> Self {
        Self::Fixed(address.to_owned())
    }
}

impl From<String> for HubAddress {
    fn from(address: String) -> Self {
        Self::Fixed(address)
    }
}

/// Where the token is that the hub admits this node for. [`fmt::Debug`] does not show a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// There is none: only a node that has joined before can start.
    #[default]
    None,
    /// The token itself.
    Text(String),
    /// A file that is read each time the token is needed.
    File(PathBuf),
    /// Files with the token of a ServiceAccount and with the certificate of the hub's authority (PEM), read
    /// each time they are needed.
    ServiceAccount {
        /// Of a pod on this node, for the hub's audience.
        token: PathBuf,
        /// Who signs the hub's certificate.
        ca: PathBuf,
    },
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(secret)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::ServiceAccount { token, .. } => {
                f.debug_tuple("ServiceAccount").field(token).finish()
            }
        }
    }
}

/// Everything the agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Keys, identity and attachments; survives a reboot.
    pub state_dir: PathBuf,
    /// Sockets; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Where the container runtime reads network configurations.
    pub cni_conf_dir: PathBuf,
    /// Where the container runtime and `weft-cni` look for plugins.
    pub cni_bin_dir: PathBuf,
    /// The `weft-cni` binary to install; `None` installs no binary and no configuration.
    pub cni_binary: Option<PathBuf>,
    /// Where the hub is.
    pub hub: HubAddress,
    /// What admits this node.
    pub token: TokenSource,
    /// Name of this node in the fabric.
    pub node_name: NodeName,
    /// Identity of the node, the UID of its Node object in Kubernetes; `None`: random, kept in the state directory.
    pub node_uid: Option<String>,
    /// Which address and interface carry the mesh.
    pub underlay: Underlay,
    /// Name of the fabric's interface.
    pub interface: String,
    /// Who wires pods.
    pub delegate: DelegateKind,
    /// Whether pods get what is for them straight from the fabric's interface, where the kernel can,
    /// and not through the host's routing and netfilter.
    pub direct_delivery: bool,
    /// Whether what pods send to the world leaves with the node's address.
    pub masquerade: bool,
    /// MTU for pods in bytes, instead of the one the fabric or the underlay gives.
    pub mtu: Option<u16>,
    /// Names DNS servers, for what is not the cluster's and where the fabric gives none.
    pub resolv_conf: PathBuf,
    /// Where metrics are served; nowhere unless set.
    pub metrics_listen: Option<SocketAddr>,
    /// How long the old WireGuard key is still answered to after a rotation.
    pub key_overlap: Duration,
}

impl AgentConfig {
    /// The defaults for a node of the given name and hub.
    #[must_use]
    pub fn new(node_name: NodeName, hub: impl Into<HubAddress>) -> Self {
        Self {
            state_dir: "/var/lib/weft".into(),
            run_dir: "/run/weft".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_binary: None,
            hub: hub.into(),
            token: TokenSource::None,
            node_name,
            node_uid: None,
            underlay: Underlay::TowardsHub,
            interface: "weft0".to_owned(),
            delegate: DelegateKind::Ptp,
            direct_delivery: true,
            masquerade: true,
            mtu: None,
            resolv_conf: "/etc/resolv.conf".into(),
            metrics_listen: None,
            key_overlap: Duration::from_secs(180),
        }
    }

    /// Checks what can be told without looking at the machine.
    ///
    /// # Errors
    /// One line that says what to change.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let length = self.interface.len();
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        anyhow::ensure!(
            (1..=INTERFACE_MAX).contains(&length) && !self.interface.contains(odd),
            "`{}` is no name of an interface: use 1 to {INTERFACE_MAX} characters without `/` and spaces",
            self.interface
        );
        if let Some(mtu) = self.mtu {
            let least = Mtu::IPV4_MIN;
            anyhow::ensure!(
                mtu >= least,
                "pod MTU {mtu} is too small: at least {least} bytes are needed"
            );
        }
        Ok(())
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.run_dir.join(name)
    }

    /// Directory of what is known of attached pods.
    #[must_use]
    pub fn attachments_dir(&self) -> PathBuf {
        self.state("cni")
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.cni_conf_dir.join(crate::install::CONFLIST)
    }
}

/// `IFNAMSIZ` without the closing zero. Source: linux/if.h.
const INTERFACE_MAX: usize = 15;

/// A `unix(7)` socket path holds at most 107 bytes.
pub(crate) const SOCKET_PATH_MAX: usize = 107;

pub(crate) fn check_socket_path(path: &Path) -> anyhow::Result<()> {
    let length = path.as_os_str().len();
    anyhow::ensure!(
        length <= SOCKET_PATH_MAX,
        "the path {} has {length} bytes, a socket may have {SOCKET_PATH_MAX}: choose a shorter run directory",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let with = |change: fn(&mut AgentConfig)| {
            let mut config = AgentConfig::new("a".parse().unwrap(), "hub:7443");
            change(&mut config);
            config.check()
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|c| c.mtu = Some(100)).unwrap_err().to_string().contains("100"));
        for name in ["", "a-name-too-long0", "a/b", "a b"] {
            let mut config = AgentConfig::new("a".parse().unwrap(), "hub:7443");
            config.interface = name.to_owned();
            assert!(config.check().is_err(), "{name:?}");
        }
    }
}
