//! The plugin, run natively. Rules are those of the checklist of policies, `NP-nnn`.
