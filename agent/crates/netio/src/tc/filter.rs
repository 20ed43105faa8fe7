//! The classic BPF program at a pod's port: tells apart what the host must see, what is forged, and
//! what goes on to the pipeline.
//!
//! It runs on the frame from its Ethernet header on and returns a traffic control action:
//!
//! | frame | action |
//! |---|---|
//! | VLAN-tagged, or neither ARP, IPv4 nor IPv6 | drop |
//! | ARP | to the host |
//! | IPv4 to 255.255.255.255, or from an address that is not the pod's (DHCP among them) | drop |
//! | IPv6 router or neighbour solicitation, neighbour advertisement, MLD report, from a link-local address, `::` or an address of the pod | to the host |
//! | other IPv6 from an address that is not the pod's | drop |
//! | everything else | go on to the next filter, the redirect |
//!
//! Router advertisements and redirects are nothing a pod may tell its host (CVE-2020-10749), so they
//! are treated as ordinary packets. A load beyond the end of a frame would end the program with 0,
//! "to the host", so each is preceded by a check of the length.

use std::net::IpAddr;

/// `TC_ACT_OK`: the host takes the frame.
const OK: u32 = 0;
/// `TC_ACT_SHOT`: dropped, and counted by the clsact qdisc.
const SHOT: u32 = 2;
/// `TC_ACT_UNSPEC` (-1): the next filter decides.
const UNSPEC: u32 = u32::MAX;

/// Addresses one program can hold, so that every conditional jump spans less than 256 instructions:
/// 16 IPv6 addresses take 8 each.
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
const ETHERTYPE: u32 = 12;
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

const HOP_BY_HOP: u32 = 0;
const ICMPV6: u32 = 58;
/// Solicitations for routers and neighbours, and neighbour advertisements.
const DISCOVERY_TYPES: [u32; 3] = [133, 135, 136];
/// MLDv1 report and done, MLDv2 report.
const MLD_TYPES: [u32; 3] = [131, 132, 143];

/// The program for a port whose pod has the addresses `allowed`, as the kernel takes it:
/// `struct sock_filter` after `struct sock_filter`, 8 bytes each.
pub(super) fn program(allowed: &[IpAddr]) -> Vec<u8> {
    let mut code = Assembler::default();
    let [v4, v6, ok, drop, own, next] = code.labels();

    // Frames with a VLAN tag are not for this network.
    code.load(LOAD_WORD, VLAN_TAG_PRESENT);
    code.equal(0, To::Next, To::Label(drop));
    code.load(LOAD_HALF, ETHERTYPE);
    code.equal(0x0806, To::Label(ok), To::Next);
    code.equal(0x0800, To::Label(v4), To::Next);
    code.equal(0x86dd, To::Label(v6), To::Label(drop));

    code.place(v4);
    ipv4(&mut code, allowed, drop, next);
    code.place(v6);
    ipv6(&mut code, allowed, ok, drop, own);

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

fn ipv6(code: &mut Assembler, allowed: &[IpAddr], ok: Label, drop: Label, own: Label) {
    let [discovery, options, to_host, source] = code.labels();
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
    code.any_of(DISCOVERY_TYPES, to_host, source);

    // MLD: hop-by-hop options of 8 bytes (router alert), then ICMPv6 (RFC 3810 section 5).
    code.place(options);
    code.load(LOAD_LENGTH, 0);
    code.at_least(MLD_TYPE + 1, To::Next, To::Label(source));
    code.load(LOAD_HALF, V6_PAYLOAD);
    code.equal(ICMPV6 << 8, To::Next, To::Label(source));
    code.load(LOAD_BYTE, MLD_TYPE);
    code.any_of(MLD_TYPES, to_host, source);

    // For the host, if the source is fe80::/10, `::` or the pod's.
    code.place(to_host);
    code.load(LOAD_IMMEDIATE, OK);
    code.push(STORE_MEMORY, 0);
    code.load(LOAD_WORD, V6_SOURCE);
    code.push(AND, 0xffc0_0000);
    code.equal(0xfe80_0000, To::Label(ok), To::Next);
    address(code, [0; 4], ok);

    code.place(source);
    for ip in allowed {
        if let IpAddr::V6(ip) = ip {
            let bits = ip.to_bits();
            let words = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
            address(code, words, own);
        }
    }
    code.jump(drop);
}

/// Goes to `same` if the IPv6 source is the address of four `words`, else on.
fn address(code: &mut Assembler, words: [u32; 4], same: Label) {
    let [other] = code.labels();
    for (word, offset) in words.into_iter().zip((V6_SOURCE..).step_by(4)) {
        code.load(LOAD_WORD, offset);
        let yes = if offset == V6_SOURCE + 12 { To::Label(same) } else { To::Next };
        code.equal(word, yes, To::Label(other));
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
    yes: To,
    no: To,
    operand: u32,
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

    fn branch(&mut self, code: u16, operand: u32, yes: To, no: To) {
        self.instructions.push(Instruction { code, yes, no, operand });
    }

    fn push(&mut self, code: u16, operand: u32) {
        self.branch(code, operand, To::Next, To::Next);
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

    fn any_of(&mut self, values: [u32; 3], yes: Label, no: Label) {
        for value in values {
            self.equal(value, To::Label(yes), To::Next);
        }
        self.jump(no);
    }

    fn jump(&mut self, to: Label) {
        self.branch(JUMP, 0, To::Label(to), To::Next);
    }

    /// Instructions to skip to get from after `at` to the label.
    fn distance(&self, at: usize, to: To) -> usize {
        match to {
            To::Next => 0,
            To::Label(label) => {
                self.places.get(label.0).map_or(0, |place| place.saturating_sub(at + 1))
            }
        }
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.instructions.len() * 8);
        for (at, instruction) in self.instructions.iter().enumerate() {
            let yes = self.distance(at, instruction.yes);
            let no = self.distance(at, instruction.no);
            let (jt, jf, operand) = match instruction.code {
                // The unconditional jump has a 32-bit distance.
                JUMP => (0, 0, yes as u32),
                // ADDRESSES_MAX keeps the others below 256.
                _ => (yes as u8, no as u8, instruction.operand),
            };
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([jt, jf]);
            bytes.extend(operand.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
