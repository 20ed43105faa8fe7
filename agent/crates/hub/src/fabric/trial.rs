//! A plugin is put to the nodes before it is kept: only they can run it, and only a plugin can judge
//! its configuration.
//!
//! What is on trial is published and not on disk. If a node refuses it, what was there before is
//! published again, and a hub that is killed meanwhile starts with that as well. Nodes that are away,
//! or do not answer in time, cannot refuse; what they say later shows in the status.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use weft_model::{Generation, NodeName};
use weft_proto::v1;

use super::extent::Extent;
use super::state::{Joined, State, Trial};
use super::{Fabric, FabricError};

/// How long nodes have to judge a plugin. Compiling a large module takes seconds.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the nodes say so far.
enum Judgement {
    Open,
    Agreed,
    Refused { node: NodeName, reason: String },
}

impl Fabric {
    /// Loads or replaces a plugin, unless a node refuses it.
    pub(crate) async fn load_plugin(
        self: &Arc<Self>,
        request: v1::LoadPluginRequest,
    ) -> Result<Generation, FabricError> {
        self.attempt(move |fabric| fabric.candidate(request)).await
    }

    /// Gives a plugin another configuration, unless a node refuses it.
    pub(crate) async fn configure_plugin(
        self: &Arc<Self>,
        name: String,
        config: Vec<u8>,
    ) -> Result<Generation, FabricError> {
        self.attempt(move |fabric| fabric.reconfigured(&name, config)).await
    }

    /// Takes a plugin out.
    pub(crate) async fn unload_plugin(
        self: &Arc<Self>,
        name: String,
    ) -> Result<Generation, FabricError> {
        let _only = self.changing.lock().await;
        self.on_disk(move |fabric| fabric.take_out(&name)).await
    }

    async fn attempt(
        self: &Arc<Self>,
        prepare: impl FnOnce(&Self) -> Result<Trial, FabricError> + Send + 'static,
    ) -> Result<Generation, FabricError> {
        let _only = self.changing.lock().await;
        let begin = move |fabric: &Self| Ok((prepare(fabric)?, fabric.begin()?));
        let (trial, generation) = self.on_disk(begin).await?;
        match self.judgement(Some(&trial.spec.name), generation).await {
            Judgement::Refused { node, reason } => {
                let generation = self.on_disk(Self::withdraw).await?;
                // Who reads of the refusal finds everything as before.
                self.judgement(None, generation).await;
                Err(FabricError::PluginRefused { node, reason })
            }
            Judgement::Agreed | Judgement::Open => {
                self.on_disk(move |fabric| fabric.keep(&trial)).await?;
                Ok(generation)
            }
        }
    }

    /// Publishes what is on trial.
    fn begin(&self) -> Result<Generation, FabricError> {
        let mut state = self.state();
        if let Err(error) = self.publish(&mut state, &Extent::Everything) {
            state.trial = None;
            return Err(error.into());
        }
        Ok(self.history.newest().snapshot.generation)
    }

    /// Publishes what was there before.
    fn withdraw(&self) -> Result<Generation, FabricError> {
        let mut state = self.state();
        state.trial = None;
        self.publish(&mut state, &Extent::Everything)?;
        Ok(self.history.newest().snapshot.generation)
    }

    /// Waits until every node that is there has applied `generation`, or one refuses `plugin`.
    async fn judgement(&self, plugin: Option<&str>, generation: Generation) -> Judgement {
        let until = Instant::now() + JUDGE_TIMEOUT;
        loop {
            let so_far = judge(&self.state(), plugin, generation);
            let open = matches!(so_far, Judgement::Open);
            if !open || timeout_at(until, self.heard.notified()).await.is_err() {
                return so_far;
            }
        }
    }

    /// Runs what blocks on the disk where that hurts nobody.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, FabricError> + Send + 'static,
    ) -> Result<T, FabricError> {
        let fabric = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&fabric)).await;
        done.unwrap_or(Err(FabricError::Broken))
    }
}

fn judge(state: &State, plugin: Option<&str>, generation: Generation) -> Judgement {
    let judged = |node: &Joined| node.applied_generation >= generation.0;
    for (name, node) in state.nodes.iter().filter(|(_, node)| judged(node)) {
        let said = node.plugins.iter().find(|p| Some(p.name.as_str()) == plugin);
        if let Some(status) = said.filter(|p| p.state() == v1::plugin_status::State::Refused) {
            let reason = status.message.replace("; the version before stays", "");
            return Judgement::Refused { node: name.clone(), reason };
        }
    }
    let waiting = state.nodes.values().any(|node| node.streams > 0 && !judged(node));
    if waiting { Judgement::Open } else { Judgement::Agreed }
}
