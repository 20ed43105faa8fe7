//! `Hub`: what agents call.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_control::ToProto as _;
use weft_control::convert::bytes32;
use weft_model::NodeName;
use weft_proto::v1;
use weft_proto::v1::hub_server::Hub;

use super::{access, blocking};
use crate::ca::Incarnation;
use crate::fabric::{Fabric, FabricError};
use crate::history::{Cursor, Published};
use crate::review::Reviewer;

const MODULE_PART: usize = 64 << 10;

/// See the module.
pub(crate) struct HubService {
    fabric: Arc<Fabric>,
    /// Of the cluster, if this is the hub of one.
    reviewer: Option<Reviewer>,
    stopping: watch::Receiver<bool>,
}

impl HubService {
    /// Streams end when `stopping` turns true.
    pub(crate) fn new(
        fabric: Arc<Fabric>,
        reviewer: Option<Reviewer>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { fabric, reviewer, stopping }
    }
}

#[tonic::async_trait]
impl Hub for HubService {
    type WatchStream = ReceiverStream<Result<v1::Update, Status>>;
    type AnswerStream = ReceiverStream<Result<v1::EndQuestions, Status>>;
    type FetchModuleStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::ModulePart, Status>>>;

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let identity = match &self.reviewer {
            Some(reviewer) if Reviewer::is_for(&request.token) => {
                Some(reviewer.review(&request.token).await?)
            }
            _ => None,
        };
        blocking(&self.fabric, move |fabric| fabric.join(&request, identity.as_ref())).await
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let (name, _) = access::node(&self.fabric, &request)?;
        let csr = request.into_inner().certificate_request;
        let renew = move |fabric: &Fabric| {
            let certificate = fabric.renew(&name, &csr)?;
            Ok::<_, FabricError>(v1::RenewResponse { certificate })
        };
        blocking(&self.fabric, renew).await
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (name, expires_unix) = access::node(&self.fabric, &request)?;
        if let Some(own) = request.local_addr().map(|a| a.ip().to_canonical()) {
            let note = move |fabric: &Fabric| fabric.reached_at(own).map_err(FabricError::from);
            blocking(&self.fabric, note).await?;
        }
        let cursor = self.fabric.history().cursor(&request.into_inner().resume);
        let (sender, receiver) = mpsc::channel(1);
        let watcher = Watcher {
            connection: Connection::new(self.fabric.clone(), name),
            cursor,
            newest: self.fabric.history().subscribe(),
            stopping: self.stopping.clone(),
            expires_in: until(expires_unix),
            sender,
        };
        tokio::spawn(watcher.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let (name, _) = access::node(&self.fabric, &request)?;
        let message = request.into_inner();
        let report =
            move |fabric: &Fabric| fabric.report(&name, message).map(|()| v1::ReportResponse {});
        blocking(&self.fabric, report).await
    }

    async fn answer(
        &self,
        request: Request<Streaming<v1::EndAnswers>>,
    ) -> Result<Response<Self::AnswerStream>, Status> {
        let (name, expires_unix) = access::node(&self.fabric, &request)?;
        let (sender, receiver) = mpsc::channel(1);
        // Before the node hears that it may be asked.
        let (number, questions) = self.fabric.asking().open(&name);
        let answering = Answering {
            fabric: self.fabric.clone(),
            name,
            number,
            questions,
            answers: request.into_inner(),
            sender,
            stopping: self.stopping.clone(),
            expires_in: until(expires_unix),
        };
        tokio::spawn(answering.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn fetch_module(
        &self,
        request: Request<v1::FetchModuleRequest>,
    ) -> Result<Response<Self::FetchModuleStream>, Status> {
        access::node(&self.fabric, &request)?;
        let digest = bytes32("digest", request.into_inner().digest)?;
        let module = blocking(&self.fabric, move |fabric| fabric.module(&digest)).await?;
        let parts = module.get_ref().bytes.chunks(MODULE_PART);
        let parts: Vec<_> = parts.map(|part| Ok(v1::ModulePart { bytes: part.to_vec() })).collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }
}

fn until(unix: i64) -> Duration {
    let left = unix - OffsetDateTime::now_utc().unix_timestamp();
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

/// The node counts as connected while this lives.
struct Connection {
    fabric: Arc<Fabric>,
    name: NodeName,
    joining: Option<Incarnation>,
}

impl Connection {
    fn new(fabric: Arc<Fabric>, name: NodeName) -> Self {
        let joining = fabric.connected(&name);
        Self { fabric, name, joining }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.fabric.disconnected(&self.name, self.joining);
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the hub is gone: stop as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// One `Watch` stream.
struct Watcher {
    connection: Connection,
    cursor: Cursor,
    newest: watch::Receiver<Published>,
    stopping: watch::Receiver<bool>,
    expires_in: Duration,
    sender: mpsc::Sender<Result<v1::Update, Status>>,
}

impl Watcher {
    async fn run(mut self) {
        let expiry = tokio::time::sleep(self.expires_in);
        tokio::pin!(expiry);
        let incarnation = self.members_entry().map(|m| m.incarnation);
        loop {
            let published = self.newest.borrow_and_update().clone();
            let member = published.members.get(&self.connection.name);
            let member = member.filter(|m| Some(m.incarnation) == incarnation);
            let Some(member) = member else {
                let error = FabricError::NotMember(self.connection.name.clone());
                return self.end(error.into()).await;
            };
            let update = self.cursor.advance(&published, member.key_epoch);
            if let Some(update) = update {
                // Waits here for a slow client; what changes in the meantime is joined together.
                tokio::select! {
                    sent = self.sender.send(Ok(update.to_proto())) => {
                        if sent.is_err() {
                            return;
                        }
                    }
                    () = stopped(&mut self.stopping) => return self.stop().await,
                }
            }
            tokio::select! {
                changed = self.newest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.sender.closed() => return,
                () = &mut expiry => return self.end(access::expired()).await,
                () = stopped(&mut self.stopping) => return self.stop().await,
            }
        }
    }

    fn members_entry(&self) -> Option<crate::history::Member> {
        self.newest.borrow().members.get(&self.connection.name).copied()
    }

    async fn stop(&self) {
        self.end(Status::unavailable("the hub is stopping; connect again")).await;
    }

    async fn end(&self, status: Status) {
        // A client that does not even take this has gone, or will find out by itself.
        let last = self.sender.send_timeout(Err(status), Duration::from_secs(1));
        let _ = last.await;
    }
}

/// One `Answer` stream.
struct Answering {
    fabric: Arc<Fabric>,
    name: NodeName,
    number: u64,
    questions: mpsc::Receiver<v1::EndQuestions>,
    answers: Streaming<v1::EndAnswers>,
    sender: mpsc::Sender<Result<v1::EndQuestions, Status>>,
    stopping: watch::Receiver<bool>,
    expires_in: Duration,
}

impl Answering {
    async fn run(mut self) {
        self.follow().await;
        self.fabric.asking().close(&self.name, self.number);
    }

    /// Until the node leaves, or has opened another stream.
    async fn follow(&mut self) {
        let Self { fabric, name, questions, answers, sender, stopping, expires_in, .. } = self;
        let expiry = tokio::time::sleep(*expires_in);
        tokio::pin!(expiry);
        loop {
            tokio::select! {
                asked = questions.recv() => {
                    let Some(asked) = asked else { return };
                    if sender.send(Ok(asked)).await.is_err() {
                        return;
                    }
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => fabric.asking().answered(name, answer),
                    Ok(None) | Err(_) => return,
                },
                () = &mut expiry => return,
                () = stopped(stopping) => return,
            }
        }
    }
}
