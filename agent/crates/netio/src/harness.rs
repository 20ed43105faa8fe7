//! Namespaces for tests with real devices: made for one test, gone with it, also when it panics.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::link::{self, Veth};
use crate::netns::{self, NetNs};
use crate::{Netlink, addr};

/// A network namespace under a name that no other test has.
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) handle: NetNs,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = netns::delete(&self.name) {
            eprintln!("namespace {} is left behind: {error}", self.name);
        }
    }
}

impl Namespace {
    /// A new namespace; `None` after printing why, where the machine cannot have one.
    ///
    /// With `CI=true` in the environment a skip is a failure.
    pub(crate) fn new() -> Option<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let reason = if !nix::unistd::geteuid().is_root() {
            "not root"
        } else if !Path::new("/dev/net/tun").exists() {
            "no /dev/net/tun"
        } else {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("weft-test-{}-{number}", std::process::id());
            let handle = netns::create(&name).unwrap();
            return Some(Self { name, handle });
        };
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run in CI: {reason}");
        eprintln!("skipped: {reason}");
        None
    }

    /// Runs `work` inside, with a runtime of its own.
    pub(crate) fn run<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.handle
            .enter(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(work())
            })
            .unwrap()
    }

    /// Makes a veth from here (`near`, with `near_net`) to `other` (`far`, with `far_net`).
    pub(crate) fn connect(&self, other: &Self, near_net: &[&str], far_net: &[&str]) {
        self.run(|| async {
            let netlink = Netlink::new().unwrap();
            let peer_netns = Some(&other.handle);
            let veth = Veth { name: "near", peer: "far", peer_netns, mtu: None };
            link::ensure_veth(&netlink, &veth).await.unwrap();
            set_up(&netlink, "near", near_net).await;
        });
        other.run(|| async { set_up(&Netlink::new().unwrap(), "far", far_net).await });
    }
}

/// Gives an interface addresses and brings it up.
pub(crate) async fn set_up(netlink: &Netlink, name: &str, nets: &[&str]) {
    link::ensure_up(netlink, name).await.unwrap();
    for net in nets {
        addr::ensure(netlink, name, net.parse::<IpNet>().unwrap()).await.unwrap();
    }
}

/// Asks until there is an answer, at most five seconds.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "nothing came in five seconds");
        std::thread::sleep(Duration::from_millis(1));
    }
}
