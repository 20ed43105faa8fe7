//! Answers of other servers as messages to who asked.

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, HINFO};
use hickory_resolver::proto::rr::{Name, RData, Record};
use weft_dns::Transport;

/// What a client that says nothing of its own takes over UDP, in bytes.
const UDP_LEAST: u16 = 512;
/// What we send over UDP at most, in bytes.
const UDP_MOST: u16 = 1232;
/// Seconds that an alias of the cluster's and a minimal answer live.
const TTL_S: u32 = 5;

/// What a query is answered with.
#[derive(Debug)]
pub(crate) struct Reply {
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

/// Aliases with what each stands for; `None` if something is no name.
pub(crate) fn aliases(asked: &Name, targets: &[Vec<u8>]) -> Option<Vec<(Name, Name)>> {
    let mut owner = asked.clone();
    let mut all = Vec::with_capacity(targets.len());
    for target in targets {
        let target = Name::from_labels(labels(target)?).ok()?;
        all.push((owner, target.clone()));
        owner = target;
    }
    Some(all)
}

/// Of a name in wire form.
fn labels(mut wire: &[u8]) -> Option<Vec<&[u8]>> {
    let mut labels = Vec::new();
    loop {
        let (length, rest) = wire.split_first()?;
        if *length == 0 {
            return Some(labels);
        }
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        labels.push(label);
        wire = rest;
    }
}

impl Reply {
    pub(crate) fn failure(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authorities: Vec::new() }
    }

    /// True if there is no such name.
    pub(crate) fn is_absence(&self) -> bool {
        self.code == ResponseCode::NXDomain
    }

    /// Instead of all that there is (RFC 8482).
    pub(crate) fn minimal(name: &Name) -> Self {
        let said = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        let answers = vec![Record::from_rdata(name.clone(), TTL_S, said)];
        Self { code: ResponseCode::NoError, answers, authorities: Vec::new() }
    }

    /// What the servers said of `asked`, which is the last of the aliases' targets; `None` if they failed.
    pub(crate) fn of(
        answer: Result<Lookup, NetError>,
        asked: &Name,
        aliases: &[(Name, Name)],
    ) -> Option<Self> {
        let (code, mut records, authorities) = match answer {
            Ok(lookup) => (ResponseCode::NoError, lookup.answers().to_vec(), Vec::new()),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let code = none.response_code;
                if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
                    return None;
                }
                let soa = none.soa.map(|soa| soa.into_record_of_rdata());
                (code, Vec::new(), soa.into_iter().collect())
            }
            Err(_) => return None,
        };
        // Letters are as they were asked for.
        for record in records.iter_mut().filter(|r| r.name == *asked) {
            record.name = asked.clone();
        }
        let alias = |(owner, target): &(Name, Name)| {
            Record::from_rdata(owner.clone(), TTL_S, RData::CNAME(CNAME(target.clone())))
        };
        let answers = aliases.iter().map(alias).chain(records).collect();
        Some(Self { code, answers, authorities })
    }
}

/// The message. `None` if the library cannot write it.
pub(crate) fn compose(query: &Message, reply: &Reply, transport: Transport) -> Option<Vec<u8>> {
    let asked = &query.metadata;
    let mut message = Message::new(asked.id, MessageType::Response, asked.op_code);
    message.metadata.recursion_desired = asked.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.metadata.response_code = reply.code;
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(reply.answers.iter().cloned());
    message.add_authorities(reply.authorities.iter().cloned());
    let limit = match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => UDP_LEAST,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_LEAST, UDP_MOST),
    };
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MOST);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        message.edns = Some(edns);
    }
    let whole = message.to_vec().ok()?;
    if whole.len() <= usize::from(limit) {
        return Some(whole);
    }
    // The client asks again over TCP.
    message.metadata.truncation = true;
    while !message.answers.is_empty() {
        message.answers.truncate(message.answers.len() / 2);
        let cut = message.to_vec().ok()?;
        if cut.len() <= usize::from(limit) {
            return Some(cut);
        }
    }
    message.authorities.clear();
    message.to_vec().ok()
}
