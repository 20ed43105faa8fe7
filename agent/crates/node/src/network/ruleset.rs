//! The nftables table as text, and what of the Services the node's own network has to know.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_model::{HOST_SOURCES, ServiceProtocol, Snapshot};

use super::plan::NFT_TABLE;

/// Bit of the mark of connections that came from the fabric to the host under their client's address,
/// and of what the host answers. Not among those of kube-proxy, kubelet, Calico, Cilium or Tailscale.
pub(super) const ANSWER: u32 = 0x1000;

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
        let host = self.any().then_some(HOST_SOURCES.map(IpNet::from));
        let all = self.addresses.iter().copied().chain(host.into_iter().flatten());
        all.filter(|d| pod_cidrs.iter().any(|c| is_ipv6(c) == is_ipv6(d)))
    }

    /// Everything, of each family in which the host may have to answer a client through the fabric.
    pub(super) fn answered(&self, pod_cidrs: &[IpNet]) -> impl Iterator<Item = IpNet> {
        let everything = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
        let families = pod_cidrs.iter().map(is_ipv6).collect::<BTreeSet<_>>();
        let any = self.any();
        everything.into_iter().filter(move |e| any && families.contains(&is_ipv6(e)))
    }

    fn any(&self) -> bool {
        !self.addresses.is_empty()
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
    let [mut sets, mut raw, mut nat, mut forward, mut answers_in, mut answers_out] =
        [const { String::new() }; 6];
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
        if is_ipv6(&cidr) {
            // What pods on a bridge ask each other passes here too, where the host has bridges call
            // netfilter. Routers forward nothing of it.
            line(
                &mut forward,
                "    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            );
        }
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
        if services.any() {
            answers_in += &marked_answers(interface, cidr);
            answers_out += &errors_about_pods(cidr);
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
    if !answers_in.is_empty() {
        let marked =
            format!("ct mark & {ANSWER:#x} == {ANSWER:#x} meta mark set meta mark | {ANSWER:#x}\n");
        // Answers of containers that the host forwards to, and what comes in as well: a firewall that
        // asks for the way back to a sender finds it by the mark.
        let rules = format!("{answers_in}    {marked}");
        chain("answers_in", "filter hook prerouting priority mangle", &rules);
        chain(
            "answers_out",
            "route hook output priority mangle",
            &format!("    {marked}{answers_out}"),
        );
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

/// What comes out of the fabric for the host, from a client outside of it that keeps its address: a
/// connection whose answers have to go back in, past the route to the client.
fn marked_answers(interface: &str, pod_cidr: IpNet) -> String {
    let Words { word, host_source, .. } = words(is_ipv6(&pod_cidr));
    format!(
        "    iifname \"{interface}\" ct state new fib daddr type local {word} saddr != @pod_cidrs_{word} {word} saddr != {host_source} ct mark set ct mark | {ANSWER:#x}\n"
    )
}

/// Errors of the host's kernel about what it could not bring to a pod: to whoever is not a pod they go
/// into the fabric, which knows what the sender had sent. They are sent to who stands for the host, as
/// the sender may be the host itself; whom they are for stands in what they quote.
fn errors_about_pods(pod_cidr: IpNet) -> String {
    let Words { word, host_source, errors, quoted_destination, .. } = words(is_ipv6(&pod_cidr));
    let length = pod_cidr.prefix_len();
    let network = match pod_cidr.network() {
        IpAddr::V4(v4) => u128::from(v4.to_bits().checked_shr(32 - u32::from(length)).unwrap_or(0)),
        IpAddr::V6(v6) => v6.to_bits().checked_shr(128 - u32::from(length)).unwrap_or(0),
    };
    format!(
        "    {errors} @th,{quoted_destination},{length} {network:#x} {word} daddr != @pod_cidrs_{word} {word} daddr set {host_source}\n"
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
    /// ICMP errors, as a condition.
    errors: &'static str,
    /// Where in them the destination stands of the packet that they quote, in bits.
    quoted_destination: u16,
}

fn words(ipv6: bool) -> Words {
    let [v4, v6] = HOST_SOURCES;
    if ipv6 {
        Words {
            word: "ip6",
            kind: "ipv6_addr",
            loopback: "::1",
            host_source: v6,
            errors: "meta nfproto ipv6 icmpv6 type 1-4",
            quoted_destination: 256,
        }
    } else {
        Words {
            word: "ip",
            kind: "ipv4_addr",
            loopback: "127.0.0.0/8",
            host_source: v4,
            errors: "meta nfproto ipv4 icmp type { 3, 11, 12 }",
            quoted_destination: 192,
        }
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

    /// SVC-132, SVC-194: in both families.
    #[test]
    fn answers_and_errors_of_the_host_are_led_into_the_fabric() {
        let services = Services {
            addresses: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
            ..Services::default()
        };
        let text = ruleset("weft0", &cidrs(), false, 4789, &services);
        assert!(text.contains("type route hook output"), "{text}");
        assert_eq!(text.matches("ct mark set ct mark | 0x1000").count(), 2, "{text}");
        for quoted in ["@th,192,16 0xa2a ip daddr", "@th,256,48 0xfd4200000000 ip6 daddr"] {
            assert!(text.contains(quoted), "{quoted}: {text}");
        }
        assert_eq!(services.answered(&cidrs()).count(), 2);
        assert_eq!(services.answered(&cidrs()[1..]).count(), 1);
    }

    #[test]
    fn nothing_of_services_is_there_where_the_fabric_is_not_in_force() {
        let text = ruleset("weft0", &cidrs(), true, 4789, &Services::default());
        assert!(!text.contains("node_ports") && !text.contains("169.254.88.1"));
        assert!(!text.contains("mark"));
        assert_eq!(Services::default().answered(&cidrs()).count(), 0);
        assert_eq!(Services::default().destinations(&cidrs()).count(), 0);
    }
}
