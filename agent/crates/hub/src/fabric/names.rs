//! What somebody who asks for a name gets: told by the node of whoever asks.

use weft_model::{PodName, Snapshot};
use weft_proto::v1::{EndQuestions, NameQuestion, QueryNameRequest, QueryNameResponse};

use super::{Fabric, FabricError};

/// Namespace of a pod whose name says none.
const DEFAULT_NAMESPACE: &str = "default";

/// Who asks.
struct Asker {
    /// In words.
    name: String,
    node: weft_model::NodeName,
    /// A pod's address and namespace; the latter is empty if its search list is not known.
    pod: Option<(String, String)>,
    notes: Vec<String>,
}

impl Fabric {
    pub(crate) async fn query_name(
        &self,
        request: QueryNameRequest,
    ) -> Result<QueryNameResponse, FabricError> {
        let snapshot = self.history.newest().snapshot;
        if snapshot.cluster.dns.is_none() {
            return Err(FabricError::NoNames);
        }
        let asker = asker(&snapshot, request.from.trim())?;
        let (pod, namespace) = asker.pod.unwrap_or_default();
        let kind = if request.r#type.is_empty() { "A".to_owned() } else { request.r#type };
        let name = NameQuestion { name: request.name, r#type: kind, pod, namespace };
        let questions = EndQuestions {
            generation: snapshot.generation.0,
            name: Some(name),
            ..EndQuestions::default()
        };
        let node = asker.node;
        let failed = |reason| FabricError::Unanswered { node: node.clone(), reason };
        let answers = self.asking().ask(&node, questions).await.map_err(failed)?;
        if !answers.error.is_empty() {
            return Err(FabricError::NameQuestion(answers.error));
        }
        let older = || FabricError::Unanswered {
            node: node.clone(),
            reason: "it is of an older version".to_owned(),
        };
        let told = answers.name.ok_or_else(older)?;
        Ok(QueryNameResponse {
            from: asker.name,
            node: node.to_string(),
            policy: told.policy,
            steps: told.steps,
            notes: asker.notes.into_iter().chain(answers.notes).collect(),
        })
    }
}

fn asker(snapshot: &Snapshot, text: &str) -> Result<Asker, FabricError> {
    let of_node = |node: &weft_model::NodeName| Asker {
        name: format!("node {node}"),
        node: node.clone(),
        pod: None,
        notes: Vec::new(),
    };
    if text.is_empty() {
        let first = snapshot.nodes.keys().next();
        return first.map(of_node).ok_or_else(|| FabricError::NoNode("to ask".to_owned()));
    }
    let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT_NAMESPACE, text));
    let name = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
    let Some(pod) = snapshot.pods.get(&name) else {
        let node = snapshot.nodes.keys().find(|n| n.as_str() == text);
        return node.map(of_node).ok_or_else(|| FabricError::NoAsker(text.to_owned()));
    };
    let place = pod.node.clone().zip(pod.addresses.first());
    let (node, address) = place.ok_or_else(|| FabricError::NotRunning(name.clone()))?;
    let (namespace, notes) = if pod.own_search {
        let note =
            "the pod has a DNS policy or search list of its own: the name is asked for as it is";
        (String::new(), vec![note.to_owned()])
    } else {
        (name.namespace.clone(), Vec::new())
    };
    Ok(Asker {
        name: format!("pod {name}"),
        node,
        pod: Some((address.to_string(), namespace)),
        notes,
    })
}
