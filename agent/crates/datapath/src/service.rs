//! The gRPC service `weft.v1.Datapath`: what the agent and the command line see of the datapath.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Iter;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_model::{DropReason, Timestamp};
use weft_netio::clock;
use weft_pipeline::{FlowInfo, FlowTable};
use weft_proto::v1::datapath_server::{Datapath, DatapathServer};
use weft_proto::v1::{
    ApplyRequest, ApplyResponse, CountTranslatedRequest, CountTranslatedResponse, DatapathStatus,
    DatapathStatusRequest, Dropped, Drops, Flow, ListDroppedRequest, ListDroppedResponse,
    ListFlowsRequest, PeerStatus, PutModuleRequest, PutModuleResponse, ServeNamesRequest,
    ServeNamesResponse, Traffic, TranslatedFlows,
};
use weft_wasm_host::Module;

use crate::control::{ApplyError, Control};
use crate::counters::{self, Counters};
use crate::plugins::PutError;
use crate::tables::TablesError;

/// Flows in a listing unless the request says otherwise.
const FLOWS_DEFAULT: usize = 1000;
/// Flows in any listing: they are collected before they are sent.
const FLOWS_LISTED_MAX: usize = 100_000;

/// An agent that is silent for so long does not serve names: it tells so every second.
const NAMES_SILENCE: Duration = Duration::from_secs(3);

/// The service; requests that change something are carried out one after another.
#[derive(Clone)]
pub(crate) struct Service {
    control: Arc<Mutex<Control>>,
    /// How many have called `ServeNames`.
    callers: Arc<AtomicU64>,
}

impl Service {
    pub(crate) fn new(control: Arc<Mutex<Control>>) -> Self {
        Self { control, callers: Arc::default() }
    }

    pub(crate) fn into_server(self) -> DatapathServer<Self> {
        DatapathServer::new(self)
            .max_decoding_message_size(weft_control::MESSAGE_MAX)
            .max_encoding_message_size(weft_control::MESSAGE_MAX)
    }

    /// Runs `work` where it may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Control) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let control = Arc::clone(&self.control);
        blocking(move || work(&mut control.lock())).await
    }

    /// As [`Self::with`], for what only looks at flows: changes need not wait for it.
    async fn with_flows<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FlowTable) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let shared = self.with(|control| Arc::clone(control.shared())).await?;
        blocking(move || work(shared.flows.table())).await
    }

    /// Keeps to what caller `number` says of names, until it is gone.
    async fn follow_names(
        self,
        mut messages: Streaming<ServeNamesRequest>,
        number: u64,
        answers: mpsc::Sender<Result<ServeNamesResponse, Status>>,
    ) {
        loop {
            let said = timeout(NAMES_SILENCE, messages.message()).await;
            let serves = matches!(said, Ok(Ok(Some(ServeNamesRequest { serves: true }))));
            let callers = Arc::clone(&self.callers);
            // Whoever called last is the agent: one that is on its way out does not speak for it.
            let note = move |control: &mut Control| match callers.load(Ordering::Relaxed) == number
            {
                true => control.set_resolver(serves),
                false => Ok(()),
            };
            let noted = self.with(note).await;
            let answer = noted.and_then(|done| done.map_err(|e| ApplyError::from(e).into()));
            match said {
                // Who takes no answer is gone, which shows with the next message.
                Ok(Ok(Some(_))) => {
                    let _gone = answers.send(answer.map(|()| ServeNamesResponse {})).await;
                }
                Err(_silent) => {}
                Ok(Ok(None) | Err(_)) => return,
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Status::internal("the datapath failed over this request: see its log"))
}

#[tonic::async_trait]
impl Datapath for Service {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        let response = self.with(move |control| control.apply(request)).await?;
        Ok(Response::new(response?))
    }

    async fn put_module(
        &self,
        request: Request<PutModuleRequest>,
    ) -> Result<Response<PutModuleResponse>, Status> {
        let PutModuleRequest { module: bytes, standby } = request.into_inner();
        let control = Arc::clone(&self.control);
        let put = move || {
            // Compiling takes long, and tables do not wait for it.
            let engine = control.lock().plugins().engine().clone();
            let module = Module::load(&engine, &bytes)?;
            control.lock().put_module(&bytes, &module, standby)?;
            Ok::<_, PutError>(module)
        };
        let module = blocking(put).await??;
        let info = module.info();
        let (digest, name) = (info.digest.to_vec(), info.name.clone());
        Ok(Response::new(PutModuleResponse { digest, name }))
    }

    type ServeNamesStream = ReceiverStream<Result<ServeNamesResponse, Status>>;

    async fn serve_names(
        &self,
        request: Request<Streaming<ServeNamesRequest>>,
    ) -> Result<Response<Self::ServeNamesStream>, Status> {
        let (answers, answered) = mpsc::channel(1);
        let number = self.callers.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::spawn(self.clone().follow_names(request.into_inner(), number, answers));
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    async fn get_status(
        &self,
        _: Request<DatapathStatusRequest>,
    ) -> Result<Response<DatapathStatus>, Status> {
        self.with(|control| status(control)).await.map(Response::new)
    }

    type ListFlowsStream = Iter<std::vec::IntoIter<Result<Flow, Status>>>;

    async fn list_flows(
        &self,
        request: Request<ListFlowsRequest>,
    ) -> Result<Response<Self::ListFlowsStream>, Status> {
        let limit = match usize::try_from(request.into_inner().limit).unwrap_or(usize::MAX) {
            0 => FLOWS_DEFAULT,
            limit => limit.min(FLOWS_LISTED_MAX),
        };
        let flows = self.with_flows(move |table| flows(table, limit)).await?;
        Ok(Response::new(tokio_stream::iter(flows)))
    }

    async fn count_translated(
        &self,
        request: Request<CountTranslatedRequest>,
    ) -> Result<Response<CountTranslatedResponse>, Status> {
        let limit = usize::try_from(request.into_inner().limit).unwrap_or(usize::MAX);
        let translated = self.with_flows(move |table| translated(table, limit)).await?;
        Ok(Response::new(CountTranslatedResponse { translated }))
    }

    async fn list_dropped(
        &self,
        request: Request<ListDroppedRequest>,
    ) -> Result<Response<ListDroppedResponse>, Status> {
        let since = request.into_inner().since;
        let shared = self.with(|control| Arc::clone(control.shared())).await?;
        let (until, all) = shared.dropped.since(since);
        let now = clock::now();
        let dropped = all.iter().map(|entry| dropped(entry, now)).collect();
        Ok(Response::new(ListDroppedResponse { until, dropped }))
    }
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Tables(TablesError::OtherGeneration { .. }) => {
                Self::failed_precondition(text)
            }
            ApplyError::Tables(_) | ApplyError::Mesh(_) => Self::invalid_argument(text),
            ApplyError::Tun(_)
            | ApplyError::PortInUse { .. }
            | ApplyError::Udp { .. }
            | ApplyError::Worker(_) => Self::unavailable(text),
        }
    }
}

impl From<PutError> for Status {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Load(_) => Self::invalid_argument(error.to_string()),
            PutError::Store(_) => Self::unavailable(error.to_string()),
        }
    }
}

fn status(control: &Control) -> DatapathStatus {
    let all = control.counters();
    let shared = control.shared();
    let table = shared.flows.table();
    DatapathStatus {
        generation: control.desired().generation,
        flows: table.len() as u64,
        flows_max: table.capacity() as u64,
        flows_evicted: table.evicted(),
        workers: u32::try_from(all.len()).unwrap_or(u32::MAX),
        drops: drops(all, &shared.mesh.drops()),
        tun_in: Some(counters::traffic(all, |c| &c.tun_in)),
        tun_out: Some(counters::traffic(all, |c| &c.tun_out)),
        mesh_in: Some(counters::traffic(all, |c| &c.mesh_in)),
        mesh_out: Some(counters::traffic(all, |c| &c.mesh_out)),
        peers: shared.mesh.status(clock::now()).into_iter().map(peer).collect(),
        plugins: control.plugins().status(),
        offloads: control.offloads(),
    }
}

/// Drops of the workers and those that the mesh counts itself.
fn drops(all: &[Arc<Counters>], mesh: &[(DropReason, u64)]) -> Vec<Drops> {
    let sum = |reason: &DropReason| {
        let of_mesh = mesh.iter().filter(|(r, _)| r == reason).map(|(_, n)| n).sum::<u64>();
        of_mesh + all.iter().map(|c| c.drops(*reason)).sum::<u64>()
    };
    let named = DropReason::ALL.iter().map(|r| Drops { reason: r.label().into(), packets: sum(r) });
    named.filter(|drops| drops.packets > 0).collect()
}

fn peer(status: weft_mesh::PeerStatus) -> PeerStatus {
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    PeerStatus {
        id: status.peer.0,
        name: status.name,
        endpoint: status.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        last_handshake_ms: status.last_handshake.map(millis),
        received: Some(Traffic { packets: status.rx_packets, bytes: status.rx_bytes }),
        sent: Some(Traffic { packets: status.tx_packets, bytes: status.tx_bytes }),
    }
}

fn flows(table: &FlowTable, limit: usize) -> Vec<Result<Flow, Status>> {
    let now = clock::now();
    let mut flows = Vec::new();
    table.for_each(now, &mut |info| {
        if flows.len() < limit {
            let millis = info.expires.since(now).as_millis();
            flows.push(Ok(flow(info, u64::try_from(millis).unwrap_or(u64::MAX))));
        }
    });
    flows
}

fn translated(table: &FlowTable, limit: usize) -> Vec<TranslatedFlows> {
    let mut counts: HashMap<_, u64> = HashMap::new();
    table.for_each(clock::now(), &mut |info| {
        let (to, by) = (info.original.destination(), info.reply.source());
        if to != by && !info.state.is_over() {
            *counts.entry((info.original.protocol(), to, by)).or_default() += 1;
        }
    });
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(key, flows)| (Reverse(*flows), *key));
    let told = counts.into_iter().take(limit);
    told.map(|((protocol, to, by), flows)| TranslatedFlows {
        protocol: protocol.into(),
        destination: to.to_string(),
        backend: by.to_string(),
        flows,
    })
    .collect()
}

fn dropped(entry: &weft_pipeline::Dropped, now: Timestamp) -> Dropped {
    let ago = |at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
    let key = &entry.key;
    Dropped {
        plugin: key.plugin.to_string(),
        number: key.number,
        ingress: key.ingress,
        source: key.source.to_string(),
        destination: key.destination.to_string(),
        sent_to: entry.sent_to.map(|to| to.to_string()).unwrap_or_default(),
        protocol: key.protocol.into(),
        port: key.port.into(),
        count: entry.count,
        first_ms: ago(entry.first),
        last_ms: ago(entry.last),
        passed: key.passed,
    }
}

fn flow(info: &FlowInfo, expires_in_ms: u64) -> Flow {
    Flow {
        protocol: info.original.protocol().into(),
        source: info.original.source().to_string(),
        destination: info.original.destination().to_string(),
        reply_source: info.reply.source().to_string(),
        reply_destination: info.reply.destination().to_string(),
        state: info.state.label().to_owned(),
        expires_in_ms,
        packets: info.traffic.iter().map(|t| t.packets).sum(),
        bytes: info.traffic.iter().map(|t| t.bytes).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_those_of_workers_and_mesh_and_only_those_that_occurred() {
        let all = [Arc::<Counters>::default(), Arc::default()];
        all[0].dropped(DropReason::NoSession, 2);
        all[1].dropped(DropReason::NoSession, 1);
        let drops = drops(&all, &[(DropReason::NoSession, 4)]);
        assert_eq!(drops, [Drops { reason: "no_session".into(), packets: 7 }]);
    }
}
