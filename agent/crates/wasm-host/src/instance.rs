//! A plugin on one worker: calls it, counts, remakes it after a fault, takes it out.

use std::net::Ipv6Addr;
use std::sync::Arc;

use weft_abi::{CONFIGURE_DELTA, CONFIGURE_FULL, Descriptor};
use weft_pipeline::{Interest, Outcome, Plugin, PluginFault, Verdict};

use crate::error::{ConfigureError, LoadError};
use crate::live::{CallError, Decision, Live};
use crate::module::Module;
use crate::settings::Settings;
use crate::shared::{InstanceCounters, SharedState};
use crate::standing::{Consequence, Standing};
use crate::{CONFIG_BYTES_MAX, clock};

/// How a configuration relates to the one in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigureKind {
    /// Replaces it.
    Full,
    /// Changes it.
    Delta,
}

/// One instance of a plugin, owned by one worker.
pub struct PluginInstance {
    module: Arc<Module>,
    shared: Arc<SharedState>,
    standing: Arc<Standing>,
    counters: Arc<InstanceCounters>,
    settings: Settings,
    interest: Interest,
    /// What was accepted since the last full configuration; handed over again to a remade instance.
    deltas: Vec<Vec<u8>>,
    ticks: u64,
    /// `None` only while it is remade, or if that failed; it is taken out then.
    live: Option<Live>,
}

impl PluginInstance {
    /// Makes an instance and hands it its configuration. Takes microseconds and what the plugin
    /// needs to read its configuration, 100 ms at most: not for the data path.
    ///
    /// # Errors
    /// [`LoadError`] if a setting is out of range, the instance does not come to life, or the
    /// plugin refuses its configuration.
    pub fn new(
        module: &Arc<Module>,
        settings: Settings,
        shared: Arc<SharedState>,
    ) -> Result<Self, LoadError> {
        settings.check()?;
        shared.map().set_capacity(module.info().map_entries);
        let mut live = Live::new(module, Arc::clone(&shared), settings.memory_max)?;
        live.configure(&settings.config, CONFIGURE_FULL)?;
        Ok(Self {
            module: Arc::clone(module),
            standing: shared.standing(settings.revision),
            counters: shared.register(),
            interest: settings.interest(module.info()),
            ticks: clock::ticks(settings.deadline),
            deltas: Vec::new(),
            live: Some(live),
            settings,
            shared,
        })
    }

    /// The settings it runs with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The module it runs.
    #[must_use]
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// What it shares with its kin on other workers.
    #[must_use]
    pub fn shared(&self) -> &Arc<SharedState> {
        &self.shared
    }

    /// Changes the configuration of the live instance. [`Interest::revision`] becomes `revision`
    /// if the plugin accepts it; else everything stays as it is.
    ///
    /// # Errors
    /// [`ConfigureError`] says why the configuration in force stays.
    pub fn configure(
        &mut self,
        kind: ConfigureKind,
        config: &[u8],
        revision: u64,
    ) -> Result<(), ConfigureError> {
        let kept = match kind {
            ConfigureKind::Full => 0,
            ConfigureKind::Delta => {
                self.settings.config.len() + self.deltas.iter().map(Vec::len).sum::<usize>()
            }
        };
        let size = config.len().saturating_add(kept);
        if size > CONFIG_BYTES_MAX {
            return Err(ConfigureError::TooLarge { size, max: CONFIG_BYTES_MAX });
        }
        let live = self.live.as_mut().ok_or(ConfigureError::TakenOut)?;
        let code = match kind {
            ConfigureKind::Full => CONFIGURE_FULL,
            ConfigureKind::Delta => CONFIGURE_DELTA,
        };
        if let Err(error) = live.configure(config, code) {
            if matches!(error, ConfigureError::Trap(_) | ConfigureError::Deadline) {
                self.remake();
            }
            return Err(error);
        }
        match kind {
            ConfigureKind::Full => {
                self.settings.config = config.to_vec();
                self.deltas.clear();
            }
            ConfigureKind::Delta => self.deltas.push(config.to_vec()),
        }
        self.settings.revision = revision;
        self.interest.revision = revision;
        self.standing = self.shared.standing(revision);
        Ok(())
    }

    #[cold]
    fn fault(&mut self, error: CallError, told: &Descriptor) -> PluginFault {
        let (fault, text) = match error {
            CallError::Trap(error) => (PluginFault::Trap, error.to_string()),
            CallError::Nonsense(what) => (PluginFault::Trap, what.to_owned()),
            CallError::Deadline => (
                PluginFault::Deadline,
                format!("passed its deadline of {:?}", self.settings.deadline),
            ),
        };
        self.counters.note_fault(fault);
        let plugin = self.interest.name.as_str();
        tracing::debug!(plugin, fault = text, "plugin faulted");
        match self.standing.note_fault(text, told) {
            Consequence::None => {}
            Consequence::CutOff => tracing::warn!(
                plugin,
                source = %Ipv6Addr::from(told.source).to_canonical(),
                destination = %Ipv6Addr::from(told.destination).to_canonical(),
                "plugin not asked for a minute about what it faults on again and again"
            ),
            Consequence::TakenOut => {
                tracing::warn!(plugin, "plugin taken out after too many faults; replace it");
            }
        }
        self.remake();
        fault
    }

    /// Makes the instance anew with the configuration in force. If that fails, which it did not
    /// before, the plugin is taken out: the data path cannot wait for it again and again.
    fn remake(&mut self) {
        // Its slot in the pool is free for the new one.
        self.live = None;
        if self.standing.is_taken_out() {
            return;
        }
        match self.make() {
            Ok(live) => self.live = Some(live),
            Err(error) => {
                let text = format!("cannot be made anew after a fault: {error}");
                tracing::warn!(plugin = self.interest.name, "plugin taken out: {text}");
                self.standing.take_out(text);
            }
        }
    }

    fn make(&self) -> Result<Live, LoadError> {
        let shared = Arc::clone(&self.shared);
        let mut live = Live::new(&self.module, shared, self.settings.memory_max)?;
        live.configure(&self.settings.config, CONFIGURE_FULL)?;
        self.deltas.iter().try_for_each(|delta| live.configure(delta, CONFIGURE_DELTA))?;
        Ok(live)
    }
}

impl Plugin for PluginInstance {
    fn interest(&self) -> &Interest {
        &self.interest
    }

    #[inline]
    fn on_packet(
        &mut self,
        descriptor: &Descriptor,
        packet: &[u8],
    ) -> Result<Outcome<'_>, PluginFault> {
        if !self.standing.may_be_asked(descriptor) {
            return Err(PluginFault::TakenOut);
        }
        let Some(live) = &mut self.live else { return Err(PluginFault::TakenOut) };
        self.counters.note_call();
        let decided = match live.on_packet(descriptor, packet, self.ticks) {
            Ok(decided) => decided,
            Err(error) => return Err(self.fault(error, descriptor)),
        };
        let Some(live) = &self.live else { return Err(PluginFault::TakenOut) };
        let verdict = match decided.decision {
            Decision::Continue => Verdict::Continue,
            Decision::Accept => Verdict::Accept,
            Decision::Drop(reason) => {
                self.counters.note_drop(reason);
                Verdict::Drop(reason)
            }
            Decision::Reject(reason) => {
                self.counters.note_drop(reason);
                Verdict::Reject(reason)
            }
            Decision::Rewrite => Verdict::Rewrite(&live.answer().rewrite),
            Decision::Reply(len, number) => {
                self.counters.note_reply(number);
                Verdict::Reply(live.reply(len))
            }
            Decision::WouldDrop(reason) => {
                self.counters.note_would_drop(reason);
                Verdict::WouldDrop(reason)
            }
        };
        let slot = if decided.answered { live.answer().slot.as_ref() } else { None };
        Ok(Outcome { verdict, slot, again: decided.again })
    }
}

impl Drop for PluginInstance {
    fn drop(&mut self) {
        self.shared.retire(&self.counters);
    }
}

impl std::fmt::Debug for PluginInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginInstance").field("interest", &self.interest).finish_non_exhaustive()
    }
}
