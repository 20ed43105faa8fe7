//! How to run a module.

use std::time::Duration;

use weft_model::{HookPosition, OnFault, PluginSpec};
use weft_pipeline::Interest;

use crate::error::LoadError;
use crate::module::ModuleInfo;
use crate::{CONFIG_BYTES_MAX, MEMORY_BYTES_DEFAULT, MEMORY_BYTES_MAX, PACKET_DEADLINE};

/// How to run a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name in the fabric.
    pub name: String,
    /// Handed to the plugin as it is; an empty one as well.
    pub config: Vec<u8>,
    /// Order among plugins of one position: lower first.
    pub priority: i32,
    /// Overrides what the manifest declares.
    pub position: Option<HookPosition>,
    /// Overrides what the manifest declares.
    pub on_fault: Option<OnFault>,
    /// Deadline of a packet call: 100 us to 1 s, see [`PACKET_DEADLINE`].
    pub deadline: Duration,
    /// Memory at most in bytes: one page (65 536) to [`MEMORY_BYTES_MAX`].
    pub memory_max: usize,
    /// Must rise with every change of module or settings: flows are asked about again, and a
    /// plugin that was taken out is given another chance.
    pub revision: u64,
}

impl Settings {
    /// Everything as the manifest says, no configuration, revision 1.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            config: Vec::new(),
            priority: 0,
            position: None,
            on_fault: None,
            deadline: PACKET_DEADLINE,
            memory_max: MEMORY_BYTES_DEFAULT,
            revision: 1,
        }
    }

    /// As the snapshot says.
    #[must_use]
    pub fn from_spec(spec: &PluginSpec, revision: u64) -> Self {
        Self {
            config: spec.config.clone(),
            priority: spec.priority,
            position: spec.position,
            on_fault: spec.on_fault,
            deadline: spec
                .deadline_us
                .map_or(PACKET_DEADLINE, |us| Duration::from_micros(u64::from(us))),
            revision,
            ..Self::new(spec.name.clone())
        }
    }

    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let deadlines = Duration::from_micros(100)..=Duration::from_secs(1);
        let checks = [
            ("deadline", deadlines.contains(&self.deadline)),
            ("memory_max", (65_536..=MEMORY_BYTES_MAX).contains(&self.memory_max)),
            ("config", self.config.len() <= CONFIG_BYTES_MAX),
        ];
        match checks.iter().find(|(_, ok)| !ok) {
            Some((setting, _)) => Err(LoadError::Setting(setting)),
            None => Ok(()),
        }
    }

    pub(crate) fn interest(&self, info: &ModuleInfo) -> Interest {
        Interest {
            name: self.name.clone(),
            position: self.position.unwrap_or(info.position),
            priority: self.priority,
            protocols: info.protocols,
            mode: info.mode,
            on_fault: self.on_fault.unwrap_or(info.on_fault),
            revision: self.revision,
        }
    }
}
