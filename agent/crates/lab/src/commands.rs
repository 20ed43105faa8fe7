//! Command lines of the processes of a lab.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::fabric::{Cluster, State};
use crate::layout::Layout;

/// Port of a lab's hub.
pub const HUB_PORT: u16 = 7443;

/// One process to look after.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Name of its pid and log file.
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) arguments: Vec<String>,
    /// Files without which it is not started, as the kubelet waits for what a pod mounts.
    pub(crate) mounts: Vec<PathBuf>,
}

/// The running `weft` binary, of which every process is a role.
pub(crate) fn weft_binary() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the path of this program")
}

/// `weft-cni` stands beside `weft`.
pub(crate) fn cni_binary() -> Result<PathBuf> {
    let path = weft_binary()?.with_file_name("weft-cni");
    anyhow::ensure!(path.is_file(), "{} is missing: build it with ./dev setup", path.display());
    Ok(path)
}

/// Has the future hub's state directory tell the join token.
pub(crate) fn write_token(layout: &Layout, state: &State) -> Result<()> {
    let binary = state.options.binary.clone().map_or_else(weft_binary, Ok)?;
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(layout.token_file())?;
    let status = Command::new(&binary)
        .args(["token", "show", "--state-dir"])
        .arg(layout.hub_state())
        .stdout(file)
        .status()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    anyhow::ensure!(status.success(), "`weft token show` failed");
    Ok(())
}

/// Every process, in the order to start them.
pub(crate) fn processes(layout: &Layout, state: &State) -> Result<Vec<Process>> {
    let mut all = vec![hub(layout, state)];
    for node in &state.nodes {
        all.push(datapath(layout, state, &node.name));
        all.push(agent(layout, state, &node.name)?);
    }
    Ok(all)
}

fn hub(layout: &Layout, state: &State) -> Process {
    let mut arguments = vec![
        "hub".to_owned(),
        match &state.options.cluster {
            Some(cluster) => format!("--kubeconfig={}", cluster.kubeconfig.display()),
            None => format!("--manifests={}", layout.manifests().display()),
        },
        format!("--state-dir={}", layout.hub_state().display()),
        format!("--run-dir={}", layout.hub_run().display()),
        format!("--listen=[::]:{HUB_PORT}"),
        format!("--encapsulation={}", state.options.encapsulation_flag()),
    ];
    arguments.extend(state.options.pod_cidrs.iter().map(|c| format!("--pod-cidr={c}")));
    arguments.extend(state.options.hub_arguments.clone());
    let (namespace, mounts) = (layout.hub_namespace(), Vec::new());
    Process { name: "hub".into(), namespace, arguments, mounts }
}

fn datapath(layout: &Layout, state: &State, node: &str) -> Process {
    let paths = layout.node(node);
    let mut arguments = vec!["datapath".to_owned(), format!("--run-dir={}", paths.run().display())];
    arguments.extend(state.options.datapath_arguments.clone());
    arguments.extend(state.options.datapath_arguments_of.get(node).cloned().unwrap_or_default());
    let (name, mounts) = (format!("{node}-datapath"), Vec::new());
    Process { name, namespace: paths.namespace, arguments, mounts }
}

fn agent(layout: &Layout, state: &State, node: &str) -> Result<Process> {
    let paths = layout.node(node);
    let mut arguments = vec![
        "agent".to_owned(),
        format!("--node-name={node}"),
        format!("--state-dir={}", paths.state().display()),
        format!("--run-dir={}", paths.run().display()),
        format!("--cni-conf-dir={}", paths.cni_conf().display()),
        format!("--cni-bin-dir={}", paths.cni_bin().display()),
        format!("--cni-binary={}", cni_binary()?.display()),
        format!("--delegate={}", state.options.delegate),
    ];
    let mut mounts = Vec::new();
    match &state.options.cluster {
        Some(Cluster { mounted, .. }) => {
            let files = [("hub-file", "address"), ("hub-ca", "ca.crt")];
            for (flag, file) in files.into_iter().chain([("service-account-token", node)]) {
                let path = mounted.join(file);
                arguments.push(format!("--{flag}={}", path.display()));
                mounts.push(path);
            }
        }
        None => {
            arguments.push(format!("--hub={}", SocketAddr::new(state.hub_address, HUB_PORT)));
            arguments.push(format!("--token-file={}", layout.token_file().display()));
        }
    }
    arguments.extend(state.options.agent_arguments.clone());
    let name = format!("{node}-agent");
    Ok(Process { name, namespace: paths.namespace, arguments, mounts })
}
