//! Asking other servers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use weft_dns::{Beyond, Outcome, Transport};

use crate::Resolver;
use crate::reply::{self, Reply};

/// A client waits this long for an answer and gives up then, as stub resolvers do by default.
const PATIENCE: Duration = Duration::from_millis(4500);

type Answer = Result<Lookup, NetError>;

/// What is being asked, so that it is asked once.
#[derive(Default)]
pub(crate) struct Asking(Mutex<HashMap<Question, Shared<BoxFuture<'static, Answer>>>>);

type Question = (Name, RecordType);

impl Asking {
    /// Lets whoever asks from now on ask anew.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Asks, or waits for who asks the same. Tells also if the answer was there at once: it was in the cache
    /// then.
    async fn ask(&self, servers: Arc<TokioResolver>, question: Question) -> (Answer, bool) {
        let asked = self.begin(servers, &question);
        let mut waiting = asked.clone();
        let (answer, cached) = match futures::poll!(&mut waiting) {
            Poll::Ready(answer) => (answer, true),
            Poll::Pending => (waiting.await, false),
        };
        let mut asking = self.0.lock();
        if asking.get(&question).is_some_and(|now| now.ptr_eq(&asked)) {
            asking.remove(&question);
        }
        (answer, cached)
    }

    fn begin(
        &self,
        servers: Arc<TokioResolver>,
        question: &Question,
    ) -> Shared<BoxFuture<'static, Answer>> {
        let (name, rtype) = question.clone();
        let mut asking = self.0.lock();
        let new = || {
            let lookup = async move { servers.lookup(name, rtype).await };
            let patient = tokio::time::timeout(PATIENCE, lookup);
            patient.map(|done| done.unwrap_or(Err(NetError::Timeout))).boxed().shared()
        };
        asking.entry(question.clone()).or_insert_with(new).clone()
    }
}

impl Resolver {
    /// Answers what is not the cluster's.
    pub(crate) async fn ask(
        &self,
        message: &[u8],
        beyond: &Beyond,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let query = Message::from_vec(message).ok()?;
        let question = query.queries.first()?.clone();
        let code = match self.find(&query, &question, &beyond.names).await {
            // The client may go on with its list.
            Ok(reply) if beyond.searched && reply.is_absence() => {
                return match self.look_up(message, transport, None) {
                    Outcome::Reply(reply) => Some(reply),
                    // The cluster has changed since, and knows nothing of the name any more.
                    Outcome::Elsewhere(_) | Outcome::Nothing => {
                        reply::compose(&query, &Reply::failure(ResponseCode::ServFail), transport)
                    }
                };
            }
            Ok(reply) => return reply::compose(&query, &reply, transport),
            Err(code) => code,
        };
        let counter = match code {
            ResponseCode::Refused => &self.counters.refused,
            _ => &self.counters.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        reply::compose(&query, &Reply::failure(code), transport)
    }

    async fn find(
        &self,
        query: &Message,
        question: &Query,
        aliases: &[Vec<u8>],
    ) -> Result<Reply, ResponseCode> {
        if question.query_type() == RecordType::ANY {
            return Ok(Reply::minimal(question.name()));
        }
        // Whoever asks for no recursion gets none.
        if !query.metadata.recursion_desired {
            return Err(ResponseCode::Refused);
        }
        let aliases = reply::aliases(question.name(), aliases).ok_or(ResponseCode::ServFail)?;
        let target = aliases.last().map_or(question.name(), |(_, target)| target);
        let name = target.to_lowercase();
        let upstreams = self.upstreams.load_full();
        if upstreams.is_probe(&name) {
            self.note_loop();
            return Err(ResponseCode::ServFail);
        }
        let servers = upstreams.of(&name).ok_or(ResponseCode::ServFail)?;
        let _place = self.waiting.try_acquire().map_err(|_| ResponseCode::Refused)?;
        let began = Instant::now();
        let (answer, cached) = self.asking.ask(servers, (name, question.query_type())).await;
        self.counters.took.add(began.elapsed());
        let reply = Reply::of(answer, target, &aliases).ok_or(ResponseCode::ServFail)?;
        self.counters.outside.fetch_add(1, Ordering::Relaxed);
        self.counters.cached.fetch_add(cached.into(), Ordering::Relaxed);
        Ok(reply)
    }
}
