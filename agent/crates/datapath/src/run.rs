//! Start, supervision and end of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tonic::transport::Server;
use weft_aead::Engine as Aead;
use weft_control::{KeptSocket, serve_unix};
use weft_mesh::{Event as MeshEvent, Mesh};
use weft_netio::{Poller, clock};
use weft_wasm_host::Engine;

use crate::config::{DatapathConfig, check_machine};
use crate::control::{Control, Parts};
use crate::counters::Counters;
use crate::flows::Flows;
use crate::link::{ControlLink, Event, WorkerLink, link};
use crate::plugins::Plugins;
use crate::service::Service;
use crate::shared::Shared;
use crate::store::Store;
use crate::worker::Worker;

/// Threads of the control side: one for requests, one so that a long one holds up nothing.
const CONTROL_THREADS: usize = 2;
/// Housekeeping: expired plugin data, events of the mesh.
const TICK: Duration = Duration::from_secs(1);
/// Pause before another try to make the interface.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// Plugin instances of one worker at most: those in use and those about to replace them.
const INSTANCES_PER_WORKER: usize = 2 * weft_pipeline::PLUGINS_MAX + 1;

/// Runs the datapath until SIGTERM or SIGINT.
///
/// TUN device, routes and the state in the run directory stay when it returns; worker threads may
/// still run, so the process should end then.
///
/// # Errors
/// One line that says what to do: no TUN, no privilege, another datapath in this directory, UDP port
/// or interface taken, a worker that failed.
pub fn run(config: DatapathConfig) -> anyhow::Result<()> {
    check_machine()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("weft-control")
        .enable_all()
        .build()
        .context("cannot start the threads of the control side")?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_background();
    result
}

async fn serve(config: DatapathConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // First of all: it makes the directory, and tells if another datapath is there.
    let socket = KeptSocket::bind(&crate::control::socket_path(&config.run_dir)).await?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = start_and_answer(config, socket) => result,
    }
}

async fn start_and_answer(config: DatapathConfig, socket: KeptSocket) -> anyhow::Result<()> {
    let (events, received) = mpsc::unbounded_channel();
    let handle = Handle::current();
    let control = tokio::task::spawn_blocking(move || start(&config, events, handle)).await??;
    let control = Arc::new(Mutex::new(control));
    tracing::info!("datapath is up");
    let service = Service::new(Arc::clone(&control)).into_server();
    let router = Server::builder().add_service(service);
    tokio::select! {
        result = serve_unix(socket, router, std::future::pending()) => Ok(result?),
        result = supervise(&control, received) => result,
    }
}

/// Makes everything, starts the workers, and puts the saved tables into force.
fn start(
    config: &DatapathConfig,
    events: UnboundedSender<Event>,
    runtime: Handle,
) -> anyhow::Result<Control> {
    let directory = &config.run_dir;
    let code = config.code_dir.as_deref();
    let store = Store::open(directory, code).with_context(|| {
        let code = code.map(|code| format!(" or {}", code.display())).unwrap_or_default();
        format!("cannot use the run directory {}{code}", directory.display())
    })?;
    let seed = random().context("cannot read /dev/urandom")?;
    let flows = Flows::open(directory, config.flows_max, seed[0])?;
    let count = config.worker_count();
    let instances = u32::try_from(count * INSTANCES_PER_WORKER).unwrap_or(u32::MAX);
    let engine = Engine::with_code_in(store.code_directory(), instances)?;
    let aead = if config.avx512 { Aead::fastest() } else { Aead::Ring };
    let mesh = Arc::new(Mesh::new(seed[1], clock::epoch(), aead));
    let shared = Arc::new(Shared { mesh, flows, dropped: Arc::default() });
    let counters: Vec<Arc<Counters>> = (0..count).map(|_| Arc::default()).collect();
    let workers = counters.iter().enumerate().map(|(index, counters)| {
        start_worker(index, Arc::clone(&shared), Arc::clone(counters), events.clone())
    });
    let workers = workers.collect::<anyhow::Result<_>>()?;
    let mut control = Control::new(Parts {
        store,
        shared,
        counters,
        workers,
        plugins: Plugins::new(engine, count),
        tun_offloads: config.tun_offloads,
        tun_cpu: config.tun_cpu,
        udp_offloads: config.udp_offloads,
        runtime,
    });
    control.restore()?;
    Ok(control)
}

fn start_worker(
    index: usize,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    events: UnboundedSender<Event>,
) -> anyhow::Result<WorkerLink> {
    let poller = Poller::new().context("cannot make a poller")?;
    let (worker_link, control_link) = link(poller.waker(), events.clone());
    let body = move || work(index, shared, counters, control_link, poller, &events);
    std::thread::Builder::new()
        .name(format!("weft-worker-{index}"))
        .spawn(body)
        .context("cannot start a worker thread")?;
    Ok(worker_link)
}

/// The thread of a worker. However it ends, the process ends with it: a node with half of its
/// workers would lose some flows for good, while a restart loses none.
fn work(
    index: usize,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    control: ControlLink,
    poller: Poller,
    events: &UnboundedSender<Event>,
) {
    let run = || Worker::new(index, shared, counters, control, poller).run().to_string();
    let reason = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panic: {}", text.unwrap_or("no text"))
    });
    // Without a control side the process is ending already.
    let _ = events.send(Event::Stopped { worker: index, reason });
}

/// Acts on what workers and mesh report; returns when the process must end.
async fn supervise(
    control: &Arc<Mutex<Control>>,
    mut events: UnboundedReceiver<Event>,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => bail!("every worker has ended"),
                Some(Event::Stopped { worker, reason }) => {
                    bail!("worker {worker} failed ({reason}): the datapath has to be restarted");
                }
                Some(Event::TunDeleted { device }) => {
                    while let Err(error) = blocking(control, move |c| c.reopen(device)).await? {
                        tracing::warn!(%error, "the interface is gone and cannot be made yet");
                        tokio::time::sleep(REOPEN_PAUSE).await;
                    }
                }
                Some(Event::TunDown) => blocking(control, |c| c.bring_up()).await?,
            },
            _ = tick.tick() => blocking(control, housekeeping).await?,
        }
    }
}

fn housekeeping(control: &mut Control) {
    control.tick(clock::now());
    while let Some(event) = control.shared().mesh.poll_event() {
        log(&event);
    }
}

fn log(event: &MeshEvent) {
    match event {
        MeshEvent::HandshakeCompleted { peer, initiator } => {
            tracing::debug!(peer = peer.0, initiator, "handshake complete");
        }
        MeshEvent::HandshakeTimedOut { peer, dropped } => {
            let hint = "handshake timed out: is the UDP port open between the nodes?";
            tracing::warn!(peer = peer.0, dropped, "{hint}");
        }
        MeshEvent::EndpointChanged { peer, from, to } => {
            tracing::info!(peer = peer.0, ?from, %to, "peer has moved");
        }
    }
}

async fn blocking<T: Send + 'static>(
    control: &Arc<Mutex<Control>>,
    work: impl FnOnce(&mut Control) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let control = Arc::clone(control);
    let done = tokio::task::spawn_blocking(move || work(&mut control.lock())).await;
    done.context("the control side failed")
}

fn random() -> std::io::Result<[u64; 2]> {
    use std::io::Read as _;
    let mut bytes = [[0; 8]; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_ne_bytes))
}
