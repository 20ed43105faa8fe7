//! Firewalls of others that let in only what they name, and health checks of Services, which nobody
//! names: load balancers ask at any port that a Service was given.
//!
//! As [`super::forward`] does it: only in the chain of `iptables`, while its policy is to drop, and at
//! its end, so that whatever is refused there stays refused.

use std::collections::BTreeSet;

use weft_netio::nft::{self, NftError, Rule};

use super::forward::{FAMILIES, TABLE};

const HOOK: &str = "input";
const CHAIN: &str = "INPUT";
/// What tells our rules from an operator's.
const COMMENT: &str = "comment \"weft: health check\"";

/// Lets these TCP ports in, and none that was let in before.
///
/// # Errors
/// nft's.
pub(super) async fn ensure(ports: &BTreeSet<u16>) -> Result<(), NftError> {
    let none = BTreeSet::new();
    for chain in nft::base_chains(HOOK).await? {
        let is_of_iptables = FAMILIES.iter().any(|(family, _)| *family == chain.family)
            && (chain.table.as_str(), chain.name.as_str()) == (TABLE, CHAIN);
        if is_of_iptables {
            let rules = nft::list_chain(&chain.family, TABLE, CHAIN).await?;
            let commands = plan(&chain.family, &rules, if chain.drops { ports } else { &none });
            if !commands.is_empty() {
                nft::apply(&commands).await?;
                tracing::info!(family = chain.family, "rules for health checks put right");
            }
        }
    }
    Ok(())
}

/// Takes away what [`ensure`] put there.
///
/// # Errors
/// nft's.
pub(crate) async fn remove() -> Result<(), NftError> {
    ensure(&BTreeSet::new()).await
}

/// nft's commands that leave a rule of ours for each of the ports, and no other.
fn plan(family: &str, rules: &[Rule], ports: &BTreeSet<u16>) -> String {
    let rule = |port| format!("tcp dport {port} counter accept {COMMENT}");
    let wanted: BTreeSet<String> = ports.iter().map(rule).collect();
    let mut there = BTreeSet::new();
    let mut commands = String::new();
    for rule in rules.iter().filter(|r| r.text.ends_with(COMMENT)) {
        if !wanted.contains(&rule.text) || !there.insert(&rule.text) {
            commands += &format!("delete rule {family} {TABLE} {CHAIN} handle {}\n", rule.handle);
        }
    }
    for missing in wanted.iter().filter(|text| !there.contains(text)) {
        commands += &format!("add rule {family} {TABLE} {CHAIN} {missing}\n");
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_rule_for_each_port() {
        let rule = |port: u16, handle| Rule {
            text: format!("tcp dport {port} counter accept {COMMENT}"),
            handle,
        };
        let of_others = Rule { text: "tcp dport 32000 counter accept".into(), handle: 7 };
        let ports = BTreeSet::from([32_000, 32_001]);
        let rules = [of_others.clone(), rule(32_000, 8), rule(32_000, 9), rule(32_002, 10)];
        assert_eq!(
            plan("ip6", &rules, &ports),
            "delete rule ip6 filter INPUT handle 9\ndelete rule ip6 filter INPUT handle 10\nadd rule ip6 filter INPUT tcp dport 32001 counter accept comment \"weft: health check\"\n"
        );
        assert_eq!(plan("ip", &[rule(32_000, 8), rule(32_001, 9)], &ports), "");
        let away = plan("ip", &[of_others, rule(32_000, 8)], &BTreeSet::new());
        assert_eq!(away, "delete rule ip filter INPUT handle 8\n");
    }
}
