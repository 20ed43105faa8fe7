//! Servers that know what is not of the cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use rustls::ClientConfig;
use weft_model::Upstream;

/// A server that is silent for this long is passed over.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Answers that are kept.
const CACHE_SIZE: u64 = 10_000;
/// Answers are kept at least this long.
const TTL_MIN: Duration = Duration::from_secs(5);
/// Longest that answers are kept.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// Longest that is kept that there is none.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(1800);

/// Domains and the servers that know names below them.
pub type StubDomains = BTreeMap<String, Vec<Upstream>>;

/// Certificates that servers are believed by.
pub use rustls::RootCertStore;

/// Servers that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No such name.
    #[error("`{0}` is no name of a domain")]
    Domain(String),
    /// The library refuses them.
    #[error("{0}")]
    Library(String),
}

/// Who is asked, by domain. Each group of servers has a cache of its own: nothing that one of them says
/// answers for another's names.
pub struct Upstreams {
    /// `None`: nobody.
    usual: Option<Group>,
    /// Longest names first.
    stubs: Vec<(Name, Group)>,
    /// What is asked to find out whether a query comes back.
    probe: Option<Name>,
}

/// Servers that know the same.
struct Group {
    servers: Vec<Upstream>,
    resolver: Arc<TokioResolver>,
}

impl Upstreams {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self { usual: None, stubs: Vec::new(), probe: None }
    }

    /// `usual` ones know everything that no stub domain has.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn new(
        usual: &[Upstream],
        stubs: &StubDomains,
        roots: RootCertStore,
    ) -> Result<Self, UpstreamError> {
        let tls = believing(roots)?;
        let mut upstreams = Self::none();
        if !usual.is_empty() {
            upstreams.usual = Some(group(usual, &tls)?);
            let random: u64 = rand::random();
            upstreams.probe = Name::from_ascii(format!("{random:016x}.{:016x}.", !random)).ok();
        }
        for (domain, servers) in stubs {
            let no_name = |_| UpstreamError::Domain(domain.clone());
            let mut name = Name::from_utf8(domain).map_err(no_name)?;
            name.set_fqdn(true);
            upstreams.stubs.push((name.to_lowercase(), group(servers, &tls)?));
        }
        upstreams.stubs.sort_by_key(|(name, _)| std::cmp::Reverse(name.num_labels()));
        Ok(upstreams)
    }

    /// Who knows the name.
    pub(crate) fn of(&self, name: &Name) -> Option<Arc<TokioResolver>> {
        self.group(name).map(|group| Arc::clone(&group.resolver))
    }

    /// Their addresses.
    pub(crate) fn servers(&self, name: &Name) -> Vec<Upstream> {
        self.group(name).map(|group| group.servers.clone()).unwrap_or_default()
    }

    fn group(&self, name: &Name) -> Option<&Group> {
        let stub = self.stubs.iter().find(|(domain, _)| domain.zone_of(name));
        stub.map(|(_, group)| group).or(self.usual.as_ref())
    }

    /// True if this is the name that nobody but [`Self::probe`] asks for.
    pub(crate) fn is_probe(&self, name: &Name) -> bool {
        self.probe.as_ref() == Some(name)
    }

    /// Asks the usual servers something that they should not ask us.
    pub(crate) async fn probe(&self) {
        if let (Some(usual), Some(name)) = (&self.usual, &self.probe) {
            let _answered = usual.resolver.lookup(name.clone(), RecordType::HINFO).await;
        }
    }
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stubs: Vec<_> = self.stubs.iter().map(|(name, _)| name).collect();
        f.debug_struct("Upstreams").field("stubs", &stubs).finish_non_exhaustive()
    }
}

/// Of TLS to servers whose certificates these have signed.
fn believing(roots: RootCertStore) -> Result<ClientConfig, UpstreamError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| UpstreamError::Library(e.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn group(servers: &[Upstream], tls: &ClientConfig) -> Result<Group, UpstreamError> {
    let server = |server: &Upstream| {
        let with_port = |mut connection: ConnectionConfig| {
            connection.port = server.address.port();
            connection
        };
        let connections = match &server.tls {
            Some(name) => vec![ConnectionConfig::tls(name.as_str().into())],
            None => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
        };
        let connections = connections.into_iter().map(with_port).collect();
        NameServerConfig::new(server.address.ip(), true, connections)
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_tls_config(tls.clone());
    *builder.options_mut() = options();
    let resolver = builder.build().map_err(|e| UpstreamError::Library(e.to_string()))?;
    Ok(Group { servers: servers.to_vec(), resolver: Arc::new(resolver) })
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ndots = 0;
    options.timeout = TIMEOUT;
    options.attempts = 1;
    options.edns0 = true;
    options.cache_size = CACHE_SIZE;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_min_ttl = Some(TTL_MIN);
    options.negative_min_ttl = Some(TTL_MIN);
    options.positive_max_ttl = Some(TTL_MAX);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.preserve_intermediates = true;
    options.max_active_requests = crate::WAITING_MAX;
    options
}

/// Servers that a `resolv.conf` names.
#[must_use]
pub fn servers_of(resolv_conf: &str) -> Vec<Upstream> {
    let Ok(config) = resolv_conf::Config::parse(resolv_conf) else { return Vec::new() };
    let address = |ip: &resolv_conf::ScopedIp| match ip {
        resolv_conf::ScopedIp::V4(v4) => Some(IpAddr::V4(*v4)),
        // A scope is of no use to the library.
        resolv_conf::ScopedIp::V6(v6, None) => Some(IpAddr::V6(*v6)),
        resolv_conf::ScopedIp::V6(_, Some(_)) => None,
    };
    let server = |ip| Upstream { address: SocketAddr::new(ip, Upstream::PORT), tls: None };
    config.nameservers.iter().filter_map(address).map(server).collect()
}
