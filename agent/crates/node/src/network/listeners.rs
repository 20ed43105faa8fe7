//! Processes of the host that listen on a port which is a Service's node port: the Service has it, and
//! whoever runs the process should know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use procfs::net::{TcpState, UdpState};
use procfs::process::Process;
use procfs::{ProcError, ProcResult};
use tokio::time::{MissedTickBehavior, interval};
use weft_model::{ServiceName, ServiceProtocol, Snapshot};

use crate::core::{Core, LISTENERS};

/// How often sockets are looked at while there are node ports.
const INTERVAL: Duration = Duration::from_secs(10);

type NodePort = (ServiceProtocol, u16);

/// Says which node ports are taken twice; never ends.
pub(crate) async fn run(core: Arc<Core>) {
    let mut ticks = interval(INTERVAL);
    let mut told_before = Vec::new();
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let ports = core.read(|state| state.snapshot.as_ref().map(node_ports)).unwrap_or_default();
        let mut problems = Vec::new();
        if !ports.is_empty() {
            match listening() {
                Ok(listening) => problems.extend(told(&ports, &listening)),
                Err(error) => tracing::debug!(%error, "sockets of the host not listed"),
            }
        }
        let news = problems != told_before;
        told_before.clone_from(&problems);
        core.set_problems(LISTENERS, problems);
        if news {
            // The hub is told as well.
            core.poke();
        }
    }
}

fn node_ports(snapshot: &Snapshot) -> BTreeMap<NodePort, ServiceName> {
    let of_service = snapshot.services.values().flat_map(|service| {
        let ports = service.ports.iter();
        ports.filter_map(|p| Some(((p.protocol, p.node_port?), service.name.clone())))
    });
    of_service.collect()
}

fn told(ports: &BTreeMap<NodePort, ServiceName>, listening: &BTreeSet<NodePort>) -> Vec<String> {
    let taken = ports.iter().filter(|(port, _)| listening.contains(port));
    taken
        .map(|((protocol, port), name)| {
            format!(
                "a process of this host listens on {port}/{protocol}, node port of Service {name}: what is sent there goes to the Service"
            )
        })
        .collect()
}

/// What sockets of the host wait for, but those at loopback addresses, where there are no node ports.
fn listening() -> ProcResult<BTreeSet<NodePort>> {
    let own = Process::myself()?;
    let (mut tcp, mut udp) = (own.tcp()?, own.udp()?);
    // A kernel without IPv6 has no list of it.
    tcp.extend(or_none(own.tcp6())?);
    udp.extend(or_none(own.udp6())?);
    let tcp = tcp.into_iter().filter(|s| s.state == TcpState::Listen).map(|s| s.local_address);
    let udp = udp.into_iter().filter(|s| s.state == UdpState::Close).map(|s| s.local_address);
    let tcp = tcp.map(|at| (ServiceProtocol::Tcp, at));
    let all = tcp.chain(udp.map(|at| (ServiceProtocol::Udp, at)));
    Ok(all.filter(|(_, at)| !at.ip().is_loopback()).map(|(p, at)| (p, at.port())).collect())
}

fn or_none<T>(list: ProcResult<Vec<T>>) -> ProcResult<Vec<T>> {
    match list {
        Err(ProcError::NotFound(_)) => Ok(Vec::new()),
        list => list,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    /// SVC-071: the Service wins, and that is said.
    #[test]
    fn process_at_a_node_port_is_named_with_the_service() {
        let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = ServiceName { namespace: "default".into(), name: "web".into() };
        let at = |protocol, address: std::io::Result<std::net::SocketAddr>| {
            ((protocol, address.unwrap().port()), name.clone())
        };
        let ports = BTreeMap::from([
            at(ServiceProtocol::Tcp, tcp.local_addr()),
            at(ServiceProtocol::Udp, udp.local_addr()),
            at(ServiceProtocol::Tcp, local.local_addr()),
        ]);
        let said = told(&ports, &listening().unwrap());
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(said.len(), 2, "{said:?}");
        let line = said.iter().find(|l| l.contains(&format!("{port}/TCP"))).unwrap();
        assert!(line.contains("default/web"), "{line}");
    }
}
