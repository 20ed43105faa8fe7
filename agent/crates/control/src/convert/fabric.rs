//! The things a snapshot is made of.

use weft_model::{
    Cluster, Dns, Encapsulation, HookPosition, NamedPort, Node, NodeName, OnFault, PluginSpec, Pod,
    PodName, Vni,
};
use weft_proto::v1;

use super::{
    ConvertError, FromProto, Reason, ToProto, addresses, bytes32, each, endpoint, keys, mac,
    narrow, subnets, texts,
};

impl ToProto for Encapsulation {
    type Proto = v1::Encapsulation;

    fn to_proto(&self) -> v1::Encapsulation {
        match self {
            Self::WireGuard => v1::Encapsulation::Wireguard,
            Self::Vxlan => v1::Encapsulation::Vxlan,
        }
    }
}

impl FromProto<i32> for Encapsulation {
    fn from_proto(value: i32) -> Result<Self, ConvertError> {
        match v1::Encapsulation::try_from(value) {
            Ok(v1::Encapsulation::Wireguard) => Ok(Self::WireGuard),
            Ok(v1::Encapsulation::Vxlan) => Ok(Self::Vxlan),
            Ok(v1::Encapsulation::Unspecified) => {
                Err(ConvertError::new("encapsulation", Reason::Missing))
            }
            Err(_) => Err(ConvertError::new("encapsulation", Reason::Enumeration(value))),
        }
    }
}

impl ToProto for Option<HookPosition> {
    type Proto = v1::Position;

    fn to_proto(&self) -> v1::Position {
        match self {
            None => v1::Position::Unspecified,
            Some(HookPosition::Egress) => v1::Position::Egress,
            Some(HookPosition::Ingress) => v1::Position::Ingress,
            Some(HookPosition::Both) => v1::Position::Both,
        }
    }
}

impl FromProto<i32> for Option<HookPosition> {
    fn from_proto(value: i32) -> Result<Self, ConvertError> {
        let known = v1::Position::try_from(value)
            .map_err(|_| ConvertError::new("position", Reason::Enumeration(value)))?;
        Ok(match known {
            v1::Position::Unspecified => None,
            v1::Position::Egress => Some(HookPosition::Egress),
            v1::Position::Ingress => Some(HookPosition::Ingress),
            v1::Position::Both => Some(HookPosition::Both),
        })
    }
}

impl ToProto for Option<OnFault> {
    type Proto = v1::OnFault;

    fn to_proto(&self) -> v1::OnFault {
        match self {
            None => v1::OnFault::Unspecified,
            Some(OnFault::Drop) => v1::OnFault::Drop,
            Some(OnFault::Skip) => v1::OnFault::Skip,
        }
    }
}

impl FromProto<i32> for Option<OnFault> {
    fn from_proto(value: i32) -> Result<Self, ConvertError> {
        let known = v1::OnFault::try_from(value)
            .map_err(|_| ConvertError::new("on_fault", Reason::Enumeration(value)))?;
        Ok(match known {
            v1::OnFault::Unspecified => None,
            v1::OnFault::Drop => Some(OnFault::Drop),
            v1::OnFault::Skip => Some(OnFault::Skip),
        })
    }
}

impl ToProto for Cluster {
    type Proto = v1::Cluster;

    fn to_proto(&self) -> v1::Cluster {
        v1::Cluster {
            pod_cidrs: texts(&self.pod_cidrs),
            encapsulation: self.encapsulation.to_proto().into(),
            port: self.port.into(),
            vni: self.vni.get(),
            mtu: self.mtu.map(Into::into),
            service_cidrs: texts(&self.service_cidrs),
            node_port_cidrs: texts(&self.node_port_cidrs),
            dns: self.dns.as_ref().map(ToProto::to_proto),
        }
    }
}

impl FromProto<v1::Cluster> for Cluster {
    fn from_proto(message: v1::Cluster) -> Result<Self, ConvertError> {
        Ok(Self {
            pod_cidrs: subnets("pod_cidrs", &message.pod_cidrs)?,
            encapsulation: Encapsulation::from_proto(message.encapsulation)?,
            port: narrow("port", message.port)?,
            vni: Vni::try_new(message.vni).map_err(|e| ConvertError::new("vni", e))?,
            mtu: message.mtu.map(|m| narrow("mtu", m)).transpose()?,
            service_cidrs: subnets("service_cidrs", &message.service_cidrs)?,
            node_port_cidrs: subnets("node_port_cidrs", &message.node_port_cidrs)?,
            dns: message.dns.map(Dns::from_proto).transpose().map_err(|e| e.within("dns"))?,
        })
    }
}

impl FromProto<String> for NodeName {
    fn from_proto(text: String) -> Result<Self, ConvertError> {
        Self::try_new(text).map_err(|e| ConvertError::new("name", e))
    }
}

impl ToProto for Node {
    type Proto = v1::Node;

    fn to_proto(&self) -> v1::Node {
        v1::Node {
            name: self.name.to_string(),
            uid: self.uid.clone(),
            endpoint: self.endpoint.map(|e| e.to_string()).unwrap_or_default(),
            addresses: texts(&self.addresses),
            subnets: texts(&self.subnets),
            keys: self.keys.iter().map(|k| k.0.to_vec()).collect(),
            vtep_mac: self.vtep_mac.map(|m| m.to_string()).unwrap_or_default(),
            labels: self.labels.clone().into_iter().collect(),
        }
    }
}

impl FromProto<v1::Node> for Node {
    fn from_proto(message: v1::Node) -> Result<Self, ConvertError> {
        Ok(Self {
            name: NodeName::from_proto(message.name)?,
            uid: message.uid,
            endpoint: endpoint("endpoint", &message.endpoint)?,
            addresses: addresses("addresses", &message.addresses)?,
            subnets: subnets("subnets", &message.subnets)?,
            keys: keys("keys", message.keys)?,
            vtep_mac: mac("vtep_mac", &message.vtep_mac)?,
            labels: message.labels.into_iter().collect(),
        })
    }
}

impl ToProto for PodName {
    type Proto = v1::PodName;

    fn to_proto(&self) -> v1::PodName {
        v1::PodName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl FromProto<v1::PodName> for PodName {
    fn from_proto(message: v1::PodName) -> Result<Self, ConvertError> {
        if message.namespace.is_empty() {
            return Err(ConvertError::new("namespace", Reason::Missing));
        }
        if message.name.is_empty() {
            return Err(ConvertError::new("name", Reason::Missing));
        }
        Ok(Self { namespace: message.namespace, name: message.name })
    }
}

impl ToProto for Pod {
    type Proto = v1::Pod;

    fn to_proto(&self) -> v1::Pod {
        v1::Pod {
            name: Some(self.name.to_proto()),
            node: self.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            addresses: texts(&self.addresses),
            labels: self.labels.clone().into_iter().collect(),
            ports: self.ports.iter().map(ToProto::to_proto).collect(),
            finished: self.finished,
            own_search: self.own_search,
        }
    }
}

impl FromProto<v1::Pod> for Pod {
    fn from_proto(message: v1::Pod) -> Result<Self, ConvertError> {
        let name = message.name.ok_or_else(|| ConvertError::new("name", Reason::Missing))?;
        let node = (!message.node.is_empty()).then_some(message.node);
        Ok(Self {
            name: PodName::from_proto(name).map_err(|e| e.within("name"))?,
            node: node
                .map(|n| NodeName::try_new(n).map_err(|e| ConvertError::new("node", e)))
                .transpose()?,
            addresses: addresses("addresses", &message.addresses)?,
            labels: message.labels.into_iter().collect(),
            ports: each("ports", message.ports, NamedPort::from_proto)?,
            finished: message.finished,
            own_search: message.own_search,
        })
    }
}

impl ToProto for PluginSpec {
    type Proto = v1::PluginSpec;

    fn to_proto(&self) -> v1::PluginSpec {
        v1::PluginSpec {
            name: self.name.clone(),
            digest: self.digest.to_vec(),
            config: self.config.clone(),
            priority: self.priority,
            position: self.position.to_proto().into(),
            on_fault: self.on_fault.to_proto().into(),
            deadline_us: self.deadline_us,
        }
    }
}

impl FromProto<v1::PluginSpec> for PluginSpec {
    fn from_proto(message: v1::PluginSpec) -> Result<Self, ConvertError> {
        if message.name.is_empty() {
            return Err(ConvertError::new("name", Reason::Missing));
        }
        Ok(Self {
            name: message.name,
            digest: bytes32("digest", message.digest)?,
            config: message.config,
            priority: message.priority,
            position: FromProto::from_proto(message.position)?,
            on_fault: FromProto::from_proto(message.on_fault)?,
            deadline_us: deadline("deadline_us", message.deadline_us)?,
        })
    }
}

fn deadline(field: &str, deadline_us: Option<u32>) -> Result<Option<u32>, ConvertError> {
    match deadline_us {
        Some(us) if !(100..=1_000_000).contains(&us) => {
            Err(ConvertError::new(field, Reason::Range(us.into())))
        }
        other => Ok(other),
    }
}
