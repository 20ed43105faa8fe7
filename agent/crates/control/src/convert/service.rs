//! Services and their endpoints.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use weft_model::{
    Endpoint, NodeName, Service, ServiceName, ServicePort, ServiceProtocol, TrafficPolicy,
};
use weft_proto::v1;

use super::{ConvertError, FromProto, Reason, ToProto, addresses, each, narrow, subnets, texts};

impl ToProto for ServiceName {
    type Proto = v1::ServiceName;

    fn to_proto(&self) -> v1::ServiceName {
        v1::ServiceName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl FromProto<v1::ServiceName> for ServiceName {
    fn from_proto(message: v1::ServiceName) -> Result<Self, ConvertError> {
        if message.namespace.is_empty() {
            return Err(ConvertError::new("namespace", Reason::Missing));
        }
        if message.name.is_empty() {
            return Err(ConvertError::new("name", Reason::Missing));
        }
        Ok(Self { namespace: message.namespace, name: message.name })
    }
}

impl ToProto for ServicePort {
    type Proto = v1::ServicePort;

    fn to_proto(&self) -> v1::ServicePort {
        v1::ServicePort {
            name: self.name.clone(),
            protocol: self.protocol.number().into(),
            port: self.port.into(),
            node_port: self.node_port.unwrap_or_default().into(),
        }
    }
}

impl FromProto<v1::ServicePort> for ServicePort {
    fn from_proto(message: v1::ServicePort) -> Result<Self, ConvertError> {
        let number = narrow("protocol", message.protocol)?;
        let range = |field, value: u32| ConvertError::new(field, Reason::Range(value.into()));
        Ok(Self {
            name: message.name,
            protocol: ServiceProtocol::from_number(number)
                .ok_or_else(|| range("protocol", message.protocol))?,
            port: port("port", message.port)?.ok_or_else(|| range("port", message.port))?,
            node_port: port("node_port", message.node_port)?,
        })
    }
}

impl ToProto for Endpoint {
    type Proto = v1::Endpoint;

    fn to_proto(&self) -> v1::Endpoint {
        v1::Endpoint {
            address: self.address.to_string(),
            node: self.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            for_nodes: texts(&self.for_nodes),
            for_zones: self.for_zones.clone(),
            targets: self.targets.iter().map(|t| (*t).into()).collect(),
            flows: 0,
            hostname: self.hostname.clone().unwrap_or_default(),
        }
    }
}

impl FromProto<v1::Endpoint> for Endpoint {
    fn from_proto(message: v1::Endpoint) -> Result<Self, ConvertError> {
        let no_address = |_| ConvertError::new("address", Reason::Address(message.address.clone()));
        Ok(Self {
            address: message.address.parse().map_err(no_address)?,
            hostname: (!message.hostname.is_empty()).then_some(message.hostname),
            node: node("node", message.node)?,
            ready: message.ready,
            serving: message.serving,
            terminating: message.terminating,
            for_nodes: each("for_nodes", message.for_nodes, NodeName::from_proto)?,
            for_zones: message.for_zones,
            targets: message
                .targets
                .into_iter()
                .map(|t| narrow("targets", t))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn node(field: &str, name: String) -> Result<Option<NodeName>, ConvertError> {
    let name = (!name.is_empty()).then_some(name);
    name.map(|n| NodeName::try_new(n).map_err(|e| ConvertError::new(field, e))).transpose()
}

impl ToProto for Service {
    type Proto = v1::Service;

    fn to_proto(&self) -> v1::Service {
        v1::Service {
            name: Some(self.name.to_proto()),
            cluster_ips: texts(&self.cluster_ips),
            load_balancer_ips: texts(&self.load_balancer_ips),
            external_ips: texts(&self.external_ips),
            announcers: self
                .announcers
                .iter()
                .map(|(a, n)| (a.to_string(), n.to_string()))
                .collect(),
            source_ranges: texts(&self.source_ranges),
            internal_local: self.internal_policy == TrafficPolicy::Local,
            external_local: self.external_policy == TrafficPolicy::Local,
            affinity_s: self.affinity_s.unwrap_or_default(),
            health_check_node_port: self.health_check_node_port.unwrap_or_default().into(),
            ports: self.ports.iter().map(ToProto::to_proto).collect(),
            endpoints: self.endpoints.iter().map(ToProto::to_proto).collect(),
            pending: String::new(),
            serving: v1::Serving::Unspecified.into(),
            alias: String::new(),
        }
    }
}

impl FromProto<v1::Service> for Service {
    fn from_proto(message: v1::Service) -> Result<Self, ConvertError> {
        let name = message.name.ok_or_else(|| ConvertError::new("name", Reason::Missing))?;
        let ports = each("ports", message.ports, ServicePort::from_proto)?;
        let endpoint = |e| Endpoint::from_proto(e).and_then(|e| fits(e, ports.len()));
        Ok(Self {
            name: ServiceName::from_proto(name).map_err(|e| e.within("name"))?,
            cluster_ips: addresses("cluster_ips", &message.cluster_ips)?,
            load_balancer_ips: addresses("load_balancer_ips", &message.load_balancer_ips)?,
            announcers: announcers(message.announcers)?,
            external_ips: addresses("external_ips", &message.external_ips)?,
            source_ranges: subnets("source_ranges", &message.source_ranges)?,
            internal_policy: policy(message.internal_local),
            external_policy: policy(message.external_local),
            affinity_s: (message.affinity_s != 0).then_some(message.affinity_s),
            health_check_node_port: port("health_check_node_port", message.health_check_node_port)?,
            endpoints: each("endpoints", message.endpoints, endpoint)?,
            ports,
        })
    }
}

fn announcers(given: HashMap<String, String>) -> Result<BTreeMap<IpAddr, NodeName>, ConvertError> {
    let field = "announcers";
    let one = |(address, node): (String, String)| {
        let bad = || ConvertError::new(field, Reason::Address(address.clone()));
        let node = NodeName::try_new(node).map_err(|e| ConvertError::new(field, e))?;
        Ok((address.parse().map_err(|_| bad())?, node))
    };
    given.into_iter().map(one).collect()
}

/// An endpoint says of each port of its Service where it serves it.
pub(super) fn fits(endpoint: Endpoint, ports: usize) -> Result<Endpoint, ConvertError> {
    let count = endpoint.targets.len();
    if count == ports {
        return Ok(endpoint);
    }
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    Err(ConvertError::new("targets", Reason::Count(count)))
}

fn policy(local: bool) -> TrafficPolicy {
    if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// A port; 0 is none.
pub(super) fn port(field: &str, value: u32) -> Result<Option<u16>, ConvertError> {
    let port: u16 = narrow(field, value)?;
    Ok((port != 0).then_some(port))
}
