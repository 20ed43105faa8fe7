//! Questions of operators, down to nodes and back.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_proto::v1::decision::Reason;
use weft_proto::v1::{Decision, EndAnswer, EndAnswers, EndPorts, ExplainRequest, Verdict};

use super::*;

fn address(node: &Node) -> IpAddr {
    let subnet: IpNet = node.subnets[0].parse().unwrap();
    subnet.hosts().nth(6).unwrap()
}

fn pod(name: &str, node: &Node) -> String {
    let address = address(node);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {address}}}\n---\n"
    )
}

/// An agent that says the same of everything.
async fn answer(bench: &Bench, node: &Node, reason: Reason) {
    let (answers, receiver) = mpsc::channel(1);
    let mut client = bench.node(node).await;
    let questions = client.answer(ReceiverStream::new(receiver)).await.unwrap();
    tokio::spawn(async move {
        let mut questions = questions.into_inner();
        while let Ok(Some(asked)) = questions.message().await {
            assert!(asked.generation > 0);
            let said = |ports| EndPorts {
                ports,
                decision: Some(Decision { reason: reason.into(), ..Decision::default() }),
                audited: None,
            };
            let all = asked.questions.iter().map(|q| EndAnswer { ports: vec![said(q.ports)] });
            let (id, answers_to_all) = (asked.id, all.collect());
            let answer = EndAnswers { id, answers: answers_to_all, ..EndAnswers::default() };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    });
}

/// NP-114: both nodes are asked, and of one that is away the other's half is told.
#[tokio::test]
async fn question_reaches_the_nodes_of_both_ends() {
    let bench = Bench::new().await;
    let (a, b) = (bench.join("node-a").await, bench.join("node-b").await);
    let manifests = [pod("client", &a), pod("web", &b)].concat();
    fs::write(bench.manifest("pods.yaml"), manifests).unwrap();
    let mut stream = watch_from(&mut bench.node(&a).await, vec![]).await;
    let (mut snapshot, _) = first(&mut stream).await;
    if snapshot.pods.len() < 2 {
        until(&mut stream, &mut snapshot, |s| s.pods.len() == 2).await;
    }
    answer(&bench, &a, Reason::NotSelected).await;
    let request = ExplainRequest { from: "client".into(), to: "web".into(), port: "80".into() };
    let explain = || async {
        let mut control = bench.control().await;
        let answer = control.explain(request.clone()).await.unwrap().into_inner();
        let [connection] = answer.connections.try_into().unwrap();
        let [ports] = connection.ports.try_into().unwrap();
        ports
    };
    let half = explain().await;
    assert_eq!(half.verdict(), Verdict::Unspecified);
    let (egress, ingress) = (half.egress.unwrap(), half.ingress.unwrap());
    assert_eq!((egress.node.as_str(), egress.verdict()), ("node-a", Verdict::Allowed));
    assert_eq!((ingress.node.as_str(), ingress.unknown.as_str()), ("node-b", "its agent is away"));
    answer(&bench, &b, Reason::Isolated).await;
    let whole = explain().await;
    assert_eq!(whole.verdict(), Verdict::Denied);
    assert_eq!(whole.ingress.unwrap().verdict(), Verdict::Denied);
}

#[tokio::test]
async fn question_that_is_not_understood_says_why_and_operators_only_may_ask() {
    let bench = Bench::new().await;
    let a = bench.join("node-a").await;
    let ask = |from: &str, port: &str| ExplainRequest {
        from: from.into(),
        to: "192.0.2.1".into(),
        port: port.into(),
    };
    let mut control = bench.control().await;
    let absent = control.explain(ask("nobody", "80")).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let wrong = control.explain(ask("192.0.2.2", "-1")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(operator_text(&wrong).contains("is no port"), "{wrong:?}");
    let ca = bench.token.ca_pem();
    let channel = connect_hub(&bench.address(), &ca, Some(&a.identity)).await.unwrap();
    let node = ControlClient::new(channel).explain(ask("192.0.2.2", "80")).await.unwrap_err();
    assert_eq!(node.code(), Code::PermissionDenied);
    // And nodes only may answer.
    let (_answers, receiver) = mpsc::channel(1);
    let stranger = bench.anyone().await.answer(ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!(stranger.code(), Code::Unauthenticated);
}
