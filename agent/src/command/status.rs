//! `weft status`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use weft_control::connect_unix;
use weft_proto::v1::agent_client::AgentClient;
use weft_proto::v1::{
    AgentStatus, AgentStatusRequest, DatapathStatus, Encapsulation, FabricStatus, GetStatusRequest,
    Traffic,
};

use super::control::{HubArguments, refused, whole};
use crate::output::{print, row, table};

/// Shows the fabric as the hub sees it, or this node as its agent does.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Show this node, from its agent, instead of the fabric.
    #[arg(long)]
    node: bool,
    /// The agent's run directory.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    #[command(flatten)]
    hub: HubArguments,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.node {
            let channel = connect_unix(self.run_dir.join(weft_control::socket::AGENT))
                .await
                .map_err(whole)?;
            let answer = AgentClient::new(channel).get_status(AgentStatusRequest {}).await;
            return print(&node_text(&answer.map_err(refused)?.into_inner()));
        }
        let mut client = self.hub.client().await?;
        let status = client.get_status(GetStatusRequest {}).await.map_err(refused)?.into_inner();
        print(&fabric_text(&status))
    }
}

fn encapsulation(value: i32) -> &'static str {
    match Encapsulation::try_from(value) {
        Ok(Encapsulation::Wireguard) => "wireguard",
        Ok(Encapsulation::Vxlan) => "vxlan",
        Ok(Encapsulation::Unspecified) | Err(_) => "unknown",
    }
}

fn fabric_text(status: &FabricStatus) -> String {
    let cluster = status.cluster.clone().unwrap_or_default();
    let mut text = format!(
        "generation {}, {} over UDP {}, pods in {}, {} pods\n",
        status.generation,
        encapsulation(cluster.encapsulation),
        cluster.port,
        cluster.pod_cidrs.join(" and "),
        status.pods
    );
    if let (Some(dns), false) = (&cluster.dns, status.name_servers.is_empty()) {
        let servers = status.name_servers.join(" and ");
        text.push_str(&format!("names of {} at {servers}\n", dns.zones.join(" and ")));
    }
    let mut rows =
        vec![row(["NODE", "STATE", "ENDPOINT", "SUBNETS", "PODS", "GENERATION", "LAST REPORT"])];
    for node in &status.nodes {
        let state = match (node.static_peer, node.connected) {
            (true, _) => "static peer",
            (false, true) => "connected",
            (false, false) => "away",
        };
        let known = node.node.clone().unwrap_or_default();
        rows.push(vec![
            known.name,
            state.to_owned(),
            if known.endpoint.is_empty() { "-".to_owned() } else { known.endpoint },
            known.subnets.join(","),
            node.pods.to_string(),
            if node.static_peer { "-".to_owned() } else { node.applied_generation.to_string() },
            if node.connected { "-".to_owned() } else { ago(node.last_report_unix) },
        ]);
    }
    text.push_str(&table(&rows));
    for problem in &status.problems {
        let line = if problem.line == 0 { String::new() } else { format!(":{}", problem.line) };
        text.push_str(&format!("problem: {}{line}: {}\n", problem.file, problem.reason));
    }
    text
}

fn ago(unix: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match u64::try_from(unix) {
        Ok(then) if then > 0 => format!("{} s ago", now.saturating_sub(then)),
        _ => "-".to_owned(),
    }
}

fn node_text(status: &AgentStatus) -> String {
    let node = status.node.clone().unwrap_or_default();
    let connected = |on: bool| if on { "connected" } else { "away" };
    let mut text = format!(
        "{}: hub {}, datapath {}, generation {}, subnets {}\n",
        node.name,
        connected(status.hub_connected),
        connected(status.datapath_connected),
        status.generation,
        node.subnets.join(" and ")
    );
    if let Some(datapath) = &status.datapath {
        text.push_str(&datapath_text(datapath));
    }
    text.push_str(&format!(
        "dropped at pods' ports (spoofed source): {}\n",
        status.spoofed_at_ports
    ));
    text.push_str(match status.direct_delivery {
        true => "delivered to pods directly\n",
        false => "delivered to pods through the host's routing\n",
    });
    for drops in &status.policy_drops {
        text.push_str(&format!("dropped by {}: {}\n", drops.why, drops.packets));
    }
    for watch in &status.policy_watches {
        let (why, flows) = (&watch.why, watch.flows);
        text.push_str(&format!("audit, would be dropped by {why}: {flows} flows\n"));
    }
    let mut rows = vec![row(["POD", "ADDRESSES", "ATTACHMENT"])];
    for pod in &status.pods {
        let name = pod.name.clone().unwrap_or_default();
        let name = format!("{}/{}", name.namespace, name.name);
        rows.push(vec![name, pod.addresses.join(","), pod.attachment.clone()]);
    }
    text.push_str(&table(&rows));
    for problem in &status.problems {
        text.push_str(&format!("problem: {problem}\n"));
    }
    text
}

fn datapath_text(status: &DatapathStatus) -> String {
    let traffic = |t: &Option<Traffic>| {
        let t = t.unwrap_or_default();
        format!("{} packets, {} bytes", t.packets, t.bytes)
    };
    let offloads =
        status.offloads.iter().map(|o| format!("{} {}", o.name, if o.on { "on" } else { "off" }));
    let mut text = format!(
        "{} workers, {} of {} flows ({} evicted), {}\n",
        status.workers,
        status.flows,
        status.flows_max,
        status.flows_evicted,
        offloads.collect::<Vec<_>>().join(", ")
    );
    for (name, t) in [
        ("from interface", &status.tun_in),
        ("to interface", &status.tun_out),
        ("from mesh", &status.mesh_in),
        ("to mesh", &status.mesh_out),
    ] {
        text.push_str(&format!("{name}: {}\n", traffic(t)));
    }
    for drops in &status.drops {
        text.push_str(&format!("dropped, {}: {}\n", drops.reason, drops.packets));
    }
    let mut rows = vec![row(["PEER", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT"])];
    for peer in &status.peers {
        let handshake =
            peer.last_handshake_ms.map_or("-".to_owned(), |ms| format!("{} s ago", ms / 1000));
        let endpoint =
            if peer.endpoint.is_empty() { "-".to_owned() } else { peer.endpoint.clone() };
        rows.push(vec![
            peer.name.clone(),
            endpoint,
            handshake,
            traffic(&peer.received),
            traffic(&peer.sent),
        ]);
    }
    text.push_str(&table(&rows));
    text
}
