//! A packet as a plain description, written to bytes by `etherparse`: what the crate's results are
//! compared with. Generators reach every legal value of what the fabric may change or must keep.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, TcpHeader,
};
use proptest::collection::vec;
use proptest::prelude::*;
use weft_packet::{Checksum, Gso, GsoKind, Meta, Rewrite};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    /// IPv4 only.
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    /// IPv4 only; whole words.
    pub(crate) options: Vec<u8>,
    /// IPv6 only.
    pub(crate) flow_label: u32,
    pub(crate) extensions: Extensions,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Extensions {
    pub(crate) hop_by_hop: bool,
    pub(crate) destination: bool,
    pub(crate) routing: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transport {
    Tcp(Tcp),
    Udp { source: u16, destination: u16, without_checksum: bool },
    Echo { reply: bool, id: u16, sequence: u16 },
    Sctp { source: u16, destination: u16, tag: u32 },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Whole words.
    pub(crate) options: Vec<u8>,
}

impl Spec {
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ip(self.ip_headers());
        match &self.transport {
            Transport::Tcp(tcp) => {
                builder.tcp_header(tcp.header()).write(&mut out, &self.payload).unwrap();
            }
            Transport::Udp { source, destination, without_checksum } => {
                builder.udp(*source, *destination).write(&mut out, &self.payload).unwrap();
                if *without_checksum {
                    let at = out.len() - self.payload.len() - 2;
                    out[at..at + 2].fill(0);
                }
            }
            Transport::Echo { reply, id, sequence } => {
                let (a, b) = (*id, *sequence);
                match (self.source, reply) {
                    (IpAddr::V4(_), false) => {
                        builder.icmpv4_echo_request(a, b).write(&mut out, &self.payload)
                    }
                    (IpAddr::V4(_), true) => {
                        builder.icmpv4_echo_reply(a, b).write(&mut out, &self.payload)
                    }
                    (IpAddr::V6(_), false) => {
                        builder.icmpv6_echo_request(a, b).write(&mut out, &self.payload)
                    }
                    (IpAddr::V6(_), true) => {
                        builder.icmpv6_echo_reply(a, b).write(&mut out, &self.payload)
                    }
                }
                .unwrap();
            }
            Transport::Sctp { source, destination, tag } => {
                let mut packet = Vec::new();
                packet.extend(source.to_be_bytes());
                packet.extend(destination.to_be_bytes());
                packet.extend(tag.to_be_bytes());
                packet.extend([0; 4]);
                packet.extend(&self.payload);
                let crc = slow_crc32c(&packet).to_le_bytes();
                packet[8..12].copy_from_slice(&crc);
                builder.write(&mut out, IpNumber(132), &packet).unwrap();
            }
        }
        out
    }

    /// As [`Spec::build`], with a partial checksum.
    pub(crate) fn build_partial(&self) -> (Vec<u8>, Meta) {
        let mut packet = self.build();
        let start = self.transport_offset();
        let offset = self.checksum_offset();
        let sum = slow_pseudo(self.source, self.destination, self.number(), packet.len() - start);
        packet[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let checksum = Checksum::Partial { start: start as u16, offset: offset as u16 };
        (packet, Meta { checksum, gso: None })
    }

    /// As [`Spec::build_partial`], to be cut into segments of `size` payload bytes.
    pub(crate) fn build_super(&self, size: u16) -> (Vec<u8>, Meta) {
        let (packet, meta) = self.build_partial();
        let kind = match (&self.transport, self.source) {
            (Transport::Tcp(_), IpAddr::V4(_)) => GsoKind::TcpV4,
            (Transport::Tcp(_), IpAddr::V6(_)) => GsoKind::TcpV6,
            _ => GsoKind::Udp,
        };
        (packet, Meta { gso: Some(Gso { kind, segment_size: size }), ..meta })
    }

    pub(crate) fn number(&self) -> u8 {
        match (&self.transport, self.source) {
            (Transport::Tcp(_), _) => 6,
            (Transport::Udp { .. }, _) => 17,
            (Transport::Sctp { .. }, _) => 132,
            (Transport::Echo { .. }, IpAddr::V4(_)) => 1,
            (Transport::Echo { .. }, IpAddr::V6(_)) => 58,
        }
    }

    pub(crate) fn transport_offset(&self) -> usize {
        match self.source {
            IpAddr::V4(_) => 20 + self.options.len(),
            IpAddr::V6(_) => 40 + self.extension_headers().header_len(),
        }
    }

    pub(crate) fn checksum_offset(&self) -> usize {
        match &self.transport {
            Transport::Tcp(_) => 16,
            Transport::Udp { .. } => 6,
            Transport::Echo { .. } => 2,
            Transport::Sctp { .. } => 8,
        }
    }

    /// What a translation must make of it.
    pub(crate) fn translated(&self, rewrite: &Rewrite) -> Self {
        let mut spec = self.clone();
        spec.source = rewrite.source.unwrap_or(spec.source);
        spec.destination = rewrite.destination.unwrap_or(spec.destination);
        match &mut spec.transport {
            Transport::Tcp(Tcp { source, destination, .. })
            | Transport::Udp { source, destination, .. }
            | Transport::Sctp { source, destination, .. } => {
                *source = rewrite.source_port.unwrap_or(*source);
                *destination = rewrite.destination_port.unwrap_or(*destination);
            }
            Transport::Echo { id, .. } => {
                *id = rewrite.source_port.or(rewrite.destination_port).unwrap_or(*id);
            }
        }
        spec
    }

    pub(crate) fn tcp(&self) -> &Tcp {
        let Transport::Tcp(tcp) = &self.transport else { panic!("not TCP") };
        tcp
    }

    pub(crate) fn tcp_mut(&mut self) -> &mut Tcp {
        let Transport::Tcp(tcp) = &mut self.transport else { panic!("not TCP") };
        tcp
    }

    fn ip_headers(&self) -> IpHeaders {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    0,
                    self.hop_limit,
                    IpNumber(0),
                    source.octets(),
                    destination.octets(),
                )
                .unwrap();
                header.dscp = IpDscp::try_new(self.traffic_class >> 2).unwrap();
                header.ecn = IpEcn::try_new(self.traffic_class & 3).unwrap();
                header.identification = self.id;
                header.dont_fragment = self.dont_fragment;
                header.options = self.options.as_slice().try_into().unwrap();
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap(),
                    payload_length: 0,
                    next_header: IpNumber(0),
                    hop_limit: self.hop_limit,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                IpHeaders::Ipv6(header, self.extension_headers())
            }
            _ => panic!("two families"),
        }
    }

    fn extension_headers(&self) -> Ipv6Extensions {
        let raw = |payload: &[u8]| Ipv6RawExtHeader::new_raw(IpNumber(0), payload).unwrap();
        // PadN options of the length that fills the header.
        let padding = raw(&[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Ipv6Extensions {
            hop_by_hop_options: self.extensions.hop_by_hop.then(|| padding.clone()),
            destination_options: self.extensions.destination.then(|| raw(&[1, 4, 0, 0, 0, 0])),
            // Type 4 with no segments left.
            routing: self.extensions.routing.then(|| Ipv6RoutingExtensions {
                routing: raw(&[4, 0, 0, 0, 0, 0]),
                final_destination_options: self.extensions.destination.then_some(padding),
            }),
            fragment: None,
            auth: None,
        }
    }
}

impl Tcp {
    fn header(&self) -> TcpHeader {
        let mut header = TcpHeader::new(self.source, self.destination, self.sequence, self.window);
        header.acknowledgment_number = self.acknowledgment;
        let has = |bit: u8| self.flags & bit != 0;
        (header.fin, header.syn, header.rst, header.psh) = (has(1), has(2), has(4), has(8));
        (header.ack, header.urg, header.ece, header.cwr) = (has(16), has(32), has(64), has(128));
        header.set_options_raw(&self.options).unwrap();
        header
    }
}

pub(crate) fn slow_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// One word after the other, as RFC 1071 section 1 says it.
pub(crate) fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn slow_pseudo(source: IpAddr, destination: IpAddr, number: u8, len: usize) -> u16 {
    let mut header = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(a) => header.extend(a.octets()),
            IpAddr::V6(a) => header.extend(a.octets()),
        }
    }
    header.extend((len as u32).to_be_bytes());
    header.extend([0, 0, 0, number]);
    slow_sum(&header)
}

pub(crate) fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>()
            .prop_map(|(a, b)| (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into())),
        any::<([u8; 16], [u8; 16])>()
            .prop_map(|(a, b)| (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into())),
    ]
}

/// Addresses of the same family as `like`, each present or not, and ports likewise.
pub(crate) fn rewrites(like: IpAddr) -> impl Strategy<Value = Rewrite> {
    let address = move || {
        any::<[u8; 16]>().prop_map(move |a| match like {
            IpAddr::V4(_) => IpAddr::from([a[0], a[1], a[2], a[3]]),
            IpAddr::V6(_) => IpAddr::from(a),
        })
    };
    let address = move || prop_oneof![Just(None), address().prop_map(Some)];
    (address(), address(), any::<Option<u16>>(), any::<Option<u16>>()).prop_map(
        |(source, destination, source_port, destination_port)| Rewrite {
            source,
            destination,
            source_port,
            destination_port,
        },
    )
}

pub(crate) fn tcp() -> impl Strategy<Value = Transport> {
    (any::<(u16, u16, u32, u32, u8, u16)>(), words(10)).prop_map(|(fields, options)| {
        let (source, destination, sequence, acknowledgment, flags, window) = fields;
        let tcp = Tcp { source, destination, sequence, acknowledgment, flags, window, options };
        Transport::Tcp(tcp)
    })
}

pub(crate) fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        tcp(),
        any::<(u16, u16, bool)>().prop_map(|(source, destination, without_checksum)| {
            Transport::Udp { source, destination, without_checksum }
        }),
        any::<(bool, u16, u16)>().prop_map(|(reply, id, sequence)| Transport::Echo {
            reply,
            id,
            sequence
        }),
        any::<(u16, u16, u32)>().prop_map(|(source, destination, tag)| Transport::Sctp {
            source,
            destination,
            tag
        }),
    ]
}

/// Up to `max` words of bytes that are no options of a kind with a length.
fn words(max: usize) -> impl Strategy<Value = Vec<u8>> {
    (0..=max).prop_map(|words| vec![1; words * 4])
}

pub(crate) fn packets_of(
    transport: impl Strategy<Value = Transport>,
    payload: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Spec> {
    let header = any::<(u8, u8, u16, bool, bool, bool, bool)>();
    (addresses(), header, 0u32..1 << 20, words(10), transport, payload).prop_map(
        |((source, destination), header, flow_label, options, transport, payload)| {
            let (hop_limit, traffic_class, id, dont_fragment, hop_by_hop, to, routing) = header;
            let is_v4 = source.is_ipv4();
            Spec {
                source,
                destination,
                hop_limit,
                traffic_class,
                id: if is_v4 { id } else { 0 },
                dont_fragment: dont_fragment && is_v4,
                options: if is_v4 { options } else { Vec::new() },
                flow_label: if is_v4 { 0 } else { flow_label },
                extensions: if is_v4 {
                    Extensions::default()
                } else {
                    Extensions { hop_by_hop, destination: to, routing }
                },
                transport,
                payload,
            }
        },
    )
}

pub(crate) fn packets() -> impl Strategy<Value = Spec> {
    packets_of(transport(), vec(any::<u8>(), 0..300))
}
