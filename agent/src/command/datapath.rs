//! `weft datapath`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use weft_datapath::DatapathConfig;

/// Runs a node's datapath: the interface, the mesh, the plugins. Gets its tables from the agent,
/// and starts from the last ones without it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Sockets, last tables, flow table; emptied by a reboot.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    /// Native code of plugins' modules, in the run directory unless set: where a reboot leaves it, plugins
    /// need not be compiled again after one. Only this user may be able to write to it.
    #[arg(long, env = "WEFT_CODE_DIR")]
    code_dir: Option<PathBuf>,
    /// Worker threads; one for each CPU unless set.
    #[arg(long, env = "WEFT_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Flows kept at most, 1024 to 4194304; beyond, those idle longest make room. Each takes about
    /// 400 bytes of the run directory, which is memory on most machines.
    #[arg(long, env = "WEFT_FLOWS_MAX", default_value_t = weft_datapath::FLOWS_DEFAULT as u32,
          value_parser = clap::value_parser!(u32).range(1024..=1 << 22))]
    flows_max: u32,
    /// Offloads to leave unused, for a kernel or card on which one does not work; `weft status
    /// --node` shows those in use. Packets are the same without, and cost more.
    #[arg(long, env = "WEFT_NO_OFFLOAD", value_delimiter = ',')]
    no_offload: Vec<Offload>,
}

/// What kernel and processor can do for many packets or bytes at once.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Offload {
    /// TCP super-packets from and to pods.
    TunTso,
    /// UDP super-packets from and to pods.
    TunUso,
    /// Partial checksums from and to pods; without them there are no super-packets either.
    TunChecksum,
    /// While there is little to do, working on the CPU that a packet was sent on; needs `CAP_BPF`.
    TunCpu,
    /// Many datagrams of the mesh in one send.
    UdpGso,
    /// Many datagrams of the mesh in one receive.
    UdpGro,
    /// ChaCha20-Poly1305 with AVX-512 instead of AVX2.
    WgAvx512,
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let on = |offload| !self.no_offload.contains(&offload);
        let mut config = DatapathConfig::new(&self.run_dir);
        config.code_dir = self.code_dir;
        config.workers = self.workers.map(usize::from);
        config.flows_max = self.flows_max as usize;
        config.tun_offloads.checksum = on(Offload::TunChecksum);
        // A super-packet has a partial checksum.
        config.tun_offloads.tso = on(Offload::TunTso) && on(Offload::TunChecksum);
        config.tun_offloads.uso = on(Offload::TunUso) && on(Offload::TunChecksum);
        config.tun_cpu = on(Offload::TunCpu);
        config.udp_offloads.gso = on(Offload::UdpGso);
        config.udp_offloads.gro = on(Offload::UdpGro);
        config.avx512 = on(Offload::WgAvx512);
        weft_datapath::run(config)
    }
}
