//! What the hub is told at its start, checked as a whole before anything is touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_model::{Cluster, Dns, Encapsulation, Mtu, Vni};

use crate::dns;
use crate::source::kube::KubernetesConfig;

/// Settings of a hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Where the objects come from.
    pub source: Source,
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
    /// Ranges of the Services' cluster IPs, at most one for each family. A family that has pods and
    /// no range here gets the usual one.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of nodes inside these ranges serve node ports; all of a node's if there is none.
    pub node_port_cidrs: Vec<IpNet>,
    /// Serve `spec.externalIPs` of Services: who may write a Service can take any address with it.
    pub allow_external_ips: bool,
    /// How names are answered, [`Dns::labels`] aside, which are the Service's; `None`: nodes answer none.
    pub dns: Option<Dns>,
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

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of Kubernetes manifests.
    Manifests(PathBuf),
    /// A cluster's API server.
    Kubernetes(KubernetesConfig),
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

/// Usual range of the Services' IPv4 cluster IPs.
pub const SERVICE_CIDR_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
/// Usual range of the Services' IPv6 cluster IPs.
pub const SERVICE_CIDR_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);

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
    #[error("{kind} CIDR {given} has bits set behind its prefix: did you mean {meant}?")]
    HostBits {
        /// What it is for: pods, Services or node ports.
        kind: &'static str,
        /// As given.
        given: IpNet,
        /// With the bits cleared.
        meant: IpNet,
    },
    /// Two ranges share addresses.
    #[error("pod CIDRs {0} and {1} overlap: give ranges that do not share addresses")]
    Overlap(IpNet, IpNet),
    /// Services and pods share addresses.
    #[error(
        "service CIDR {services} overlaps pod CIDR {pods}: give another --service-cidr (without one, {SERVICE_CIDR_V4} and {SERVICE_CIDR_V6} are taken)"
    )]
    ServiceOverlap {
        /// The Services' range.
        services: IpNet,
        /// The pods'.
        pods: IpNet,
    },
    /// No room for a cluster IP.
    #[error("service CIDR {0} is too small: give one with at least 4 addresses")]
    ServicePrefix(IpNet),
    /// Services of a family that no pod has.
    #[error(
        "service CIDR {0} is of a family that no pod has: give a --pod-cidr of that family too"
    )]
    ServiceFamily(IpNet),
    /// Two ranges of one family.
    #[error(
        "{kind} CIDRs {first} and {second} are of one family: give at most one for IPv4 and one for IPv6"
    )]
    SameFamily {
        /// What they are for: pods or Services.
        kind: &'static str,
        /// One.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// Not addresses that one host sends to another.
    #[error(
        "{kind} CIDR {cidr} overlaps {reserved}, which is not for hosts: choose a private range such as 10.42.0.0/16"
    )]
    Unusable {
        /// What it is for: pods or Services.
        kind: &'static str,
        /// As given.
        cidr: IpNet,
        /// What it shares addresses with.
        reserved: IpNet,
    },
    /// The hub's own address is inside.
    #[error(
        "{kind} CIDR {cidr} contains the address {listen} that the hub listens on: choose another range"
    )]
    ContainsListen {
        /// What it is for: pods or Services.
        kind: &'static str,
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
    /// Names cannot be answered so.
    #[error("DNS: {0}")]
    Dns(String),
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
    /// The usual settings for what has no default, with a directory of manifests.
    #[must_use]
    pub fn new(
        manifests: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        listen: SocketAddr,
        pod_cidrs: Vec<IpNet>,
    ) -> Self {
        Self {
            source: Source::Manifests(manifests.into()),
            state: state.into(),
            run_dir: run_dir.into(),
            listen,
            pod_cidrs,
            node_prefix_v4: NODE_PREFIX_V4,
            node_prefix_v6: NODE_PREFIX_V6,
            service_cidrs: Vec::new(),
            node_port_cidrs: Vec::new(),
            allow_external_ips: false,
            dns: None,
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
                if overlap(cidr, other) {
                    return Err(ConfigError::Overlap(*cidr, *other));
                }
                check_families("pod", *cidr, *other)?;
            }
        }
        self.check_services()?;
        self.dns.as_ref().map_or(Ok(()), dns::check).map_err(ConfigError::Dns)?;
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
        match &self.source {
            Source::Manifests(path) if !path.is_dir() => Err(ConfigError::Manifests(path.clone())),
            Source::Manifests(_) | Source::Kubernetes(_) => Ok(()),
        }
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
            service_cidrs: self.all_service_cidrs(),
            node_port_cidrs: self.node_port_cidrs.clone(),
            dns: self.dns.clone(),
        }
    }

    /// The Services' ranges, IPv4 first.
    fn all_service_cidrs(&self) -> Vec<IpNet> {
        let mut cidrs = self.service_cidrs.clone();
        for usual in [IpNet::V4(SERVICE_CIDR_V4), IpNet::V6(SERVICE_CIDR_V6)] {
            let pods = self.pod_cidrs.iter().any(|c| same_family(c, &usual));
            if pods && !cidrs.iter().any(|c| same_family(c, &usual)) {
                cidrs.push(usual);
            }
        }
        cidrs.sort();
        cidrs
    }

    fn check_services(&self) -> Result<(), ConfigError> {
        let cidrs = self.all_service_cidrs();
        for (i, cidr) in cidrs.iter().enumerate() {
            self.check_hosts("service", *cidr)?;
            if cidr.prefix_len() + 2 > cidr.max_prefix_len() {
                return Err(ConfigError::ServicePrefix(*cidr));
            }
            if let Some(pods) = self.pod_cidrs.iter().find(|p| overlap(p, cidr)) {
                return Err(ConfigError::ServiceOverlap { services: *cidr, pods: *pods });
            }
            if !self.pod_cidrs.iter().any(|p| same_family(p, cidr)) {
                return Err(ConfigError::ServiceFamily(*cidr));
            }
            for other in cidrs.iter().skip(i + 1) {
                check_families("service", *cidr, *other)?;
            }
        }
        self.node_port_cidrs.iter().try_for_each(|cidr| check_host_bits("node port", *cidr))
    }

    /// Whether hosts can have addresses of this range.
    fn check_hosts(&self, kind: &'static str, cidr: IpNet) -> Result<(), ConfigError> {
        check_host_bits(kind, cidr)?;
        let mut reserved = RESERVED.iter().filter_map(|r| r.parse::<IpNet>().ok());
        if let Some(reserved) = reserved.find(|r| overlap(r, &cidr)) {
            return Err(ConfigError::Unusable { kind, cidr, reserved });
        }
        if cidr.contains(&self.listen.ip()) {
            return Err(ConfigError::ContainsListen { kind, cidr, listen: self.listen.ip() });
        }
        Ok(())
    }

    fn check_cidr(&self, cidr: IpNet) -> Result<(), ConfigError> {
        self.check_hosts("pod", cidr)?;
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

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

fn check_families(kind: &'static str, first: IpNet, second: IpNet) -> Result<(), ConfigError> {
    if same_family(&first, &second) {
        return Err(ConfigError::SameFamily { kind, first, second });
    }
    Ok(())
}

fn check_host_bits(kind: &'static str, cidr: IpNet) -> Result<(), ConfigError> {
    if cidr.trunc() == cidr {
        return Ok(());
    }
    Err(ConfigError::HostBits { kind, given: cidr, meant: cidr.trunc() })
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
        assert!(matches!(refused(&["10.1.0.0/16", "10.2.0.0/16"]), ConfigError::SameFamily { .. }));
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
    fn service_ranges_that_cannot_work_are_refused() {
        let refused = |services: &[&str]| {
            let cidrs = services.iter().map(|c| c.parse().unwrap()).collect();
            check(&["10.1.0.0/16"], |c| c.service_cidrs = cidrs).unwrap_err()
        };
        assert!(matches!(refused(&["10.1.128.0/20"]), ConfigError::ServiceOverlap { .. }));
        assert!(matches!(refused(&["10.2.0.1/20"]), ConfigError::HostBits { .. }));
        assert!(matches!(refused(&["10.2.0.0/31"]), ConfigError::ServicePrefix(_)));
        assert!(matches!(refused(&["fd00:9::/112"]), ConfigError::ServiceFamily(_)));
        assert!(matches!(refused(&["192.0.2.0/24"]), ConfigError::ContainsListen { .. }));
        let two = refused(&["10.2.0.0/16", "10.3.0.0/16"]);
        assert!(matches!(two, ConfigError::SameFamily { kind: "service", .. }));
        // The usual range is in the way.
        let usual = check(&["10.0.0.0/9"], |_| {}).unwrap_err();
        assert!(usual.to_string().contains("--service-cidr"), "{usual}");
        let ports = |c: &mut HubConfig| c.node_port_cidrs = vec!["192.0.2.1/24".parse().unwrap()];
        let ports = check(&["10.1.0.0/16"], ports).unwrap_err();
        assert!(matches!(ports, ConfigError::HostBits { kind: "node port", .. }));
    }

    #[test]
    fn families_without_a_service_range_get_the_usual_one() {
        let services = |pods: &[&str], services: &[&str]| {
            let nets = |c: &[&str]| c.iter().map(|c| c.parse().unwrap()).collect();
            let listen = "192.0.2.1:7443".parse().unwrap();
            let mut config = HubConfig::new("m", "s", "r", listen, nets(pods));
            config.service_cidrs = nets(services);
            weft_control::convert::texts(&config.cluster().service_cidrs)
        };
        assert_eq!(services(&["10.1.0.0/16"], &[]), ["10.96.0.0/16"]);
        let both = ["fd00:1::/48", "10.1.0.0/16"];
        assert_eq!(services(&both, &[]), ["10.96.0.0/16", "fd00:10:96::/112"]);
        assert_eq!(services(&both, &["fd00:9::/112"]), ["10.96.0.0/16", "fd00:9::/112"]);
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
        let no_directory = with(|c| c.source = Source::Manifests("/none".into()));
        assert!(matches!(no_directory, ConfigError::Manifests(_)));
    }
}
