//! `weft drops`.

use std::path::PathBuf;

use clap::Args;
use weft_control::connect_unix;
use weft_explain::words::protocol_name;
use weft_proto::v1::agent_client::AgentClient;
use weft_proto::v1::{DroppedConnection, ListDropsRequest};

use super::control::{refused, whole};
use crate::output::{print, row, table};

/// Shows the connections that plugins, network policies among them, dropped on this node of late, and
/// those that passed where a policy in audit mode would have dropped them: the latest first.
///
/// What is dropped is counted by packets, what passed by flows: a connection is one, however long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The agent's run directory.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let socket = self.run_dir.join(weft_control::socket::AGENT);
        let channel = connect_unix(socket).await.map_err(whole)?;
        let answer = AgentClient::new(channel).list_drops(ListDropsRequest {}).await;
        let drops = answer.map_err(refused)?.into_inner().drops;
        if drops.is_empty() {
            return print("no connection was dropped by a plugin\n");
        }
        print(&text(&drops))
    }
}

fn text(drops: &[DroppedConnection]) -> String {
    let mut rows = vec![row(["LAST", "FROM", "TO", "PORT", "WAY", "VERDICT", "COUNT", "BY"])];
    for drop in drops {
        let to = end(&drop.to_name, &drop.to);
        let through = match drop.sent_to.as_str() {
            "" => String::new(),
            sent_to => format!(" through {sent_to}"),
        };
        rows.push(row([
            &format!("{} s ago", drop.last_ms / 1000),
            &end(&drop.from_name, &drop.from),
            &format!("{to}{through}"),
            &port(drop),
            if drop.ingress { "ingress" } else { "egress" },
            if drop.passed { "audit" } else { "dropped" },
            &format!("{} {}", drop.count, if drop.passed { "flows" } else { "packets" }),
            &drop.why,
        ]));
    }
    table(&rows)
}

fn end(name: &str, address: &str) -> String {
    if name.is_empty() { address.to_owned() } else { format!("{name} ({address})") }
}

fn port(drop: &DroppedConnection) -> String {
    let protocol = protocol_name(drop.protocol);
    if drop.port == 0 { protocol } else { format!("{}/{protocol}", drop.port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NP-113: source, destination, port, direction, and who decided.
    #[test]
    fn dropped_connection_is_a_line_that_names_both_ends_and_the_policy() {
        let drop = DroppedConnection {
            why: "NetworkPolicy default/web, ingress: no rule allows it".into(),
            ingress: true,
            from: "10.0.0.1".into(),
            from_name: "default/client".into(),
            to: "10.0.1.1".into(),
            to_name: "default/web".into(),
            sent_to: "10.96.0.10:80".into(),
            protocol: 6,
            port: 8080,
            count: 3,
            last_ms: 2_500,
            ..DroppedConnection::default()
        };
        let outside = DroppedConnection {
            from_name: String::new(),
            sent_to: String::new(),
            protocol: 58,
            port: 0,
            ingress: false,
            passed: true,
            ..drop.clone()
        };
        let text = text(&[drop, outside]);
        let lines: Vec<_> = text.lines().map(|l| l.split("  ").filter(|c| !c.is_empty())).collect();
        let cells = |n: usize| -> Vec<_> { lines[n].clone().map(str::trim).collect() };
        let why = "NetworkPolicy default/web, ingress: no rule allows it";
        let to = "default/web (10.0.1.1)";
        let (client, through) =
            ("default/client (10.0.0.1)", format!("{to} through 10.96.0.10:80"));
        let dropped =
            ["2 s ago", client, &through, "8080/TCP", "ingress", "dropped", "3 packets", why];
        assert_eq!(cells(1), dropped);
        let passed = ["2 s ago", "10.0.0.1", to, "ICMP", "egress", "audit", "3 flows", why];
        assert_eq!(cells(2), passed);
    }
}
