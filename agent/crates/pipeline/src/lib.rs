mod plugin;

pub use plugin::{Interest, Outcome, Plugin, PluginFault, Verdict};
