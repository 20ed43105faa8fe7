//! What the hub is told at its start, checked as a whole before anything is touched.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use weft_model::{Cluster, Encapsulation, Mtu, Vni};

/// Settings of a hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Directory of Kubernetes manifests.
    pub manifests: PathBuf,
    /// Directory for what has to survive: CA, token, leases, nodes. Made if missing.
    pub state: PathBuf,
    /// Directory of the control socket. Made if missing.
    pub run_dir: PathBuf,
    /// Address of the gRPC port; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Ranges that node subnets are leased from, at most one for each family.
    pub pod_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 subnet.
    pub node_prefix_v4: u8,
    /// Prefix length of a node's IPv6 subnet.
    pub node_prefix_v6: u8,
    /// How nodes talk to each other.
    pub encapsulation: Encapsulation,
    /// UDP port of the mesh; `None`: the one usual for the encapsulation.
    pub mesh_port: Option<u16>,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// MTU for pods; `None`: each agent derives it.
    pub mtu: Option<u16>,
    /// How long a node's certificate is valid, 1 s to 365 days.
    pub certificate_ttl: Duration,
    /// How long a freed subnet is not given to another node.
    pub quarantine: Duration,
}

/// Usual prefix length of a node's IPv4 subnet.
pub const NODE_PREFIX_V4: u8 = 24;
/// Usual prefix length of a node's IPv6 subnet.
pub const NODE_PREFIX_V6: u8 = 64;
/// Usual validity of a node's certificate.
pub const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Usual rest of a freed subnet: longer than any connection tracking entry of a peer lives idle
/// in practice, and than agents need to learn of it.
pub const QUARANTINE: Duration = Duration::from_secs(600);

/// What is no unicast address of a host. Sources: RFC 6890, RFC 4291, RFC 1112.
const RESERVED: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

const CERTIFICATE_TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Settings that cannot work; each is one line that says what to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No pod CIDR.
    #[error("no pod CIDR given: pass at least one, for example --pod-cidr 10.42.0.0/16")]
    NoPodCidr,
    /// Host bits are set.
    #[error("pod CIDR {given} has bits set behind its prefix: did you mean {meant}?")]
    HostBits {
        /// As given.
        given: IpNet,
        /// With the bits cleared.
        meant: IpNet,
    },
    /// Two ranges share addresses.
    #[error("pod CIDRs {0} and {1} overlap: give ranges that do not share addresses")]
    Overlap(IpNet, IpNet),
    /// Two ranges of one family.
    #[error("pod CIDRs {0} and {1} are of one family: give at most one for IPv4 and one for IPv6")]
    SameFamily(IpNet, IpNet),
    /// Not addresses that one host sends to another.
    #[error(
        "pod CIDR {cidr} overlaps {reserved}, which is not for hosts: choose a private range such as 10.42.0.0/16"
    )]
    Unusable {
        /// As given.
        cidr: IpNet,
        /// What it shares addresses with.
        reserved: IpNet,
    },
    /// The hub's own address is inside.
    #[error(
        "pod CIDR {cidr} contains the address {listen} that the hub listens on: choose another range"
    )]
    ContainsListen {
        /// The range.
        cidr: IpNet,
        /// The address.
        listen: IpAddr,
    },
    /// Subnets do not fit.
    #[error(
        "node prefix /{prefix} does not fit pod CIDR {cidr}: choose one from /{least} to /{most}"
    )]
    Prefix {
        /// As given.
        prefix: u8,
        /// The range.
        cidr: IpNet,
        /// Least legal.
        least: u8,
        /// Greatest legal.
        most: u8,
    },
    /// Too long or short.
    #[error("certificate validity of {0:?} is out of range: choose one from 1 second to 365 days")]
    CertificateTtl(Duration),
    /// Port zero.
    #[error("mesh port 0 is not usable: every node needs to know it")]
    MeshPort,
    /// Too small.
    #[error("pod MTU {mtu} is too small: at least {least} bytes are needed")]
    Mtu {
        /// As given.
        mtu: u16,
        /// Least legal.
        least: u16,
    },
    /// No directory.
    #[error("{} is no directory: --manifests needs one with Kubernetes YAML", .0.display())]
    Manifests(PathBuf),
}

impl HubConfig {
    /// The usual settings for what has no default.
    #[must_use]
    pub fn new(
        manifests: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        listen: SocketAddr,
        pod_cidrs: Vec<IpNet>,
    ) -> Self {
        Self {
            manifests: manifests.into(),
            state: state.into(),
            run_dir: run_dir.into(),
            listen,
            pod_cidrs,
            node_prefix_v4: NODE_PREFIX_V4,
            node_prefix_v6: NODE_PREFIX_V6,
            encapsulation: Encapsulation::default(),
            mesh_port: None,
            vni: Vni::DEFAULT,
            mtu: None,
            certificate_ttl: CERTIFICATE_TTL,
            quarantine: QUARANTINE,
        }
    }

    /// Checks everything that can be told without changing anything.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.pod_cidrs.is_empty() {
            return Err(ConfigError::NoPodCidr);
        }
        for (i, cidr) in self.pod_cidrs.iter().enumerate() {
            self.check_cidr(*cidr)?;
            for other in self.pod_cidrs.iter().skip(i + 1) {
                check_pair(*cidr, *other)?;
            }
        }
        if !(Duration::from_secs(1)..=CERTIFICATE_TTL_MAX).contains(&self.certificate_ttl) {
            return Err(ConfigError::CertificateTtl(self.certificate_ttl));
        }
        if self.mesh_port == Some(0) {
            return Err(ConfigError::MeshPort);
        }
        let ipv6 = self.pod_cidrs.iter().any(|c| c.addr().is_ipv6());
        let least = if ipv6 { Mtu::IPV6_MIN } else { Mtu::IPV4_MIN };
        if let Some(mtu) = self.mtu.filter(|m| *m < least) {
            return Err(ConfigError::Mtu { mtu, least });
        }
        if !self.manifests.is_dir() {
            return Err(ConfigError::Manifests(self.manifests.clone()));
        }
        Ok(())
    }

    /// Prefix length of a node's subnet in `cidr`.
    pub(crate) fn node_prefix(&self, cidr: IpNet) -> u8 {
        if cidr.addr().is_ipv4() { self.node_prefix_v4 } else { self.node_prefix_v6 }
    }

    /// What every node has to know.
    pub(crate) fn cluster(&self) -> Cluster {
        let mut pod_cidrs = self.pod_cidrs.clone();
        pod_cidrs.sort();
        Cluster {
            pod_cidrs,
            encapsulation: self.encapsulation,
            port: self.mesh_port.unwrap_or_else(|| self.encapsulation.default_port()),
            vni: self.vni,
            mtu: self.mtu,
        }
    }

    fn check_cidr(&self, cidr: IpNet) -> Result<(), ConfigError> {
        if cidr.trunc() != cidr {
            return Err(ConfigError::HostBits { given: cidr, meant: cidr.trunc() });
        }
        let mut reserved = RESERVED.iter().filter_map(|r| r.parse::<IpNet>().ok());
        if let Some(reserved) = reserved.find(|r| overlap(r, &cidr)) {
            return Err(ConfigError::Unusable { cidr, reserved });
        }
        if cidr.contains(&self.listen.ip()) {
            return Err(ConfigError::ContainsListen { cidr, listen: self.listen.ip() });
        }
        // A subnet has at least a network address, a gateway, a pod and, in IPv4, a broadcast.
        let (prefix, least, most) =
            (self.node_prefix(cidr), cidr.prefix_len(), cidr.max_prefix_len() - 2);
        if !(least..=most).contains(&prefix) {
            return Err(ConfigError::Prefix { prefix, cidr, least, most });
        }
        Ok(())
    }
}

/// Whether two ranges share addresses.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn check_pair(a: IpNet, b: IpNet) -> Result<(), ConfigError> {
    if overlap(&a, &b) {
        return Err(ConfigError::Overlap(a, b));
    }
    if a.addr().is_ipv4() == b.addr().is_ipv4() {
        return Err(ConfigError::SameFamily(a, b));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cidrs: &[&str], change: impl FnOnce(&mut HubConfig)) -> Result<(), ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let cidrs = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        let listen = "192.0.2.1:7443".parse().unwrap();
        let mut config = HubConfig::new(dir.path(), dir.path(), dir.path(), listen, cidrs);
        change(&mut config);
        config.check()
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        let refused = |cidrs: &[&str]| check(cidrs, |_| {}).unwrap_err();
        assert_eq!(refused(&[]), ConfigError::NoPodCidr);
        assert!(matches!(refused(&["10.1.0.1/16"]), ConfigError::HostBits { .. }));
        assert!(matches!(refused(&["10.0.0.0/8", "10.1.0.0/16"]), ConfigError::Overlap(..)));
        assert!(matches!(refused(&["10.1.0.0/16", "10.2.0.0/16"]), ConfigError::SameFamily(..)));
        for unusable in [
            "127.0.0.0/8",
            "169.254.0.0/17",
            "224.0.0.0/8",
            "240.0.0.0/4",
            "255.0.0.0/8",
            "0.0.0.0/0",
            "fe80::/48",
            "ff00::/8",
            "::/64",
        ] {
            assert!(matches!(refused(&[unusable]), ConfigError::Unusable { .. }), "{unusable}");
        }
        assert!(matches!(refused(&["192.0.2.0/24"]), ConfigError::ContainsListen { .. }));
        assert!(matches!(refused(&["10.1.0.0/25"]), ConfigError::Prefix { .. }));
    }

    #[test]
    fn both_families_together_are_fine() {
        assert_eq!(check(&["fd00:1::/48", "10.1.0.0/16"], |_| {}), Ok(()));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let with = |change: fn(&mut HubConfig)| check(&["fd00:1::/48"], change).unwrap_err();
        assert!(matches!(with(|c| c.node_prefix_v6 = 127), ConfigError::Prefix { .. }));
        assert!(matches!(with(|c| c.mtu = Some(1000)), ConfigError::Mtu { least: 1280, .. }));
        let ttl = with(|c| c.certificate_ttl = Duration::ZERO);
        assert!(matches!(ttl, ConfigError::CertificateTtl(_)));
        assert!(matches!(with(|c| c.manifests.push("none")), ConfigError::Manifests(_)));
    }
}
