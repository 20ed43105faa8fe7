//! DNS as nodes serve it: settings, and Services that nodes have nothing but names for.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::{Endpoint, ServiceName, ServicePort};

/// Name of the built-in plugin that answers queries for names of the cluster.
pub const DNS_PLUGIN: &str = "dns";

/// Where a node's resolver listens, at [`DNS_PORT`]: link-local and unique local addresses, the same on every
/// node, that never leave it. Queries to the cluster's DNS Service are translated to them.
pub const RESOLVERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 88, 53)),
    IpAddr::V6(Ipv6Addr::new(0xfd57, 0x6566, 0x7400, 0, 0, 0, 0, 0x53)),
];

/// Where clients send queries to, and nodes' resolvers listen.
pub const DNS_PORT: u16 = 53;

/// Settings of DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Cluster domains without a dot at their end, at least one.
    pub zones: Vec<String>,
    /// Time to live of the cluster's records in seconds, 0..=3600.
    pub ttl_s: u32,
    /// The Service whose addresses clients ask.
    pub service: ServiceName,
    /// Of the Service's pods: what selects them or, if nothing does, what one has. For policies a node's
    /// resolver is such a pod, in the Service's namespace.
    pub labels: BTreeMap<String, String>,
    /// Where the Service's pods listen, over UDP and TCP. What is sent to a node's resolver is judged by policies
    /// as sent to this port.
    pub port: u16,
    /// Which pods have a name by their address.
    pub pod_names: PodNames,
    /// Who knows other names; those of the node's own configuration if there is none.
    pub upstreams: Vec<Upstream>,
    /// Who knows names below these.
    pub stub_domains: BTreeMap<String, Vec<Upstream>>,
    /// Names that the operator gave addresses, of at least two labels.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// A query that a pod's search list makes of a name, and that has no answer, is answered with what the
    /// pod would find in the end.
    pub autopath: bool,
    /// An endpoint that no manifest names is called as its pod is, if that is a DNS label; else by its
    /// address.
    pub endpoint_pod_names: bool,
    /// Queries of a client that its node answers in a second, others being refused; 0: any number.
    pub client_rate: u32,
}

/// A DNS server that is asked for names of others.
///
/// As text `ADDRESS`, `ADDRESS:PORT` or, over TLS, `tls://ADDRESS#NAME` or `tls://ADDRESS:PORT#NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// Asked over TLS (RFC 7858), if the server's certificate has this name; else in clear.
    pub tls: Option<String>,
}

impl Upstream {
    /// Usual port in clear.
    pub const PORT: u16 = 53;
    /// Usual port over TLS.
    pub const TLS_PORT: u16 = 853;
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            None => self.address.fmt(f),
            Some(name) => write!(f, "tls://{}#{name}", self.address),
        }
    }
}

/// A text that is no [`Upstream`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "give ADDRESS, ADDRESS:PORT or tls://ADDRESS#NAME, where NAME is that of the server's certificate"
)]
pub struct NoUpstream;

impl FromStr for Upstream {
    type Err = NoUpstream;

    fn from_str(text: &str) -> Result<Self, NoUpstream> {
        let (address, port, tls) = match text.strip_prefix("tls://") {
            None => (text, Self::PORT, None),
            Some(rest) => {
                let (address, name) = rest.split_once('#').ok_or(NoUpstream)?;
                let name = Some(name).filter(|n| !n.is_empty()).ok_or(NoUpstream)?;
                (address, Self::TLS_PORT, Some(name.to_owned()))
            }
        };
        let bare = address.parse().map(|ip| SocketAddr::new(ip, port));
        let address = bare.or_else(|_| address.parse()).map_err(|_| NoUpstream)?;
        Ok(Self { address, tls })
    }
}

/// Which pods have a name by their address, `10-0-0-1.NAMESPACE.pod.ZONE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Those that are there.
    #[default]
    Verified,
    /// Any address, whether a pod has it or not.
    Insecure,
}

/// A Service that nodes have names for and do not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    /// Namespace and name.
    pub name: ServiceName,
    /// Why it is not served.
    pub kind: NamedKind,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// By address.
    pub endpoints: Vec<Endpoint>,
}

/// Why a Service has nothing but names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedKind {
    /// It has no address of its own.
    Headless,
    /// It stands for this name.
    Alias(String),
    /// Another proxy serves these cluster IPs.
    Foreign(Vec<IpAddr>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_read_as_it_is_written() {
        for (text, written) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("tls://192.0.2.1#dns.example", "tls://192.0.2.1:853#dns.example"),
            ("tls://[2001:db8::1]:8853#dns.example", "tls://[2001:db8::1]:8853#dns.example"),
        ] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), written);
            assert_eq!(written.parse(), Ok(upstream));
        }
        for text in ["", "dns.example", "tls://192.0.2.1", "tls://192.0.2.1#", "192.0.2.1:"] {
            assert_eq!(text.parse::<Upstream>(), Err(NoUpstream), "{text}");
        }
    }
}
