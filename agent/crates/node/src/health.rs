//! `healthCheckNodePort`: whether this node has a ready endpoint of a Service whose external traffic
//! stays on the node, for load balancers that ask.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode, header};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::interval;
use weft_model::{NodeName, Service, ServiceName, TrafficPolicy};

use crate::core::Core;
use crate::http::{self, Page};

/// Who names problems with the ports.
const WHO: &str = "health";
/// A port that somebody has is tried again this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
const BACKLOG: u32 = 128;

/// Keeps a listener for each port that a Service has; never ends.
pub(crate) async fn run(core: Arc<Core>) {
    let mut changes = core.changes();
    let mut ticks = interval(RETRY_INTERVAL);
    let mut listeners = JoinSet::new();
    let mut open: BTreeMap<(u16, ServiceName), AbortHandle> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let wanted =
            core.read(|s| s.snapshot.as_ref().map(|s| ports(s.services.values().map(Arc::as_ref))));
        let wanted = wanted.unwrap_or_default();
        open.retain(|(port, name), listener| {
            let stays = wanted.get(port) == Some(name) && !listener.is_finished();
            if !stays {
                listener.abort();
            }
            stays
        });
        // The ports of those that were ended are free once they are gone.
        while listeners.try_join_next().is_some() {}
        let mut problems = Vec::new();
        for (port, name) in wanted {
            if open.contains_key(&(port, name.clone())) {
                continue;
            }
            match listen(port) {
                Ok(listener) => {
                    let (core, of) = (core.clone(), name.clone());
                    let serving = http::serve(listener, move |_| answer(&core, &of));
                    open.insert((port, name), listeners.spawn(serving));
                }
                Err(error) => problems.push(format!(
                    "the health check port {port} of Service {name} cannot be opened: {error}"
                )),
            }
        }
        core.set_problems(WHO, problems);
        tokio::select! {
            _ = changes.changed() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Port and Service; a port that two have is the first's.
pub(crate) fn ports<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeMap<u16, ServiceName> {
    let mut ports = BTreeMap::new();
    for service in services.filter(|s| s.external_policy == TrafficPolicy::Local) {
        if let Some(port) = service.health_check_node_port {
            ports.entry(port).or_insert_with(|| service.name.clone());
        }
    }
    ports
}

/// On all addresses of the node, of both families where it has them.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let v6 = || {
        let socket = TcpSocket::new_v6()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        socket.listen(BACKLOG)
    };
    let v4 = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([0; 4], port)))?;
        socket.listen(BACKLOG)
    };
    match v6() {
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => v4(),
        result => result,
    }
}

fn answer(core: &Core, name: &ServiceName) -> Page {
    let endpoints = core.read(|s| {
        let service = s.snapshot.as_ref().and_then(|s| s.services.get(name));
        service.map_or(0, |s| local_endpoints(s, &core.config.node_name))
    });
    let healthy = core.applied().borrow().connected;
    let body = serde_json::json!({
        "service": { "namespace": name.namespace, "name": name.name },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    let good = endpoints > 0 && healthy;
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if !good {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let exact = header::HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, exact);
    response
}

/// Ready ones; what is leaving still serves, but attracts nobody.
fn local_endpoints(service: &Service, node: &NodeName) -> usize {
    let here = |e: &&weft_model::Endpoint| e.ready && e.node.as_ref() == Some(node);
    service.endpoints.iter().filter(here).count()
}
