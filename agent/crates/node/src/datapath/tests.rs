use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tonic::{Request, Response};
use weft_control::{KeptSocket, serve_unix};
use weft_model::{MacAddr, PublicKey};
use weft_proto::v1::datapath_server::{Datapath, DatapathServer};
use weft_proto::v1::{
    CountTranslatedResponse, DatapathStatus, Flow, ListDroppedResponse, ListFlowsRequest, LocalPod,
    PutModuleResponse, ServeNamesRequest, ServeNamesResponse,
};

use super::*;
use crate::config::AgentConfig;
use crate::core::UnderlayState;
use crate::keys::KeyFile;
use crate::tables::tests::{node, snapshot};

#[derive(Default)]
struct Held {
    generation: u64,
    complete: usize,
    peers: BTreeSet<u32>,
    pods: BTreeSet<String>,
    digests: Vec<Vec<u8>>,
    modules: BTreeSet<Vec<u8>>,
}

/// A datapath that keeps what it is told.
pub(crate) struct FakeDatapath {
    held: Arc<Mutex<Held>>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

impl FakeDatapath {
    pub(crate) async fn start(dir: &Path) -> Self {
        let held = Arc::new(Mutex::new(Held::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let router = tonic::transport::Server::builder()
            .add_service(DatapathServer::new(Service(held.clone())));
        let socket = KeptSocket::bind(&dir.join(socket::DATAPATH)).await.unwrap();
        let served = tokio::spawn(async move {
            serve_unix(socket, router, async { drop(stopped.await) }).await.unwrap();
        });
        Self { held, stop: Some(stop), served }
    }

    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.held.lock().pods.clone()
    }

    async fn kill(mut self) {
        drop(self.stop.take());
        self.served.abort();
        let _ = self.served.await;
    }
}

struct Service(Arc<Mutex<Held>>);

#[tonic::async_trait]
impl Datapath for Service {
    type ListFlowsStream = tokio_stream::Empty<Result<Flow, Status>>;

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        let mut held = self.0.lock();
        let again = request.generation == held.generation;
        if request.from != 0 && request.from != held.generation && !again {
            return Err(Status::failed_precondition("another generation"));
        }
        if request.from == 0 {
            let modules = std::mem::take(&mut held.modules);
            *held = Held { modules, complete: held.complete + 1, ..Held::default() };
        }
        held.generation = request.generation;
        held.peers.retain(|p| !request.removed_peers.contains(p));
        held.pods.retain(|p| !request.removed_pods.contains(p));
        held.peers.extend(request.peers.iter().map(|p| p.id));
        held.pods.extend(request.pods.iter().map(|p: &LocalPod| p.attachment.clone()));
        held.digests.extend(request.plugins.into_iter().map(|p| p.digest));
        let missing_modules =
            held.digests.iter().filter(|d| !held.modules.contains(*d)).cloned().collect();
        Ok(Response::new(ApplyResponse {
            generation: held.generation,
            plugins: vec![],
            missing_modules,
        }))
    }

    async fn put_module(
        &self,
        request: Request<PutModuleRequest>,
    ) -> Result<Response<PutModuleResponse>, Status> {
        let digest = Sha256::digest(&request.into_inner().module).to_vec();
        self.0.lock().modules.insert(digest.clone());
        Ok(Response::new(PutModuleResponse { digest, name: String::new() }))
    }

    async fn get_status(
        &self,
        _: Request<DatapathStatusRequest>,
    ) -> Result<Response<DatapathStatus>, Status> {
        let generation = self.0.lock().generation;
        Ok(Response::new(DatapathStatus { generation, ..DatapathStatus::default() }))
    }

    type ServeNamesStream = tokio_stream::Empty<Result<ServeNamesResponse, Status>>;

    async fn serve_names(
        &self,
        _: Request<tonic::Streaming<ServeNamesRequest>>,
    ) -> Result<Response<Self::ServeNamesStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn list_flows(
        &self,
        _: Request<ListFlowsRequest>,
    ) -> Result<Response<Self::ListFlowsStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn count_translated(
        &self,
        _: Request<CountTranslatedRequest>,
    ) -> Result<Response<CountTranslatedResponse>, Status> {
        Ok(Response::new(CountTranslatedResponse::default()))
    }

    async fn list_dropped(
        &self,
        _: Request<ListDroppedRequest>,
    ) -> Result<Response<ListDroppedResponse>, Status> {
        Ok(Response::new(ListDroppedResponse::default()))
    }
}

/// What the agent of node 1 knows after it has joined a fabric of three; everything is in `dir`.
pub(crate) fn joined_core(dir: &Path) -> Arc<Core> {
    let config = AgentConfig {
        state_dir: dir.to_owned(),
        run_dir: dir.to_owned(),
        ..AgentConfig::new(node(1).name, "hub:7443")
    };
    let core = Core::new(config, "uid-1".into(), MacAddr([2, 0, 0, 0, 0, 1]));
    core.update(|state| {
        state.snapshot = Some(snapshot(5, &[1, 2, 3]));
        state.keys = vec![KeyFile { path: dir.join("keys/current"), public: PublicKey([1; 32]) }];
        state.looked = true;
        state.underlay = Some(UnderlayState {
            interface: "eth0".into(),
            mtu: 1500,
            address: "192.0.2.1".parse().unwrap(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            prefixes: vec!["192.0.2.0/24".parse().unwrap()],
            gateways: ["192.0.2.254".parse().unwrap()].into(),
        });
    });
    Arc::new(core)
}

pub(crate) fn start_client(core: &Arc<Core>, dir: &Path) {
    let modules = Modules::open(dir.join("modules")).unwrap();
    tokio::spawn(run(core.clone(), Arc::new(HubLink::default()), modules));
}

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn datapath_gets_everything_once_and_then_changes() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let datapath = FakeDatapath::start(dir.path()).await;
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
    assert_eq!(datapath.held.lock().peers.len(), 2);
    let gone = node(3).name;
    core.update(|s| {
        let snapshot = s.snapshot.as_mut().unwrap();
        snapshot.nodes.remove(&gone);
        snapshot.generation = snapshot.generation.next();
    });
    assert!(core.wait_applied(LIMIT).await);
    let held = datapath.held.lock();
    assert_eq!((held.peers.len(), held.complete), (1, 1));
    assert_eq!(core.applied().borrow().generation, 6);
}

#[tokio::test]
async fn built_in_modules_are_handed_over_before_anything_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let datapath = FakeDatapath::start(dir.path()).await;
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
    assert!(datapath.held.lock().digests.is_empty(), "nothing is asked for");
    let all = weft_builtin::ALL.map(|b| b.digest().to_vec());
    let there = async {
        while !all.iter().all(|digest| datapath.held.lock().modules.contains(digest)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, there).await.unwrap();
}

/// A snapshot is in force once the datapath has it and the host's network is put right for it.
#[tokio::test]
async fn a_generation_is_reported_once_the_whole_node_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let _datapath = FakeDatapath::start(dir.path()).await;
    assert_eq!(core.unready()[0], "no datapath");
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
    assert_eq!(core.report().unwrap().generation, 0);
    assert_eq!(core.unready(), ["the host's network is not set up yet"]);
    core.set_applied(|a| a.network = 5);
    assert_eq!(core.report().unwrap().generation, 5);
    assert!(core.unready().is_empty());
    core.set_applied(|a| a.network = 6);
    assert_eq!(core.report().unwrap().generation, 5);
    // DNS-145: nor is it ready before names are served.
    core.update(|s| s.snapshot.as_mut().unwrap().cluster.dns = Some(crate::tables::tests::dns()));
    assert_eq!(core.unready(), ["names are not served yet"]);
    core.set_serves_names(true);
    assert!(core.unready().is_empty());
}

#[tokio::test]
async fn restarted_datapath_is_noticed_and_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let datapath = FakeDatapath::start(dir.path()).await;
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
    let first = datapath.held.lock().generation;
    datapath.kill().await;
    let mut applied = core.applied();
    let gone = applied.wait_for(|a| !a.connected);
    timeout(LIMIT, gone).await.unwrap().unwrap();
    assert!(core.read(|s| s.problems.contains_key("datapath")));
    let datapath = FakeDatapath::start(dir.path()).await;
    assert!(core.wait_applied(LIMIT).await);
    let held = datapath.held.lock();
    assert_eq!((held.peers.len(), held.complete), (2, 1));
    assert!(held.generation > first, "a generation is never used twice");
}

fn publish_plugin(core: &Core, digest: [u8; 32]) {
    let spec = weft_model::PluginSpec {
        name: "p".into(),
        digest,
        config: vec![],
        priority: 0,
        position: None,
        on_fault: None,
        deadline_us: None,
    };
    core.update(|s| s.snapshot.as_mut().unwrap().plugins.insert("p".into(), spec));
}

#[tokio::test]
async fn missing_module_is_handed_over_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let datapath = FakeDatapath::start(dir.path()).await;
    let digest: [u8; 32] = Sha256::digest(b"a module").into();
    Modules::open(dir.path().join("modules")).unwrap().put(&digest, b"a module").unwrap();
    publish_plugin(&core, digest);
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
    assert_eq!(datapath.held.lock().modules.len(), 1);
}

#[tokio::test]
async fn module_that_cannot_be_had_does_not_hold_up_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let core = joined_core(dir.path());
    let _datapath = FakeDatapath::start(dir.path()).await;
    publish_plugin(&core, [9; 32]);
    start_client(&core, dir.path());
    assert!(core.wait_applied(LIMIT).await);
}
