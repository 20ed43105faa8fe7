//! Answers what operators ask about policies: of the tables that the datapath uses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_explain::Plan;
use weft_model::{POLICY_PLUGIN, Snapshot};
use weft_proto::v1::hub_client::HubClient;
use weft_proto::v1::plugin_status::State as Standing;
use weft_proto::v1::{EndAnswers, EndQuestions, ExplainRequest, ExplainResponse};

use crate::core::{Core, Target};
use crate::names;
use crate::tables::Explaining;

/// How long the datapath may take to use what was compiled last.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Changes may come faster than the datapath takes them.
const TRIES: usize = 3;
/// How soon a stream of questions that ended is opened again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Answers that wait to be sent.
const ANSWERS_MAX: usize = 16;

/// Answers the hub's questions as long as the connection lives, and waits for its end then.
pub(crate) async fn serve(
    core: Arc<Core>,
    mut client: HubClient<Channel>,
) -> std::convert::Infallible {
    loop {
        let (answers, receiver) = mpsc::channel(ANSWERS_MAX);
        match client.answer(ReceiverStream::new(receiver)).await {
            Ok(questions) => {
                let mut questions = questions.into_inner();
                while let Some(Ok(asked)) = questions.next().await {
                    let (core, answers) = (core.clone(), answers.clone());
                    // A stream that has ended wants no answer any more.
                    tokio::spawn(
                        async move { drop(answers.send(answer(&core, asked).await).await) },
                    );
                }
            }
            // Of an older version: it has no questions.
            Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
            // Whoever follows the hub hears of it as well, and decides.
            Err(_) => {}
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// Answers for this node alone.
///
/// # Errors
/// What was asked is not understood, or nothing is known yet.
pub(crate) async fn explain(
    core: &Arc<Core>,
    request: &ExplainRequest,
) -> Result<ExplainResponse, Status> {
    let snapshot = core.read(|state| state.snapshot.clone());
    let snapshot = snapshot.ok_or_else(|| Status::unavailable(NOTHING_KNOWN))?;
    let plan = Plan::new(&snapshot, request).map_err(|error| match error.is_absence() {
        true => Status::not_found(error.to_string()),
        false => Status::invalid_argument(error.to_string()),
    })?;
    let own = &core.config.node_name;
    let mut answers = BTreeMap::new();
    for (node, questions) in plan.questions() {
        let answer = if node == own {
            Ok(answer(
                core,
                EndQuestions { questions: questions.clone(), ..EndQuestions::default() },
            )
            .await)
        } else {
            Err("other nodes are asked by the hub: run it without --node".to_owned())
        };
        answers.insert(node.clone(), answer);
    }
    Ok(plan.answer(&answers))
}

const NOTHING_KNOWN: &str = "the node has not heard of the hub yet, and has no tables";

async fn answer(core: &Arc<Core>, asked: EndQuestions) -> EndAnswers {
    let EndQuestions { id, questions, generation, name } = asked;
    let failed = |error: String| EndAnswers { id, error, ..EndAnswers::default() };
    let Some((target, snapshot, confirmed)) = in_force(core, generation).await else {
        return failed(NOTHING_KNOWN.to_owned());
    };
    let notes = notes(core, &target, confirmed);
    if let Some(question) = name {
        return match names::answer(core, &target, &snapshot, &question).await {
            Ok(answer) => EndAnswers { id, notes, name: Some(answer), ..EndAnswers::default() },
            Err(error) => failed(error),
        };
    }
    // It may take a while where there is much of everything.
    let work = tokio::task::spawn_blocking(move || {
        let explaining = Explaining::new(target.tables.policies(), &snapshot)?;
        questions.iter().map(|question| explaining.answer(question)).collect::<Result<_, _>>()
    });
    match work.await {
        Ok(Ok(answers)) => EndAnswers { id, answers, notes, ..EndAnswers::default() },
        Ok(Err(error)) => failed(error),
        Err(_) => failed("the agent failed on this question: see its log".to_owned()),
    }
}

/// The tables, what they were compiled of, and whether the datapath uses them: those of a generation or
/// later, if they come in time.
async fn in_force(core: &Core, generation: u64) -> Option<(Target, Snapshot, bool)> {
    let mut applied = core.applied();
    let reached = applied.wait_for(|a| a.connected && a.generation >= generation);
    // What is not in time is told as what it is.
    let _ = tokio::time::timeout(APPLY_TIMEOUT, reached).await;
    for last in (0..TRIES).map(|n| n + 1 == TRIES) {
        core.wait_applied(APPLY_TIMEOUT).await;
        let (target, snapshot) =
            core.read(|state| state.target().cloned().zip(state.snapshot.clone()))?;
        let confirmed = {
            let applied = core.applied();
            let applied = applied.borrow();
            let newest = applied.generation >= generation;
            applied.connected && newest && applied.version >= target.version
        };
        if confirmed || last || !core.applied().borrow().connected {
            return Some((target, snapshot, confirmed));
        }
    }
    None
}

fn notes(core: &Core, target: &Target, confirmed: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !confirmed {
        notes.push("its datapath is away or behind: this is what it will do".to_owned());
    }
    let applied = core.applied().borrow().clone();
    let runs = |p: &weft_proto::v1::PluginStatus| {
        p.name == POLICY_PLUGIN && matches!(p.state(), Standing::Running | Standing::Impaired)
    };
    if confirmed && !target.tables.policies().is_empty() && !applied.plugins.iter().any(runs) {
        notes.push(
            "the plugin for policies does not run there: no pod of the node is reached".to_owned(),
        );
    }
    notes
}
