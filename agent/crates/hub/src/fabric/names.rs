//! What somebody who asks for a name gets: told by the node of whoever asks.

use weft_explain::Sender;
use weft_model::Snapshot;
use weft_proto::v1::{EndQuestions, NameQuestion, QueryNameRequest, QueryNameResponse};

use super::{Fabric, FabricError};

impl Fabric {
    pub(crate) async fn query_name(
        &self,
        request: QueryNameRequest,
    ) -> Result<QueryNameResponse, FabricError> {
        let snapshot = self.history.newest().snapshot;
        if snapshot.cluster.dns.is_none() {
            return Err(FabricError::NoNames);
        }
        let asker = asker(&snapshot, &request.from)?;
        let mut notes = Vec::new();
        // Of a pod whose search list is not known the name is asked for as it is.
        let namespace = match &asker.pod {
            Some(pod) if pod.own_search => {
                notes.push("the pod has a DNS policy or search list of its own: the name is asked for as it is".to_owned());
                String::new()
            }
            pod => pod.as_ref().map(|pod| pod.name.namespace.clone()).unwrap_or_default(),
        };
        let pod = asker.address.map(|a| a.to_string()).unwrap_or_default();
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
            notes: notes.into_iter().chain(answers.notes).collect(),
        })
    }
}

/// Nobody in particular: the first node.
fn asker(snapshot: &Snapshot, text: &str) -> Result<Sender, FabricError> {
    if !text.trim().is_empty() {
        return Ok(Sender::read(snapshot, text)?);
    }
    let node = snapshot.nodes.keys().next().ok_or(FabricError::NoNodes)?.clone();
    Ok(Sender { name: format!("node {node}"), node, address: None, pod: None })
}
