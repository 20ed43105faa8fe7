//! The CNI server with a datapath that listens on a real socket.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use weft_control::KeptSocket;
use weft_model::cni::{Attachment, Request, Response, SOCKET, Wiring};

pub(crate) use super::records::tests::record;
use super::*;
use crate::core::Core;
use crate::datapath::tests::FakeDatapath;
use crate::hub::HubLink;
use crate::modules::Modules;

/// Interfaces that are there, and those that have a redirect.
#[derive(Clone, Default)]
struct FakePorts(Arc<Mutex<(BTreeSet<String>, BTreeSet<String>)>>);

impl FakePorts {
    fn plug(&self, interface: &str) {
        self.0.lock().0.insert(interface.to_owned());
    }

    fn unplug(&self, interface: &str) {
        let mut ports = self.0.lock();
        ports.0.remove(interface);
        ports.1.remove(interface);
    }

    fn redirected(&self) -> usize {
        self.0.lock().1.len()
    }
}

impl Ports for FakePorts {
    async fn exists(&self, interface: &str) -> bool {
        self.0.lock().0.contains(interface)
    }

    async fn ensure(&self, record: &Record) -> anyhow::Result<()> {
        let interface = &record.wiring.host_interface;
        let mut ports = self.0.lock();
        anyhow::ensure!(ports.0.contains(interface), "no such interface");
        ports.1.insert(interface.clone());
        Ok(())
    }

    async fn remove(&self, interface: &str) -> anyhow::Result<()> {
        self.0.lock().1.remove(interface);
        Ok(())
    }

    async fn delete(&self, interface: &str) -> anyhow::Result<()> {
        self.unplug(interface);
        Ok(())
    }

    async fn check(&self, record: &Record) -> anyhow::Result<bool> {
        Ok(self.0.lock().1.contains(&record.wiring.host_interface))
    }
}

struct Node {
    dir: tempfile::TempDir,
    core: Arc<Core>,
    ports: FakePorts,
    attachments: Arc<Attachments<FakePorts>>,
}

impl Node {
    /// An agent that has joined; there is a datapath only after [`Node::start_datapath`].
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let core = crate::datapath::tests::joined_core(dir.path());
        let ports = FakePorts::default();
        let attachments = Self::serve(dir.path(), &core, &ports).await;
        Self { dir, core, ports, attachments }
    }

    async fn serve(dir: &Path, core: &Arc<Core>, ports: &FakePorts) -> Arc<Attachments<FakePorts>> {
        let records = Records::open(core.config.attachments_dir()).unwrap();
        let attachments = Arc::new(Attachments::new(core.clone(), records, ports.clone()));
        let socket = KeptSocket::bind(&dir.join(SOCKET)).await.unwrap();
        tokio::spawn(serve(socket, attachments.clone()));
        attachments
    }

    async fn start_datapath(&self) -> FakeDatapath {
        let datapath = FakeDatapath::start(self.dir.path()).await;
        let modules = Modules::open(self.dir.path().join("modules")).unwrap();
        tokio::spawn(crate::datapath::run(
            self.core.clone(),
            Arc::new(HubLink::default()),
            modules,
        ));
        assert!(self.core.wait_applied(Duration::from_secs(5)).await);
        datapath
    }

    async fn ask(&self, request: Request) -> Response {
        let mut stream = UnixStream::connect(self.dir.path().join(SOCKET)).await.unwrap();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).await.unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    async fn attach(&self, record: &Record) -> Response {
        let Record { attachment, pod, wiring } = record.clone();
        self.ask(Request::Attach { attachment, pod, wiring }).await
    }

    async fn detach(&self, attachment: &Attachment) -> Response {
        self.ask(Request::Detach { attachment: attachment.clone() }).await
    }

    fn records(&self) -> usize {
        Records::open(self.core.config.attachments_dir()).unwrap().load().unwrap().len()
    }
}

fn code(response: &Response) -> u32 {
    match response {
        Response::Failed { code, .. } => *code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn without_a_datapath_the_runtime_is_told_to_try_again() {
    let node = Node::start().await;
    let a = record("a", "veth-a", "10.42.1.2/24");
    let prepare = Request::Prepare { attachment: a.attachment.clone() };
    assert_eq!(code(&node.ask(prepare.clone()).await), 11);
    let _datapath = node.start_datapath().await;
    let Response::Prepared(delegation) = node.ask(prepare).await else { panic!("not prepared") };
    assert_eq!(delegation.mtu, 1440);
    assert_eq!(delegation.ranges[0].gateway.to_string(), "10.42.1.1");
    assert_eq!(delegation.ranges[1].subnet.to_string(), "fd42:0:0:1::/64");
}

#[tokio::test]
async fn pod_is_attached_only_when_the_datapath_has_it_and_gone_after_detach() {
    let node = Node::start().await;
    let datapath = node.start_datapath().await;
    let a = record("a", "veth-a", "10.42.1.2/24");
    node.ports.plug("veth-a");
    assert_eq!(node.attach(&a).await, Response::Done);
    assert!(datapath.pods().contains("weft/a/eth0"));
    assert_eq!((node.records(), node.ports.redirected()), (1, 1));
    let check = Request::Check { attachment: a.attachment.clone(), wiring: a.wiring.clone() };
    assert_eq!(node.ask(check.clone()).await, Response::Done);

    assert_eq!(code(&node.attach(&a).await), 100);
    assert_eq!(node.ask(check.clone()).await, Response::Done, "the first one is intact");

    for _ in 0..3 {
        assert_eq!(node.detach(&a.attachment).await, Response::Done);
    }
    assert!(datapath.pods().is_empty());
    assert_eq!((node.records(), node.ports.redirected()), (0, 0));
    assert_eq!(code(&node.ask(check).await), 100);
}

#[tokio::test]
async fn failed_attachment_leaves_nothing() {
    let node = Node::start().await;
    let datapath = node.start_datapath().await;
    let missing = record("a", "veth-missing", "10.42.1.2/24");
    assert_eq!(code(&node.attach(&missing).await), 11);
    let foreign = record("b", "veth-b", "10.43.0.2/24");
    let gateway = record("b", "veth-b", "10.42.1.1/24");
    node.ports.plug("veth-b");
    assert_eq!(code(&node.attach(&foreign).await), 100);
    assert_eq!(code(&node.attach(&gateway).await), 100);
    assert_eq!((node.records(), node.ports.redirected()), (0, 0));
    assert!(node.core.wait_applied(Duration::from_secs(5)).await);
    assert!(datapath.pods().is_empty());
}

#[tokio::test]
async fn late_detach_of_an_old_sandbox_leaves_the_new_pod_alone() {
    let node = Node::start().await;
    let datapath = node.start_datapath().await;
    let old = record("old", "veth-1", "10.42.1.2/24");
    node.ports.plug("veth-1");
    assert_eq!(node.attach(&old).await, Response::Done);
    let new = record("new", "veth-2", "10.42.1.2/24");
    node.ports.plug("veth-2");
    assert_eq!(code(&node.attach(&new).await), 100, "the address is in use");
    node.ports.unplug("veth-1");
    assert_eq!(node.attach(&new).await, Response::Done);
    assert_eq!(node.detach(&old.attachment).await, Response::Done);
    assert_eq!(datapath.pods(), BTreeSet::from(["weft/new/eth0".to_owned()]));
    assert_eq!((node.records(), node.ports.redirected()), (1, 1));
}

#[tokio::test]
async fn restarted_agent_knows_its_pods_but_not_those_that_vanished() {
    let node = Node::start().await;
    let _datapath = node.start_datapath().await;
    for (name, address) in [("a", "10.42.1.2/24"), ("b", "10.42.1.3/24")] {
        let interface = format!("veth-{name}");
        node.ports.plug(&interface);
        assert_eq!(node.attach(&record(name, &interface, address)).await, Response::Done);
    }
    node.ports.unplug("veth-a");
    node.core.update(|s| s.attachments.clear());
    node.attachments.restore().await.unwrap();
    let known: Vec<String> = node.core.read(|s| s.attachments.keys().cloned().collect());
    assert_eq!(known, ["weft/b/eth0"]);
    assert_eq!(node.records(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_pods_at_once_all_attach_and_detach() {
    let node = Arc::new(Node::start().await);
    let datapath = node.start_datapath().await;
    let started = std::time::Instant::now();
    let one = |i: u32| {
        let node = node.clone();
        async move {
            let interface = format!("veth-{i}");
            node.ports.plug(&interface);
            let record = record(&format!("c{i}"), &interface, &format!("10.42.1.{}/24", i + 2));
            assert_eq!(node.attach(&record).await, Response::Done);
            record
        }
    };
    let tasks: Vec<_> = (0..60).map(|i| tokio::spawn(one(i))).collect();
    let mut attached = Vec::new();
    for task in tasks {
        attached.push(task.await.unwrap());
    }
    assert_eq!(datapath.pods().len(), 60);
    for record in &attached {
        assert_eq!(node.detach(&record.attachment).await, Response::Done);
    }
    assert!(datapath.pods().is_empty());
    assert!(started.elapsed() < Duration::from_secs(20));
}

fn status() -> Request {
    Request::Status { network: "weft".to_owned() }
}

/// CNI-072: the datapath's absence concerns pods that are there too.
#[tokio::test]
async fn status_says_whether_a_pod_could_be_attached() {
    let node = Node::start().await;
    assert_eq!(code(&node.ask(status()).await), 51);
    let _datapath = node.start_datapath().await;
    assert_eq!(node.ask(status()).await, Response::Done);
    node.core.update(|s| s.snapshot = None);
    assert_eq!(code(&node.ask(status()).await), 50);
}

/// CNI-121: told before anything is made, and over as soon as one address is free.
#[tokio::test]
async fn node_without_an_address_left_says_so() {
    let node = Node::start().await;
    let _datapath = node.start_datapath().await;
    let given = node.core.config.attachments_dir().join("addresses/weft");
    std::fs::create_dir_all(&given).unwrap();
    // Beside the network's, the gateway's and the broadcast address.
    for last in 2..=254 {
        std::fs::write(given.join(format!("10.42.1.{last}")), "").unwrap();
    }
    std::fs::write(given.join("last_reserved_ip.0"), "").unwrap();
    let attachment = record("a", "veth-a", "10.42.1.2/24").attachment;
    let prepare = Request::Prepare { attachment };
    assert_eq!(code(&node.ask(status()).await), 50);
    let Response::Failed { code, message } = node.ask(prepare.clone()).await else { panic!() };
    assert_eq!(code, 11);
    assert!(message.contains("no address is left in 10.42.1.0/24"), "{message}");
    std::fs::remove_file(given.join("10.42.1.77")).unwrap();
    assert_eq!(node.ask(status()).await, Response::Done);
    assert!(matches!(node.ask(prepare).await, Response::Prepared(_)));
}

/// CNI-074: those of another network are not touched.
#[tokio::test]
async fn attachments_that_the_runtime_does_not_know_are_taken_away() {
    let node = Node::start().await;
    let datapath = node.start_datapath().await;
    let [kept, stale, mut other] = [("a", 2), ("b", 3), ("c", 4)]
        .map(|(name, last)| record(name, &format!("veth-{name}"), &format!("10.42.1.{last}/24")));
    other.attachment.network = "other".to_owned();
    for record in [&kept, &stale, &other] {
        node.ports.plug(&record.wiring.host_interface);
        assert_eq!(node.attach(record).await, Response::Done);
    }
    let (network, valid) = ("weft".to_owned(), vec![kept.attachment.clone()]);
    assert_eq!(node.ask(Request::Collect { network, valid }).await, Response::Done);
    let left = ["other/c/eth0", "weft/a/eth0"].map(ToOwned::to_owned);
    assert_eq!(datapath.pods(), BTreeSet::from(left));
    assert_eq!((node.records(), node.ports.redirected()), (2, 2));
    assert!(!node.ports.exists("veth-b").await);
}

#[tokio::test]
async fn nonsense_on_the_socket_is_answered_with_code_six() {
    let node = Node::start().await;
    let mut stream = UnixStream::connect(node.dir.path().join(SOCKET)).await.unwrap();
    stream.write_all(b"{\"verb\":\"fly\"}\n").await.unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.unwrap();
    assert_eq!(code(&serde_json::from_str(&answer).unwrap()), 6);
}

#[tokio::test]
async fn attachment_with_an_illegal_name_is_refused_with_code_four() {
    let node = Node::start().await;
    let bad = record("../a", "veth-a", "10.42.1.2/24");
    assert_eq!(code(&node.ask(Request::Prepare { attachment: bad.attachment.clone() }).await), 4);
    let wiring = Wiring { addresses: vec![], ..bad.wiring };
    let request = Request::Attach { attachment: bad.attachment, pod: None, wiring };
    assert_eq!(code(&node.ask(request).await), 4);
}
