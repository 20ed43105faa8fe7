//! kube-proxy beside us, or what it left behind: it would translate what is sent to Services before the
//! fabric sees it.

use weft_netio::link::Link;
use weft_netio::nft::{self, NftError};

use super::forward::{FAMILIES, LEGACY, has_line, legacy_chain};

/// Where each of its modes hooks in.
const HOOK: &str = "prerouting";
/// Its tables in mode `nftables`.
const TABLE: &str = "kube-proxy";
/// The table of `iptables` where it translates, and the chain that it has rules in.
const NAT: &str = "nat";
const CHAIN: &str = "PREROUTING";
/// Its own chain in mode `iptables`, which that one jumps to. Others of its names are the kubelet's.
const SERVICES: &str = "KUBE-SERVICES";
/// Its interface in mode `ipvs`.
const INTERFACE: &str = "kube-ipvs0";

/// A line if there is something of kube-proxy.
///
/// # Errors
/// nft's.
pub(super) async fn problem(links: &[Link]) -> Result<Option<String>, NftError> {
    let mut found = Vec::new();
    for chain in nft::base_chains(HOOK).await? {
        let of_iptables = (chain.table.as_str(), chain.name.as_str()) == (NAT, CHAIN)
            && FAMILIES.iter().any(|(family, _)| *family == chain.family);
        if chain.table == TABLE {
            found.push(format!("table {} {TABLE}", chain.family));
        } else if of_iptables {
            let rules = nft::list_chain(&chain.family, NAT, CHAIN).await?;
            if rules.iter().any(|rule| jumps(&rule.text)) {
                found.push(format!("chain {SERVICES} of table {} {NAT}", chain.family));
            }
        }
    }
    for (program, tables, _) in LEGACY {
        if has_line(tables, NAT) && legacy_chain(program, NAT, CHAIN).await.lines().any(jumps) {
            found.push(format!("chain {SERVICES} of {program}"));
        }
    }
    if links.iter().any(|link| link.name == INTERFACE) {
        found.push(format!("interface {INTERFACE}"));
    }
    found.dedup();
    Ok(line(&found))
}

fn jumps(rule: &str) -> bool {
    rule.split_whitespace().any(|word| word == SERVICES)
}

fn line(found: &[String]) -> Option<String> {
    let list = found.join(", ");
    (!found.is_empty()).then(|| {
        format!(
            "kube-proxy runs on this node or left its rules ({list}): it takes Services from the fabric. Remove it from the cluster, then run `kube-proxy --cleanup` on this node"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_kubelet_are_not_taken_for_those_of_kube_proxy() {
        assert!(jumps("counter jump KUBE-SERVICES"));
        assert!(jumps("-A PREROUTING -m comment --comment \"x\" -j KUBE-SERVICES"));
        assert!(!jumps("counter jump KUBE-KUBELET-CANARY"));
        assert_eq!(line(&[]), None);
        let said = line(&["table ip kube-proxy".to_owned()]).unwrap();
        assert!(said.contains("(table ip kube-proxy)") && said.contains("--cleanup"), "{said}");
    }
}
