//! What operators are shown of Services.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use weft_control::ToProto;
use weft_model::{NamedKind, NamedService, Service, ServiceName, Snapshot};
use weft_proto::v1;

use super::Fabric;

impl Fabric {
    /// Services of a namespace, or of all if it is empty, by name, also those with nothing but names, with the flows that nodes told of.
    pub(crate) fn services(&self, namespace: &str) -> Vec<v1::Service> {
        let snapshot = self.history.newest().snapshot;
        let (flows, pending) = {
            let state = self.state();
            let there = state.nodes.values().filter(|node| node.streams > 0);
            (flows(&snapshot, there.flat_map(|node| &node.translated)), state.pending.clone())
        };
        let wanted = |s: &&Service| namespace.is_empty() || s.name.namespace == namespace;
        let services = snapshot.services.values().map(|s| &**s);
        let dns = snapshot.cluster.dns.as_ref().map(|dns| &dns.service);
        let serving = |service: &Service| match dns == Some(&service.name) {
            true => v1::Serving::Nodes,
            false => v1::Serving::Unspecified,
        };
        let with_pending = |service: &Service| v1::Service {
            pending: pending.get(&service.name).cloned().unwrap_or_default(),
            serving: serving(service).into(),
            ..listed(service, &flows)
        };
        let served = services.filter(wanted).map(with_pending);
        let named = snapshot.named_services.values();
        let named = named.filter(|s| namespace.is_empty() || s.name.namespace == namespace);
        let mut all: Vec<_> = served.chain(named.map(|s| names_only(s))).collect();
        let key = |s: &v1::Service| s.name.clone().map(|n| (n.namespace, n.name));
        all.sort_by_cached_key(key);
        all
    }
}

/// Live flows by Service and the address of a backend.
type Flows<'a> = HashMap<(&'a ServiceName, IpAddr), u64>;

fn flows<'a, 't>(
    snapshot: &'a Snapshot,
    told: impl Iterator<Item = &'t v1::TranslatedFlows>,
) -> Flows<'a> {
    let mut told = told.peekable();
    let mut flows = Flows::new();
    if told.peek().is_none() {
        return flows;
    }
    let (mut at_address, mut at_node) = (HashMap::new(), HashMap::new());
    for service in snapshot.services.values() {
        let addresses = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
        for port in &service.ports {
            let protocol = u32::from(port.protocol.number());
            for address in addresses.into_iter().flatten() {
                at_address.insert((protocol, SocketAddr::new(*address, port.port)), &service.name);
            }
            at_node.extend(port.node_port.map(|p| ((protocol, p), &service.name)));
        }
    }
    for v1::TranslatedFlows { protocol, destination, backend, flows: count } in told {
        let (Ok(to), Ok(by)) = (destination.parse::<SocketAddr>(), backend.parse::<SocketAddr>())
        else {
            continue;
        };
        let service = at_address.get(&(*protocol, to)).or_else(|| {
            // Whatever the address: only a node's leads to a node port.
            at_node.get(&(*protocol, to.port()))
        });
        if let Some(service) = service {
            *flows.entry((*service, by.ip())).or_default() += count;
        }
    }
    flows
}

/// A Service that nodes do not serve.
fn names_only(service: &NamedService) -> v1::Service {
    let (serving, alias, cluster_ips) = match &service.kind {
        NamedKind::Headless => (v1::Serving::Headless, String::new(), Vec::new()),
        NamedKind::Alias(name) => (v1::Serving::Alias, name.clone(), Vec::new()),
        NamedKind::Foreign(ips) => {
            (v1::Serving::Foreign, String::new(), ips.iter().map(ToString::to_string).collect())
        }
    };
    v1::Service {
        name: Some(service.name.to_proto()),
        cluster_ips,
        ports: service.ports.iter().map(ToProto::to_proto).collect(),
        endpoints: service.endpoints.iter().map(ToProto::to_proto).collect(),
        serving: serving.into(),
        alias,
        ..v1::Service::default()
    }
}

fn listed(service: &Service, flows: &Flows<'_>) -> v1::Service {
    let mut listed = service.to_proto();
    for (endpoint, shown) in service.endpoints.iter().zip(&mut listed.endpoints) {
        shown.flows = flows.get(&(&service.name, endpoint.address)).copied().unwrap_or_default();
    }
    listed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_model::{
        Cluster, Encapsulation, Endpoint, ServicePort, ServiceProtocol, SharedMap, TrafficPolicy,
        Vni,
    };

    use super::*;

    #[test]
    fn flows_are_summed_by_endpoint_over_nodes_and_all_addresses() {
        let endpoint = |last| Endpoint {
            address: IpAddr::from([10, 42, 0, last]),
            node: None,
            ready: true,
            serving: true,
            terminating: false,
            for_nodes: vec![],
            for_zones: vec![],
            hostname: None,
            targets: vec![8080],
        };
        let service = Service {
            name: ServiceName { namespace: "default".into(), name: "web".into() },
            cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
            load_balancer_ips: vec![],
            announcers: BTreeMap::new(),
            external_ips: vec![],
            source_ranges: vec![],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_s: None,
            health_check_node_port: None,
            ports: vec![ServicePort {
                name: String::new(),
                protocol: ServiceProtocol::Tcp,
                port: 80,
                node_port: Some(30_080),
            }],
            endpoints: vec![endpoint(1), endpoint(2)],
        };
        let mut snapshot = Snapshot::empty(Cluster {
            pod_cidrs: vec![],
            encapsulation: Encapsulation::Vxlan,
            port: 1,
            vni: Vni::DEFAULT,
            mtu: None,
            service_cidrs: vec![],
            node_port_cidrs: vec![],
            dns: None,
        });
        snapshot.services = SharedMap::from([(service.name.clone(), service.clone().into())]);
        let told = |protocol, destination: &str, backend: &str, flows| v1::TranslatedFlows {
            protocol,
            destination: destination.into(),
            backend: backend.into(),
            flows,
        };
        let told = [
            told(6, "10.96.0.1:80", "10.42.0.1:8080", 2),
            told(6, "10.96.0.1:80", "10.42.0.1:8080", 3),
            told(6, "192.0.2.1:30080", "10.42.0.2:8080", 1),
            // Another port, another protocol, a backend that is gone, and nonsense.
            told(6, "10.96.0.1:81", "10.42.0.1:8080", 10),
            told(17, "10.96.0.1:80", "10.42.0.1:8080", 10),
            told(6, "10.96.0.1:80", "10.42.0.9:8080", 10),
            told(6, "here", "there", 10),
        ];
        let flows = flows(&snapshot, told.iter());
        let listed = listed(&service, &flows);
        let flows: Vec<_> = listed.endpoints.iter().map(|e| e.flows).collect();
        assert_eq!(flows, [5, 1]);
    }
}
