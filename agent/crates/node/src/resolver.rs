//! The node's DNS server: its addresses, its sockets, what it knows and whom it asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prost::Message as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use weft_model::{DNS_PORT, Dns, HOST_SOURCES, RESOLVERS, Snapshot, Upstream};
use weft_netio::{Netlink, addr};
use weft_policy_sdk::Config;
use weft_resolver::{Resolver, RootCertStore, Upstreams, serve_tcp, serve_udp, servers_of};

use crate::core::{Core, State};
use crate::tables::Names;
use crate::witness::{Ear, Store};

const WHO: &str = "dns";
/// Where the server has its addresses: it is there in any case, and up.
const INTERFACE: &str = "lo";
/// How often addresses, sockets and the list of servers are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Serves names while the fabric wants it; never ends.
pub(crate) async fn run(core: Arc<Core>, netlink: Netlink, names: Arc<Store>) {
    let asked_by = Arc::clone(&core);
    let resolver = Resolver::new(move |client| asked_by.read(|state| may_ask(state, client)));
    core.set_resolver(Arc::clone(&resolver));
    resolver.set_witness(Arc::new(Ear { core: Arc::clone(&core), store: names }));
    let mut server = Server {
        core,
        netlink,
        resolver,
        configured: Ok(Vec::new()),
        known: None,
        asks: None,
        serving: None,
    };
    let mut changes = server.core.changes();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = true;
    loop {
        let problems = server.bring_up_to_date(look).await;
        server.core.set_problems(WHO, problems);
        server.core.set_serves_names(server.is_ready());
        tokio::select! {
            _ = changes.changed() => look = false,
            _ = ticks.tick() => look = true,
        }
    }
}

/// Pods of this node, and the node itself: its addresses are anybody's who shares a link with it.
fn may_ask(state: &State, client: IpAddr) -> bool {
    HOST_SOURCES.contains(&client)
        || RESOLVERS.contains(&client)
        || state.host_addresses.contains(&client)
        || state.attachment_at(client).is_some()
}

struct Server {
    core: Arc<Core>,
    netlink: Netlink,
    resolver: Arc<Resolver>,
    /// Servers that the node's own configuration names, or why there are none.
    configured: Result<Vec<Upstream>, String>,
    /// What the resolver knows.
    known: Option<Arc<Names>>,
    /// Whom it asks.
    asks: Option<Asks>,
    /// Sockets by address; what serves them ends with it.
    serving: Option<Serving>,
}

#[derive(Default)]
struct Serving {
    addresses: BTreeSet<IpAddr>,
    tasks: JoinSet<()>,
    /// What was wrong when it was looked at last.
    problems: Vec<String>,
}

/// Whom the resolver asks, and why not others.
#[derive(Clone, Debug, PartialEq)]
struct Asks {
    usual: Vec<Upstream>,
    dns: Dns,
    problems: Vec<String>,
}

impl Server {
    /// Gives back what an operator should look at. `look`: also at what others may have changed.
    async fn bring_up_to_date(&mut self, look: bool) -> Vec<String> {
        if look {
            self.configured = configured(&self.core.config.resolv_conf);
        }
        let (core, configured) = (&self.core, &self.configured);
        let wanted = core.read(|state| state.snapshot.as_ref().and_then(|s| asks(s, configured)));
        let names = core.target().map(|t| Arc::clone(t.tables.names()));
        let (Some(wanted), Some(names)) = (wanted, names.filter(|n| !n.is_empty())) else {
            self.stop().await;
            return Vec::new();
        };
        let mut problems = Vec::new();
        if !self.known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &names)) {
            match self.tell(&names) {
                Ok(()) => self.known = Some(names),
                Err(error) => {
                    self.known = None;
                    problems.push(format!("names of the cluster are not known: {error}"));
                }
            }
        }
        if self.asks.as_ref() != Some(&wanted) {
            self.ask(&wanted);
            self.asks = Some(wanted.clone());
        }
        problems.extend(wanted.problems);
        if look || self.serving.is_none() {
            self.serve().await;
        }
        problems.extend(self.serving.iter().flat_map(|s| s.problems.iter().cloned()));
        problems
    }

    fn is_ready(&self) -> bool {
        self.known.is_some() && self.serving.as_ref().is_some_and(|s| !s.addresses.is_empty())
    }

    fn tell(&self, names: &Names) -> Result<(), String> {
        match &self.known {
            Some(known) => match names.change_from(known) {
                Some(change) => self.resolver.configure(Config::Delta(&change.encode_to_vec())),
                None => Ok(()),
            },
            None => self.resolver.configure(Config::Full(&names.complete().encode_to_vec())),
        }
    }

    fn ask(&self, asks: &Asks) {
        let stubs = &asks.dns.stub_domains;
        let over_tls = asks.usual.iter().chain(stubs.values().flatten()).any(|s| s.tls.is_some());
        let roots = if over_tls { believed() } else { RootCertStore::empty() };
        match Upstreams::new(&asks.usual, stubs, roots) {
            Ok(upstreams) => self.resolver.set_upstreams(upstreams),
            Err(error) => {
                tracing::warn!(%error, "nobody is asked for names that are not the cluster's");
                self.resolver.set_upstreams(Upstreams::none());
            }
        }
        let (core, resolver) = (Arc::clone(&self.core), Arc::clone(&self.resolver));
        tokio::spawn(async move {
            let problem = "the DNS servers that this node asks ask it in turn: no name outside of the cluster is found; give others with the hub's --dns-upstream";
            let loops = resolver.loops().await;
            if loops {
                resolver.set_upstreams(Upstreams::none());
            }
            core.set_problems(LOOPS, loops.then(|| problem.to_owned()).into_iter().collect());
        });
    }

    /// Has addresses and sockets.
    async fn serve(&mut self) {
        let serving = self.serving.get_or_insert_default();
        let mut problems = Vec::new();
        for address in RESOLVERS {
            if let Err(error) = addr::ensure(&self.netlink, INTERFACE, IpNet::from(address)).await {
                // A host may have no IPv6.
                if address.is_ipv4() {
                    problems.push(format!("{address} cannot be had for the DNS server: {error}"));
                }
                continue;
            }
            if serving.addresses.contains(&address) {
                continue;
            }
            let at = SocketAddr::new(address, DNS_PORT);
            match (UdpSocket::bind(at).await, TcpListener::bind(at).await) {
                (Ok(udp), Ok(tcp)) => {
                    serving.tasks.spawn(serve_udp(Arc::clone(&self.resolver), udp));
                    serving.tasks.spawn(serve_tcp(Arc::clone(&self.resolver), tcp));
                    serving.addresses.insert(address);
                }
                (Err(error), _) | (_, Err(error)) => problems.push(format!(
                    "the DNS server cannot listen at {at}: {error}; does another process listen at port {DNS_PORT} of all addresses?"
                )),
            }
        }
        serving.problems = problems;
    }

    async fn stop(&mut self) {
        if self.serving.take().is_none() {
            return;
        }
        (self.known, self.asks) = (None, None);
        self.core.set_problems(LOOPS, Vec::new());
        if let Err(error) = remove_addresses(&self.netlink).await {
            tracing::warn!(%error, "addresses of the DNS server are left behind");
        }
    }
}

const LOOPS: &str = "dns loop";

/// Takes the server's addresses from the host.
///
/// # Errors
/// See [`weft_netio::NetlinkError`].
pub(crate) async fn remove_addresses(netlink: &Netlink) -> Result<(), weft_netio::NetlinkError> {
    for address in RESOLVERS {
        addr::remove(netlink, INTERFACE, IpNet::from(address)).await?;
    }
    Ok(())
}

/// Certificates that this machine believes.
fn believed() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "certificates that are believed cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (taken, refused) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(taken, refused, "certificates that are believed");
    roots
}

/// Servers that a `resolv.conf` names.
fn configured(path: &Path) -> Result<Vec<Upstream>, String> {
    let text = std::fs::read_to_string(path);
    text.map(|text| servers_of(&text))
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// `None` if no names are served. `configured` counts where the fabric names no servers.
fn asks(snapshot: &Snapshot, configured: &Result<Vec<Upstream>, String>) -> Option<Asks> {
    let dns = snapshot.cluster.dns.clone()?;
    let mut problems = Vec::new();
    let given = match configured {
        _ if !dns.upstreams.is_empty() => dns.upstreams.clone(),
        Ok(servers) => servers.clone(),
        Err(problem) => {
            problems.push(problem.clone());
            Vec::new()
        }
    };
    let own = |ip: &IpAddr| snapshot.name_servers().contains(ip) || RESOLVERS.contains(ip);
    let (loops, usual): (Vec<_>, Vec<_>) = given.into_iter().partition(|s| own(&s.address.ip()));
    problems.extend(
        loops
            .iter()
            .map(|server| format!("DNS server {server} is not asked: it is this cluster's own")),
    );
    if usual.is_empty() {
        problems.push(
            "there is no DNS server to ask for names that are not the cluster's: give one with the hub's --dns-upstream".to_owned(),
        );
    }
    Some(Asks { usual, dns, problems })
}
