//! Who has to hear of answers before those who asked do.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData};
use weft_dns::Transport;

use crate::Resolver;
use crate::reply::{self, Reply};

/// Aliases of aliases that are followed in one answer.
const CHAIN_MAX: usize = 16;

/// Hears of addresses before whoever asked for them does.
pub trait Witness: Send + Sync {
    /// False if nothing that this client is told matters.
    fn cares(&self, client: IpAddr) -> bool;

    /// The client is about to be told this. If it is false, the client is told that the server failed.
    fn hear(&self, client: IpAddr, found: Found) -> BoxFuture<'_, bool>;
}

/// Addresses in one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name asked for, then what it stands for, one after the other: in lower case, without a dot at the
    /// end.
    pub names: Vec<String>,
    /// Of the last name. Not empty.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live that the client is told on the way there.
    pub ttl: Duration,
}

impl Found {
    /// `None` if the answer has no addresses of what was asked for.
    pub(crate) fn in_answer(message: &Message) -> Option<Self> {
        let mut name = message.queries.first()?.name().clone();
        let (mut names, mut ttl) = (vec![text(&name)?], u32::MAX);
        let alias = |of: &Name| {
            message.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *of => Some((target.0.clone(), record.ttl)),
                _ => None,
            })
        };
        while let Some((target, its)) = alias(&name) {
            if names.len() > CHAIN_MAX {
                return None;
            }
            names.push(text(&target)?);
            ttl = ttl.min(its);
            name = target;
        }
        let mut addresses = Vec::new();
        for record in message.answers.iter().filter(|record| record.name == name) {
            let address = match &record.data {
                RData::A(a) => IpAddr::V4(a.0),
                RData::AAAA(a) => IpAddr::V6(a.0).to_canonical(),
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            addresses.push(address);
        }
        let ttl = Duration::from_secs(ttl.into());
        (!addresses.is_empty()).then_some(Self { names, addresses, ttl })
    }
}

/// `None` for a name that nobody can write down without escapes.
fn text(name: &Name) -> Option<String> {
    let text = name.to_lowercase().to_ascii();
    let text = text.strip_suffix('.').unwrap_or(&text);
    (!text.contains('\\')).then(|| text.to_owned())
}

impl Resolver {
    /// Has somebody hear of each answer with addresses before it goes out. To be called once, before the
    /// first query: later calls change nothing.
    pub fn set_witness(&self, witness: Arc<dyn Witness>) {
        let _kept = self.witness.set(witness);
    }

    /// What the client may be told, and when.
    pub(crate) async fn release(
        &self,
        query: &[u8],
        reply: Vec<u8>,
        transport: Transport,
        client: IpAddr,
    ) -> Option<Vec<u8>> {
        let Some(witness) = self.witness.get().filter(|w| w.cares(client)) else {
            return Some(reply);
        };
        let found = Message::from_vec(&reply).ok().and_then(|message| Found::in_answer(&message));
        let heard = match found {
            Some(found) => witness.hear(client, found).await,
            None => true,
        };
        if heard {
            return Some(reply);
        }
        let query = Message::from_vec(query).ok()?;
        reply::compose(&query, &Reply::failure(ResponseCode::ServFail), transport)
    }
}
