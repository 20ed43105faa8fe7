//! Firewalls of others that drop what is forwarded, as Docker's does.
//!
//! What pods exchange with the world, and with each other where delivery is not direct, is forwarded
//! by the host, and no rule of our own table can accept what a chain of somebody else drops. In `iptables`' own chain, where every network puts rules, two of
//! ours stand at the end, so that whatever is refused there stays refused. Other chains are left alone
//! and reported.

use std::process::Stdio;

use ipnet::IpNet;
use tokio::process::Command;
use weft_netio::Family;
use weft_netio::nft::{self, BaseChain, NftError, Rule};

const HOOK: &str = "forward";
/// The chain of `iptables` and `ip6tables`, where they work by nftables.
pub(super) const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
pub(super) const FAMILIES: [(&str, Family); 2] = [("ip", Family::V4), ("ip6", Family::V6)];

/// Programs for tables that nftables does not show, with the file that tells of them.
pub(super) const LEGACY: [(&str, &str, Family); 2] = [
    ("iptables-legacy", "/proc/net/ip_tables_names", Family::V4),
    ("ip6tables-legacy", "/proc/net/ip6_tables_names", Family::V6),
];

/// What has to be let through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing<'a> {
    pub(super) interface: &'a str,
    pub(super) cidrs: &'a [IpNet],
    /// What pods say to each other is not forwarded by the host, see [`super::delivery`].
    pub(super) direct: bool,
}

/// Lets pods' packets through where that can be done; returns a line for each chain where it cannot.
///
/// # Errors
/// nft's.
pub(super) async fn ensure(passing: Passing<'_>) -> Result<Vec<String>, NftError> {
    let mut problems = Vec::new();
    for chain in nft::base_chains(HOOK).await? {
        let rules = nft::list_chain(&chain.family, &chain.table, &chain.name).await?;
        let commands = passing.plan(&chain, &rules);
        if !commands.is_empty() {
            nft::apply(&commands).await?;
            tracing::info!(chain = describe(&chain), "rules for pods put right");
        }
        if passing.is_cut_by(&chain, &rules) {
            // What accepts them may stand in a chain that this one jumps to.
            let table = nft::list_table(&chain.family, &chain.table).await?.unwrap_or_default();
            if !passing.is_named_in(&table) {
                problems.push(passing.problem(&chain));
            }
        }
    }
    for (program, tables, family) in LEGACY {
        if passing.families().any(|f| f == family) && has_line(tables, TABLE) {
            problems.extend(
                passing.legacy_problem(program, &legacy_chain(program, TABLE, CHAIN).await),
            );
        }
    }
    Ok(problems)
}

/// Takes away what [`ensure`] put into the chains of `iptables`.
///
/// # Errors
/// nft's.
pub(crate) async fn remove(interface: &str) -> Result<(), NftError> {
    for (family, _) in FAMILIES {
        let rules = nft::list_chain(family, TABLE, CHAIN).await?;
        let ours = rules.iter().filter(|r| is_ours(r, interface));
        let commands: String = ours.map(|r| delete(family, r)).collect();
        if !commands.is_empty() {
            nft::apply(&commands).await?;
        }
    }
    Ok(())
}

const DIRECTIONS: [&str; 2] = ["iifname", "oifname"];

/// What tells our rules from an operator's who has let pods through by hand.
const COMMENT: &str = " comment \"weft: pods\"";

/// Whether it is ours to take away. A comment may be lost when somebody saves and restores the chain;
/// then a rule stays that lets an interface pass which is not there.
fn is_ours(rule: &Rule, interface: &str) -> bool {
    accepts(rule, interface).is_some() && rule.text.ends_with(COMMENT)
}

/// Which of the two rules that are needed this is, whoever made it.
fn accepts(rule: &Rule, interface: &str) -> Option<&'static str> {
    let is = |direction: &&str| {
        let bare = format!("{direction} \"{interface}\" counter accept");
        let rest = rule.text.strip_prefix(&bare);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" comment "))
    };
    DIRECTIONS.into_iter().find(is)
}

fn add(family: &str, direction: &str, interface: &str) -> String {
    format!(
        "add rule {family} {TABLE} {CHAIN} {direction} \"{interface}\" counter accept{COMMENT}\n"
    )
}

fn delete(family: &str, rule: &Rule) -> String {
    format!("delete rule {family} {TABLE} {CHAIN} handle {}\n", rule.handle)
}

fn describe(chain: &BaseChain) -> String {
    format!("{} {} {}", chain.family, chain.table, chain.name)
}

impl Passing<'_> {
    fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.cidrs.iter().map(Family::of)
    }

    /// nft's commands that put our rules right in a chain of `iptables`; empty in any other.
    fn plan(&self, chain: &BaseChain, rules: &[Rule]) -> String {
        let family = FAMILIES.iter().find(|(name, _)| *name == chain.family);
        let Some((name, family)) = family.filter(|_| chain.table == TABLE && chain.name == CHAIN)
        else {
            return String::new();
        };
        let there =
            |direction: &str| rules.iter().any(|r| accepts(r, self.interface) == Some(direction));
        if chain.drops && self.families().any(|f| f == *family) {
            let missing = DIRECTIONS.into_iter().filter(|d| !there(d));
            return missing.map(|d| add(name, d, self.interface)).collect();
        }
        let ours = rules.iter().filter(|r| is_ours(r, self.interface));
        ours.map(|r| delete(name, r)).collect()
    }

    /// True if nothing is forwarded that no rule accepts, and ours cannot stand before the end.
    fn is_cut_by(&self, chain: &BaseChain, rules: &[Rule]) -> bool {
        let concerned = FAMILIES.iter().any(|(name, f)| {
            (chain.family == *name || chain.family == "inet")
                && self.families().any(|own| own == *f)
        });
        let mut others = rules.iter().filter(|r| accepts(r, self.interface).is_none());
        let ends = others.next_back().is_some_and(|r| {
            let text = r.text.strip_prefix("counter ").unwrap_or(&r.text);
            text == "drop" || text.starts_with("reject")
        });
        let ours = chain.family != "inet" && chain.table == TABLE && chain.name == CHAIN;
        concerned && (ends || chain.drops && !ours)
    }

    /// True if somebody has thought of pods in there, but for our own rules.
    fn is_named_in(&self, table: &str) -> bool {
        let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        let interface = format!("\"{}\"", self.interface);
        lines.any(|text| {
            let ours = accepts(&Rule { text: text.clone(), handle: 0 }, self.interface).is_some();
            let named = text.contains(&interface)
                || self.cidrs.iter().any(|c| text.contains(&c.trunc().to_string()));
            named && !ours
        })
    }

    /// What a firewall that lets nothing pass does.
    fn cut_off(&self) -> &'static str {
        if self.direct {
            "drops what pods exchange with the world"
        } else {
            "drops what pods send and get"
        }
    }

    fn problem(&self, chain: &BaseChain) -> String {
        let BaseChain { family, table, name, .. } = chain;
        let (interface, cut_off) = (self.interface, self.cut_off());
        format!(
            "the firewall of this node (nftables: chain {name} of table {family} {table}) {cut_off}: let it pass, as with `nft insert rule {family} {table} {name} iifname {interface} accept` and `nft insert rule {family} {table} {name} oifname {interface} accept`"
        )
    }

    fn legacy_problem(&self, program: &str, listed: &str) -> Option<String> {
        let drops = listed.lines().any(|l| l == "-P FORWARD DROP");
        let (interface, cut_off) = (self.interface, self.cut_off());
        let named = listed.split_whitespace().any(|word| {
            word == interface || self.cidrs.iter().any(|c| word == c.trunc().to_string())
        });
        (drops && !named).then(|| {
            format!(
                "the firewall of this node ({program}: policy of chain FORWARD) {cut_off}: let it pass, with `{program} -A FORWARD -i {interface} -j ACCEPT` and `{program} -A FORWARD -o {interface} -j ACCEPT`"
            )
        })
    }
}

pub(super) fn has_line(path: &str, line: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|l| l == line))
}

/// The chain as the program prints it; nothing if it is not installed, since then nobody here uses it.
pub(super) async fn legacy_chain(program: &str, table: &str, chain: &str) -> String {
    let mut command = Command::new(program);
    command.args(["-w", "1", "-t", table, "-S", chain]).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await;
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: &str, table: &str, name: &str, drops: bool) -> BaseChain {
        BaseChain { family: family.into(), table: table.into(), name: name.into(), drops }
    }

    fn rules(texts: &[&str]) -> Vec<Rule> {
        let texts = (7..).zip(texts);
        texts.map(|(handle, text)| Rule { text: (*text).to_owned(), handle }).collect()
    }

    const IN: &str = "iifname \"weft0\" counter accept";
    const OUT: &str = "oifname \"weft0\" counter accept comment \"weft: pods\"";

    fn v4() -> Vec<IpNet> {
        vec!["10.42.0.0/16".parse().unwrap()]
    }

    #[test]
    fn rules_stand_in_the_chain_of_iptables_while_its_policy_drops() {
        let cidrs = v4();
        let passing = Passing { interface: "weft0", cidrs: &cidrs, direct: false };
        let drops = chain("ip", "filter", "FORWARD", true);
        let both = passing.plan(&drops, &rules(&["counter jump DOCKER-USER"]));
        assert_eq!(both.lines().count(), 2, "{both}");
        assert!(both.lines().all(|l| l.starts_with("add rule ip filter FORWARD ")), "{both}");
        let one = passing.plan(&drops, &rules(&[IN]));
        assert_eq!(one, add("ip", "oifname", "weft0"));
        assert_eq!(passing.plan(&drops, &rules(&[IN, OUT])), "");
        let accepts = BaseChain { drops: false, ..drops };
        // What an operator wrote, without our comment, stays.
        let away = passing.plan(&accepts, &rules(&[IN, "counter accept", OUT]));
        assert_eq!(away, "delete rule ip filter FORWARD handle 9\n");
        // Of the other family, of others, and of an interface whose name begins alike.
        for other in [chain("ip6", "filter", "FORWARD", true), chain("ip", "own", "FORWARD", true)]
        {
            assert_eq!(passing.plan(&other, &[]), "", "{other:?}");
        }
        let alike = rules(&["iifname \"weft01\" counter accept"]);
        assert_eq!(passing.plan(&accepts, &alike), "");
    }

    #[test]
    fn chain_of_others_that_lets_nothing_pass_is_a_problem_unless_it_names_pods() {
        let cidrs = v4();
        let passing = Passing { interface: "weft0", cidrs: &cidrs, direct: false };
        let own = chain("inet", "own", "f", true);
        assert!(passing.is_cut_by(&own, &[]));
        assert!(!passing.is_cut_by(&chain("ip6", "own", "f", true), &[]));
        assert!(!passing.is_cut_by(&chain("inet", "own", "f", false), &rules(&["counter accept"])));
        // Behind a rule that ends everything ours do not help.
        let iptables = chain("ip", "filter", "FORWARD", true);
        assert!(!passing.is_cut_by(&iptables, &rules(&[IN, OUT])));
        assert!(passing.is_cut_by(&iptables, &rules(&["counter reject with icmp 10", IN, OUT])));
        assert!(passing.is_named_in("ip saddr 10.42.0.0/16 accept"));
        assert!(passing.is_named_in("iifname { \"eth0\", \"weft0\" } accept"));
        assert!(!passing.is_named_in(&format!("\t\t{IN}\n\t\t{OUT}\n")));
        let line = passing.problem(&own);
        assert!(line.contains("nft insert rule inet own f iifname weft0 accept"), "{line}");
    }

    #[test]
    fn tables_of_iptables_legacy_are_read_as_well() {
        let cidrs = v4();
        let passing = Passing { interface: "weft0", cidrs: &cidrs, direct: false };
        let line = passing.legacy_problem("iptables-legacy", "-P FORWARD DROP\n").unwrap();
        assert!(line.contains("iptables-legacy -A FORWARD -i weft0 -j ACCEPT"), "{line}");
        let allowed = "-P FORWARD DROP\n-A FORWARD -i weft0 -j ACCEPT\n";
        assert_eq!(passing.legacy_problem("iptables-legacy", allowed), None);
        assert_eq!(passing.legacy_problem("iptables-legacy", "-P FORWARD ACCEPT\n"), None);
    }
}
