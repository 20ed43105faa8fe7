//! A pod's manifest: what every node may know of the pod, and what makes it an endpoint of Services.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec, PodStatus};
use weft_model::{NamedPort, NodeName, PodName, ServiceProtocol};

use super::object::{Key, Object, ObjectError, key, value};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodManifest {
    pub(crate) pod: Arc<weft_model::Pod>,
    /// Addresses that it shares with its node, as far as its status says; `None` if the pod has a
    /// network of its own.
    pub(crate) host_addresses: Option<Vec<IpAddr>>,
    /// Condition `Ready`; true if the manifest has no status that speaks of it.
    pub(crate) ready: bool,
    /// Told to stop.
    pub(crate) terminating: bool,
    /// Its name below that of the Service that `subdomain` names.
    pub(crate) hostname: Option<String>,
    pub(crate) subdomain: Option<String>,
}

/// Reads a pod.
pub(super) fn pod(manifest: Pod) -> Result<(Key, Object), ObjectError> {
    let key = key("Pod", &manifest.metadata)?;
    let spec = manifest.spec.unwrap_or_default();
    let status = manifest.status.unwrap_or_default();
    let host = spec.host_network.unwrap_or(false);
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let node = spec.node_name.clone().filter(|n| !n.is_empty());
    let mut addresses = pod_addresses(&status)?;
    let host_addresses = match (host, addresses.is_empty()) {
        (true, true) => Some(host_addresses(&status)?),
        (true, false) => Some(addresses.clone()),
        (false, _) => None,
    };
    // Such a pod has no address of its own, or no longer.
    if host || finished {
        addresses.clear();
    }
    let read = PodManifest {
        pod: Arc::new(weft_model::Pod {
            name: PodName { namespace: key.namespace.clone(), name: key.name.clone() },
            node: node.map(NodeName::try_new).transpose()?,
            addresses,
            labels: manifest.metadata.labels.unwrap_or_default(),
            ports: ports(&spec),
            finished,
            own_search: has_own_search(&spec),
        }),
        host_addresses,
        ready: is_ready(&status),
        terminating: manifest.metadata.deletion_timestamp.is_some(),
        hostname: spec.hostname.filter(|h| !h.is_empty()),
        subdomain: spec.subdomain.filter(|s| !s.is_empty()),
    };
    Ok((key, Object::Pod(Box::new(read))))
}

/// True unless its names are looked up as those of most pods are.
fn has_own_search(spec: &PodSpec) -> bool {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let config = spec.dns_config.as_ref();
    let searches = config.and_then(|c| c.searches.as_ref()).is_some_and(|s| !s.is_empty());
    searches || !matches!(policy, "ClusterFirst" | "ClusterFirstWithHostNet" | "")
}

fn pod_addresses(status: &PodStatus) -> Result<Vec<IpAddr>, ObjectError> {
    let listed: Vec<_> = status.pod_ips.iter().flatten().map(|a| &a.ip).collect();
    let listed = if listed.is_empty() { status.pod_ip.iter().collect() } else { listed };
    listed.into_iter().map(|a| value("status.podIPs", a, "IP address")).collect()
}

fn host_addresses(status: &PodStatus) -> Result<Vec<IpAddr>, ObjectError> {
    let listed: Vec<_> = status.host_ips.iter().flatten().map(|a| &a.ip).collect();
    let listed = if listed.is_empty() { status.host_ip.iter().collect() } else { listed };
    listed.into_iter().map(|a| value("status.hostIPs", a, "IP address")).collect()
}

fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|c| c.type_ == "Ready").is_none_or(|c| c.status == "True")
}

/// Ports by name. Init containers that stay (`restartPolicy: Always`) serve as well.
fn ports(spec: &PodSpec) -> Vec<NamedPort> {
    let stays = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(stays);
    let named = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let port = |port: &ContainerPort| {
        Some(NamedPort {
            name: port.name.clone().filter(|n| !n.is_empty())?,
            protocol: protocol(port.protocol.as_deref())?,
            number: u16::try_from(port.container_port).ok().filter(|n| *n != 0)?,
        })
    };
    named.filter_map(port).collect()
}

/// What a port's `protocol` says; `None` if it is one that Services cannot have.
pub(crate) fn protocol(text: Option<&str>) -> Option<ServiceProtocol> {
    match text.unwrap_or("TCP") {
        "TCP" | "" => Some(ServiceProtocol::Tcp),
        "UDP" => Some(ServiceProtocol::Udp),
        "SCTP" => Some(ServiceProtocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::{Read, read};

    fn pod(rest: &str) -> PodManifest {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\n{rest}");
        let Ok(Read::Object(_, object)) = read(text.as_str()) else { panic!("no object") };
        let Object::Pod(pod) = *object else { panic!("no pod") };
        *pod
    }

    #[test]
    fn pod_without_a_status_is_ready() {
        let pod = pod("spec: {nodeName: node-a}");
        assert!(pod.ready && !pod.terminating && !pod.pod.finished);
        assert_eq!(pod.host_addresses, None);
    }

    #[test]
    fn readiness_is_that_of_the_condition() {
        let ready = |status| {
            pod(&format!("status: {{conditions: [{{type: Ready, status: \"{status}\"}}]}}")).ready
        };
        assert!(ready("True"));
        assert!(!ready("False") && !ready("Unknown"));
    }

    /// NP-080, NP-081, NP-082, NP-095: neither subjects of policies nor peers.
    #[test]
    fn pods_of_the_host_network_and_ended_ones_have_no_addresses() {
        let status = |phase: &str| format!("status: {{phase: {phase}, podIP: 10.42.0.9}}");
        let addresses = |text: &str| pod(text).pod.addresses.len();
        assert_eq!(addresses(&status("Running")), 1);
        assert_eq!(addresses(&status("Succeeded")), 0);
        assert_eq!(addresses(&status("Failed")), 0);
        let host = format!("spec: {{hostNetwork: true}}\n{}", status("Running"));
        assert_eq!(addresses(&host), 0);
    }

    #[test]
    fn pod_of_the_host_network_has_the_addresses_of_its_status() {
        let of = |status: &str| {
            let read = pod(&format!("spec: {{hostNetwork: true}}\nstatus: {{{status}}}"));
            assert!(read.pod.addresses.is_empty());
            read.host_addresses.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("podIPs: [{ip: 192.0.2.1}], hostIP: 192.0.2.9"), ["192.0.2.1"]);
        assert_eq!(of("hostIP: 192.0.2.9"), ["192.0.2.9"]);
        assert!(of("phase: Running").is_empty());
    }

    /// DNS-095.
    #[test]
    fn pod_with_a_search_list_of_its_own_is_told_from_others() {
        let own = |spec: &str| pod(&format!("spec: {{{spec}}}")).pod.own_search;
        assert!(!own(""));
        assert!(!own(
            "dnsPolicy: ClusterFirst, dnsConfig: {options: [{name: ndots, value: \"2\"}]}"
        ));
        assert!(!own("dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true"));
        assert!(own("dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1]}"));
        assert!(own("dnsPolicy: Default"));
        assert!(own("dnsConfig: {searches: [corp.example]}"));
    }

    /// NP-045.
    #[test]
    fn named_ports_are_those_of_containers_that_stay() {
        let spec = "spec:\n  initContainers:\n  - {name: i, ports: [{name: gone, containerPort: 1}]}\n  - {name: s, restartPolicy: Always, ports: [{name: side, containerPort: 2, protocol: UDP}]}\n  containers:\n  - {name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 9}]}\n";
        let ports: Vec<_> =
            pod(spec).pod.ports.iter().map(|p| (p.name.clone(), p.number)).collect();
        assert_eq!(ports, [("http".to_owned(), 8080), ("side".to_owned(), 2)]);
    }
}
