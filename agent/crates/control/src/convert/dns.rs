//! Settings of DNS, and Services that have nothing but names.

use std::net::IpAddr;

use weft_model::{
    DNS_PORT, Dns, Endpoint, NamedKind, NamedService, PodNames, ServiceName, ServicePort, Upstream,
};
use weft_proto::v1;

use super::service::{fits, port};
use super::{ConvertError, FromProto, Reason, ToProto, addresses, each, each_text, texts};

/// Longest time to live of the cluster's records, in seconds.
const TTL_MAX: u32 = 3600;

impl ToProto for Dns {
    type Proto = v1::Dns;

    fn to_proto(&self) -> v1::Dns {
        let pod_names = match self.pod_names {
            PodNames::Disabled => v1::PodNames::Unspecified,
            PodNames::Verified => v1::PodNames::Verified,
            PodNames::Insecure => v1::PodNames::Insecure,
        };
        let stub = |(name, upstreams): (&String, &Vec<Upstream>)| v1::StubDomain {
            name: name.clone(),
            upstreams: texts(upstreams),
        };
        let host = |(name, addresses): (&String, &Vec<IpAddr>)| v1::HostName {
            name: name.clone(),
            addresses: texts(addresses),
        };
        v1::Dns {
            zones: self.zones.clone(),
            ttl_s: self.ttl_s,
            service: Some(self.service.to_proto()),
            labels: self.labels.clone().into_iter().collect(),
            port: self.port.into(),
            pod_names: pod_names.into(),
            upstreams: texts(&self.upstreams),
            stub_domains: self.stub_domains.iter().map(stub).collect(),
            hosts: self.hosts.iter().map(host).collect(),
            autopath: self.autopath,
            endpoint_pod_names: self.endpoint_pod_names,
            client_rate: self.client_rate,
        }
    }
}

impl FromProto<v1::Dns> for Dns {
    fn from_proto(message: v1::Dns) -> Result<Self, ConvertError> {
        if message.zones.is_empty() {
            return Err(ConvertError::new("zones", Reason::Missing));
        }
        if message.ttl_s > TTL_MAX {
            return Err(ConvertError::new("ttl_s", Reason::Range(message.ttl_s.into())));
        }
        let pod_names = match v1::PodNames::try_from(message.pod_names) {
            Ok(v1::PodNames::Unspecified) => PodNames::Disabled,
            Ok(v1::PodNames::Verified) => PodNames::Verified,
            Ok(v1::PodNames::Insecure) => PodNames::Insecure,
            Err(_) => {
                let reason = Reason::Enumeration(message.pod_names);
                return Err(ConvertError::new("pod_names", reason));
            }
        };
        let service =
            message.service.ok_or_else(|| ConvertError::new("service", Reason::Missing))?;
        // 0 of a hub of an older version.
        let port = port("port", message.port)?.unwrap_or(DNS_PORT);
        let stub = |s: v1::StubDomain| Ok((s.name, servers("upstreams", &s.upstreams)?));
        let host = |h: v1::HostName| Ok((h.name, addresses("addresses", &h.addresses)?));
        Ok(Self {
            zones: message.zones,
            ttl_s: message.ttl_s,
            service: ServiceName::from_proto(service).map_err(|e| e.within("service"))?,
            labels: message.labels.into_iter().collect(),
            port,
            pod_names,
            upstreams: servers("upstreams", &message.upstreams)?,
            stub_domains: each("stub_domains", message.stub_domains, stub)?.into_iter().collect(),
            hosts: each("hosts", message.hosts, host)?.into_iter().collect(),
            autopath: message.autopath,
            endpoint_pod_names: message.endpoint_pod_names,
            client_rate: message.client_rate,
        })
    }
}

fn servers(field: &str, items: &[String]) -> Result<Vec<Upstream>, ConvertError> {
    each_text(field, items, |t| Reason::Endpoint(t.to_owned()))
}

impl ToProto for NamedService {
    type Proto = v1::NamedService;

    fn to_proto(&self) -> v1::NamedService {
        let (alias, foreign_ips) = match &self.kind {
            NamedKind::Headless => (String::new(), Vec::new()),
            NamedKind::Alias(target) => (target.clone(), Vec::new()),
            NamedKind::Foreign(ips) => (String::new(), texts(ips)),
        };
        v1::NamedService {
            name: Some(self.name.to_proto()),
            alias,
            foreign_ips,
            ports: self.ports.iter().map(ToProto::to_proto).collect(),
            endpoints: self.endpoints.iter().map(ToProto::to_proto).collect(),
        }
    }
}

impl FromProto<v1::NamedService> for NamedService {
    fn from_proto(message: v1::NamedService) -> Result<Self, ConvertError> {
        let name = message.name.ok_or_else(|| ConvertError::new("name", Reason::Missing))?;
        let ports = each("ports", message.ports, ServicePort::from_proto)?;
        let endpoint = |e| Endpoint::from_proto(e).and_then(|e| fits(e, ports.len()));
        let kind = if !message.alias.is_empty() {
            NamedKind::Alias(message.alias)
        } else if message.foreign_ips.is_empty() {
            NamedKind::Headless
        } else {
            NamedKind::Foreign(addresses("foreign_ips", &message.foreign_ips)?)
        };
        Ok(Self {
            name: ServiceName::from_proto(name).map_err(|e| e.within("name"))?,
            kind,
            endpoints: each("endpoints", message.endpoints, endpoint)?,
            ports,
        })
    }
}
