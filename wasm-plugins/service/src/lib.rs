//! The built-in plugin that translates what is sent to Services.
//!
//! It is configured with the messages of `weft/tables/v1/service.proto`: all of them as
//! `ServiceTables`, and later what changed. It is asked about packets that enter the fabric at this
//! node, chooses a backend for a new flow, and lets the fabric hold the translation. A later packet
//! is asked about once after each change: only a UDP flow whose backend is gone then moves.
//!
//! Of a flow it remembers which backend it chose, of a client with affinity the same in the map.
//! The choice itself is a hash, the same on each worker and after the loss of the flow's entry.

#![deny(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
mod backend;
mod blocks;
mod config;
mod hash;
mod service;
mod settings;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use weft_policy_sdk::prelude::*;
use weft_policy_sdk::{Descriptor, flags};
use weft_proto::tables::v1::backend::{ELSEWHERE, HOST, REMOTE_POD};

use address::{Address, Family, Prefix};
use backend::{Backend, Scope};
use blocks::Served;
use config::Part;
use hash::{halves, mix_all};
use service::{Kind, Numbers, Service};
use tables::{At, Found, Tables};

/// Number of a rejection: no endpoint, or no such port. The sender hears "port unreachable".
pub const UNREACHABLE: u32 = 1;
/// Number of a drop: there are endpoints, but none where the traffic policy wants them.
pub const NO_LOCAL_ENDPOINT: u32 = 2;
/// Number of a drop: the client is outside of the load balancer's source ranges.
pub const OUTSIDE_SOURCE_RANGES: u32 = 3;
/// Number of a drop: a cluster IP that no Service has.
pub const NO_SERVICE: u32 = 4;
/// Number of a drop: the source must be rewritten, and none of the family is configured.
pub const NO_SOURCE: u32 = 5;

const TCP: u8 = 6;
const SCTP: u8 = 132;
/// TCP flags SYN, RST, FIN and ACK.
const OPENING_MASK: u8 = 0x17;
const SYN: u8 = 0x02;

/// The plugin.
#[derive(Debug, Default)]
pub struct Services {
    tables: Tables,
}

impl Filter for Services {
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        match config {
            Config::Full(bytes) => {
                let mut tables = Tables::with_room(config::room(bytes));
                config::read(bytes, |part| {
                    match part {
                        Part::Settings(settings) => tables.settings = settings,
                        Part::Service(service) if tables.has(&service.kept.name) => {
                            return Err(twice(&service.kept.name));
                        }
                        Part::Service(service) => tables.set(service),
                        // There is nothing that it could remove.
                        Part::Removed(_) => {}
                    }
                    Ok(())
                })?;
                self.tables = tables;
            }
            Config::Delta(bytes) => self.change(bytes)?,
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, host: &Host) -> Verdict {
        if flow.is_reply() {
            return Verdict::Continue;
        }
        let packet = Told::new(packet.descriptor());
        let known = Known::new(flow);
        if !known.may_change(&packet) {
            return Verdict::Continue;
        }
        match self.tables.find(packet.destination, packet.destination_port, packet.protocol) {
            Found::Service(port, at) => {
                let asked = Asked { tables: &self.tables, port, at, packet };
                asked.verdict(known, flow, host)
            }
            // The flow's Service is gone, and the flow stays where it went.
            _ if matches!(known, Known::Translated(_)) => Verdict::Continue,
            Found::Unserved => Verdict::Reject(UNREACHABLE),
            Found::Nobody => Verdict::Drop(NO_SERVICE),
            Found::Other => Verdict::Continue,
        }
    }
}

impl Services {
    /// Reads all of a delta before it changes anything. First removes, then sets.
    fn change(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (mut settings, mut services, mut removed) = (None, Vec::new(), Vec::new());
        config::read(bytes, |part| {
            match part {
                Part::Settings(new) => settings = Some(new),
                Part::Service(service) => services.push(service),
                Part::Removed(name) => removed.push(name),
            }
            Ok(())
        })?;
        let mut names = BTreeSet::new();
        if let Some(again) = services.iter().find(|service| !names.insert(&*service.kept.name)) {
            return Err(twice(&again.kept.name));
        }
        if let Some(settings) = settings {
            self.tables.settings = settings;
        }
        removed.into_iter().for_each(|name| self.tables.remove(name));
        services.into_iter().for_each(|service| self.tables.set(service));
        Ok(())
    }
}

fn twice(name: &str) -> String {
    format!("service {name:?}: it is there twice")
}

/// What is read of a packet.
#[derive(Clone, Copy, Debug)]
struct Told {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    client: Client,
    opens: bool,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod,
    Host,
    Outside,
}

impl Told {
    #[inline]
    fn new(told: &Descriptor) -> Self {
        let client = if told.flags & flags::SOURCE_LOCAL_POD != 0 {
            Client::Pod
        } else if told.flags & flags::SOURCE_HOST != 0 {
            Client::Host
        } else {
            Client::Outside
        };
        Self {
            source: Address(u128::from_be_bytes(told.source)),
            destination: Address(u128::from_be_bytes(told.destination)),
            source_port: told.source_port,
            destination_port: told.destination_port,
            protocol: told.protocol,
            client,
            opens: told.protocol == TCP && told.tcp_flags & OPENING_MASK == SYN,
        }
    }

    /// Hash of what makes it a flow of its own.
    fn flow_hash(&self) -> u64 {
        let [s0, s1] = halves(self.source.0);
        let [d0, d1] = halves(self.destination.0);
        let ports = u64::from(self.source_port) << 16 | u64::from(self.destination_port);
        mix_all([s0, s1, d0, d1, ports << 8 | u64::from(self.protocol)])
    }
}

/// What is known of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    New,
    /// It was let pass untranslated.
    Passed,
    /// It was translated to the backend with this id.
    Translated(u64),
}

impl Known {
    /// In the slot: id of the backend, then this.
    const MARK: [u8; 8] = *b"backend1";

    fn new(flow: &Flow) -> Self {
        let [id @ .., m0, m1, m2, m3, m4, m5, m6, m7] = flow.slot();
        if [m0, m1, m2, m3, m4, m5, m6, m7] == Self::MARK {
            Self::Translated(u64::from_le_bytes(id))
        } else if flow.is_first() {
            Self::New
        } else {
            Self::Passed
        }
    }

    fn remember(flow: &mut Flow, id: u64) {
        let slot = u128::from(u64::from_le_bytes(Self::MARK)) << 64 | u128::from(id);
        flow.set_slot(slot.to_le_bytes());
    }

    /// False for a connection, which stays where it is whatever becomes of its Service. One that
    /// still is to be opened is none.
    fn may_change(self, packet: &Told) -> bool {
        match (self, packet.protocol) {
            (Self::New, _) => true,
            (Self::Passed, TCP) => packet.opens,
            (Self::Translated(_), TCP) | (Self::Passed | Self::Translated(_), SCTP) => false,
            (Self::Passed | Self::Translated(_), _) => true,
        }
    }
}

/// A packet to a Service.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    tables: &'a Tables,
    port: Served<'a>,
    at: At,
    packet: Told,
}

impl Asked<'_> {
    fn verdict(&self, known: Known, flow: &mut Flow, host: &Host) -> Verdict {
        let Some(scope) = self.scope() else { return Verdict::Continue };
        let decided = match known {
            // Whatever its bits say: it serves.
            Known::Translated(id) if self.find(|b| b.id() == id).is_some() => None,
            Known::Translated(_) => self.translate(scope, host).ok(),
            Known::New | Known::Passed => match self.translate(scope, host) {
                Ok(translated) => Some(translated),
                Err(refusal) => return refusal,
            },
        };
        // A flow whose backend is gone stays as it is until there is another.
        let Some((id, rewrite)) = decided else { return Verdict::Continue };
        Known::remember(flow, id);
        Verdict::Rewrite(rewrite)
    }

    /// Which backends the packet may go to; `None` if it is none of this node's business.
    fn scope(&self) -> Option<Scope> {
        let own = self.tables.settings.own_node;
        let outside = self.packet.client == Client::Outside;
        let local = |local: bool, node| if local { Scope::Local(node) } else { Scope::Cluster };
        Some(match self.at {
            At::Frontend(Kind::ClusterIp) => local(self.port.internal_local(), own),
            At::Frontend(Kind::LoadBalancer | Kind::ExternalIp) => {
                local(self.port.external_local() && outside, own)
            }
            At::NodePort(node) if node == own => local(self.port.external_local() && outside, own),
            At::NodePort(_) if outside => return None,
            // As that node would choose. The way does not lead past it.
            At::NodePort(node) => local(self.port.external_local(), node),
        })
    }

    /// Id of the backend and the translation, or the verdict if there is none.
    fn translate(&self, scope: Scope, host: &Host) -> Result<(u64, Rewrite), Verdict> {
        if self.at == At::Frontend(Kind::LoadBalancer) && !self.is_in_ranges() {
            return Err(Verdict::Drop(OUTSIDE_SOURCE_RANGES));
        }
        let family = self.packet.destination.family();
        let Some(backend) = self.choose(scope, host) else {
            return Err(if self.find(Backend::counts).is_some() {
                Verdict::Drop(NO_LOCAL_ENDPOINT)
            } else {
                Verdict::Reject(UNREACHABLE)
            });
        };
        let rewrite =
            Rewrite::new().destination(backend.address.ip()).destination_port(backend.port);
        let settings = &self.tables.settings;
        let sources = match self.masquerade(&backend) {
            None => return Ok((backend.id(), rewrite)),
            Some(Masquerade::Node) => settings.node_sources,
            Some(Masquerade::Host) => settings.host_sources,
        };
        let source = sources.of(family).ok_or(Verdict::Drop(NO_SOURCE))?;
        Ok((backend.id(), rewrite.source(source.ip()).source_port(0)))
    }

    /// Whose source replies need to come back this way.
    fn masquerade(&self, backend: &Backend) -> Option<Masquerade> {
        let client = self.packet.client;
        match backend.place() {
            // Before the rule for a client that reaches itself: the node's own address is of no
            // use to a process of the node.
            HOST if client == Client::Host => Some(Masquerade::Host),
            ELSEWHERE if client != Client::Pod => Some(Masquerade::Host),
            _ if backend.address == self.packet.source => Some(Masquerade::Node),
            REMOTE_POD if client == Client::Outside => Some(Masquerade::Node),
            _ => None,
        }
    }

    fn is_in_ranges(&self) -> bool {
        if !self.port.has_ranges() {
            return true;
        }
        let Told { source, destination, client, .. } = self.packet;
        let settings = &self.tables.settings;
        let ranges = self.tables.service(self.port).map_or(&[][..], |s| &s.source_ranges);
        let mut ranges = ranges.iter().filter(|r| r.family() == source.family()).peekable();
        if ranges.peek().is_none() {
            return true;
        }
        // The kernel may have the node speak as the load balancer, or as it does in the fabric.
        let stands_for_node = client == Client::Host
            && (source == destination || settings.host_sources.iter().any(|a| a == source));
        let own = if stands_for_node { settings.own_addresses() } else { &[] };
        ranges.any(|range: &Prefix| {
            range.contains(source) || own.iter().any(|address| range.contains(*address))
        })
    }

    fn choose(&self, scope: Scope, host: &Host) -> Option<Backend> {
        let by_flow = || self.by_hash(scope, self.packet.flow_hash());
        let service = self.port.has_affinity().then(|| self.tables.service(self.port)).flatten();
        let Some(service) = service else { return by_flow() };
        let key = self.affinity_key(service);
        let map = host.map();
        let remembered = || {
            let value = map.get(&key)?;
            let id = u64::from_le_bytes((*value).try_into().ok()?);
            Some((value, self.find(|backend| scope.has(backend) && backend.id() == id)))
        };
        let ttl = Some(Duration::from_secs(u64::from(service.affinity_s)));
        let held = remembered();
        let (value, usable) = held.as_ref().map_or((&[][..], None), |(v, b)| (&**v, *b));
        let backend = usable.or_else(by_flow)?;
        // Where it is the same as before, for its time to begin anew.
        match map.swap(&key, value, &backend.id().to_le_bytes(), ttl) {
            Ok(true) => Some(backend),
            // Another worker was faster: so its choice is the client's.
            Ok(false) => remembered().and_then(|(_, other)| other).or(Some(backend)),
            // No room: what a client gets then depends on nothing but the client.
            Err(_) => usable.or_else(|| self.by_hash(scope, client_hash(&key))),
        }
    }

    /// The first of the packet's family that is as it should be.
    fn find(&self, is_meant: impl FnMut(&Backend) -> bool) -> Option<Backend> {
        match self.packet.destination.family() {
            Family::V4 => self.port.v4().find(is_meant),
            Family::V6 => self.port.v6().find(is_meant),
        }
    }

    fn by_hash(&self, scope: Scope, hash: u64) -> Option<Backend> {
        match self.packet.destination.family() {
            Family::V4 => backend::choose(self.port.v4(), scope, hash),
            Family::V6 => backend::choose(self.port.v6(), scope, hash),
        }
    }

    /// Identity of the Service port, then the client.
    fn affinity_key(&self, service: &Service) -> [u8; 24] {
        let Numbers { protocol, port, .. } = self.port.numbers();
        let port = u64::from(port) << 8 | u64::from(protocol);
        let identity = mix_all([hash::of_text(&service.name), port]);
        let mut key = [0; 24];
        let parts = identity.to_be_bytes().into_iter().chain(self.packet.source.0.to_be_bytes());
        key.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        key
    }
}

/// Which source replies find their way back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Masquerade {
    /// The node's own address.
    Node,
    /// The address that stands for the host in the fabric.
    Host,
}

fn client_hash(key: &[u8; 24]) -> u64 {
    let words = key.as_chunks::<8>().0;
    words.iter().fold(0, |hash, word| hash::mix(hash ^ u64::from_be_bytes(*word)))
}

export_plugin!(
    Services,
    name: "service",
    hooks: hooks::EGRESS,
    protocols: protocols::ALL,
    per_flow: true,
    capabilities: capability::REWRITE | capability::MAP,
    map_entries: 65_536,
);
