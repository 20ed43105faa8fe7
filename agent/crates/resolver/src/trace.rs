//! What a client would be told, and by whom, for operators.

use std::net::IpAddr;
use std::str::FromStr as _;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use weft_dns::{Outcome, Transport};
use weft_model::Upstream;

use crate::{Resolver, reply};

/// One query and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The whole name that was asked for.
    pub name: String,
    /// Status of the answer, such as `NXDOMAIN`.
    pub code: String,
    /// Who was asked, now or when it was kept; empty if the cluster has the name.
    pub servers: Vec<Upstream>,
    /// NAME TTL TYPE DATA.
    pub records: Vec<String>,
    /// Some are of the type that was asked for: aliases that lead nowhere are none.
    pub found: bool,
}

impl Resolver {
    /// Asks for a name as `client` would over TCP; counts as a query.
    ///
    /// # Errors
    /// A line that says that `name` or `kind` is none.
    pub async fn trace(
        &self,
        name: &str,
        kind: &str,
        client: Option<IpAddr>,
    ) -> Result<Traced, String> {
        let mut name = Name::from_utf8(name).map_err(|_| format!("`{name}` is no name"))?;
        name.set_fqdn(true);
        let rtype = RecordType::from_str(&kind.to_ascii_uppercase());
        let rtype = rtype.map_err(|_| format!("`{kind}` is no type of records, as AAAA is one"))?;
        let mut query = Message::new(0, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name.clone(), rtype));
        let message = query.to_vec().map_err(|e| e.to_string())?;
        let (reply, servers) = match self.look_up(&message, Transport::Tcp, client) {
            Outcome::Reply(reply) => (Some(reply), Vec::new()),
            Outcome::Nothing => (None, Vec::new()),
            Outcome::Elsewhere(beyond) => {
                let target =
                    reply::aliases(&name, &beyond.names).and_then(|all| all.last().cloned());
                let target = target.map_or_else(|| name.clone(), |(_, target)| target);
                let servers = self.upstreams.load().servers(&target.to_lowercase());
                (self.ask(&message, &beyond, Transport::Tcp).await, servers)
            }
        };
        let reply = reply.and_then(|reply| Message::from_vec(&reply).ok());
        let reply = reply.ok_or("there is no answer to such a query")?;
        let is_wanted = |r: &Record| rtype == RecordType::ANY || r.record_type() == rtype;
        Ok(Traced {
            name: name.to_string(),
            code: code(&reply),
            servers,
            found: reply.metadata.response_code == ResponseCode::NoError
                && reply.answers.iter().any(is_wanted),
            records: reply.answers.iter().map(line).collect(),
        })
    }
}

/// Status of an answer as `dig` shows it, if it is one of the usual.
#[must_use]
pub fn code_name(code: u16) -> Option<&'static str> {
    let names = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
    names.get(usize::from(code)).copied()
}

fn code(reply: &Message) -> String {
    let code = reply.metadata.response_code;
    code_name(code.into()).map_or_else(|| code.to_string(), ToOwned::to_owned)
}

fn line(record: &Record) -> String {
    format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data)
}
