//! The agent's own gRPC service, for `weft status`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::{Request, Response, Status};
use weft_control::ToProto;
use weft_model::POLICY_PLUGIN;
use weft_proto::v1::agent_server::Agent;
use weft_proto::v1::{
    self, AgentStatus, AgentStatusRequest, DatapathStatus, ExplainRequest, ExplainResponse,
    ListDropsRequest, ListDropsResponse, PluginStatus, PolicyDrops, PolicyWatches,
};

use crate::core::Core;
use crate::explain;

/// Answers from what the core knows.
pub(crate) struct AgentService {
    pub core: Arc<Core>,
    /// Packets dropped at pods' ports, kept by the network task.
    pub spoofed: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn get_status(
        &self,
        _: Request<AgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        explain::explain(&self.core, request.get_ref()).await.map(Response::new)
    }

    async fn list_drops(
        &self,
        _: Request<ListDropsRequest>,
    ) -> Result<Response<ListDropsResponse>, Status> {
        Ok(Response::new(ListDropsResponse { drops: self.core.drops().list() }))
    }
}

impl AgentService {
    /// All that is known of the node.
    pub(crate) fn status(&self) -> AgentStatus {
        let applied = self.core.applied().borrow().clone();
        let datapath = self.core.datapath_status();
        let policies = datapath.as_ref().and_then(of_policies);
        let policy_drops = counts(&self.core, policies.map(|p| &p.drops_by_number));
        let policy_drops = policy_drops.map(|(why, packets)| PolicyDrops { why, packets });
        let policy_watches = counts(&self.core, policies.map(|p| &p.would_drop_by_number));
        let policy_watches = policy_watches.map(|(why, flows)| PolicyWatches { why, flows });
        let (policy_drops, policy_watches) = (policy_drops.collect(), policy_watches.collect());
        let config = &self.core.config;
        self.core.read(|state| {
            let known = state.snapshot.as_ref().and_then(|s| s.nodes.get(&config.node_name));
            let node = known.map_or_else(
                || v1::Node {
                    name: config.node_name.to_string(),
                    uid: self.core.uid.clone(),
                    ..v1::Node::default()
                },
                ToProto::to_proto,
            );
            AgentStatus {
                node: Some(node),
                hub_connected: state.hub_connected,
                generation: state.snapshot.as_ref().map_or(0, |s| s.generation.0),
                datapath_connected: applied.connected,
                policy_drops,
                policy_watches,
                datapath,
                pods: state.attachments.values().map(|r| r.to_local_pod()).collect(),
                spoofed_at_ports: self.spoofed.load(Ordering::Relaxed),
                certificate_expires_unix: state.certificate_expires,
                direct_delivery: state.direct_delivery,
                updated_unix: state.updated,
                problems: state.problems.values().flatten().cloned().collect(),
            }
        })
    }
}

fn of_policies(datapath: &DatapathStatus) -> Option<&PluginStatus> {
    datapath.plugins.iter().find(|plugin| plugin.name == POLICY_PLUGIN)
}

/// Counts by policy and rule, in words; most first.
fn counts(
    core: &Core,
    by_number: Option<&HashMap<u32, u64>>,
) -> impl Iterator<Item = (String, u64)> + use<> {
    let mut counts = Vec::new();
    if let Some(target) = core.target() {
        let by_number = by_number.into_iter().flatten();
        counts.extend(by_number.map(|(n, count)| (target.tables.describe_drop(*n), *count)));
    }
    counts.sort_by(|(a, of_a), (b, of_b)| (of_b, a).cmp(&(of_a, b)));
    counts.into_iter()
}
