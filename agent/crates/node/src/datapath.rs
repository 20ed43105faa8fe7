//! Keeps the datapath's tables as the core wants them.
//!
//! A datapath that is new, or was restarted, gets everything; then it gets changes. One connection
//! is one session: it never reconnects behind this module's back.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use weft_control::{MESSAGE_MAX, operator_text, socket};
use weft_proto::v1::datapath_client::DatapathClient;
use weft_proto::v1::{
    ApplyRequest, ApplyResponse, CountTranslatedRequest, DatapathStatusRequest, ListDroppedRequest,
    PluginSpec, PluginStatus, PutModuleRequest, ServeNamesRequest,
};

use crate::core::{Core, Target};
use crate::drops;
use crate::hub::HubLink;
use crate::modules::Modules;

/// How soon a datapath that is away is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How often the datapath is asked how it is.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often flows are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// Pairs of a Service's address and an endpoint whose flows the hub is told of.
const COUNTED_MAX: u32 = 4096;
/// A datapath that does not answer for this long counts as gone. Applying may compile modules.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon something that the datapath refused, or a module that could not be had, is tried again.
const REFUSED_INTERVAL: Duration = Duration::from_secs(5);

const WHO: &str = "datapath";

/// Serves the datapath for ever.
pub(crate) async fn run(core: Arc<Core>, hub: Arc<HubLink>, modules: Modules) {
    let path = core.config.socket(socket::DATAPATH);
    let mut generation = 0;
    loop {
        match connect(&path).await {
            Ok(client) => {
                let mut session = Session {
                    core: &core,
                    hub: &hub,
                    modules: &modules,
                    client,
                    generation,
                    sent: None,
                    handed_over: BTreeSet::new(),
                    handing_over: JoinSet::new(),
                    telling: JoinSet::new(),
                    retry: None,
                    dropped: 0,
                };
                let ended = session.run().await;
                generation = session.generation;
                let text = operator_text(&ended);
                core.set_problems(WHO, vec![format!("the datapath is gone: {text}")]);
            }
            Err(_) => core.set_problems(
                WHO,
                vec![format!("no datapath at {}: is `weft datapath` running?", path.display())],
            ),
        }
        core.set_applied(|a| a.connected = false);
        core.set_datapath_status(None);
        sleep(RETRY_INTERVAL).await;
    }
}

type Client = DatapathClient<Channel>;

/// A channel that fails for good when its first connection ends.
async fn connect(path: &Path) -> Result<Client, tonic::transport::Error> {
    let path = path.to_owned();
    let used = Arc::new(AtomicBool::new(false));
    let connector = tower::service_fn(move |_: Uri| {
        let (path, used) = (path.clone(), used.clone());
        async move {
            if used.swap(true, Ordering::Relaxed) {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            }
            UnixStream::connect(path).await.map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://datapath")
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector(connector)
        .await?;
    Ok(Client::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX))
}

/// What the datapath has, as far as it told.
struct Sent {
    target: Target,
    generation: u64,
}

struct Session<'a> {
    core: &'a Core,
    hub: &'a HubLink,
    modules: &'a Modules,
    client: Client,
    /// The last generation that was given to tables; never used twice by one agent.
    generation: u64,
    sent: Option<Sent>,
    /// Digests of the built-in modules that it has.
    handed_over: BTreeSet<Vec<u8>>,
    /// Those that nothing needs yet, on their way: gives their digests.
    handing_over: JoinSet<Vec<Vec<u8>>>,
    /// Tells whether this agent serves names.
    telling: JoinSet<()>,
    /// When to try again what was refused or what modules were missing for.
    retry: Option<Instant>,
    /// How far it has told what it dropped.
    dropped: u64,
}

impl Session<'_> {
    async fn run(&mut self) -> Status {
        match self.serve().await {
            Ok(never) => match never {},
            Err(status) => status,
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Status> {
        let mut changes = self.core.changes();
        self.poll_status().await?;
        self.core.set_problems(WHO, Vec::new());
        self.telling.spawn(tell_of_names(self.client.clone(), self.core.serves_names()));
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counts = interval(COUNT_INTERVAL);
        counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changes.borrow_and_update();
            self.bring_up_to_date().await?;
            tokio::select! {
                _ = changes.changed() => {}
                _ = ticks.tick() => {
                    self.poll_status().await?;
                    self.poll_dropped().await?;
                }
                _ = counts.tick() => self.count_flows().await?,
            }
        }
    }

    async fn bring_up_to_date(&mut self) -> Result<(), Status> {
        let Some(target) = self.core.target() else { return Ok(()) };
        let due = self.retry.is_some_and(|at| at <= Instant::now());
        match &self.sent {
            Some(sent) if sent.target.version == target.version && !due => {
                self.core.set_applied(|a| a.generation = target.generation);
                return Ok(());
            }
            None if self.retry.is_some() && !due => return Ok(()),
            _ => {}
        }
        self.retry = None;
        self.generation += 1;
        let request = match &self.sent {
            Some(sent) if !due => {
                target.tables.change_from(&sent.target.tables, sent.generation, self.generation)
            }
            _ => target.tables.complete(self.generation),
        };
        match self.apply(request).await {
            Ok(answer) => self.confirmed(target, answer),
            Err(status) => return self.refused(status),
        }
        Ok(())
    }

    fn confirmed(&mut self, target: Target, answer: ApplyResponse) {
        if !answer.missing_modules.is_empty() {
            self.retry = Some(Instant::now() + REFUSED_INTERVAL);
        }
        self.core.set_problems(WHO, plugin_problems(&answer.plugins));
        self.core.set_applied(|a| {
            a.version = target.version;
            a.generation = target.generation;
            a.connected = true;
            a.plugins = answer.plugins;
        });
        if self.sent.replace(Sent { target, generation: self.generation }).is_none() {
            self.hand_over_the_rest();
        }
    }

    /// A refusal leaves the datapath alive under its old tables; anything else ends the session.
    fn refused(&mut self, status: Status) -> Result<(), Status> {
        match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument | Code::Internal => {
                self.core.set_problems(
                    WHO,
                    vec![format!("the datapath refused its tables: {}", operator_text(&status))],
                );
                // Another generation than thought is put right at once, by sending everything.
                let changing = self.sent.take().is_some();
                if !(changing && status.code() == Code::FailedPrecondition) {
                    self.retry = Some(Instant::now() + REFUSED_INTERVAL);
                    return Ok(());
                }
                self.core.poke();
                Ok(())
            }
            _ => Err(status),
        }
    }

    /// Applies; hands over modules that the datapath does not have, and applies again.
    async fn apply(&mut self, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        // Ours beforehand: a node whose policies cannot be enforced closes its pods.
        for PluginSpec { digest, .. } in &request.plugins {
            self.hand_over(digest).await?;
        }
        let answer = self.client.apply(request.clone()).await?.into_inner();
        let mut put = false;
        for digest in &answer.missing_modules {
            put |= self.put_module(digest).await?;
        }
        if !put {
            return Ok(answer);
        }
        Ok(self.client.apply(request).await?.into_inner())
    }

    /// Sees to it that the datapath has this module, if it is one of ours.
    async fn hand_over(&mut self, digest: &[u8]) -> Result<(), Status> {
        if weft_builtin::by_digest(digest).is_none() || self.handed_over.contains(digest) {
            return Ok(());
        }
        if let Some(Ok(digests)) = self.handing_over.join_next().await {
            self.handed_over.extend(digests);
        }
        if !self.handed_over.contains(digest) {
            self.put_module(digest).await?;
            self.handed_over.insert(digest.to_vec());
        }
        Ok(())
    }

    /// Begins to hand over what nothing needs yet: who writes a policy does not wait for a compiler then.
    fn hand_over_the_rest(&mut self) {
        let rest = weft_builtin::ALL.into_iter();
        let rest = rest.filter(|b| !self.handed_over.contains(b.digest().as_slice()));
        let rest: Vec<_> = rest.collect();
        if rest.is_empty() || !self.handing_over.is_empty() {
            return;
        }
        let mut client = self.client.clone();
        self.handing_over.spawn(async move {
            let mut done = Vec::new();
            for built_in in rest {
                let module = built_in.module.to_vec();
                match client.put_module(PutModuleRequest { module, standby: true }).await {
                    Ok(_) => done.push(built_in.digest().to_vec()),
                    // It is tried again when it is needed.
                    Err(status) => {
                        tracing::warn!(error = operator_text(&status), "module not handed over");
                    }
                }
            }
            done
        });
    }

    /// False if the module cannot be had now, or is no good; the latter shows as a refused plugin.
    async fn put_module(&mut self, digest: &[u8]) -> Result<bool, Status> {
        let built_in = weft_builtin::by_digest(digest).map(<[u8]>::to_vec);
        let standby = built_in.is_some();
        let kept = built_in.or_else(|| self.modules.get(digest).unwrap_or_default());
        let module = match kept {
            Some(module) => module,
            None => match self.hub.fetch_module(digest, self.modules).await {
                Ok(module) => module,
                Err(error) => {
                    tracing::warn!(%error, "module of a plugin not fetched");
                    return Ok(false);
                }
            },
        };
        match self.client.put_module(PutModuleRequest { module, standby }).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::InvalidArgument => {
                tracing::warn!(error = operator_text(&status), "the datapath refused a module");
                Ok(false)
            }
            Err(status) => Err(status),
        }
    }

    async fn count_flows(&mut self) -> Result<(), Status> {
        let request = CountTranslatedRequest { limit: COUNTED_MAX };
        let translated = self.client.count_translated(request).await?.into_inner().translated;
        self.core.set_applied(|a| a.translated = translated);
        Ok(())
    }

    async fn poll_dropped(&mut self) -> Result<(), Status> {
        let request = ListDroppedRequest { since: self.dropped };
        match self.client.list_dropped(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                self.dropped = answer.until;
                drops::take(self.core, answer.dropped);
                Ok(())
            }
            // One of an older version, which is being replaced.
            Err(status) if status.code() == Code::Unimplemented => Ok(()),
            Err(status) => Err(status),
        }
    }

    async fn poll_status(&mut self) -> Result<(), Status> {
        let asked = self.client.get_status(DatapathStatusRequest {});
        let answer = timeout(ANSWER_TIMEOUT, asked).await;
        let status = answer.map_err(|_| Status::deadline_exceeded(""))??.into_inner();
        // Somebody else's tables, or those of before a restart, are replaced as a whole.
        if self.sent.as_ref().is_some_and(|s| s.generation != status.generation) {
            self.sent = None;
        }
        self.generation = self.generation.max(status.generation);
        let plugins = status.plugins.clone();
        if self.sent.is_some() {
            self.core.set_problems(WHO, plugin_problems(&plugins));
            self.core.set_applied(|a| a.plugins = plugins);
        }
        self.core.set_datapath_status(Some(status));
        Ok(())
    }
}

/// Tells the datapath whether this agent serves names, for as long as the datapath lives.
async fn tell_of_names(mut client: Client, serving: watch::Receiver<bool>) {
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let messages = stream::unfold((serving, ticks), |(mut serving, mut ticks)| async move {
        tokio::select! {
            changed = serving.changed() => changed.ok()?,
            _ = ticks.tick() => {}
        }
        let serves = *serving.borrow_and_update();
        Some((ServeNamesRequest { serves }, (serving, ticks)))
    });
    let answers = async {
        let mut answers = client.serve_names(messages).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    // A datapath of an older version, which is being replaced, or one that is gone.
    if let Err(status) = answers.await {
        tracing::debug!(error = operator_text(&status), "names: the datapath does not listen");
    }
}

fn plugin_problems(plugins: &[PluginStatus]) -> Vec<String> {
    use weft_proto::v1::plugin_status::State;
    let line = |p: &PluginStatus| match p.state() {
        State::Refused => Some(format!("plugin `{}` is refused: {}", p.name, p.message)),
        State::TakenOut => Some(format!("plugin `{}` is taken out: {}", p.name, p.message)),
        State::Impaired => Some(format!("plugin `{}` is {}", p.name, p.message)),
        State::Running | State::Unspecified => None,
    };
    plugins.iter().filter_map(line).collect()
}

#[cfg(test)]
pub(crate) mod tests;
