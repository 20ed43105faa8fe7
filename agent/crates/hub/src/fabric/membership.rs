//! Who is a node of the fabric: joining, renewing, leaving.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnet::IpNet;
use time::OffsetDateTime;
use weft_control::{PeerIdentity, Role};
use weft_model::NodeName;
use weft_proto::v1;

use super::extent::Extent;
use super::merge::reserved;
use super::state::{Joined, Record, State};
use super::{Fabric, FabricError};
use crate::ca::{Incarnation, SKEW_MAX, Subject, new_incarnation};
use crate::review::NodeIdentity;
use crate::source::object::{Key, Object};
use crate::source::objects::Objects;
use crate::store::{Change, StoreError, Table};

const UID_MAX: usize = 128;

impl Fabric {
    /// Admits a node, or gives one that is in already a fresh certificate. `identity`: who it is, if its
    /// cluster says so; others show the join token.
    pub(crate) fn join(
        &self,
        request: &v1::JoinRequest,
        identity: Option<&NodeIdentity>,
    ) -> Result<v1::JoinResponse, FabricError> {
        if identity.is_none() && !self.ca.admits(&request.token) {
            return Err(FabricError::WrongToken);
        }
        let now = OffsetDateTime::now_utc();
        check_clock(request.unix_time, now.unix_timestamp())?;
        let name = NodeName::try_new(request.node.clone())
            .map_err(|e| weft_control::ConvertError::new("node", e))?;
        let mut state = self.state();
        let uid = uid_of(&state.source, &name, &request.uid, identity)?;
        check_free(&state, &name, &uid)?;
        let known = state.nodes.get(&name).map(|joined| joined.record.clone());
        let record = known.unwrap_or_else(|| Record {
            uid,
            incarnation: new_incarnation(),
            key_epoch: 0,
            joined_unix: now.unix_timestamp(),
            lost: false,
            of_cluster: identity.is_some(),
        });
        // Before anything is written: a bad request leaves no trace.
        let subject = Subject::Node(&name, &record.incarnation);
        let certificate =
            self.ca.sign(&request.certificate_request, &subject, now, self.certificate_ttl)?;
        let (assigned, taken) = (assigned(&state.source, &name), reserved(&state.source, &name));
        let mut subnets =
            self.leases.acquire(&record.uid, &assigned, &taken, now.unix_timestamp())?;
        subnets.sort();
        if !state.nodes.contains_key(&name) {
            State::save_record(&self.store, &name, &record)?;
            tracing::info!(node = %name, ?subnets, "node joined");
        }
        let joined =
            state.nodes.entry(name).or_insert_with(|| Joined::new(record, subnets.clone()));
        joined.subnets.clone_from(&subnets);
        self.publish(&mut state, &Extent::Everything)?;
        let subnets = weft_control::convert::texts(&subnets);
        Ok(v1::JoinResponse { certificate, ca: self.ca.pem().to_owned(), subnets })
    }

    /// Signs a fresh certificate for a member.
    pub(crate) fn renew(&self, name: &NodeName, request: &str) -> Result<String, FabricError> {
        let incarnation = {
            let state = self.state();
            let joined = state.nodes.get(name);
            joined.ok_or_else(|| FabricError::NotMember(name.clone()))?.record.incarnation
        };
        let subject = Subject::Node(name, &incarnation);
        let now = OffsetDateTime::now_utc();
        Ok(self.ca.sign(request, &subject, now, self.certificate_ttl)?)
    }

    /// The node that a verified certificate stands for, if it is one of the fabric and this is a
    /// certificate of its present joining. `None` for an operator's.
    pub(crate) fn member(&self, peer: &PeerIdentity) -> Result<Option<NodeName>, FabricError> {
        let Role::Node(name) = &peer.role else { return Ok(None) };
        let members = self.history.newest().members;
        match members.get(name) {
            Some(member) if peer.serial.starts_with(&member.incarnation) => Ok(Some(name.clone())),
            _ => Err(FabricError::NotMember(name.clone())),
        }
    }

    /// Counts a Watch stream of this joining; to be undone by [`Fabric::disconnected`].
    pub(crate) fn connected(&self, name: &NodeName) -> Option<Incarnation> {
        let mut state = self.state();
        let node = state.nodes.get_mut(name)?;
        node.streams += 1;
        Some(node.record.incarnation)
    }

    /// A Watch stream has ended. What the node reported stays.
    pub(crate) fn disconnected(&self, name: &NodeName, joining: Option<Incarnation>) {
        let mut state = self.state();
        let node = state.nodes.get_mut(name);
        // Another one may have the name by now.
        if let Some(node) = node.filter(|node| Some(node.record.incarnation) == joining) {
            node.streams = node.streams.saturating_sub(1);
            node.left = (node.streams == 0).then(Instant::now).or(node.left);
        }
        drop(state);
        self.heard.notify_one();
    }

    /// Has other nodes answer for the addresses of those that are gone, and pods of others serve for
    /// those of nodes that are gone for long. To be called now and then.
    pub(crate) fn follow_the_living(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let lost = state.look_who_is_lost(now);
        if !(state.look_who_is_alive(now) | !lost.is_empty()) {
            return;
        }
        let noted = self.note_lost(&mut state, lost);
        if let Err(error) = noted.and_then(|()| self.publish(&mut state, &Extent::Everything)) {
            tracing::error!(%error, "others cannot take over from nodes that are gone");
        }
    }

    fn note_lost(&self, state: &mut State, lost: Vec<(NodeName, bool)>) -> Result<(), StoreError> {
        for (name, lost) in lost {
            let Some(joined) = state.nodes.get_mut(&name) else { continue };
            let record = Record { lost, ..joined.record.clone() };
            State::save_record(&self.store, &name, &record)?;
            joined.record = record;
            if lost {
                tracing::warn!(node = %name, "its agent stays away: its pods are no ready endpoints");
            } else {
                tracing::info!(node = %name, "its agent is back: its pods are endpoints again");
            }
        }
        Ok(())
    }

    /// Takes a node out for good.
    pub(crate) fn remove_node(&self, name: &str) -> Result<(), FabricError> {
        let no_node = || FabricError::NoNode(name.to_owned());
        let key = NodeName::try_new(name).map_err(|_| no_node())?;
        let mut state = self.state();
        if state.static_peers.contains(&key) {
            return Err(FabricError::StaticPeer(key));
        }
        if !state.nodes.contains_key(&key) {
            return Err(no_node());
        }
        let released = self.take_out_node(&mut state, &key);
        self.publish(&mut state, &Extent::Everything)?;
        Ok(released?)
    }

    /// Takes out nodes whose Node objects are gone. True if there were any.
    pub(super) fn take_out_deleted(&self, state: &mut State) -> Result<bool, StoreError> {
        let there: BTreeSet<_> = node_uids(&state.source).collect();
        let of_cluster = state.nodes.iter().filter(|(_, joined)| joined.record.of_cluster);
        let gone = of_cluster.filter(|(_, joined)| !there.contains(joined.record.uid.as_str()));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.take_out_node(state, name)?;
        }
        Ok(!gone.is_empty())
    }

    /// A node that is there, and its subnets; not published yet.
    fn take_out_node(&self, state: &mut State, name: &NodeName) -> Result<(), StoreError> {
        let Some(joined) = state.nodes.get(name) else { return Ok(()) };
        let Record { uid, of_cluster, .. } = joined.record.clone();
        let now = Self::now();
        let bytes = now.to_be_bytes();
        let mut changes = vec![
            Change::Remove(Table::Nodes, name.as_str()),
            Change::Remove(Table::Reports, name.as_str()),
        ];
        // From here on the node cannot come back, whatever happens in between. One of a cluster may: it is
        // its Node object that says whether it is one.
        if !of_cluster {
            changes.push(Change::Put(Table::Removed, &uid, &bytes));
        }
        self.store.write(&changes)?;
        state.nodes.remove(name);
        if !of_cluster {
            state.removed.insert(uid.clone());
        }
        let released = self.leases.release(&uid, now);
        tracing::info!(node = %name, "node removed");
        released
    }

    /// Asks nodes (all, if `name` is empty) for a new key. Returns which.
    pub(crate) fn rotate_keys(&self, name: &str) -> Result<Vec<NodeName>, FabricError> {
        let mut state = self.state();
        let chosen: Vec<_> =
            state.nodes.keys().filter(|n| name.is_empty() || n.as_str() == name).cloned().collect();
        if chosen.is_empty() && !name.is_empty() {
            return match state.static_peers.iter().find(|p| p.as_str() == name) {
                Some(peer) => Err(FabricError::StaticPeer(peer.clone())),
                None => Err(FabricError::NoNode(name.to_owned())),
            };
        }
        for name in &chosen {
            if let Some(node) = state.nodes.get_mut(name) {
                node.record.key_epoch += 1;
                State::save_record(&self.store, name, &node.record)?;
            }
        }
        self.publish(&mut state, &Extent::Everything)?;
        Ok(chosen)
    }

    /// Leases of nodes that were being removed or joined when the hub was killed: without a node
    /// they would be held for ever.
    pub(crate) fn release_orphans(&self) -> Result<(), StoreError> {
        let state = self.state();
        for lease in self.leases.list()? {
            let crate::lease::Holder::Node(uid) = &lease.holder else { continue };
            if state.nodes.values().all(|n| n.record.uid != *uid) {
                self.leases.release(uid, Self::now())?;
            }
        }
        Ok(())
    }
}

/// Uids of Node objects of an API server, and of static peers.
fn node_uids(source: &Objects) -> impl Iterator<Item = &str> {
    source.nodes().filter_map(|object| match object {
        Object::Node(node) => node.uid.as_deref(),
        Object::StaticPeer(peer) => Some(peer.uid.as_str()),
        _ => None,
    })
}

/// The uid of a node that asks to be admitted, which says itself that it is `given`. A node of a cluster is
/// who the cluster says it is, as long as its object is there; nobody else can be one of those.
fn uid_of(
    source: &Objects,
    name: &NodeName,
    given: &str,
    identity: Option<&NodeIdentity>,
) -> Result<String, FabricError> {
    let object = match source.objects.get(&Key::node(name)).map(|d| &d.object) {
        Some(Object::Node(manifest)) => manifest.uid.as_deref(),
        _ => None,
    };
    match identity {
        Some(identity) if identity.name != *name => {
            Err(FabricError::OtherNode(name.clone(), identity.name.clone()))
        }
        Some(identity) if object != Some(identity.uid.as_str()) => {
            Err(FabricError::NoNodeObject(name.clone()))
        }
        Some(identity) => Ok(identity.uid.clone()),
        None if object.is_some() || node_uids(source).any(|uid| uid == given) => {
            Err(FabricError::OfCluster(name.clone()))
        }
        None => Ok(given.to_owned()),
    }
}

/// What Kubernetes has assigned to a node.
fn assigned(source: &Objects, node: &NodeName) -> Vec<IpNet> {
    match source.objects.get(&Key::node(node)).map(|d| &d.object) {
        Some(Object::Node(manifest)) => manifest.subnets.clone(),
        _ => Vec::new(),
    }
}

fn check_clock(node: i64, hub: i64) -> Result<(), FabricError> {
    if node.abs_diff(hub) > SKEW_MAX.as_secs() {
        return Err(FabricError::ClockSkew { node, hub });
    }
    Ok(())
}

fn check_free(state: &State, name: &NodeName, uid: &str) -> Result<(), FabricError> {
    let printable = uid.bytes().all(|b| b.is_ascii_graphic());
    if uid.is_empty() || uid.len() > UID_MAX || !printable {
        return Err(FabricError::Uid);
    }
    if state.removed.contains(uid) {
        return Err(FabricError::RemovedUid);
    }
    if state.static_peers.contains(name) {
        return Err(FabricError::NameOfStaticPeer(name.clone()));
    }
    if state.nodes.get(name).is_some_and(|n| n.record.uid != uid) {
        return Err(FabricError::NameTaken(name.clone()));
    }
    match state.nodes.iter().find(|(n, joined)| joined.record.uid == uid && *n != name) {
        Some((other, _)) => Err(FabricError::UidTaken(other.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::source::index::Defined;
    use crate::source::object::{Read, read};

    /// A cluster with node `a` of uid `u-a`.
    fn cluster() -> Objects {
        let text = "apiVersion: v1\nkind: Node\nmetadata: {name: a, uid: u-a}\n";
        let Read::Object(key, object) = read(text).unwrap() else { panic!("no object") };
        let mut source = Objects::default();
        source.objects.insert(key, Arc::new(Defined::built_in(*object)));
        source
    }

    fn admitted(name: &str, given: &str, identity: Option<(&str, &str)>) -> Result<String, String> {
        let identity = identity
            .map(|(name, uid)| NodeIdentity { name: name.parse().unwrap(), uid: uid.to_owned() });
        let name = name.parse().unwrap();
        uid_of(&cluster(), &name, given, identity.as_ref()).map_err(|e| e.to_string())
    }

    #[test]
    fn node_of_a_cluster_is_who_its_cluster_says_it_is() {
        assert_eq!(admitted("a", "anything", Some(("a", "u-a"))), Ok("u-a".to_owned()));
        // Of an object that is gone, that the hub has not heard of, and of another node.
        for (name, identity) in [("a", ("a", "u-old")), ("b", ("b", "u-b")), ("b", ("a", "u-a"))] {
            assert!(admitted(name, "u-a", Some(identity)).is_err(), "{name} {identity:?}");
        }
    }

    #[test]
    fn join_token_admits_nobody_as_a_node_of_the_cluster() {
        assert!(admitted("a", "u-a", None).is_err());
        assert!(admitted("a", "u-x", None).is_err());
        assert!(admitted("b", "u-a", None).is_err());
        assert_eq!(admitted("b", "u-x", None), Ok("u-x".to_owned()));
    }
}
