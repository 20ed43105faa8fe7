//! The agent's own gRPC service, for `weft status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::{Request, Response, Status};
use weft_control::ToProto;
use weft_model::POLICY_PLUGIN;
use weft_proto::v1::agent_server::Agent;
use weft_proto::v1::{
    self, AgentStatus, AgentStatusRequest, DatapathStatus, ExplainRequest, ExplainResponse,
    ListDropsRequest, ListDropsResponse, PolicyDrops,
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
    fn status(&self) -> AgentStatus {
        let applied = self.core.applied().borrow().clone();
        let datapath = self.core.datapath_status();
        let policy_drops = policy_drops(&self.core, datapath.as_ref());
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
                datapath,
                pods: state.attachments.values().map(|r| r.to_local_pod()).collect(),
                spoofed_at_ports: self.spoofed.load(Ordering::Relaxed),
                certificate_expires_unix: state.certificate_expires,
                direct_delivery: state.direct_delivery,
                problems: state.problems.values().flatten().cloned().collect(),
            }
        })
    }
}

/// Most first.
fn policy_drops(core: &Core, datapath: Option<&DatapathStatus>) -> Vec<PolicyDrops> {
    let Some(target) = core.target() else { return Vec::new() };
    let plugin = datapath.and_then(|d| d.plugins.iter().find(|p| p.name == POLICY_PLUGIN));
    let counts = plugin.into_iter().flat_map(|p| &p.drops_by_number);
    let mut drops: Vec<_> = counts
        .map(|(number, packets)| PolicyDrops {
            why: target.tables.describe_drop(*number),
            packets: *packets,
        })
        .collect();
    drops.sort_by(|a, b| (b.packets, &a.why).cmp(&(a.packets, &b.why)));
    drops
}
