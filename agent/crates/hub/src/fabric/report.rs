//! What a node says of itself. It speaks for itself only: an address, a key or a pod of another is
//! refused.

use std::net::IpAddr;

use weft_model::{Cluster, NodeName};
use weft_proto::v1;

use super::extent::Extent;
use super::state::{Reported, State};
use super::{Fabric, FabricError, inside};
use crate::store::{Change, Table};

impl Fabric {
    /// Takes a report; on disk before it is published, if it says anything new. What is refused shows
    /// in the status until the node says something better.
    pub(crate) fn report(
        &self,
        name: &NodeName,
        message: v1::ReportRequest,
    ) -> Result<(), FabricError> {
        let taken = self.take_report(name, message);
        if let Some(node) = self.state().nodes.get_mut(name) {
            node.complaint = taken.as_ref().err().map(ToString::to_string);
        }
        taken
    }

    fn take_report(&self, name: &NodeName, message: v1::ReportRequest) -> Result<(), FabricError> {
        let mut reported = Reported::from_message(&message)?;
        let mut state = self.state();
        let Some(own) = state.nodes.get(name) else {
            return Err(FabricError::NotMember(name.clone()));
        };
        let subnets = own.subnets.clone();
        let before = own.reported.clone();
        check_addresses(&reported.addresses, &self.cluster)?;
        for pod in &mut reported.pods {
            pod.node = Some(name.clone());
            let (pod_name, subnets) = (&pod.name, &subnets);
            pod.addresses.retain(|address| {
                let inside = subnets.iter().any(|s| s.contains(address));
                if !inside {
                    tracing::warn!(node = %name, "a pod's address is outside the node's subnets");
                    tracing::debug!(pod = %pod_name, %address, "outside");
                }
                inside
            });
        }
        let displaced = check_claims(&state, name, &reported)?;
        self.give_up(&mut state, &displaced, &reported)?;
        let unchanged = before == reported && displaced.is_empty();
        let pods_only = Reported { pods: before.pods.clone(), ..reported.clone() } == before;
        let extent = if pods_only && displaced.is_empty() {
            Extent::of_pods(&state, name, &before.pods, &reported.pods)
        } else {
            Extent::Everything
        };
        if before != reported {
            let bytes = reported.to_bytes();
            self.store.write(&[Change::Put(Table::Reports, name.as_str(), &bytes)])?;
        }
        let pods_changed = before.pods != reported.pods;
        state.pods_changes += u64::from(pods_changed);
        let pods_changes = state.pods_changes;
        if let Some(node) = state.nodes.get_mut(name) {
            if pods_changed {
                node.pods_from = pods_changes;
            }
            node.reported = reported;
            node.applied_generation = message.generation;
            node.last_report_unix = Self::now();
            node.plugins = message.plugins;
            node.translated = message.translated;
            node.problems = message.problems;
        }
        if !unchanged {
            self.publish(&mut state, &extent)?;
        }
        self.heard.notify_one();
        Ok(())
    }

    /// Nodes that are away lose an address that another has now.
    fn give_up(
        &self,
        state: &mut State,
        displaced: &[NodeName],
        reported: &Reported,
    ) -> Result<(), FabricError> {
        for name in displaced {
            let Some(node) = state.nodes.get_mut(name) else { continue };
            node.reported.addresses.retain(|a| !reported.addresses.contains(a));
            if node.reported.endpoint == reported.endpoint {
                node.reported.endpoint = None;
            }
            let bytes = node.reported.to_bytes();
            self.store.write(&[Change::Put(Table::Reports, name.as_str(), &bytes)])?;
        }
        Ok(())
    }
}

fn check_addresses(addresses: &[IpAddr], cluster: &Cluster) -> Result<(), FabricError> {
    for address in addresses {
        if let Some((kind, cidr)) = inside(cluster, *address) {
            return Err(FabricError::AddressInside { kind, address: *address, cidr });
        }
    }
    let unusable = |a: &&IpAddr| a.is_loopback() || a.is_unspecified() || a.is_multicast();
    match addresses.iter().find(unusable) {
        Some(address) => Err(FabricError::AddressUnusable(*address)),
        None => Ok(()),
    }
}

/// Nodes that have to give up an address. An error if one that is there, or a static peer, has an
/// address or key that is claimed.
fn check_claims(
    state: &State,
    name: &NodeName,
    reported: &Reported,
) -> Result<Vec<NodeName>, FabricError> {
    let mut displaced = Vec::new();
    for (other, node) in state.nodes.iter().filter(|(other, _)| *other != name) {
        if reported.keys.iter().any(|k| node.reported.keys.contains(k)) {
            return Err(FabricError::KeyTaken(other.clone()));
        }
        let theirs = |a: &&IpAddr| {
            node.reported.addresses.contains(a) || node.subnets.iter().any(|s| s.contains(*a))
        };
        let Some(address) = reported.addresses.iter().find(theirs) else { continue };
        if node.streams > 0 || !node.reported.addresses.contains(address) {
            return Err(FabricError::AddressTaken { address: *address, owner: other.clone() });
        }
        displaced.push(other.clone());
    }
    for defined in state.source.objects.values() {
        let crate::source::object::Object::StaticPeer(peer) = &defined.object else { continue };
        if reported.keys.iter().any(|k| peer.keys.contains(k)) {
            return Err(FabricError::KeyTaken(peer.name.clone()));
        }
        let theirs = |a: &&IpAddr| peer.allowed_ips().any(|n| n.contains(*a));
        if let Some(address) = reported.addresses.iter().find(theirs) {
            return Err(FabricError::AddressTaken { address: *address, owner: peer.name.clone() });
        }
    }
    Ok(displaced)
}
