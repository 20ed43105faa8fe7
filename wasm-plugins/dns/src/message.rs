//! Queries and answers as messages.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{PushError, RecordSectionBuilder, StaticCompressor};
use domain::base::name::ParsedName;
use domain::base::opt::{Opt, OptRecord};
use domain::base::wire::Composer;
use domain::base::{CharStr, Message, MessageBuilder, Question, Rtype, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Cname, Hinfo, Ns, Ptr, Soa, Srv, Txt};

use crate::answer::{Answer, Authority, Data, Record, below, name_server};

/// What a client that says nothing of its own takes over UDP, in bytes (RFC 1035).
const UDP_LEAST: u16 = 512;
/// What we send over UDP at most, in bytes: it is never fragmented.
pub(crate) const UDP_MOST: u16 = 1232;
/// Bytes of an OPT record without options.
const OPT_LEN: usize = 11;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// What a message is.
pub(crate) enum Received<'a> {
    /// No query, and nothing that is to be answered.
    Nothing,
    /// What can only be refused: the whole answer.
    Refused(Vec<u8>),
    Query(Query<'a>),
}

/// A query with one question of class IN.
pub(crate) struct Query<'a> {
    message: &'a Message<[u8]>,
    pub(crate) question: Question<ParsedName<&'a [u8]>>,
    edns: Option<Edns>,
}

/// What the client says of EDNS.
#[derive(Clone, Copy)]
struct Edns {
    size: u16,
    version: u8,
    dnssec_ok: bool,
}

/// What answers say of a zone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZoneData {
    pub(crate) ttl: u32,
    pub(crate) serial: u32,
}

impl<'a> Received<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Self {
        let Ok(message) = Message::from_slice(bytes) else { return Self::Nothing };
        let header = message.header();
        if header.qr() {
            return Self::Nothing;
        }
        if header.opcode() != Opcode::QUERY {
            return Self::Refused(bare(message, Rcode::NOTIMP));
        }
        let Some((question, edns)) = parts(message) else {
            return Self::Refused(bare(message, Rcode::FORMERR));
        };
        let query = Query { message, question, edns };
        let transfer = matches!(query.question.qtype(), Rtype::AXFR | Rtype::IXFR);
        if query.edns.is_some_and(|e| e.version > 0) {
            Self::Refused(query.refusal(OptRcode::BADVERS))
        } else if query.question.qclass() != Class::IN || transfer {
            Self::Refused(query.refusal(OptRcode::REFUSED))
        } else {
            Self::Query(query)
        }
    }
}

/// The one question, and what the client says of EDNS.
type Parts<'a> = (Question<ParsedName<&'a [u8]>>, Option<Edns>);

/// `None` if the message is not well formed.
fn parts(message: &Message<[u8]>) -> Option<Parts<'_>> {
    let mut questions = message.question();
    if message.header_counts().qdcount() != 1 {
        return None;
    }
    let question = questions.next()?.ok()?;
    let (mut edns, mut end) = (None, 0);
    let (mut section, mut number) = (Some(questions.next_section().ok()?), 0);
    while let Some(mut records) = section {
        for record in &mut records {
            let record = record.ok()?;
            if record.rtype() != Rtype::OPT {
                continue;
            }
            let whole = record.to_record::<Opt<&[u8]>>().ok()??;
            if number != ADDITIONAL || !whole.owner().is_root() || edns.is_some() {
                return None;
            }
            let opt = OptRecord::from(whole);
            edns = Some(Edns {
                size: opt.udp_payload_size(),
                version: opt.version(),
                dnssec_ok: opt.dnssec_ok(),
            });
        }
        end = records.pos();
        section = records.next_section().ok()?;
        number += 1;
    }
    (end == message.as_slice().len()).then_some((question, edns))
}

/// Number of a message's section of additional records, from that of answers.
const ADDITIONAL: u8 = 2;

/// An answer without a question, to what may have none.
fn bare(message: &Message<[u8]>, rcode: Rcode) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    let (header, asked) = (builder.header_mut(), message.header());
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_rcode(rcode);
    builder.finish()
}

impl Query<'_> {
    pub(crate) fn refusal(&self, rcode: OptRcode) -> Vec<u8> {
        let answer = Answer::refusal(rcode.rcode());
        let zone = ZoneData { ttl: 0, serial: 0 };
        self.compose(&answer, rcode, zone, usize::from(UDP_LEAST)).unwrap_or_default()
    }

    /// The message that says `answer`, of at most as many bytes as the client takes.
    pub(crate) fn reply(&self, answer: &Answer, transport: Transport, zone: ZoneData) -> Vec<u8> {
        let limit = match (transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => UDP_LEAST,
            (Transport::Udp, Some(edns)) => edns.size.clamp(UDP_LEAST, UDP_MOST),
        };
        let rcode = OptRcode::from_rcode(answer.rcode);
        self.compose(answer, rcode, zone, usize::from(limit)).unwrap_or_default()
    }

    /// Records that do not fit are left out, whole; only those that are additional without saying so.
    fn compose(
        &self,
        answer: &Answer,
        rcode: OptRcode,
        zone: ZoneData,
        limit: usize,
    ) -> Result<Vec<u8>, PushError> {
        let target = StaticCompressor::new(Vec::with_capacity(UDP_LEAST.into()));
        let mut builder = MessageBuilder::from_target(target).map_err(|_| PushError::ShortBuf)?;
        let opt = if self.edns.is_some() { OPT_LEN } else { 0 };
        builder.set_push_limit(limit - opt);
        let mut builder = builder.start_answer(self.message, rcode.rcode())?;
        let header = builder.header_mut();
        header.set_aa(answer.authority.is_some());
        header.set_ra(true);
        header.set_cd(self.message.header().cd());
        let mut whole = self.push_all(&mut builder, &answer.records, answer, zone).is_ok();
        let mut builder = builder.authority();
        if let Some(authority) = answer.authority.as_ref().filter(|_| whole && answer.negative) {
            whole = push_soa(&mut builder, &authority.zone, authority, zone).is_ok();
        }
        if !whole {
            builder.header_mut().set_tc(true);
        }
        let mut builder = builder.additional();
        if whole {
            let _some = self.push_all(&mut builder, &answer.additional, answer, zone);
        }
        builder.clear_push_limit();
        if let Some(edns) = self.edns {
            builder.opt(|opt| {
                opt.set_udp_payload_size(UDP_MOST);
                opt.set_dnssec_ok(edns.dnssec_ok);
                opt.set_rcode(rcode);
                Ok(())
            })?;
        }
        Ok(builder.finish().into_target())
    }

    fn push_all<T: Composer>(
        &self,
        section: &mut impl RecordSectionBuilder<T>,
        records: &[Record],
        answer: &Answer,
        zone: ZoneData,
    ) -> Result<(), PushError> {
        records.iter().try_for_each(|Record { owner, data }| match owner {
            Some(owner) => push(section, owner, data, answer, zone),
            None => push(section, self.question.qname(), data, answer, zone),
        })
    }
}

fn push<T: Composer>(
    section: &mut impl RecordSectionBuilder<T>,
    owner: impl ToName,
    data: &Data,
    answer: &Answer,
    zone: ZoneData,
) -> Result<(), PushError> {
    let ttl = Ttl::from_secs(zone.ttl);
    match data {
        Data::A(address) => section.push((owner, ttl, A::new(*address))),
        Data::Aaaa(address) => section.push((owner, ttl, Aaaa::new(*address))),
        Data::Cname(target) => section.push((owner, ttl, Cname::new(target))),
        Data::Ns(server) => section.push((owner, ttl, Ns::new(server))),
        Data::Ptr(name) => section.push((owner, ttl, Ptr::new(name))),
        Data::Srv { port, target } => section.push((owner, ttl, Srv::new(0, 1, *port, target))),
        Data::Txt(text) => {
            let text = Txt::<Vec<u8>>::build_from_slice(text.as_bytes());
            section.push((owner, ttl, text.map_err(|_| PushError::ShortBuf)?))
        }
        Data::Minimal => {
            let text = |t: &'static str| CharStr::from_octets(t.as_bytes());
            let (Ok(cpu), Ok(os)) = (text("RFC8482"), text("")) else {
                return Err(PushError::ShortBuf);
            };
            section.push((owner, ttl, Hinfo::new(cpu, os)))
        }
        Data::Soa => match &answer.authority {
            Some(authority) => push_soa(section, owner, authority, zone),
            None => Ok(()),
        },
    }
}

fn push_soa<T: Composer>(
    section: &mut impl RecordSectionBuilder<T>,
    owner: impl ToName,
    authority: &Authority,
    zone: ZoneData,
) -> Result<(), PushError> {
    let parent = &authority.server_zone;
    // Of a zone with a very long name, the zone itself.
    let server = name_server(parent).unwrap_or_else(|| parent.clone());
    let mailbox = below(b"\x0ahostmaster", parent).unwrap_or_else(|| parent.clone());
    let ttl = Ttl::from_secs(zone.ttl);
    let serial = Serial::from(zone.serial);
    let [refresh, retry, expire] = [7200, 1800, 86_400].map(Ttl::from_secs);
    section.push((owner, ttl, Soa::new(&server, &mailbox, serial, refresh, retry, expire, ttl)))
}
