//! Configurations that are refused, and that they change nothing.

use std::net::{IpAddr, SocketAddr};

use prost::Message;
use weft_fuzz::{Random, Report, iterations, mutate};
use weft_policy_model::Generator;
use weft_policy_sdk::{Config, flags};
use weft_policy_testing::NativePlugin;
use weft_proto::tables::v1::policy_rule::Action::{Accept, Deny};
use weft_proto::tables::v1::{
    IdentitySet, IdentitySetChange, PolicyBlock, PolicyLearned, PolicyProgram, PolicyRule,
    PolicySettings, PolicySubject, PolicyTables, Range,
};

use super::compile::{Compiler, difference};
use super::node::*;
use crate::Policies;

/// Tables of which one part is wrong.
fn with(change: impl FnOnce(&mut PolicyTables)) -> PolicyTables {
    let mut tables = tables(&[isolated(INGRESS, &[sets(&[3])])]);
    change(&mut tables);
    tables
}

fn with_program(change: impl FnOnce(&mut PolicyProgram)) -> PolicyTables {
    with(|tables| change(&mut tables.programs[0]))
}

fn with_rule(rule: PolicyRule) -> PolicyTables {
    with_program(|program| program.allowed.push(rule))
}

fn with_block(block: PolicyBlock) -> PolicyTables {
    with_rule(PolicyRule { blocks: vec![block], ..PolicyRule::default() })
}

fn learned(address: &str, names: &[u64]) -> PolicyLearned {
    PolicyLearned { pod: bytes(A), address: bytes(address), names: names.to_vec() }
}

#[test]
fn refusal_names_the_field_and_changes_nothing() {
    let mapped = [&[0; 10][..], &[0xff; 2], &[10, 96, 0, 2]].concat();
    let subject = |identity, ingress| PolicySubject { identity, ingress, egress: 0 };
    let change = |number, added: &[u32], removed: &[u32]| IdentitySetChange {
        number,
        added: added.to_vec(),
        removed: removed.to_vec(),
    };
    let range_ok = Some(range("10.0.0.0/8"));
    let cases = [
        (
            with(|t| {
                t.settings = Some(PolicySettings {
                    own_addresses: vec![vec![1; 4], vec![1]],
                    ..PolicySettings::default()
                })
            }),
            "settings: own_addresses 2: an address of 1 bytes: expected 4 or 16",
        ),
        (with(|t| t.addresses_v4.push(1)), "addresses_v4: 33 bytes: expected records of 8"),
        (
            with(|t| t.learned = vec![learned(WORLD6, &[1])]),
            "learned: an address of another family than its pod's",
        ),
        (
            with(|t| t.learned = vec![learned(WORLD, &[2, 2])]),
            "learned: name 2 after 2: expected rising order",
        ),
        (
            with(|t| t.learned = vec![learned(WORLD, &[0])]),
            "learned: name 0: expected 1 to 72057594037927935",
        ),
        (
            with(|t| t.learned = vec![learned(WORLD, &[1]), learned(WORLD, &[2])]),
            "learned: one is there twice",
        ),
        (
            with_rule(PolicyRule { names: vec![1 << 56], ..PolicyRule::default() }),
            "program 1: allowed 2: name 72057594037927936: expected 1 to 72057594037927935",
        ),
        (with(|t| t.addresses_v6.push(1)), "addresses_v6: 61 bytes: expected records of 20"),
        (
            with(|t| t.addresses_v6.extend([&mapped[..], &[0, 0, 0, 1]].concat())),
            "addresses_v6: an IPv4 address in 16 bytes: expected 4",
        ),
        (with(|t| t.sets[1].number = 0), "sets: one with number 0"),
        (with(|t| t.sets[1].number = 1), "set 1: it is there twice"),
        (
            with(|t| t.sets[1].identities = vec![4, 3]),
            "set 2: identities: 3 after 4: expected rising order",
        ),
        (
            with(|t| t.sets[1].identities = vec![4, 4]),
            "set 2: identities: 4 after 4: expected rising order",
        ),
        (with(|t| t.sets[1].identities = vec![0, 4]), "set 2: identities: identity 0"),
        (with(|t| t.changed_sets.push(change(0, &[], &[]))), "changed_sets: one with number 0"),
        (with(|t| t.changed_sets.push(change(77, &[], &[]))), "changed_sets: set 77 is not there"),
        (with(|t| t.changed_sets.push(change(3, &[], &[]))), "set 3: it is there twice"),
        (with(|t| t.changed_sets.push(change(77, &[0], &[]))), "set 77: added: identity 0"),
        (
            with(|t| t.changed_sets.push(change(77, &[], &[5, 5]))),
            "set 77: removed: 5 after 5: expected rising order",
        ),
        (
            with(|t| t.changed_sets.push(change(77, &[4, 5], &[5]))),
            "set 77: added: identity 5 is in removed too",
        ),
        (with(|t| t.removed_sets = vec![3]), "set 3: it is there twice"),
        (with_program(|p| p.number = 0), "programs: one with number 0"),
        (with(|t| t.programs.push(program(INGRESS))), "program 1: it is there twice"),
        (with(|t| t.removed_programs = vec![5, INGRESS]), "program 1: it is there twice"),
        (with_program(|p| p.isolation = 15), "program 1: isolation 15: expected 16 or more"),
        (
            with_program(|p| {
                p.isolation = 0;
                p.isolated = false;
                p.watched = true;
            }),
            "program 1: isolation 0: expected 16 or more",
        ),
        (
            with_program(|p| p.admin = vec![any().acts(16, Deny), any()]),
            "program 1: admin 2: action 0 is not known",
        ),
        (
            with_program(|p| p.admin = vec![PolicyRule { action: 7, ..any() }]),
            "program 1: admin 1: action 7 is not known",
        ),
        (
            with_program(|p| p.baseline = vec![any().acts(2, Deny)]),
            "program 1: baseline 1: number 2: expected 16 or more",
        ),
        (with_rule(any().acts(16, Accept)), "program 1: allowed 2: action 1: expected none"),
        (with_rule(sets(&[3, 0])), "program 1: allowed 2: sets: one with number 0"),
        (with_rule(sets(&[3, 77])), "program 1: set 77 is not there"),
        (
            with_program(|p| p.baseline = vec![sets(&[78]).acts(16, Deny)]),
            "program 1: set 78 is not there",
        ),
        (with_block(PolicyBlock::default()), "program 1: allowed 2: blocks 1: no range"),
        (
            with_block(PolicyBlock { range: Some(range("10.0.0.0/33")), except: vec![] }),
            "program 1: allowed 2: blocks 1: prefix 33 of 10.0.0.0 is too long",
        ),
        (
            with_block(PolicyBlock { range: Some(range("fd00::/129")), except: vec![] }),
            "program 1: allowed 2: blocks 1: prefix 129 of fd00:: is too long",
        ),
        (
            with_block(PolicyBlock { range: range_ok, except: vec![Range::default()] }),
            "program 1: allowed 2: blocks 1: except 1: an address of 0 bytes: expected 4 or 16",
        ),
        (
            with_rule(any().port(6, 1, 1).port(1, 0, 0)),
            "program 1: allowed 2: ports 2: protocol 1: expected 6, 17 or 132",
        ),
        (
            with_rule(any().port(6, 81, 80)),
            "program 1: allowed 2: ports 1: 81 to 80: expected a range in 1 to 65535",
        ),
        (
            with_rule(any().port(6, 0, 80)),
            "program 1: allowed 2: ports 1: 0 to 80: expected a range in 1 to 65535",
        ),
        (
            with_program(|p| {
                let mut rule = any().port(6, 1, 1);
                rule.ports[0].last = 65_536;
                p.allowed = vec![rule];
            }),
            "program 1: allowed 1: ports 1: 1 to 65536: expected a range in 1 to 65535",
        ),
        (with(|t| t.subjects.push(subject(0, 0))), "subjects: one with number 0"),
        (with(|t| t.subjects.push(subject(1, 0))), "subject 1: it is there twice"),
        (with(|t| t.subjects.push(subject(9, 5))), "subject 9: program 5 is not there"),
        (with(|t| t.removed_subjects = vec![1]), "subject 1: it is there twice"),
    ];
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[3])])]);
    for (mut tables, text) in cases {
        let full = NativePlugin::<Policies>::new(tables.encode_to_vec()).map(drop);
        assert_eq!(full, Err(text.to_owned()));
        // What comes before and after the fault is good, and not done either.
        let more = addresses(&[(C, 4), (D, 3)]);
        tables.addresses_v4.splice(0..0, more.addresses_v4);
        tables.programs.push(isolated(900, &[any()]));
        tables.sets.push(IdentitySet { number: 900, identities: vec![1, 2, 3, 4] });
        tables.subjects.push(PolicySubject { identity: 900, ingress: 900, egress: 900 });
        let bytes = tables.encode_to_vec();
        for config in [Config::Delta(&bytes), Config::Full(&bytes)] {
            let refusal = node.plugin.configure(config).unwrap_err();
            // With more bytes there are more of them.
            assert!(refusal == text || text.contains("bytes: expected records"), "{refusal}");
            assert_eq!(node.enter(TCP, C, A, 80), "pass");
            assert_eq!(node.enter(TCP, D, A, 80), "drop 100");
            assert_eq!(node.leave(TCP, A, D, 80), "pass");
        }
    }
}

/// What is referred to from before the delta counts too.
#[test]
fn what_is_in_use_cannot_go() {
    let mut node = Node::new(&[isolated(INGRESS, &[sets(&[3])])]);
    let mut refused = |delta: PolicyTables| {
        let bytes = delta.encode_to_vec();
        let refusal = node.plugin.configure(Config::Delta(&bytes)).unwrap_err();
        assert_eq!(node.enter(TCP, C, A, 80), "pass");
        refusal
    };
    let removed = |sets: &[u32], programs: &[u32]| PolicyTables {
        removed_sets: sets.to_vec(),
        removed_programs: programs.to_vec(),
        ..PolicyTables::default()
    };
    assert_eq!(refused(removed(&[1, 3], &[])), "removed_sets: a program refers to set 3");
    assert_eq!(refused(removed(&[], &[1])), "removed_programs: a subject refers to program 1");
    // The subject goes elsewhere, but not its program.
    let subjects = vec![PolicySubject { identity: 1, ingress: 0, egress: 0 }];
    let text = refused(PolicyTables { subjects: subjects.clone(), ..removed(&[3], &[]) });
    assert_eq!(text, "removed_sets: a program refers to set 3");
    // Another program and another subject need it.
    let programs = vec![isolated(8, &[sets(&[3])])];
    let text = refused(PolicyTables { programs, subjects, ..removed(&[3], &[1]) });
    assert_eq!(text, "program 8: set 3 is not there");
    node.delta(&removed(&[1, 2, 4, 55], &[55]));
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let cases: [(&[u8], &str); 9] = [
        (b"\x12", "not a PolicyTables message: "),
        (b"\x12\x05ab", "not a PolicyTables message: it is cut short"),
        (b"\x08\x01", "not a PolicyTables message: field 1 is of another type"),
        (b"\x0a\x02\xff\xff", "settings: "),
        (b"\x22\x02\xff\xff", "sets: "),
        (b"\x2a\x02\xff\xff", "changed_sets: "),
        (b"\x32\x01\xff", "removed_sets: "),
        (b"\x3a\x02\xff\xff", "programs: "),
        (b"\x4a\x02\xff\xff", "subjects: "),
    ];
    for (bytes, text) in cases {
        let refusal = NativePlugin::<Policies>::new(bytes).map(drop).unwrap_err();
        assert!(refusal.starts_with(text), "{refusal}");
        assert!(!refusal.contains('\n'), "{refusal}");
    }
}

/// An empty configuration is none, fields of a later version are left out, and lists of numbers
/// come packed or one by one.
#[test]
fn nothing_and_what_is_not_known_are_accepted() {
    let mut plugin = NativePlugin::<Policies>::new("").unwrap();
    plugin.configure(Config::Delta(b"")).unwrap();
    let mut bytes = tables(&[]).encode_to_vec();
    bytes.extend(b"\x62\x03abc\x68\x05\x71\0\0\0\0\0\0\0\0");
    plugin.configure(Config::Full(&bytes)).unwrap();
    assert!(!plugin.filter().tables.is_empty());
    let gone = [(A, 0), (A6, 0), (B, 0), (B6, 0), (C, 0), (C6, 0), (D, 0)];
    let mut bytes = addresses(&gone).encode_to_vec();
    bytes.extend(b"\x30\x01\x30\x02\x32\x02\x03\x04\x50\x01\x52\x01\x02");
    plugin.configure(Config::Delta(&bytes)).unwrap();
    assert!(plugin.filter().tables.is_empty());
}

/// Whatever the bytes are, they are refused in one line or in force, and packets are answered.
#[test]
fn fuzz_configuration() {
    let mut random = Random::new(11);
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    for seed in 0..20 {
        let (mut generator, mut compiler) = (Generator::new(seed), Compiler::default());
        let mut cluster = generator.cluster();
        let mut tables = compiler.compile(&cluster, "node-1");
        corpus.push(tables.encode_to_vec());
        for _ in 0..3 {
            generator.change(&mut cluster);
            let next = compiler.compile(&cluster, "node-1");
            corpus.push(difference(&tables, &next, &mut random).encode_to_vec());
            tables = next;
        }
    }
    let telling = [0, 1, 4, 6, 8, 16, 0x0a, 0x12, 0x22, 0x2a, 0x32, 0x3a, 0x4a, 0x7f, 0x80, 0xff];
    let mut node = Node::with(&PolicyTables::default());
    let (mut accepted, mut refused) = (0, 0);
    for iteration in 0..iterations() {
        let input = mutate(&mut random, &corpus, &telling);
        let _report = Report { iteration, input: &input };
        let config =
            if random.below(4) == 0 { Config::Full(&input) } else { Config::Delta(&input) };
        match node.plugin.configure(config) {
            Ok(()) => accepted += 1,
            Err(text) => {
                assert!(!text.is_empty() && text.lines().count() == 1, "{text}");
                refused += 1;
            }
        }
        let mut end = || -> SocketAddr {
            let ip: IpAddr =
                random.pick(&["10.0.1.8", "10.0.1.9", "10.0.2.8", NODE]).parse().unwrap();
            SocketAddr::new(ip, random.pick(&[53, 80, 81, 8080]))
        };
        let (from, to) = (end(), end());
        let told = flags::SOURCE_LOCAL_POD
            | flags::DESTINATION_LOCAL_POD
            | random.pick(&[0, flags::REPLY, flags::SOURCE_HOST]);
        let at = random.pick(&[At::Egress, At::Ingress]);
        node.ask(at, told, random.pick(&[TCP, UDP, SCTP, ICMP]), from, to);
    }
    assert!(accepted > 50 && refused > 50, "{accepted} {refused}");
}
