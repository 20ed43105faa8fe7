//! What the types of Kubernetes do not say: ports and blocks of addresses.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::object::{ObjectError, value};

const PORT: &str = "port: 1 to 65535";

/// Ports of a Service.
pub(super) fn service(service: &Service) -> Result<(), ObjectError> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    for given in ports {
        port("spec.ports.port", given.port)?;
        if let Some(IntOrString::Int(target)) = given.target_port {
            port("spec.ports.targetPort", target)?;
        }
        // 0 asks for any.
        given.node_port.filter(|p| *p != 0).map_or(Ok(()), |p| port("spec.ports.nodePort", p))?;
    }
    Ok(())
}

/// Ports of an EndpointSlice.
pub(super) fn slice(slice: &EndpointSlice) -> Result<(), ObjectError> {
    let mut ports = slice.ports.iter().flatten().filter_map(|p| p.port);
    ports.try_for_each(|given| port("ports.port", given))
}

/// Ports and blocks of a NetworkPolicy.
pub(super) fn policy(policy: &NetworkPolicy) -> Result<(), ObjectError> {
    let Some(spec) = &policy.spec else { return Ok(()) };
    for rule in spec.ingress.iter().flatten() {
        policy_ports(rule.ports.as_deref())?;
        policy_peers(rule.from.as_deref())?;
    }
    for rule in spec.egress.iter().flatten() {
        policy_ports(rule.ports.as_deref())?;
        policy_peers(rule.to.as_deref())?;
    }
    Ok(())
}

fn policy_ports(ports: Option<&[NetworkPolicyPort]>) -> Result<(), ObjectError> {
    for given in ports.unwrap_or_default() {
        if let Some(IntOrString::Int(first)) = given.port {
            port("ports.port", first)?;
        }
        given.end_port.map_or(Ok(()), |last| port("ports.endPort", last))?;
    }
    Ok(())
}

fn policy_peers(peers: Option<&[NetworkPolicyPeer]>) -> Result<(), ObjectError> {
    for block in peers.unwrap_or_default().iter().filter_map(|p| p.ip_block.as_ref()) {
        value::<IpNet>("ipBlock.cidr", &block.cidr, "CIDR such as 10.0.0.0/8")?;
        for except in block.except.iter().flatten() {
            value::<IpNet>("ipBlock.except", except, "CIDR such as 10.0.0.0/8")?;
        }
    }
    Ok(())
}

fn port(field: &'static str, given: i32) -> Result<(), ObjectError> {
    if (1..=65535).contains(&given) {
        return Ok(());
    }
    Err(ObjectError::Value { field, value: given.to_string(), expected: PORT })
}
