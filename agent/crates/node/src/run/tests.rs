//! The whole agent in a network namespace, without a hub and without a datapath: it serves the
//! network from the last snapshot.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use weft_control::JoinToken;
use weft_netio::netns;
use weft_netio::{Offloads, Tun};

use super::*;
use crate::config::{TokenSource, Underlay};
use crate::tables::tests::{node, snapshot};
use crate::uninstall;

/// What is deleted has to be back within this time.
const LIMIT: Duration = Duration::from_secs(1);

/// True if the test can run; says why not, and fails where it has to run.
fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let tun = Path::new("/dev/net/tun").exists();
    if root && tun {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root and /dev/net/tun");
    eprintln!("skipped: needs root and /dev/net/tun");
    false
}

/// A namespace that goes when the test ends.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("weft-node-{name}-{}", std::process::id());
        netns::create(&name).unwrap();
        Self(name)
    }

    /// Runs `test` inside, on a runtime whose threads are all inside.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        netns::enter(&self.0, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(test());
        })
        .unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = netns::delete(&self.0);
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of the node that uninstall has to leave as it was.
fn picture() -> String {
    sh("ip -o link | cut -d: -f2; ip addr show dev eth0 | grep inet; ip rule; ip -6 rule; \
        ip route show table all | grep -v cache; nft list ruleset; \
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding \
        /proc/sys/net/ipv6/conf/eth0/accept_ra; tc qdisc show")
}

fn lay_underlay() {
    sh("ip link add eth0 mtu 1450 type veth peer name far0 && ip link set eth0 up && \
        ip link set far0 up && ip addr add 192.0.2.1/24 dev eth0 && \
        ip link add veth-a type veth peer name pod-a && ip link set veth-a up && ip link set pod-a up");
}

fn config(dir: &Path) -> AgentConfig {
    let ca = rcgen::generate_simple_self_signed(vec!["ca".into()]).unwrap();
    let token = JoinToken::try_new([1; 32], ca.cert.der().to_vec()).unwrap();
    AgentConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        cni_conf_dir: dir.join("net.d"),
        cni_bin_dir: dir.join("bin"),
        token: TokenSource::Text(token.to_string()),
        underlay: Underlay::Interface("eth0".into()),
        ..AgentConfig::new(node(1).name, "192.0.2.1:1")
    }
}

/// A node that has been part of a fabric of two, with one pod.
fn prepare(config: &AgentConfig) {
    durable::private_dir(&config.state_dir).unwrap();
    SnapshotFile::new(&config.state_dir).save(&snapshot(3, &[1, 2]), b"r").unwrap();
    let mut pod = crate::cni::tests::record("a", "veth-a", "10.42.1.2/24");
    pod.wiring.gateways = vec!["10.42.1.1".parse().unwrap()];
    Records::open(config.attachments_dir()).unwrap().save(&pod).unwrap();
}

async fn becomes(what: &str, limit: Duration, is: impl Fn() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < limit, "{what}: not after {limit:?}\n{}", picture());
        sleep(Duration::from_millis(20)).await;
    }
}

fn has(command: &str, text: &str) -> bool {
    Command::new("sh")
        .args(["-c", command])
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(text))
}

fn all_there() -> bool {
    has("ip rule", "100:\tfrom all iif weft0 lookup main")
        && has("ip rule", "101:\tfrom all lookup 5100")
        && has("ip -6 rule", "101:\tfrom all lookup 5100")
        && has("ip route show table 5100", "10.42.0.0/16 dev weft0")
        && has("ip -6 route show table 5100", "fd42::/48 dev weft0")
        && has("ip addr show dev weft0", "10.42.1.1/32")
        && has("ip addr show dev weft0", "fd42:0:0:1::1/128")
        && has("nft list table inet weft", "masquerade")
        && has("tc filter show dev veth-a ingress", "weft0")
        && has("cat /proc/sys/net/ipv4/conf/weft0/rp_filter", "2")
        && has("cat /proc/sys/net/ipv4/ip_forward", "1")
        && has("cat /proc/sys/net/ipv4/conf/weft0/forwarding", "1")
        && has("cat /proc/sys/net/ipv6/conf/weft0/forwarding", "1")
        && has("cat /proc/sys/net/ipv4/conf/veth-a/forwarding", "1")
        && has("cat /proc/sys/net/ipv4/conf/veth-a/rp_filter", "2")
        && has("ip route show dev veth-a", "10.42.1.2")
        && has("ip addr show dev veth-a", "10.42.1.1/32")
}

fn make_weft0() {
    drop(Tun::open("weft0", 1, 1390, Offloads::NONE).unwrap());
}

#[test]
fn whatever_is_deleted_comes_back_and_uninstall_leaves_the_node_as_it_was() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    Namespace::new("net").run(|| async {
        lay_underlay();
        let settled = || !has("ip -6 addr show tentative", "fe80");
        becomes("duplicate address detection", LIMIT * 5, settled).await;
        let before = picture();
        prepare(&config);
        let (stop, stopped) = oneshot::channel::<()>();
        let agent = run_until(config.clone(), async { drop(stopped.await) });
        let test = async {
            becomes("agent socket", LIMIT * 5, || config.socket(socket::AGENT).exists()).await;
            make_weft0();
            becomes("everything", LIMIT * 5, all_there).await;
            for name in [socket::AGENT, weft_model::cni::SOCKET] {
                let path = config.socket(name);
                std::fs::remove_file(&path).unwrap();
                becomes(name, LIMIT, || path.exists()).await;
            }
            for delete in [
                "ip rule del prio 100",
                "ip -6 rule del prio 101",
                "ip route flush table 5100",
                "ip addr flush dev weft0",
                "nft delete table inet weft",
                "nft flush chain inet weft postrouting",
                "tc qdisc del dev veth-a clsact",
                "echo 0 > /proc/sys/net/ipv4/ip_forward",
                "echo 0 > /proc/sys/net/ipv4/conf/weft0/forwarding",
                "echo 0 > /proc/sys/net/ipv6/conf/weft0/forwarding",
                "echo 1 > /proc/sys/net/ipv6/conf/weft0/disable_ipv6",
                "echo 0 > /proc/sys/net/ipv4/conf/veth-a/forwarding",
                "echo 1 > /proc/sys/net/ipv4/conf/veth-a/rp_filter",
                "ip route del 10.42.1.2",
                "ip addr flush dev veth-a",
                "ip link set veth-a down && ip link set veth-a up",
                "ip link del weft0 && ip link add dummy-x type veth peer name dummy-y && ip link del dummy-x",
            ] {
                sh(delete);
                if delete.contains("del weft0") {
                    make_weft0();
                }
                becomes(delete, LIMIT, all_there).await;
            }
            // Whatever the agent is doing at that moment.
            for delay in 0..10 {
                sh("nft flush chain inet weft postrouting");
                sleep(Duration::from_millis(4 * delay)).await;
            }
            becomes("flushed again and again", LIMIT, all_there).await;
            drop(stop);
        };
        let (ended, ()) = tokio::join!(agent, test);
        ended.unwrap();
        assert!(all_there(), "a stopped agent leaves packets alone");
        let other = only_agent(&config.state_dir).unwrap();
        let refused = format!("{:#}", uninstall(config.clone()).await.unwrap_err());
        assert!(refused.contains("stop that one"), "{refused}");
        assert!(all_there(), "nothing is touched under an agent that runs");
        drop(other);
        let of_hub = [config.state("hub"), config.socket(socket::HUB)];
        of_hub.iter().for_each(|path| std::fs::write(path, "").unwrap());
        uninstall(config.clone()).await.unwrap();
        for (directory, path) in [&config.state_dir, &config.run_dir].into_iter().zip(&of_hub) {
            let left = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
            assert_eq!(&left.collect::<Vec<_>>(), std::slice::from_ref(path));
            std::fs::remove_file(path).unwrap();
        }
        uninstall(config.clone()).await.unwrap();
        // The runtime's DEL would take the port away.
        sh("ip route del 10.42.1.2 && ip -4 addr flush dev veth-a");
        assert_eq!(picture(), before);
        assert!(!config.state_dir.exists() && !config.run_dir.exists());
    });
}

#[test]
fn node_without_token_or_certificate_says_so_and_ends() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = AgentConfig { token: TokenSource::None, ..config(dir.path()) };
    Namespace::new("token").run(|| async {
        lay_underlay();
        let ended = run_until(config.clone(), std::future::pending()).await;
        let line = format!("{:#}", ended.unwrap_err());
        assert!(line.contains("no token") && !line.contains('\n'), "{line}");
        assert!(!config.socket(socket::AGENT).exists());
        assert!(!config.socket(weft_model::cni::SOCKET).exists());
    });
}
