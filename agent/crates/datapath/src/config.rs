//! What the datapath is started with, and whether this machine lets it run.

use std::path::PathBuf;

use weft_netio::{Offloads, UdpOffloads};

/// Flows in the table unless told otherwise; each takes about 500 bytes, and 512 in the file.
pub const FLOWS_DEFAULT: usize = 131_072;
/// Workers at most: queues that a TUN device can have.
const WORKERS_MAX: usize = 256;

/// How to run the datapath of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathConfig {
    /// Directory of socket, tables, modules and flows; on a file system that a reboot empties.
    pub run_dir: PathBuf,
    /// Directory of modules' native code, which others may use too; `None`: in the run directory.
    pub code_dir: Option<PathBuf>,
    /// Worker threads; `None`: one for each CPU.
    pub workers: Option<usize>,
    /// Flows that the flow table holds at most.
    pub flows_max: usize,
    /// What may be left to the kernel on the TUN device.
    pub tun_offloads: Offloads,
    /// Workers keep to the CPU that pods send on while there is little to do.
    pub tun_cpu: bool,
    /// What may be left to the kernel on the UDP sockets.
    pub udp_offloads: UdpOffloads,
    /// WireGuard's data messages are sealed and opened with AVX-512, where the processor has it.
    pub avx512: bool,
}

impl DatapathConfig {
    /// Everything on, in `run_dir`.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            code_dir: None,
            workers: None,
            flows_max: FLOWS_DEFAULT,
            tun_offloads: Offloads::ALL,
            tun_cpu: true,
            udp_offloads: UdpOffloads::ALL,
            avx512: true,
        }
    }

    /// Workers to start: at least one, at most as many as a TUN device has queues.
    pub(crate) fn worker_count(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(cpus).clamp(1, WORKERS_MAX)
    }
}

/// Why the datapath cannot run here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("/dev/net/tun is missing: load the module `tun`, or give the container this device")]
    NoTun,
    #[error("the datapath needs CAP_NET_ADMIN: run it as root or with this capability")]
    NoPrivilege,
}

/// Looks for what would only show at the first tables otherwise.
pub(crate) fn check_machine() -> Result<(), Unfit> {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Err(Unfit::NoTun);
    }
    if weft_netio::may_change_network() { Ok(()) } else { Err(Unfit::NoPrivilege) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_at_least_one_and_at_most_the_queues_of_a_device() {
        let with = |workers| DatapathConfig { workers, ..DatapathConfig::new("/x") }.worker_count();
        assert_eq!(with(Some(0)), 1);
        assert_eq!(with(Some(4)), 4);
        assert_eq!(with(Some(1000)), 256);
        assert!(with(None) >= 1);
    }
}
