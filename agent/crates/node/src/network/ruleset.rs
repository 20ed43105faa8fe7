//! The nftables table as text, and what of the Services the node's own network has to know.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_model::{HOST_SOURCES, ServiceProtocol, Snapshot};

use super::plan::NFT_TABLE;

/// What of the Services is outside of the datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Services {
    /// Ranges of cluster IPs, also while there is no Service, as connections outlive theirs, and
    /// addresses outside of them.
    addresses: BTreeSet<IpNet>,
    /// Ports at the node's addresses, and the addresses if not all.
    node_ports: BTreeSet<(ServiceProtocol, u16)>,
    node_port_cidrs: Vec<IpNet>,
}

impl Services {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let cluster = &snapshot.cluster;
        let mut services =
            Self { node_port_cidrs: cluster.node_port_cidrs.clone(), ..Self::default() };
        services.addresses.extend(cluster.service_cidrs.iter().map(IpNet::trunc));
        for service in snapshot.services.values() {
            let own = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
            let outside = |a: &&IpAddr| !cluster.service_cidrs.iter().any(|c| c.contains(*a));
            let outside = own.into_iter().flatten().filter(outside);
            services.addresses.extend(outside.map(|a| IpNet::from(*a)));
            let node_ports = service.ports.iter().filter_map(|p| Some((p.protocol, p.node_port?)));
            services.node_ports.extend(node_ports);
        }
        services
    }

    /// What the host sends into the fabric beside what is for pods, in the families of the pods.
    pub(crate) fn destinations<'a>(
        &'a self,
        pod_cidrs: &'a [IpNet],
    ) -> impl Iterator<Item = IpNet> + 'a {
        let host = (!self.addresses.is_empty()).then_some(HOST_SOURCES.map(IpNet::from));
        let all = self.addresses.iter().copied().chain(host.into_iter().flatten());
        all.filter(|d| pod_cidrs.iter().any(|c| is_ipv6(c) == is_ipv6(d)))
    }
}

/// The table as text. What is inside the fabric and what carries it (UDP to `port`) is not tracked;
/// what leaves it for the world gets the node's address. What is a pod's and did not come through the
/// fabric is not forwarded: so nothing passes its policies while its port is not redirected yet, or no
/// longer. What is sent to a node port of this node is
/// sent into the fabric, under the address that stands for the host there.
pub(crate) fn ruleset(
    interface: &str,
    cidrs: &[IpNet],
    masquerade: bool,
    port: u16,
    services: &Services,
) -> String {
    let (mut sets, mut raw, mut nat) = (String::new(), String::new(), String::new());
    let mut forward = String::new();
    for cidr in cidrs {
        let Words { word, kind, host_source, .. } = words(is_ipv6(cidr));
        let cidr = cidr.trunc();
        line(
            &mut sets,
            &format!(
                "  set pod_cidrs_{word} {{\n    type {kind}\n    flags interval\n    elements = {{ {cidr} }}\n  }}"
            ),
        );
        line(
            &mut raw,
            &format!("    iifname \"{interface}\" {word} daddr @pod_cidrs_{word} notrack"),
        );
        line(
            &mut forward,
            &format!("    iifname != \"{interface}\" {word} saddr @pod_cidrs_{word} drop"),
        );
        if masquerade {
            line(
                &mut nat,
                &format!(
                    "    oifname != \"{interface}\" {word} saddr @pod_cidrs_{word} {word} daddr != @pod_cidrs_{word} masquerade"
                ),
            );
        }
        if !services.addresses.is_empty() {
            line(
                &mut nat,
                &format!("    oifname != \"{interface}\" {word} saddr {host_source} masquerade"),
            );
        }
    }
    let carrier = format!("    udp dport {port} notrack\n");
    let mut chains = String::new();
    let mut chain = |name: &str, hook: &str, rules: &str| {
        line(
            &mut chains,
            &format!("  chain {name} {{\n    type {hook}; policy accept;\n{rules}  }}"),
        );
    };
    chain("prerouting", "filter hook prerouting priority raw", &format!("{raw}{carrier}"));
    chain("output", "filter hook output priority raw", &carrier);
    if !forward.is_empty() {
        chain("forward", "filter hook forward priority filter", &forward);
    }
    if !nat.is_empty() {
        chain("postrouting", "nat hook postrouting priority srcnat", &nat);
    }
    if !services.node_ports.is_empty() {
        let ports = services.node_ports.iter().map(|(protocol, port)| {
            format!("{} . {port}", protocol.to_string().to_ascii_lowercase())
        });
        let ports = ports.collect::<Vec<_>>().join(", ");
        line(
            &mut sets,
            &format!(
                "  set node_ports {{\n    type inet_proto . inet_service\n    elements = {{ {ports} }}\n  }}"
            ),
        );
        let rules = |which: &str| node_port_rules(which, cidrs, &services.node_port_cidrs);
        let outside = rules(&format!("iifname != \"{interface}\" "));
        chain("node_ports_in", "nat hook prerouting priority dstnat", &outside);
        // Which nft knows by no name in this hook.
        chain("node_ports_out", "nat hook output priority -100", &rules(""));
    }
    format!(
        "table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\ntable inet {NFT_TABLE} {{\n{sets}{chains}}}\n"
    )
}

/// Loopback addresses serve no node ports: services of the host's own must not open to others. Gateways
/// of pods serve none either: what comes back to them is not tracked.
fn node_port_rules(which: &str, pod_cidrs: &[IpNet], at: &[IpNet]) -> String {
    let mut rules = String::new();
    for cidr in pod_cidrs {
        let v6 = is_ipv6(cidr);
        let Words { word, loopback, host_source, .. } = words(v6);
        let of_family: Vec<_> =
            at.iter().filter(|c| is_ipv6(c) == v6).map(|c| c.trunc().to_string()).collect();
        let served = match (at.is_empty(), of_family.is_empty()) {
            (true, _) => String::new(),
            (false, true) => continue,
            (false, false) => format!("{word} daddr {{ {} }} ", of_family.join(", ")),
        };
        line(
            &mut rules,
            &format!(
                "    {which}fib daddr type local {word} daddr != {loopback} {word} daddr != @pod_cidrs_{word} {served}meta l4proto . th dport @node_ports dnat {word} to {host_source}"
            ),
        );
    }
    rules
}

struct Words {
    word: &'static str,
    kind: &'static str,
    loopback: &'static str,
    host_source: IpAddr,
}

fn words(ipv6: bool) -> Words {
    let [v4, v6] = HOST_SOURCES;
    if ipv6 {
        Words { word: "ip6", kind: "ipv6_addr", loopback: "::1", host_source: v6 }
    } else {
        Words { word: "ip", kind: "ipv4_addr", loopback: "127.0.0.0/8", host_source: v4 }
    }
}

fn is_ipv6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn line(to: &mut String, text: &str) {
    // Writing to a String has no way to fail.
    let _ = writeln!(to, "{text}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cidrs() -> [IpNet; 2] {
        ["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()]
    }

    #[test]
    fn ruleset_replaces_the_table_and_masquerades_only_if_asked() {
        let services = Services::default();
        let with = ruleset("weft0", &cidrs(), true, 4789, &services);
        assert!(with.starts_with("table inet weft\ndelete table inet weft\n"));
        let words: BTreeSet<&str> = with.split_whitespace().collect();
        assert!(words.contains("masquerade") && words.contains("notrack"));
        assert_eq!(with.matches("udp dport 4789 notrack").count(), 2, "in and out");
        // NP-100
        assert!(with.contains("iifname != \"weft0\" ip saddr @pod_cidrs_ip drop"), "{with}");
        assert!(with.contains("iifname != \"weft0\" ip6 saddr @pod_cidrs_ip6 drop"), "{with}");
        assert!(!ruleset("weft0", &cidrs(), false, 4789, &services).contains("masquerade"));
    }

    /// SVC-064, SVC-070: node ports are taken at the node's addresses that the operator named, and
    /// never at loopback ones.
    #[test]
    fn node_ports_are_sent_into_the_fabric() {
        let mut services = Services {
            addresses: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
            node_ports: BTreeSet::from([
                (ServiceProtocol::Tcp, 30080),
                (ServiceProtocol::Udp, 30053),
            ]),
            node_port_cidrs: Vec::new(),
        };
        let text = ruleset("weft0", &cidrs(), false, 4789, &services);
        assert!(text.contains("elements = { tcp . 30080, udp . 30053 }"), "{text}");
        assert_eq!(
            text.matches("dnat ip to 169.254.88.1").count(),
            2,
            "from outside, from the host"
        );
        assert_eq!(text.matches("ip daddr != 127.0.0.0/8").count(), 2);
        assert!(
            text.contains("ip saddr 169.254.88.1 masquerade"),
            "needed without --masquerade too"
        );
        services.node_port_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
        let text = ruleset("weft0", &cidrs(), false, 4789, &services);
        assert_eq!(text.matches("ip daddr { 192.0.2.0/24 } meta l4proto").count(), 2);
        assert!(!text.contains("dnat ip6"), "no address of that family is named");
    }

    #[test]
    fn nothing_of_services_is_there_where_the_fabric_is_not_in_force() {
        let text = ruleset("weft0", &cidrs(), true, 4789, &Services::default());
        assert!(!text.contains("node_ports") && !text.contains("169.254.88.1"));
        assert_eq!(Services::default().destinations(&cidrs()).count(), 0);
    }
}
