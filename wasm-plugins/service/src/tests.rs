//! The plugin, run natively. Rules are those of the checklist of Services, `SVC-nnn`.

mod any;
mod balance;
mod known;
mod model;
mod node;
mod reach;
mod refuse;
mod replace;
