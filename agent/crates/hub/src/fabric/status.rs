//! The fabric in one message, for `weft status`.

use weft_control::ToProto as _;
use weft_model::{BUILT_IN_PLUGINS, Node, NodeName};
use weft_proto::v1;
use weft_proto::v1::plugin_status::State as Standing;

use super::Fabric;
use super::plugins::declaration;
use super::state::State;
use crate::source::Problem;

impl Fabric {
    /// Nodes, problems, counts.
    pub(crate) fn status(&self) -> v1::FabricStatus {
        let snapshot = self.history.newest().snapshot;
        let state = self.state();
        let pods_on = |node: &Node| {
            snapshot.pods.values().filter(|p| p.node.as_ref() == Some(&node.name)).count()
        };
        let nodes = snapshot.nodes.values().map(|n| node_status(&state, n, pods_on(n)));
        let of_services = state.service_problems.values().flatten();
        let problems = state.source.problems.iter().chain(&state.misfits).chain(of_services);
        let of_nodes = state.nodes.iter().flat_map(|(name, node)| {
            let told = if node.streams > 0 { node.problems.as_slice() } else { &[] };
            let reasons = node.complaint.iter().chain(told).cloned();
            let file = format!("node {name}");
            reasons.map(move |reason| v1::SourceProblem { file: file.clone(), line: 0, reason })
        });
        let plugins = snapshot.plugins.keys().map(String::as_str).chain(BUILT_IN_PLUGINS);
        let plugins = plugins.flat_map(|name| plugin_problems(&state, name));
        v1::FabricStatus {
            generation: snapshot.generation.0,
            cluster: Some(snapshot.cluster.to_proto()),
            nodes: nodes.collect(),
            problems: problems.map(problem).chain(of_nodes).chain(plugins).collect(),
            pods: count(snapshot.pods.len()),
            name_servers: snapshot.name_servers().iter().map(ToString::to_string).collect(),
        }
    }
}

fn node_status(state: &State, node: &Node, pods: usize) -> v1::NodeStatus {
    let joined = state.nodes.get(&node.name);
    v1::NodeStatus {
        node: Some(node.to_proto()),
        connected: joined.is_some_and(|j| j.streams > 0),
        static_peer: joined.is_none(),
        applied_generation: joined.map_or(0, |j| j.applied_generation),
        last_report_unix: joined.map_or(0, |j| j.last_report_unix),
        pods: count(pods),
    }
}

/// A line for each node that does not run a plugin as it should, at the manifest if one declares it.
fn plugin_problems(state: &State, name: &str) -> Vec<v1::SourceProblem> {
    let said = |node: &NodeName, status: &v1::PluginStatus| {
        let how = match status.state() {
            Standing::Refused => "refused",
            Standing::TakenOut => "taken out",
            Standing::Impaired => "impaired",
            Standing::Running | Standing::Unspecified => return None,
        };
        let why = &status.message;
        Some(match declaration(state, name) {
            Some(defined) => problem(&Problem {
                file: defined.file.clone(),
                line: defined.line,
                reason: format!("plugin {name} is {how} on {node}: {why}"),
            }),
            None => v1::SourceProblem {
                file: format!("plugin {name}"),
                line: 0,
                reason: format!("{how} on {node}: {why}"),
            },
        })
    };
    let all = state.nodes.iter().flat_map(|(n, j)| j.plugins.iter().map(move |p| (n, p)));
    all.filter(|(_, p)| p.name == name).filter_map(|(n, p)| said(n, p)).collect()
}

fn problem(problem: &Problem) -> v1::SourceProblem {
    v1::SourceProblem {
        file: problem.file.display().to_string(),
        line: u32::try_from(problem.line).unwrap_or(u32::MAX),
        reason: problem.reason.clone(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
