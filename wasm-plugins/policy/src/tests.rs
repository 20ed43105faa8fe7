//! The plugin, run natively. Rules are those of the checklist of policies, `NP-nnn`.

mod always;
mod blocks;
mod compile;
mod explain;
mod isolation;
mod model;
mod names;
mod node;
mod pipeline;
mod ports;
mod refuse;
mod replace;
mod tiers;
mod watch;
