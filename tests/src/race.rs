//! Pods that send, and are sent to, from before they are wired until after they are gone, on addresses that
//! others had before: does anything get through that their policies forbid?
//!
//! Witnesses on another node and outside of the fabric look at every packet that comes to them, below
//! the transport, and so does something in each pod. A pod's packets carry its number as their source port.

mod ear;
mod hammer;
mod pod;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use weft_lab::{Lab, Options};
use weft_netio::netns;

use self::ear::Ear;
use self::hammer::Hammer;
use self::pod::Process;
use crate::outsider::Outsider;
use crate::raw::SCTP;
use crate::{TestLab, eventually};

/// How long a pod is there at least.
const STAY: Duration = Duration::from_millis(150);
/// What is allowed arrives some time.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pods that come and go at once.
const AT_ONCE: usize = 6;
/// Few addresses, so that they are used again soon.
const NODE_PREFIX: &str = "--node-prefix-v4=26";
/// Between changes of policies that have nothing to do with it, or make no difference.
const UNREST: Duration = Duration::from_millis(300);
/// Source port of pod 0.
const FIRST_PORT: u16 = 20_000;
/// Where pods are sent to.
const POD_PORT: u16 = 9_000;
const GLANCE: Duration = Duration::from_millis(1);

/// What policies say of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Nothing in, nothing out.
    Closed,
    /// Gets what the friend sends, and sends nothing.
    In,
    /// Sends to the friend, and gets nothing.
    Out,
    /// No policy selects it, and the guarded pod lets it in.
    Open,
    /// No policy selects it.
    Plain,
}

impl Class {
    /// Of different ones at one address, one after the other: the number of addresses is no multiple of 5.
    fn of(pod: usize) -> Self {
        [Self::Closed, Self::In, Self::Open, Self::Out, Self::Plain][pod % 5]
    }

    fn label(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn may_send(self, to: Who) -> bool {
        match self {
            Self::Open => true,
            Self::Plain => to != Who::Guarded,
            Self::Out => to == Who::Friend,
            Self::Closed | Self::In => false,
        }
    }

    fn may_get(self, from: Who) -> bool {
        match self {
            Self::Open | Self::Plain => true,
            Self::In => from == Who::Friend,
            Self::Closed | Self::Out => false,
        }
    }
}

/// Those who are there all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Foe,
    Friend,
    /// Lets open pods in and nobody else.
    Guarded,
    /// A machine outside of the fabric.
    Outsider,
}

#[derive(Clone, Debug)]
struct Witness {
    who: Who,
    namespace: String,
    addresses: Vec<IpAddr>,
}

/// What was seen, by everybody together.
struct Seen {
    /// What should not have been.
    forbidden: Mutex<Vec<String>>,
    /// By [`Who`], whether the pod of this number was heard.
    heard: [Vec<AtomicBool>; 4],
    packets: AtomicUsize,
    /// Those of them that were of SCTP.
    sctp: AtomicUsize,
}

impl Seen {
    fn new(pods: usize) -> Self {
        let none = || (0..pods).map(|_| AtomicBool::new(false)).collect();
        let heard = [none(), none(), none(), none()];
        let (packets, sctp) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { forbidden: Mutex::default(), heard, packets, sctp }
    }

    fn forbid(&self, what: String) {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn hears(&self, who: Who, pod: usize, protocol: u8) {
        let Some(heard) = self.heard[who as usize].get(pod) else { return };
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.sctp.fetch_add(usize::from(protocol == SCTP), Ordering::Relaxed);
        let first = !heard.swap(true, Ordering::Relaxed);
        let class = Class::of(pod);
        if first && !class.may_send(who) {
            self.forbid(format!("pod {pod} ({class:?}) got a packet out to {who:?}"));
        }
    }

    fn has_heard(&self, who: Who, pod: usize) -> bool {
        self.heard[who as usize].get(pod).is_some_and(|heard| heard.load(Ordering::Relaxed))
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pods: usize,
    sent: usize,
    heard: usize,
    tried_again: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, sent, heard, tried_again } = self;
        write!(
            f,
            "{pods} pods sent {sent} packets, {heard} of which were allowed and arrived; nothing that is forbidden got out or in. Agent, hub and datapath were killed meanwhile, and {tried_again} calls of the CNI binary made again"
        )
    }
}

/// Has `pods` pods come and go, under changes of policies and the death of agent and datapath.
///
/// # Errors
/// If something passed that is forbidden, or something that is allowed never did.
pub async fn run(pods: usize) -> Result<Outcome> {
    let hub_arguments = vec![NODE_PREFIX.to_owned()];
    let mut lab = TestLab::up(Options { nodes: 2, hub_arguments, ..Options::default() }).await?;
    for who in ["foe", "friend", "guarded"] {
        lab.pod_add("node-2", who).await?;
    }
    let outsider = Outsider::join(&lab)?;
    let node = lab.node_addresses("node-1").into_iter().find(IpAddr::is_ipv4);
    let node = node.context("a node without an address")?;
    outsider.tool(&format!("ip route add 10.244.0.0/16 via {node}"))?;
    lab.put("pods.yaml", &manifests(pods))?;
    lab.put("policies.yaml", &policies(0))?;
    eventually(PATIENCE, async || {
        let status = lab.status().await?;
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        ensure!(usize::try_from(status.pods)? >= pods, "{} pods are known", status.pods);
        Ok(())
    })
    .await?;
    lab.wait_ready().await?;

    let witnesses = Arc::new(witnesses(&lab, &outsider)?);
    let seen = Arc::new(Seen::new(pods));
    let stop = Arc::new(AtomicBool::new(false));
    let listening = listen(&witnesses, &seen, &stop)?;
    let hammer = Hammer::start(&lab, &witnesses, &stop)?;
    let outcome = come_and_go(&lab, pods, &witnesses, &seen, &hammer).await;
    stop.store(true, Ordering::Relaxed);
    hammer.end()?;
    for thread in listening {
        thread.join().map_err(|_| anyhow::anyhow!("a witness failed"))??;
    }
    // What got through says more than what did not come.
    let forbidden = seen.forbidden.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (count, shown) = (forbidden.len(), forbidden.iter().take(20).cloned().collect::<Vec<_>>());
    ensure!(forbidden.is_empty(), "{count} times: {}", shown.join("\n"));
    let (sent, tried_again) = outcome?;
    ensure!(seen.sctp.load(Ordering::Relaxed) > 0, "no SCTP arrived, though some is allowed");
    Ok(Outcome { pods, sent, heard: seen.packets.load(Ordering::Relaxed), tried_again })
}

fn witnesses(lab: &TestLab, outsider: &Outsider) -> Result<Vec<Witness>> {
    let of_pods = [(Who::Foe, "foe"), (Who::Friend, "friend"), (Who::Guarded, "guarded")];
    let mut all = Vec::new();
    for (who, pod) in of_pods {
        let (v4, v6) = (lab.party(pod, 0)?, lab.party(pod, 1)?);
        let addresses = vec![v4.address, v6.address];
        all.push(Witness { who, namespace: v4.namespace, addresses });
    }
    let addresses = vec![outsider.underlay().parse()?];
    let namespace = outsider.namespace.clone();
    all.push(Witness { who: Who::Outsider, namespace, addresses });
    Ok(all)
}

/// Looks at all that comes to the witnesses.
fn listen(
    witnesses: &[Witness],
    seen: &Arc<Seen>,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let one = |witness: &Witness| {
        let mut ear = netns::enter(&witness.namespace, Ear::open)??;
        let (who, seen, stop) = (witness.who, Arc::clone(seen), Arc::clone(stop));
        Ok(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                ear.drain(|packet| {
                    if let Some(pod) = packet.ports.0.checked_sub(FIRST_PORT) {
                        seen.hears(who, usize::from(pod), packet.protocol);
                    }
                })?;
                std::thread::sleep(GLANCE);
            }
            Ok(())
        }))
    };
    witnesses.iter().map(one).collect()
}

/// Returns how many packets pods sent, and how often the CNI binary had to be called again.
async fn come_and_go(
    lab: &TestLab,
    pods: usize,
    witnesses: &Arc<Vec<Witness>>,
    seen: &Arc<Seen>,
    hammer: &Hammer,
) -> Result<(usize, usize)> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let life = Life {
            lab: lab.name().to_owned(),
            witnesses: Arc::clone(witnesses),
            seen: Arc::clone(seen),
            newest: hammer.newest(),
            sent: 0,
            tried_again: 0,
        };
        let next = Arc::clone(&next);
        let runtime = tokio::runtime::Handle::current();
        workers.spawn_blocking(move || {
            let mut life = life;
            loop {
                let pod = next.fetch_add(1, Ordering::Relaxed);
                if pod >= pods {
                    return Ok::<_, anyhow::Error>((life.sent, life.tried_again));
                }
                let lived = runtime.block_on(life.of(pod));
                lived.with_context(|| format!("pod {pod} ({:?})", Class::of(pod)))?;
            }
        });
    }
    // In this order, each once.
    let deaths = [(pods / 3, "node-1-agent"), (pods / 2, "hub"), (pods * 2 / 3, "node-1-datapath")];
    let mut deaths = deaths.into_iter().peekable();
    let (mut sent, mut tried_again, mut round, mut killed) = (0, 0, 0, Vec::new());
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(ended) => {
                    let (packets, tries) = ended??;
                    sent += packets;
                    tried_again += tries;
                }
                None => break,
            },
            () = tokio::time::sleep(UNREST) => {
                round += 1;
                lab.put("policies.yaml", &policies(round))?;
                let begun = next.load(Ordering::Relaxed);
                if let Some((_, process)) = deaths.next_if(|(at, _)| *at <= begun) {
                    let pid = lab.pid(process)?;
                    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
                    killed.push((process, pid));
                }
            }
        }
    }
    ensure!(deaths.next().is_none(), "too few pods for a process to be killed meanwhile");
    for (process, pid) in killed {
        ensure!(lab.pid(process)? != pid, "{process} was killed and is not back");
    }
    Ok((sent, tried_again))
}

/// Pods, one after the other.
struct Life {
    lab: String,
    witnesses: Arc<Vec<Witness>>,
    seen: Arc<Seen>,
    newest: Arc<hammer::Newest>,
    sent: usize,
    tried_again: usize,
}

impl Life {
    async fn of(&mut self, pod: usize) -> Result<()> {
        let name = format!("r{pod}");
        let mut lab = Lab::open(&self.lab)?;
        let process = eventually(PATIENCE, async || {
            let mut process = None;
            let begin = |namespace: &str| {
                process = Some(Process::start(namespace, pod, &self.witnesses)?);
                Ok(())
            };
            let made = lab.pod_add_after("node-1", &name, begin).await;
            match made {
                Ok(made) => self.newest.note(&made.addresses),
                // As a kubelet would: the agent may be away.
                Err(error) => {
                    self.tried_again += 1;
                    self.sent += process.map_or(Ok(0), |p| p.end(&self.seen))?;
                    return Err(error);
                }
            }
            process.context("nothing runs in the pod")
        })
        .await?;
        tokio::time::sleep(STAY).await;
        let class = Class::of(pod);
        let arrived = eventually(PATIENCE, async || {
            for who in [Who::Foe, Who::Friend, Who::Guarded, Who::Outsider] {
                let out = !class.may_send(who) || self.seen.has_heard(who, pod);
                ensure!(out, "{who:?} never heard of it");
            }
            for who in [Who::Foe, Who::Friend] {
                let came = !class.may_get(who) || process.has_heard(who);
                ensure!(came, "it never heard of {who:?}");
            }
            Ok(())
        });
        let arrived = arrived.await;
        // Through its end it goes on.
        lab.pod_delete(&name).await?;
        let sent = process.end(&self.seen)?;
        arrived?;
        ensure!(sent > 0, "it sent nothing");
        self.sent += sent;
        Ok(())
    }
}

fn manifests(pods: usize) -> String {
    let pod = |name: &str, label: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{label}}}}}\nspec: {{}}\n---\n"
        )
    };
    let fixed = ["foe", "friend", "guarded"].map(|who| pod(who, &format!("role: {who}")));
    let racing = (0..pods)
        .map(|number| pod(&format!("r{number}"), &format!("race: {}", Class::of(number).label())));
    fixed.into_iter().chain(racing).collect()
}

/// With every round the same, in other words and other company.
fn policies(round: usize) -> String {
    let friend = if round.is_multiple_of(2) {
        "{podSelector: {matchLabels: {role: friend}}}"
    } else {
        "{podSelector: {matchExpressions: [{key: role, operator: In, values: [friend, nobody]}]}}"
    };
    let policy = |name: &str, selector: &str, spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  podSelector: {{matchLabels: {{{selector}}}}}\n{spec}---\n"
        )
    };
    let both = "  policyTypes: [Ingress, Egress]\n";
    let port = 1_000 + round % 100;
    [
        policy("closed", "race: closed", both),
        policy("in", "race: in", &format!("{both}  ingress: [{{from: [{friend}]}}]\n")),
        policy("out", "race: out", &format!("{both}  egress: [{{to: [{friend}]}}]\n")),
        policy(
            "guarded",
            "role: guarded",
            "  ingress: [{from: [{podSelector: {matchLabels: {race: open}}}]}]\n",
        ),
        policy("unrest", "race: closed", &format!("  ingress: [{{ports: [{{port: {port}}}]}}]\n")),
    ]
    .concat()
}
