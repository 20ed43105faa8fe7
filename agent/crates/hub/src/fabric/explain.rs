//! Which policy and rule decide about a connection: found in the snapshot, told by the nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;
use weft_explain::Plan;
use weft_proto::v1::{EndQuestions, ExplainRequest, ExplainResponse};

use super::{Fabric, FabricError};

impl Fabric {
    /// Asks the nodes of both ends, at the same time.
    pub(crate) async fn explain(
        self: &Arc<Self>,
        request: &ExplainRequest,
    ) -> Result<ExplainResponse, FabricError> {
        let snapshot = self.history.newest().snapshot;
        let (plan, generation) = (Plan::new(&snapshot, request)?, snapshot.generation);
        let mut asked = JoinSet::new();
        for (node, questions) in plan.questions().clone() {
            let fabric = Arc::clone(self);
            asked.spawn(async move {
                let questions =
                    EndQuestions { questions, generation: generation.0, ..EndQuestions::default() };
                let answer = fabric.asking().ask(&node, questions).await;
                (node, answer)
            });
        }
        let mut answers = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            answers.extend(answer);
        }
        Ok(plan.answer(&answers))
    }
}
