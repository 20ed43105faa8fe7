//! Questions that only a node can answer: each goes down the stream that the node's agent holds open for
//! them, and its answer comes back on the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use weft_model::NodeName;
use weft_proto::v1::{EndAnswers, EndQuestions};

/// How long a node may take to answer: longer than its agent waits for its datapath.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions that wait for a node to take them.
const QUESTIONS_MAX: usize = 16;

/// Every node that can be asked.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    /// Of ids and lines.
    last: AtomicU64,
    lines: Mutex<BTreeMap<NodeName, Line>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

/// The stream of one node, by a number that no other has.
#[derive(Debug)]
struct Line {
    number: u64,
    questions: mpsc::Sender<EndQuestions>,
}

#[derive(Debug)]
struct Waiting {
    node: NodeName,
    answer: oneshot::Sender<EndAnswers>,
}

impl Asking {
    /// Opens a node's line, in place of one that is open; returns its number.
    pub(crate) fn open(&self, node: &NodeName) -> (u64, mpsc::Receiver<EndQuestions>) {
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        let number = self.next();
        lock(&self.lines).insert(node.clone(), Line { number, questions });
        (number, receiver)
    }

    /// Closes it, unless there is a newer one.
    pub(crate) fn close(&self, node: &NodeName, number: u64) {
        let mut lines = lock(&self.lines);
        if lines.get(node).is_some_and(|line| line.number == number) {
            lines.remove(node);
        }
    }

    /// Takes what a node says; what it was not asked is nothing.
    pub(crate) fn answered(&self, node: &NodeName, answers: EndAnswers) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&answers.id).is_some_and(|asked| asked.node == *node)
            && let Some(asked) = waiting.remove(&answers.id)
        {
            // Who asked may have gone.
            let _ = asked.answer.send(answers);
        }
    }

    /// Asks a node; the id is given here.
    ///
    /// # Errors
    /// Why there is no answer, for an operator.
    pub(crate) async fn ask(
        &self,
        node: &NodeName,
        questions: EndQuestions,
    ) -> Result<EndAnswers, String> {
        let line = lock(&self.lines).get(node).map(|line| line.questions.clone());
        let line = line.ok_or("its agent is away")?;
        let id = self.next();
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(id, Waiting { node: node.clone(), answer });
        let asked = async {
            line.send(EndQuestions { id, ..questions }).await.ok()?;
            answered.await.ok()
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        lock(&self.waiting).remove(&id);
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("its agent has left".to_owned()),
            Err(_) => Err(format!("its agent did not answer for {} s", ANSWER_TIMEOUT.as_secs())),
        }
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Nothing is left half done where a lock is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn answer_counts_from_who_was_asked_only() {
        let asking = Arc::new(Asking::default());
        let (a, b) = (node("a"), node("b"));
        let (_, mut questions) = asking.open(&a);
        let asked = tokio::spawn({
            let (asking, a) = (asking.clone(), a.clone());
            async move { asking.ask(&a, EndQuestions::default()).await }
        });
        let id = questions.recv().await.unwrap().id;
        let says = |error: &str| EndAnswers { id, error: error.into(), ..EndAnswers::default() };
        asking.answered(&b, says("not mine"));
        asking.answered(&a, says("mine"));
        assert_eq!(asked.await.unwrap().unwrap().error, "mine");
        assert!(lock(&asking.waiting).is_empty());
    }

    #[tokio::test]
    async fn node_without_a_line_is_away_and_an_old_line_closes_no_new_one() {
        let asking = Asking::default();
        let a = node("a");
        assert_eq!(asking.ask(&a, EndQuestions::default()).await.unwrap_err(), "its agent is away");
        let (first, _questions) = asking.open(&a);
        let (second, questions) = asking.open(&a);
        asking.close(&a, first);
        drop(questions);
        assert_eq!(
            asking.ask(&a, EndQuestions::default()).await.unwrap_err(),
            "its agent has left"
        );
        asking.close(&a, second);
        assert_eq!(asking.ask(&a, EndQuestions::default()).await.unwrap_err(), "its agent is away");
    }
}
