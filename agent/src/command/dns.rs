//! `weft dns`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use weft_explain::words::decision_text;
use weft_proto::v1::{NameStep, QueryNameRequest, QueryNameResponse};

use super::control::{HubArguments, refused};
use crate::output::print;

/// Status if policies deny the query.
const DENIED: u8 = 3;
/// Status if nothing is found.
const NOTHING: u8 = 4;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Shows what somebody who asks for a name gets, and from whom. Status 0: something is found; 3:
    /// policies deny the query; 4: nothing is found.
    Query(Query),
}

#[derive(Args)]
pub(crate) struct Query {
    /// With a dot at its end it is asked for as it is, else by way of the search list of a pod.
    name: String,
    /// Type of records: A, AAAA, SRV, PTR and others.
    #[arg(long = "type", short = 't', default_value = "A")]
    kind: String,
    /// Who asks: a pod (`NAMESPACE/NAME`, or `NAME` in namespace default) or a node; the first node unless
    /// set.
    #[arg(long, default_value = "", hide_default_value = true)]
    from: String,
    #[command(flatten)]
    hub: HubArguments,
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Query(Query { name, kind, from, hub }) = self;
        let request = QueryNameRequest { name, r#type: kind.clone(), from };
        let mut client = hub.client().await?;
        let answer = client.query_name(request).await.map_err(refused)?.into_inner();
        print(&text(&answer, &kind.to_ascii_uppercase()))?;
        Ok(status(&answer))
    }
}

fn text(answer: &QueryNameResponse, kind: &str) -> String {
    let mut text = format!("asked by {} on {}\n", answer.from, answer.node);
    if let Some(decision) = &answer.policy {
        let _ = writeln!(text, "policy: {}", decision_text(decision, "egress"));
    }
    for step in &answer.steps {
        let _ = writeln!(text, "{} {kind}: {}, {}", step.name, outcome(step), source(step));
        for record in &step.records {
            let _ = writeln!(text, "  {record}");
        }
    }
    for note in &answer.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn outcome(step: &NameStep) -> &str {
    match (step.code.as_str(), step.found) {
        ("NOERROR", false) => "NOERROR without data",
        (code, _) => code,
    }
}

fn source(step: &NameStep) -> String {
    match step.servers.as_slice() {
        [] => "from the node".to_owned(),
        servers => format!("from {} or what is kept of it", servers.join(", ")),
    }
}

fn status(answer: &QueryNameResponse) -> ExitCode {
    if answer.policy.as_ref().is_some_and(|decision| decision.denies) {
        ExitCode::from(DENIED)
    } else if answer.steps.iter().any(|step| step.found) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOTHING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_query_is_a_line_and_its_records_are_below() {
        let step = |name: &str, code: &str, servers: &[&str], records: &[&str]| NameStep {
            name: name.into(),
            code: code.into(),
            servers: servers.iter().map(|s| (*s).into()).collect(),
            records: records.iter().map(|r| (*r).into()).collect(),
            found: !records.is_empty(),
        };
        let answer = QueryNameResponse {
            from: "pod default/a1".into(),
            node: "node-1".into(),
            steps: vec![
                step("x.example.default.svc.cluster.local.", "NXDOMAIN", &[], &[]),
                step("x.example.", "NOERROR", &["192.0.2.53:53"], &["x.example. 5 A 192.0.2.7"]),
            ],
            ..QueryNameResponse::default()
        };
        let expected = "asked by pod default/a1 on node-1\nx.example.default.svc.cluster.local. A: NXDOMAIN, from the node\nx.example. A: NOERROR, from 192.0.2.53:53 or what is kept of it\n  x.example. 5 A 192.0.2.7\n";
        assert_eq!(text(&answer, "A"), expected);
    }
}
