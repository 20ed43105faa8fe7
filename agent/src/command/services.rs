//! `weft services`.

use tonic::Streaming;
use weft_model::ServiceProtocol;
use weft_proto::v1::{Endpoint, ListServicesRequest, Service, ServicePort, Serving};

use super::control::{HubArguments, refused};
use crate::output::{print, row, table};

/// Shows every Service with its addresses, ports and endpoints.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only Services of this namespace.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    namespace: String,
    /// Also every endpoint: where it is and whether it gets new connections.
    #[arg(long)]
    endpoints: bool,
    #[command(flatten)]
    hub: HubArguments,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let request = ListServicesRequest { namespace: self.namespace.clone() };
        let mut client = self.hub.client().await?;
        let answer = client.list_services(request).await.map_err(refused)?.into_inner();
        let services = all(answer).await?;
        if services.is_empty() {
            return print("no Services\n");
        }
        print(&if self.endpoints { endpoints(&services) } else { overview(&services) })
    }
}

async fn all(mut stream: Streaming<Service>) -> anyhow::Result<Vec<Service>> {
    let mut services = Vec::new();
    while let Some(service) = stream.message().await.map_err(refused)? {
        services.push(service);
    }
    Ok(services)
}

fn overview(services: &[Service]) -> String {
    let mut rows = vec![row([
        "NAMESPACE",
        "NAME",
        "CLUSTER-IPS",
        "EXTERNAL",
        "PORTS",
        "READY",
        "FLOWS",
        "POLICY",
    ])];
    for service in services {
        let name = service.name.clone().unwrap_or_default();
        let ready = service.endpoints.iter().filter(|e| e.ready).count();
        rows.push(row([
            &name.namespace,
            &name.name,
            &cluster_ips(service),
            &external(service),
            &short_list(&service.ports.iter().map(port).collect::<Vec<_>>()),
            &match service.serving() {
                Serving::Nodes => "nodes".to_owned(),
                Serving::Alias => "-".to_owned(),
                _ => format!("{ready}/{}", service.endpoints.len()),
            },
            &service.endpoints.iter().map(|e| e.flows).sum::<u64>().to_string(),
            &policy(service),
        ]));
    }
    table(&rows)
}

/// As `kubectl` shows them, and what a name stands for.
fn cluster_ips(service: &Service) -> String {
    match service.serving() {
        Serving::Headless => "None".to_owned(),
        Serving::Alias => format!("-> {}", service.alias),
        Serving::Unspecified | Serving::Nodes | Serving::Foreign => list(&service.cluster_ips),
    }
}

/// Addresses for clients outside, or why there are none.
fn external(service: &Service) -> String {
    let addresses = [service.load_balancer_ips.clone(), service.external_ips.clone()].concat();
    if addresses.is_empty() && !service.pending.is_empty() {
        return format!("pending: {}", service.pending);
    }
    list(&addresses)
}

fn endpoints(services: &[Service]) -> String {
    let mut rows =
        vec![row(["NAMESPACE", "NAME", "ENDPOINT", "TARGETS", "NODE", "STATE", "FLOWS"])];
    for service in services {
        let name = service.name.clone().unwrap_or_default();
        if service.endpoints.is_empty() {
            let state = match service.serving() {
                Serving::Nodes => "every node",
                Serving::Alias => "a name",
                _ => "no endpoints",
            };
            rows.push(row([&name.namespace, &name.name, "-", "-", "-", state, "0"]));
        }
        for endpoint in &service.endpoints {
            let targets = endpoint.targets.iter().map(|t| match t {
                0 => "-".to_owned(),
                target => target.to_string(),
            });
            rows.push(row([
                &name.namespace,
                &name.name,
                &endpoint.address,
                &short_list(&targets.collect::<Vec<_>>()),
                if endpoint.node.is_empty() { "-" } else { &endpoint.node },
                state(endpoint),
                &endpoint.flows.to_string(),
            ]));
        }
    }
    table(&rows)
}

fn state(endpoint: &Endpoint) -> &'static str {
    match (endpoint.ready, endpoint.serving, endpoint.terminating) {
        (true, _, _) => "ready",
        (false, true, true) => "leaving, still serves",
        (false, _, true) => "leaving",
        (false, _, false) => "not ready",
    }
}

/// As `kubectl` shows it: `80:30080/TCP`.
fn port(port: &ServicePort) -> String {
    let number = u8::try_from(port.protocol).ok().and_then(ServiceProtocol::from_number);
    let protocol = number.map_or_else(|| port.protocol.to_string(), |p| p.to_string());
    match port.node_port {
        0 => format!("{}/{protocol}", port.port),
        node_port => format!("{}:{node_port}/{protocol}", port.port),
    }
}

/// What is not the default.
fn policy(service: &Service) -> String {
    let mut parts = Vec::new();
    if service.serving() == Serving::Foreign {
        parts.push("another proxy".to_owned());
    }
    if service.internal_local {
        parts.push("internal Local".to_owned());
    }
    if service.external_local {
        parts.push("external Local".to_owned());
    }
    if service.affinity_s != 0 {
        parts.push(format!("affinity {} s", service.affinity_s));
    }
    if service.health_check_node_port != 0 {
        parts.push(format!("health check {}", service.health_check_node_port));
    }
    list(&parts)
}

/// Ports that are shown of one Service.
const SHOWN: usize = 6;

/// A Service of hundreds of ports must not make the table as wide.
fn short_list(parts: &[String]) -> String {
    match parts.split_at_checked(SHOWN) {
        Some((shown, more)) if !more.is_empty() => {
            format!("{} and {} more", list(shown), more.len())
        }
        _ => list(parts),
    }
}

fn list(parts: &[String]) -> String {
    if parts.is_empty() { "-".to_owned() } else { parts.join(",") }
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::ServiceName;

    use super::*;

    #[test]
    fn service_is_one_line_and_its_endpoints_one_each() {
        let endpoint = |address: &str, ready| Endpoint {
            address: address.into(),
            ready,
            flows: 3,
            targets: vec![8080],
            ..Endpoint::default()
        };
        let service = Service {
            name: Some(ServiceName { namespace: "default".into(), name: "web".into() }),
            cluster_ips: vec!["10.96.0.1".into()],
            external_local: true,
            ports: vec![ServicePort {
                protocol: 6,
                port: 80,
                node_port: 30080,
                ..Default::default()
            }],
            endpoints: vec![endpoint("10.1.0.1", true), endpoint("10.1.0.2", false)],
            ..Service::default()
        };
        let text = overview(std::slice::from_ref(&service));
        let line = text.lines().nth(1).unwrap_or_default();
        let cells: Vec<_> = line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        let expected =
            ["default", "web", "10.96.0.1", "-", "80:30080/TCP", "1/2", "6", "external Local"];
        assert_eq!(cells, expected);
        let waits = Service { pending: "no AddressPool".into(), ..service.clone() };
        assert!(overview(&[waits]).contains("  pending: no AddressPool  "));
        let headless =
            Service { serving: Serving::Headless.into(), cluster_ips: vec![], ..service.clone() };
        assert!(overview(&[headless]).contains("web   None "));
        let alias = Service {
            serving: Serving::Alias.into(),
            alias: "db.example".into(),
            endpoints: vec![],
            ..service.clone()
        };
        assert!(overview(&[alias]).contains("-> db.example"));
        let nodes =
            Service { serving: Serving::Nodes.into(), endpoints: vec![], ..service.clone() };
        assert!(overview(std::slice::from_ref(&nodes)).contains(" nodes "));
        assert!(endpoints(&[nodes]).contains("every node"));
        let text = endpoints(std::slice::from_ref(&service));
        assert!(text.contains("10.1.0.2  8080     -     not ready  3"), "{text}");
        let port = |number| ServicePort { protocol: 6, port: number, ..ServicePort::default() };
        let wide = Service { ports: (1..=300).map(port).collect(), endpoints: vec![], ..service };
        let text = overview(std::slice::from_ref(&wide));
        assert!(text.contains("5/TCP,6/TCP and 294 more"), "{text}");
        assert!(endpoints(&[wide]).contains("no endpoints"));
    }
}
