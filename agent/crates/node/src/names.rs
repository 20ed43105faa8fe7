//! What somebody on this node who asks for a name gets, for operators.

use std::net::IpAddr;

use weft_model::{RESOLVERS, ServiceProtocol, Snapshot};
use weft_proto::v1::{Decision, EndQuestion, NameAnswer, NameQuestion, NameStep, Ports};

use crate::core::{Core, Target};
use crate::tables::Explaining;

/// A name with so many dots is asked for as it is first, as kubelets have it in `resolv.conf`.
const NDOTS: usize = 5;

/// # Errors
/// A line that says why there is no answer.
pub(crate) async fn answer(
    core: &Core,
    target: &Target,
    snapshot: &Snapshot,
    question: &NameQuestion,
) -> Result<NameAnswer, String> {
    let resolver = core.resolver().ok_or("the node answers no names yet")?;
    let zone = snapshot.cluster.zones().first().ok_or("the node answers no names")?;
    let client = match question.pod.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("`{text}` is no address"))?),
    };
    let policy = client.map(|pod| policy(target, snapshot, pod)).transpose()?.flatten();
    if policy.as_ref().is_some_and(|decision| decision.denies) {
        return Ok(NameAnswer { policy, steps: Vec::new() });
    }
    let mut steps = Vec::new();
    for name in candidates(&question.name, &question.namespace, zone) {
        let traced = match resolver.trace(&name, &question.r#type, client).await {
            Ok(traced) => traced,
            // What a search list makes of a long name may be none.
            Err(_) if name != question.name => continue,
            Err(error) => return Err(error),
        };
        let found = traced.found;
        steps.push(NameStep {
            name: traced.name,
            code: traced.code,
            servers: traced.servers.iter().map(ToString::to_string).collect(),
            records: traced.records,
            found,
        });
        if found {
            break;
        }
    }
    Ok(NameAnswer { policy, steps })
}

/// What policies say of the query, where the pod's end is judged.
fn policy(target: &Target, snapshot: &Snapshot, pod: IpAddr) -> Result<Option<Decision>, String> {
    let peer = RESOLVERS.into_iter().find(|r| r.is_ipv4() == pod.is_ipv4());
    let Some(dns) = &snapshot.cluster.dns else { return Ok(None) };
    let question = EndQuestion {
        egress: true,
        pod: pod.to_string(),
        peer: peer.map(|p| p.to_string()).unwrap_or_default(),
        ports: Some(Ports {
            protocol: ServiceProtocol::Udp.number().into(),
            first: dns.port.into(),
            last: dns.port.into(),
        }),
    };
    let answer = Explaining::new(target.tables.policies(), snapshot)?.answer(&question)?;
    Ok(answer.ports.into_iter().next().and_then(|ports| ports.decision))
}

/// Names that a resolver makes of one, in order. `namespace`: of a pod with the usual search list.
fn candidates(name: &str, namespace: &str, zone: &str) -> Vec<String> {
    if name.ends_with('.') || namespace.is_empty() {
        return vec![name.to_owned()];
    }
    let searches = [format!("{namespace}.svc.{zone}"), format!("svc.{zone}"), zone.to_owned()];
    let mut all: Vec<String> = searches.iter().map(|search| format!("{name}.{search}")).collect();
    let first = name.matches('.').count() >= NDOTS;
    all.insert(if first { 0 } else { searches.len() }, name.to_owned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DNS-090.
    #[test]
    fn names_are_looked_up_in_the_order_of_the_search_list() {
        let all = |name| candidates(name, "shop", "cluster.local");
        let searched =
            ["web.shop.svc.cluster.local", "web.svc.cluster.local", "web.cluster.local", "web"];
        assert_eq!(all("web"), searched);
        assert_eq!(all("web.shop."), ["web.shop."]);
        assert_eq!(all("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(candidates("web", "", "cluster.local"), ["web"]);
    }
}
