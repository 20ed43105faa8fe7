//! What the types of Kubernetes do not say: which numbers are ports.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::object::ObjectError;

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

fn port(field: &'static str, given: i32) -> Result<(), ObjectError> {
    if (1..=65535).contains(&given) {
        return Ok(());
    }
    Err(ObjectError::Value { field, value: given.to_string(), expected: PORT })
}
