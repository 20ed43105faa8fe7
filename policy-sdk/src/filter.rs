//! What a plugin implements.

use weft_abi::Manifest;

use crate::{Config, Flow, Host, Packet, Verdict};

/// A packet filter.
///
/// `Default` is the plugin with no configuration yet; it is not asked about packets before it took
/// one.
pub trait Filter: Default {
    /// Takes a configuration.
    ///
    /// For [`Config::Full`] it is called on a fresh value, which takes the place of the one in
    /// force if the configuration is accepted: there is nothing to clean up. For
    /// [`Config::Delta`] it is called on the one in force, and must change nothing if it refuses.
    ///
    /// Unless overridden, an empty configuration is accepted and every other refused.
    ///
    /// # Errors
    /// A line for the operator that names the part that is wrong. The configuration in force stays.
    fn configure(&mut self, config: Config<'_>) -> Result<(), String> {
        match config {
            Config::Full(bytes) if bytes.trim_ascii().is_empty() => Ok(()),
            Config::Full(_) | Config::Delta(_) => {
                Err("this plugin takes no configuration".to_owned())
            }
        }
    }

    /// Looks at one packet.
    fn on_packet(&mut self, packet: &Packet, flow: &mut Flow, host: &Host) -> Verdict;
}

/// A filter with its manifest; implemented by [`export_plugin!`](crate::export_plugin).
pub trait Export: Filter {
    /// What the module says of itself.
    const MANIFEST: Manifest<'static>;
}
