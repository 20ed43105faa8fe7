//! Key rotation under traffic: both keys count until the old one leaves the configuration.

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use std::time::Duration;

use weft_mesh::SecretKey;
use weft_model::DropReason;
use wire::{Wire, packet, secret};

const MS: Duration = Duration::from_millis(1);

struct Traffic {
    wire: Wire,
    sent: u32,
}

impl Traffic {
    /// A packet each way each millisecond.
    fn run(&mut self, time: Duration) {
        for _ in 0..time.as_millis() {
            for (from, to) in [(0, 1), (1, 0)] {
                self.wire.send(from, to, &packet(from, to, self.sent));
            }
            self.sent += 1;
            self.wire.run(MS);
        }
    }

    fn keys(&mut self, node: usize, keys: &[SecretKey]) {
        self.wire.nodes[node].identity.keys = keys.to_vec();
    }

    fn nothing_is_lost(&mut self) {
        self.wire.run(50 * MS);
        for (node, from) in [(0, 1), (1, 0)] {
            let mut numbers = self.wire.numbers(node, from);
            numbers.sort_unstable();
            let got = numbers.len();
            assert_eq!(numbers, (0..self.sent).collect::<Vec<_>>(), "{got} of {}", self.sent);
        }
    }

    fn active(&self, node: usize) -> (SecretKey, SecretKey) {
        let status = &self.wire.nodes[node].mesh.status(self.wire.now)[0];
        let (local, remote) = status.keys.unwrap();
        let find = |key| (1..=250).map(secret).find(|s| s.public_key() == key).unwrap();
        (find(local), find(remote))
    }
}

fn traffic() -> Traffic {
    let mut wire = Wire::connected(2);
    wire.jitter = 3 * MS;
    Traffic { wire, sent: 0 }
}

#[test]
fn rotation_on_one_side_loses_no_packet() {
    let (a1, b1, a2) = (secret(1), secret(2), secret(11));
    let mut traffic = traffic();
    traffic.run(50 * MS);
    traffic.keys(0, &[a2.clone(), a1]);
    traffic.wire.apply(0);
    traffic.run(100 * MS);
    traffic.wire.apply(1);
    traffic.run(100 * MS);
    assert_eq!(traffic.active(0), (a2.clone(), b1.clone()));
    assert_eq!(traffic.active(1), (b1, a2.clone()));
    traffic.keys(0, &[a2]);
    traffic.wire.apply(1);
    traffic.run(100 * MS);
    traffic.wire.apply(0);
    traffic.run(100 * MS);
    traffic.nothing_is_lost();
}

#[test]
fn rotation_on_both_sides_at_once_loses_no_packet() {
    let (a1, b1, a2, b2) = (secret(1), secret(2), secret(11), secret(12));
    let mut traffic = traffic();
    traffic.run(50 * MS);
    // Each node changes its own keys before it learns of the other's.
    let learnt = [0, 1].map(|node| {
        let mut config = traffic.wire.config(node, weft_model::Encapsulation::WireGuard);
        let own = if node == 0 { [&a2, &a1] } else { [&b2, &b1] };
        config.keys = own.map(Clone::clone).to_vec();
        config
    });
    for (node, config) in learnt.iter().enumerate() {
        traffic.wire.nodes[node].mesh.apply(config, traffic.wire.now).unwrap();
        traffic.run(30 * MS);
    }
    traffic.keys(0, &[a2.clone(), a1]);
    traffic.keys(1, &[b2.clone(), b1]);
    for node in [1, 0] {
        traffic.wire.apply(node);
        traffic.run(100 * MS);
    }
    assert_eq!(traffic.active(0), (a2.clone(), b2.clone()));
    assert_eq!(traffic.active(1), (b2.clone(), a2.clone()));
    traffic.keys(0, &[a2]);
    traffic.keys(1, &[b2]);
    for node in [0, 1] {
        traffic.wire.apply(node);
        traffic.run(100 * MS);
    }
    traffic.nothing_is_lost();
}

#[test]
fn new_key_that_the_peer_does_not_know_yet_costs_nothing() {
    let mut traffic = traffic();
    traffic.keys(0, &[secret(11), secret(1)]);
    traffic.wire.apply(0);
    traffic.run(100 * MS);
    assert_eq!(traffic.active(0), (secret(1), secret(2)));
    traffic.nothing_is_lost();
}

#[test]
fn restart_in_the_middle_of_a_rotation_finds_the_key_that_works() {
    let mut traffic = traffic();
    traffic.keys(0, &[secret(11), secret(1)]);
    traffic.wire.restart(0);
    traffic.wire.run(20 * MS);
    traffic.run(20 * MS);
    assert_eq!(traffic.active(0), (secret(1), secret(2)));
    traffic.nothing_is_lost();
}

#[test]
fn key_that_leaves_the_configuration_takes_its_sessions_along() {
    let mut traffic = traffic();
    traffic.keys(0, &[secret(11)]);
    traffic.wire.apply(0);
    traffic.wire.run(10 * MS);
    traffic.wire.send(1, 0, &packet(1, 0, 1));
    traffic.wire.run(10 * MS);
    assert!(traffic.wire.numbers(0, 1).is_empty());
    assert_eq!(traffic.wire.dropped(0, DropReason::UnknownPeer), 1);
}
