//! Services as people write them.

use std::net::{IpAddr, Ipv4Addr};

/// A Service with port 80 and its endpoints, which listen on 8080.
pub(super) fn manifest(name: &str, ip: Ipv4Addr, protocol: &str, endpoints: &[IpAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|e| format!("{{addresses: [\"{e}\"]}}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{name: p, protocol: {protocol}, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: p, protocol: {protocol}, port: 8080}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}
