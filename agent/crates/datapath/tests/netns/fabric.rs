//! The namespaces, children and clients that the tests stand on.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weft_datapath::DatapathConfig;
use weft_netio::{InNetNs, NetNs, netns};
use weft_proto::v1::datapath_client::DatapathClient;
use weft_proto::v1::{
    ApplyRequest, DatapathStatus, DatapathStatusRequest, Encapsulation, LocalPod, NodeSettings,
    Peer, PodName,
};

const CHILD: &str = "WEFT_TEST_DATAPATH";
const PATIENCE: Duration = Duration::from_secs(8);
const MTU: u32 = 1420;

static FABRICS: AtomicUsize = AtomicUsize::new(0);

/// Whether namespaces can be made here; a skip is a failure where `CI` is `true`.
pub(crate) fn can_run() -> bool {
    let reason = match Command::new("id").arg("-u").output() {
        Ok(out) if out.stdout.starts_with(b"0\n") => None,
        _ => Some("needs root"),
    };
    let reason = reason.or_else(|| {
        let tun = std::path::Path::new("/dev/net/tun").exists();
        (!tun).then_some("needs /dev/net/tun")
    });
    let Some(reason) = reason else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run: {reason}");
    println!("skipped: {reason}");
    false
}

/// Runs the datapath if this process was started for that.
pub(crate) fn run_child() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let config =
        DatapathConfig { workers: Some(2), flows_max: 4096, ..DatapathConfig::new(directory) };
    if let Err(error) = weft_datapath::run(config) {
        panic!("{error:#}");
    }
}

pub(crate) fn pod_v4(node: usize) -> String {
    format!("10.77.{node}.5")
}

pub(crate) fn pod_v6(node: usize) -> String {
    format!("fd77:{node}::5")
}

/// Two nodes with one pod each.
pub(crate) struct Fabric {
    nodes: Vec<Node>,
    runtime: tokio::runtime::Runtime,
}

struct Node {
    index: usize,
    name: String,
    netns: NetNs,
    pod: NetNs,
    run: TempDir,
    child: Option<Child>,
}

impl Fabric {
    /// Everything up and every handshake possible.
    pub(crate) fn up(encapsulation: Encapsulation) -> Self {
        let number = FABRICS.fetch_add(1, Ordering::Relaxed);
        let name = |what: &str| format!("wdp{}-{number}-{what}", std::process::id());
        let nodes = [0, 1].map(|index| Node {
            index,
            name: name(&format!("n{index}")),
            netns: netns::create(&name(&format!("n{index}"))).unwrap(),
            pod: netns::create(&name(&format!("p{index}"))).unwrap(),
            run: tempfile::tempdir().unwrap(),
            child: None,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let mut fabric = Self { nodes: nodes.into(), runtime };
        fabric.underlay();
        (0..2).for_each(|node| fabric.pod(node));
        for node in 0..2 {
            fabric.start(node);
            fabric.apply(node, encapsulation);
            fabric.wire(node);
        }
        fabric
    }

    /// Starts the datapath of a node and waits for its socket.
    pub(crate) fn start(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let socket = node.run.path().join("datapath.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(CHILD, node.run.path());
        command.stdout(Stdio::null()).in_netns(&node.netns);
        node.child = Some(command.spawn().unwrap());
        until(|| socket.exists());
        let runtime = &self.runtime;
        let connected = || runtime.block_on(weft_control::connect_unix(&socket)).is_ok();
        until(connected);
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut child = self.nodes[node].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What the agent would do once the interface is there.
    pub(crate) fn wire(&self, node: usize) {
        let n = &self.nodes[node];
        let script = format!(
            "ip addr add 10.77.{node}.1/32 dev lo 2>/dev/null
             ip addr add fd77:{node}::1/128 dev lo 2>/dev/null
             set -e
             sysctl -qw net.ipv4.conf.weft0.rp_filter=2 net.ipv4.conf.all.rp_filter=0
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip rule del prio 100 2>/dev/null || true
             ip rule add prio 100 iif weft0 lookup main
             ip -6 rule del prio 100 2>/dev/null || true
             ip -6 rule add prio 100 iif weft0 lookup main
             ip rule del prio 101 2>/dev/null || true
             ip rule add prio 101 to 10.77.0.0/16 lookup 5100
             ip route replace 10.77.0.0/16 dev weft0 table 5100
             ip -6 rule del prio 101 2>/dev/null || true
             ip -6 rule add prio 101 to fd77::/16 lookup 5100
             ip -6 route replace fd77::/16 dev weft0 table 5100
             ip route replace 10.77.{node}.5/32 dev pod
             ip -6 route replace fd77:{node}::5/128 dev pod
             ip neigh replace 10.77.{node}.5 lladdr 02:00:00:00:00:05 dev pod
             ip -6 neigh replace fd77:{node}::5 lladdr 02:00:00:00:00:05 dev pod"
        );
        shell(&n.netns, &script);
        let allowed: Vec<IpAddr> =
            [pod_v4(node), pod_v6(node)].iter().map(|a| a.parse().unwrap()).collect();
        // One more that the datapath does not know, so that its own check is seen.
        let allowed = [allowed, vec!["10.77.0.99".parse().unwrap()]].concat();
        let netlink = {
            let _guard = self.runtime.enter();
            weft_netio::Netlink::in_netns(&n.netns).unwrap()
        };
        self.runtime.block_on(async {
            let weft0 = weft_netio::link::require(&netlink, "weft0").await.unwrap();
            let sender = weft_netio::tc::Sender { addresses: allowed, ..Default::default() };
            weft_netio::tc::ensure_port(&netlink, "pod", weft0.index, &sender).await.unwrap();
        });
    }

    pub(crate) fn ping(&self, from: usize, to: &str) {
        let pod = &self.nodes[from].pod;
        until(|| try_shell(pod, &format!("ping -c 1 -W 1 -q {to}")));
    }

    /// Sends `len` bytes from a pod to a pod and compares them.
    pub(crate) fn transfer(&self, from: usize, to: usize, address: &str, len: usize) {
        let address = SocketAddr::new(address.parse().unwrap(), 4000);
        let listener = self.nodes[to].pod.enter(|| TcpListener::bind(address).unwrap()).unwrap();
        let data: Vec<u8> = (0..len).map(|i| ((i * 31) >> 7) as u8).collect();
        let received = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received
            });
            let connect = || TcpStream::connect_timeout(&address, PATIENCE).unwrap();
            let mut stream = self.nodes[from].pod.enter(connect).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&data).unwrap();
            drop(stream);
            receiver.join().unwrap()
        });
        assert!(received == data, "{} of {len} bytes came as they were sent", received.len());
    }

    pub(crate) fn spoof(&self, node: usize, source: &str, to: &str) {
        let script =
            format!("ip addr add {source}/32 dev eth0; ping -c 1 -W 1 -q -I {source} {to}; true");
        shell(&self.nodes[node].pod, &script);
    }

    pub(crate) fn status(&self, node: usize) -> DatapathStatus {
        self.runtime.block_on(async {
            let mut client = self.client(node).await;
            client.get_status(DatapathStatusRequest {}).await.unwrap().into_inner()
        })
    }

    pub(crate) fn drops(&self, node: usize, reason: &str) -> u64 {
        let status = self.status(node);
        status.drops.iter().filter(|d| d.reason == reason).map(|d| d.packets).sum()
    }

    pub(crate) fn delete_interface(&self, node: usize) {
        shell(&self.nodes[node].netns, "ip link delete weft0");
    }

    pub(crate) fn wait_for_interface(&self, node: usize) {
        let netns = &self.nodes[node].netns;
        until(|| try_shell(netns, "ip link show weft0 up | grep -q weft0"));
    }

    async fn client(&self, node: usize) -> DatapathClient<tonic::transport::Channel> {
        let path = self.nodes[node].run.path().join("datapath.sock");
        DatapathClient::new(weft_control::connect_unix(path).await.unwrap())
    }

    fn apply(&self, node: usize, encapsulation: Encapsulation) {
        let other = 1 - node;
        let key = |node: usize| weft_mesh::SecretKey([node as u8 + 1; 32]);
        let key_file: PathBuf = self.nodes[node].run.path().join("key");
        // A private key has the text form of a public one.
        std::fs::write(&key_file, weft_model::PublicKey(key(node).0).to_string()).unwrap();
        let settings = NodeSettings {
            interface: "weft0".into(),
            mtu: MTU,
            encapsulation: encapsulation.into(),
            port: 5555,
            vni: 7,
            vtep_mac: format!("02:00:00:00:01:0{node}"),
            addresses: vec![format!("10.77.{node}.1"), format!("fd77:{node}::1")],
            subnets: vec![format!("10.77.{node}.0/24"), format!("fd77:{node}::/64")],
            pod_cidrs: vec!["10.77.0.0/16".into(), "fd77::/16".into()],
            key_files: vec![key_file.to_string_lossy().into_owned()],
            host_sources: vec![],
        };
        let peer = Peer {
            id: 1,
            name: format!("n{other}"),
            endpoint: format!("192.0.2.{}:5555", other + 1),
            keys: vec![key(other).public_key().0.to_vec()],
            vtep_mac: format!("02:00:00:00:01:0{other}"),
            allowed_ips: vec![format!("10.77.{other}.0/24"), format!("fd77:{other}::/64")],
        };
        let pod = LocalPod {
            attachment: "net/pod/eth0".into(),
            name: Some(PodName { namespace: "default".into(), name: "pod".into() }),
            addresses: vec![pod_v4(node), pod_v6(node)],
        };
        let request = ApplyRequest {
            generation: 1,
            settings: Some(settings),
            peers: vec![peer],
            pods: vec![pod],
            ..ApplyRequest::default()
        };
        self.runtime.block_on(async {
            let answer = self.client(node).await.apply(request).await.unwrap().into_inner();
            assert_eq!(answer.generation, 1);
        });
    }

    fn underlay(&self) {
        let [a, b] = &self.nodes[..] else { panic!("two nodes") };
        let script = format!("ip link add u0 type veth peer name u0 netns {}", b.name);
        shell(&a.netns, &script);
        for node in [a, b] {
            let address = node.index + 1;
            shell(
                &node.netns,
                &format!("ip addr add 192.0.2.{address}/24 dev u0; ip link set u0 up"),
            );
        }
    }

    fn pod(&self, node: usize) {
        let n = &self.nodes[node];
        let pod_name = n.name.replace("-n", "-p");
        shell(
            &n.netns,
            &format!(
                "set -e
                 ip link add pod mtu {MTU} address 02:00:00:00:00:01 type veth \
                   peer name eth0 mtu {MTU} address 02:00:00:00:00:05 netns {pod_name}
                 ip link set pod up"
            ),
        );
        shell(
            &n.pod,
            &format!(
                "set -e
                 ip addr add 10.77.{node}.5/32 dev eth0
                 ip -6 addr add fd77:{node}::5/128 dev eth0 nodad
                 ip link set eth0 up
                 ip route add 169.254.1.1 dev eth0 scope link
                 ip neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0
                 ip route add default via 169.254.1.1 dev eth0
                 ip -6 neigh add fe80::1 lladdr 02:00:00:00:00:01 dev eth0
                 ip -6 route add default via fe80::1 dev eth0"
            ),
        );
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            let _ = netns::delete(&node.name);
            let _ = netns::delete(&node.name.replace("-n", "-p"));
        }
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "did not happen in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn try_shell(netns: &NetNs, script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::null()).in_netns(netns);
    command.status().unwrap().success()
}

fn shell(netns: &NetNs, script: &str) {
    assert!(try_shell(netns, script), "failed: {script}");
}
