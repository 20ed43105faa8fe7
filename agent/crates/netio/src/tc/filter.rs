//! The classic BPF program at a pod's port: tells apart what the host must see, what is forged, and
//! what goes on to the pipeline.
//!
//! It runs on the frame from its Ethernet header on and returns a traffic control action:
//!
//! | frame | action |
//! |---|---|
//! | VLAN-tagged, not from the pod's Ethernet address, or neither ARP, IPv4 nor IPv6 | drop |
//! | ARP that says of one of the pod's addresses, or of 0.0.0.0, that it is at the pod's Ethernet address | to the host |
//! | other ARP | drop |
//! | IPv4 to 255.255.255.255, or from an address that is not the pod's (DHCP among them) | drop |
//! | neighbour advertisement of an address that is neither the pod's nor link-local | drop |
//! | IPv6 router or neighbour solicitation, other neighbour advertisement, MLD report, from a link-local address, `::` or an address of the pod | to the host |
//! | other IPv6 from an address that is not the pod's | drop |
//! | everything else | go on to the next filter, the redirect |
//!
//! Router advertisements and redirects are nothing a pod may tell its host (CVE-2020-10749), so they
//! are treated as ordinary packets. Link-local addresses that are known to be others' are no pod's.
//! What goes to the host goes to the bridge where there is one, which believes what it is told: of
//! Ethernet addresses by every frame, its neighbours of others by ARP and neighbour discovery. A load beyond the end of a frame would end the program with 0,
//! "to the host", so each is preceded by a check of the length.

use std::net::{IpAddr, Ipv6Addr};

use weft_model::MacAddr;

use super::Sender;

/// `TC_ACT_OK`: the host takes the frame.
const OK: u32 = 0;
/// `TC_ACT_SHOT`: dropped, and counted by the clsact qdisc.
const SHOT: u32 = 2;
/// `TC_ACT_UNSPEC` (-1): the next filter decides.
const UNSPEC: u32 = u32::MAX;

/// Addresses one program can hold. Each IPv6 address takes 24 instructions of the 4096 that the
/// kernel allows.
pub(super) const ADDRESSES_MAX: usize = 16;

// Instruction codes, `linux/bpf_common.h`.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_IMMEDIATE: u16 = 0x00;
const LOAD_LENGTH: u16 = 0x80;
const LOAD_MEMORY: u16 = 0x60;
const STORE_MEMORY: u16 = 0x02;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const RETURN_ACCUMULATOR: u16 = 0x16;

/// `SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`: the tag is taken off the frame before the filter runs.
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

// Offsets into the frame.
const ETHERNET_SOURCE: u32 = 6;
const ETHERTYPE: u32 = 12;
const ARP_FORM: u32 = 14;
const ARP_LENGTHS: u32 = 18;
const ARP_SENDER_ETHERNET: u32 = 22;
const ARP_SENDER: u32 = 28;
const ARP_END: u32 = 42;
const V4_SOURCE: u32 = 26;
const V4_DESTINATION: u32 = 30;
const V4_END: u32 = 34;
const V6_NEXT_HEADER: u32 = 20;
const V6_HOP_LIMIT: u32 = 21;
const V6_SOURCE: u32 = 22;
const V6_END: u32 = 54;
/// First byte after the IPv6 header: the ICMPv6 type, or the next header of hop-by-hop options.
const V6_PAYLOAD: u32 = 54;
/// ICMPv6 type after 8 bytes of hop-by-hop options, the form of every MLD message.
const MLD_TYPE: u32 = 62;
/// Target of a neighbour advertisement (RFC 4861 section 4.4).
const ND_TARGET: u32 = 62;
const ND_END: u32 = 78;

const HOP_BY_HOP: u32 = 0;
const ICMPV6: u32 = 58;
/// Solicitations for routers and neighbours.
const SOLICITATION_TYPES: [u32; 2] = [133, 135];
const ADVERTISEMENT: u32 = 136;
/// MLDv1 report and done, MLDv2 report.
const MLD_TYPES: [u32; 3] = [131, 132, 143];

/// The program for a port whose pod is `sender`, as the kernel takes it:
/// `struct sock_filter` after `struct sock_filter`, 8 bytes each.
pub(super) fn program(sender: &Sender) -> Vec<u8> {
    let mut code = Assembler::default();
    let [neighbour, v4, v6, ok, drop, own, next] = code.labels();

    // Frames with a VLAN tag are not for this network.
    code.load(LOAD_WORD, VLAN_TAG_PRESENT);
    code.equal(0, To::Next, To::Label(drop));
    ethernet_is(&mut code, ETHERNET_SOURCE, sender.mac, drop);
    code.load(LOAD_HALF, ETHERTYPE);
    code.equal(0x0806, To::Label(neighbour), To::Next);
    code.equal(0x0800, To::Label(v4), To::Next);
    code.equal(0x86dd, To::Label(v6), To::Label(drop));

    code.place(neighbour);
    arp(&mut code, sender, ok, drop);
    code.place(v4);
    ipv4(&mut code, &sender.addresses, drop, next);
    code.place(v6);
    ipv6(&mut code, sender, ok, drop, own);

    // Source is the pod's, IPv6: what was decided for that case. This must follow a jump: the kernel's
    // check takes a return for something that the next instruction is reached from, and would find
    // the scratch word unset there.
    code.place(own);
    code.load(LOAD_MEMORY, 0);
    code.push(RETURN_ACCUMULATOR, 0);
    // Source is the pod's, IPv4: on to the redirect.
    code.place(next);
    code.ret(UNSPEC);
    code.place(ok);
    code.ret(OK);
    code.place(drop);
    code.ret(SHOT);
    code.finish()
}

/// Goes to `drop` unless `mac` stands at `offset`; one that is not known is not looked for.
fn ethernet_is(code: &mut Assembler, offset: u32, mac: Option<MacAddr>, drop: Label) {
    let Some(MacAddr([a, b, c, d, e, f])) = mac else { return };
    code.load(LOAD_WORD, offset);
    code.equal(u32::from_be_bytes([a, b, c, d]), To::Next, To::Label(drop));
    code.load(LOAD_HALF, offset + 4);
    code.equal(u16::from_be_bytes([e, f]).into(), To::Next, To::Label(drop));
}

/// ARP of IPv4 over Ethernet (RFC 826). A probe (RFC 5227) has the sender 0.0.0.0.
fn arp(code: &mut Assembler, sender: &Sender, ok: Label, drop: Label) {
    code.load(LOAD_LENGTH, 0);
    code.at_least(ARP_END, To::Next, To::Label(drop));
    code.load(LOAD_WORD, ARP_FORM);
    code.equal(0x0001_0800, To::Next, To::Label(drop));
    code.load(LOAD_HALF, ARP_LENGTHS);
    code.equal(0x0604, To::Next, To::Label(drop));
    ethernet_is(code, ARP_SENDER_ETHERNET, sender.mac, drop);
    code.load(LOAD_WORD, ARP_SENDER);
    code.equal(0, To::Label(ok), To::Next);
    for ip in &sender.addresses {
        if let IpAddr::V4(ip) = ip {
            code.equal((*ip).into(), To::Label(ok), To::Next);
        }
    }
    code.jump(drop);
}

fn ipv4(code: &mut Assembler, allowed: &[IpAddr], drop: Label, next: Label) {
    code.load(LOAD_LENGTH, 0);
    code.at_least(V4_END, To::Next, To::Label(drop));
    code.load(LOAD_WORD, V4_DESTINATION);
    code.equal(u32::MAX, To::Label(drop), To::Next);
    code.load(LOAD_WORD, V4_SOURCE);
    for ip in allowed {
        if let IpAddr::V4(ip) = ip {
            code.equal((*ip).into(), To::Label(next), To::Next);
        }
    }
    code.jump(drop);
}

fn ipv6(code: &mut Assembler, sender: &Sender, ok: Label, drop: Label, own: Label) {
    let [discovery, advertisement, options, to_host, source] = code.labels();
    code.load(LOAD_LENGTH, 0);
    code.at_least(V6_END, To::Next, To::Label(drop));
    // Scratch word 0: what becomes of the packet if its source is the pod's.
    code.load(LOAD_IMMEDIATE, UNSPEC);
    code.push(STORE_MEMORY, 0);
    code.load(LOAD_BYTE, V6_NEXT_HEADER);
    code.equal(ICMPV6, To::Label(discovery), To::Next);
    code.equal(HOP_BY_HOP, To::Label(options), To::Label(source));

    // Neighbour discovery is only valid with hop limit 255 (RFC 4861 section 7.1).
    code.place(discovery);
    code.load(LOAD_LENGTH, 0);
    code.at_least(V6_PAYLOAD + 1, To::Next, To::Label(source));
    code.load(LOAD_BYTE, V6_HOP_LIMIT);
    code.equal(255, To::Next, To::Label(source));
    code.load(LOAD_BYTE, V6_PAYLOAD);
    code.equal(ADVERTISEMENT, To::Label(advertisement), To::Next);
    code.any_of(&SOLICITATION_TYPES, to_host, source);

    // Of whom it says where he is.
    code.place(advertisement);
    code.load(LOAD_LENGTH, 0);
    code.at_least(ND_END, To::Next, To::Label(drop));
    link_local(code, ND_TARGET, sender, to_host, drop);
    addresses(code, ND_TARGET, sender, to_host);
    code.jump(drop);

    // MLD: hop-by-hop options of 8 bytes (router alert), then ICMPv6 (RFC 3810 section 5).
    code.place(options);
    code.load(LOAD_LENGTH, 0);
    code.at_least(MLD_TYPE + 1, To::Next, To::Label(source));
    code.load(LOAD_HALF, V6_PAYLOAD);
    code.equal(ICMPV6 << 8, To::Next, To::Label(source));
    code.load(LOAD_BYTE, MLD_TYPE);
    code.any_of(&MLD_TYPES, to_host, source);

    // For the host, if the source is fe80::/10, `::` or the pod's.
    code.place(to_host);
    code.load(LOAD_IMMEDIATE, OK);
    code.push(STORE_MEMORY, 0);
    link_local(code, V6_SOURCE, sender, ok, drop);
    address(code, V6_SOURCE, Ipv6Addr::UNSPECIFIED, ok);

    code.place(source);
    addresses(code, V6_SOURCE, sender, own);
    code.jump(drop);
}

/// Goes to `ok` if the address at `offset` is in fe80::/10, to `drop` if it is there and another's, else
/// on.
fn link_local(code: &mut Assembler, offset: u32, sender: &Sender, ok: Label, drop: Label) {
    for foreign in sender.foreign.iter().take(ADDRESSES_MAX) {
        address(code, offset, *foreign, drop);
    }
    code.load(LOAD_WORD, offset);
    code.push(AND, 0xffc0_0000);
    code.equal(0xfe80_0000, To::Label(ok), To::Next);
}

/// Goes to `own` if the IPv6 address at `offset` is one of the sender's, else on.
fn addresses(code: &mut Assembler, offset: u32, sender: &Sender, own: Label) {
    for ip in &sender.addresses {
        if let IpAddr::V6(ip) = ip {
            address(code, offset, *ip, own);
        }
    }
}

/// Goes to `same` if the IPv6 address at `offset` is `ip`, else on.
fn address(code: &mut Assembler, offset: u32, ip: Ipv6Addr, same: Label) {
    let [other] = code.labels();
    let bits = ip.to_bits();
    for (shift, at) in [96, 64, 32, 0].into_iter().zip((offset..).step_by(4)) {
        code.load(LOAD_WORD, at);
        let yes = if shift == 0 { To::Label(same) } else { To::Next };
        code.equal((bits >> shift) as u32, yes, To::Label(other));
    }
    code.place(other);
}

#[derive(Clone, Copy)]
struct Label(usize);

#[derive(Clone, Copy)]
enum To {
    Next,
    Label(Label),
}

struct Instruction {
    code: u16,
    /// Instructions to skip when a condition holds, and when it does not.
    skip: [u8; 2],
    operand: u32,
    /// Where an unconditional jump goes.
    to: Option<Label>,
}

#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
    /// Where each label was placed.
    places: Vec<usize>,
}

impl Assembler {
    fn labels<const N: usize>(&mut self) -> [Label; N] {
        std::array::from_fn(|_| {
            self.places.push(0);
            Label(self.places.len() - 1)
        })
    }

    fn place(&mut self, label: Label) {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = self.instructions.len();
        }
    }

    /// A conditional jump spans 255 instructions at most, an unconditional one any number: so a
    /// condition chooses between jumps that follow it.
    fn branch(&mut self, code: u16, operand: u32, yes: To, no: To) {
        let (skip, jumps) = match (yes, no) {
            (To::Next, To::Next) => ([0, 0], [None, None]),
            (To::Label(yes), To::Next) => ([0, 1], [Some(yes), None]),
            (To::Next, To::Label(no)) => ([1, 0], [Some(no), None]),
            (To::Label(yes), To::Label(no)) => ([0, 1], [Some(yes), Some(no)]),
        };
        self.instructions.push(Instruction { code, skip, operand, to: None });
        jumps.into_iter().flatten().for_each(|to| self.jump(to));
    }

    fn push(&mut self, code: u16, operand: u32) {
        self.instructions.push(Instruction { code, skip: [0, 0], operand, to: None });
    }

    fn load(&mut self, code: u16, operand: u32) {
        self.push(code, operand);
    }

    fn ret(&mut self, action: u32) {
        self.push(RETURN, action);
    }

    fn equal(&mut self, operand: u32, yes: To, no: To) {
        self.branch(JUMP_EQUAL, operand, yes, no);
    }

    fn at_least(&mut self, operand: u32, yes: To, no: To) {
        self.branch(JUMP_GREATER_EQUAL, operand, yes, no);
    }

    fn any_of(&mut self, values: &[u32], yes: Label, no: Label) {
        for value in values {
            self.equal(*value, To::Label(yes), To::Next);
        }
        self.jump(no);
    }

    fn jump(&mut self, to: Label) {
        self.instructions.push(Instruction { code: JUMP, skip: [0, 0], operand: 0, to: Some(to) });
    }

    /// Instructions to skip to get from after `at` to the label.
    fn distance(&self, at: usize, to: Label) -> u32 {
        let skipped = self.places.get(to.0).map_or(0, |place| place.saturating_sub(at + 1));
        u32::try_from(skipped).unwrap_or(0)
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.instructions.len() * 8);
        for (at, instruction) in self.instructions.iter().enumerate() {
            let operand = instruction.to.map_or(instruction.operand, |to| self.distance(at, to));
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend(instruction.skip);
            bytes.extend(operand.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
