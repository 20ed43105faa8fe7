//! Start and stop.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::server::health_reporter;
use tonic_reflection::server::Builder as Reflection;
use weft_control::{KeptSocket, MESSAGE_MAX, ensure_free, hub_tls, serve_unix, socket};
use weft_proto::FILE_DESCRIPTOR_SET;
use weft_proto::v1::control_server::{self, ControlServer};
use weft_proto::v1::hub_server::{self, HubServer};

use crate::announce::Announcement;
use crate::config::{HubConfig, Source};
use crate::fabric::Fabric;
use crate::review::Reviewer;
use crate::service::{ControlService, HubService};
use crate::source::files::{Directory, follow};
use crate::source::kube::Cluster;
use crate::source::objects::Objects;

const HUB_SERVICE: &str = hub_server::SERVICE_NAME;
const CONTROL_SERVICE: &str = control_server::SERVICE_NAME;
const HEALTH_SERVICE: &str = tonic_health::pb::health_server::SERVICE_NAME;

type Serving = JoinHandle<anyhow::Result<()>>;

/// How often the hub looks which nodes are gone.
const LIVING_INTERVAL: Duration = Duration::from_millis(250);
/// A node that dies without a word is noticed after both of these; with the pauses beside them, another
/// answers for its addresses in less than 3 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long calls under way may take to end when the hub stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// A hub that serves. Dropping it does not stop it.
pub struct RunningHub {
    address: SocketAddr,
    stopping: watch::Sender<bool>,
    servers: Vec<Serving>,
    source: Following,
    living: JoinHandle<()>,
}

/// Runs a hub until SIGTERM or SIGINT.
///
/// # Errors
/// One line that says what to look at: settings, state, port, socket.
pub fn run(config: HubConfig) -> Running {
    Box::pin(run_until_signal(config))
}

/// Boxed, so that this crate's machine code is made once, here, and not by each caller again.
type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

async fn run_until_signal(config: HubConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no handler for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no handler for SIGINT")?;
    let mut hub = tokio::select! {
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        hub = start(config) => hub?,
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = hub.ended() => ended?,
    }
    hub.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// Starts a hub: when this returns, every object was read once and calls are answered. That may take as
/// long as the API server is away: until then a hub knows too little to tell nodes anything.
///
/// # Errors
/// As [`run`].
pub async fn start(config: HubConfig) -> anyhow::Result<RunningHub> {
    config.check()?;
    // Before the state is touched: a second hub by mistake changes nothing.
    let listener = TcpListener::bind(config.listen).await.map_err(|e| {
        anyhow::anyhow!(
            "cannot listen on {} ({e}): is another hub running there? choose another --listen",
            config.listen
        )
    })?;
    let address = listener.local_addr().context("the port that was bound")?;
    let socket = config.run_dir.join(socket::HUB);
    ensure_free(&socket).await?;
    let fabric = blocking({
        let config = config.clone();
        move || Ok(Fabric::open(&config)?)
    });
    let fabric = Arc::new(fabric.await?);
    let (source, reviewer) = begin(&config.source, &fabric).await?;
    blocking({
        let fabric = fabric.clone();
        move || Ok(fabric.release_orphans()?)
    })
    .await?;
    let unix = KeptSocket::bind(&socket).await?;
    let (stopping, stop) = watch::channel(false);
    let living = tokio::spawn({
        let fabric = fabric.clone();
        async move {
            let mut ticks = tokio::time::interval(LIVING_INTERVAL);
            loop {
                ticks.tick().await;
                let fabric = fabric.clone();
                // Ends with the hub, which waits for nothing of it.
                let _ = tokio::task::spawn_blocking(move || fabric.follow_the_living()).await;
            }
        }
    });
    let servers = vec![
        serve_tcp(&fabric, reviewer, listener, stop.clone()).await?,
        serve_socket(&fabric, unix, stop).await?,
    ];
    tracing::info!(%address, socket = %socket.display(), "hub ready");
    Ok(RunningHub { address, stopping, servers, source, living })
}

impl RunningHub {
    /// Where the gRPC port is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when a part of the hub breaks off, which it does not by itself.
    ///
    /// # Errors
    /// Why it did.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let [tcp, unix] = self.servers.as_mut_slice() else { return Ok(()) };
        tokio::select! {
            ended = tcp => ended.context("the gRPC port")?.context("the gRPC port"),
            ended = unix => ended.context("the control socket")?,
            ended = &mut self.source => ended.context("the manifests")?.context("the manifests"),
        }
    }

    /// Ends every stream, lets calls under way end, and closes.
    pub async fn stop(self) {
        // Receivers live as long as the servers.
        let _ = self.stopping.send(true);
        self.source.abort();
        self.living.abort();
        for mut server in self.servers {
            if server.is_finished() {
                continue;
            }
            if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
                server.abort();
                let _ = server.await;
            }
        }
    }
}

type Following = JoinHandle<std::io::Result<()>>;

/// Reads every object once, and goes on following them. With who can tell whose tokens nodes of a cluster
/// show.
async fn begin(
    source: &Source,
    fabric: &Arc<Fabric>,
) -> anyhow::Result<(Following, Option<Reviewer>)> {
    let publish = {
        let fabric = fabric.clone();
        move |objects| {
            if let Err(error) = fabric.set_source(objects) {
                tracing::error!(%error, "objects were read and could not be published");
            }
        }
    };
    let first = |objects: Objects| {
        let fabric = fabric.clone();
        blocking(move || Ok(fabric.set_source(objects)?))
    };
    match source {
        Source::Manifests(root) => {
            let mut directory = Directory::new(root.clone());
            let (objects, directory) = blocking(move || Ok((directory.scan(), directory))).await?;
            first(objects).await?;
            Ok((tokio::spawn(follow(directory, publish)), None))
        }
        Source::Kubernetes(config) => {
            let client = config.client().await?;
            let mut cluster = Cluster::watch(&client, &config.modules);
            first(cluster.synced().await).await?;
            let (namespace, name) = &config.agents;
            if let Some(address) = &config.advertise {
                let announcement = Announcement {
                    client: client.clone(),
                    namespace: namespace.clone(),
                    address: address.clone(),
                    ca: fabric.ca().pem().to_owned(),
                };
                tokio::spawn(announcement.keep());
            }
            let reviewer = Reviewer::new(client, (namespace.as_str(), name.as_str()));
            Ok((tokio::spawn(cluster.follow(publish)), Some(reviewer)))
        }
    }
}

/// What reads or writes the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the hub's state")?
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the hub is gone: stop as well.
    let _ = stop.wait_for(|stopping| *stopping).await;
}

async fn serve_tcp(
    fabric: &Arc<Fabric>,
    reviewer: Option<Reviewer>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Serving> {
    let identity = fabric.ca().server_identity(OffsetDateTime::now_utc())?;
    let hub = HubServer::new(HubService::new(fabric.clone(), reviewer, stop.clone()))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let control = ControlServer::new(ControlService::remote(fabric.clone()))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let (health, health_server) = health_reporter();
    health.set_serving::<HubServer<HubService>>().await;
    health.set_serving::<ControlServer<ControlService>>().await;
    let router = server()
        .tls_config(hub_tls(fabric.ca().pem(), &identity))
        .context("the hub's certificate")?
        .add_service(hub)
        .add_service(control)
        .add_service(health_server);
    let router = with_reflection(router, &[HUB_SERVICE, CONTROL_SERVICE])?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(tokio::spawn(async {
        Ok(router.serve_with_incoming_shutdown(incoming, stopped(stop)).await?)
    }))
}

async fn serve_socket(
    fabric: &Arc<Fabric>,
    socket: KeptSocket,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Serving> {
    let control = ControlServer::new(ControlService::local(fabric.clone()))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let (health, health_server) = health_reporter();
    health.set_serving::<ControlServer<ControlService>>().await;
    let router = server().add_service(control).add_service(health_server);
    let router = with_reflection(router, &[CONTROL_SERVICE])?;
    Ok(tokio::spawn(async { Ok(serve_unix(socket, router, stopped(stop)).await?) }))
}

fn server() -> Server {
    // Finds out about a node that has vanished without a word.
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Tells of `services` and health: the descriptors hold more than what is served here.
fn with_reflection(router: Router, services: &[&str]) -> anyhow::Result<Router> {
    let builder = || {
        let named = Reflection::configure().with_service_name(HEALTH_SERVICE);
        services
            .iter()
            .fold(named, |named, service| named.with_service_name(*service))
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = builder().build_v1().context("gRPC reflection")?;
    let v1alpha = builder().build_v1alpha().context("gRPC reflection")?;
    Ok(router.add_service(v1).add_service(v1alpha))
}
