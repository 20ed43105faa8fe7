//! What happens over minutes: rekeying, expiry, keepalives.

#![allow(clippy::unwrap_used, clippy::panic)]

mod wire;

use std::time::Duration;

use weft_mesh::{Encapsulated, Event};
use wire::{Wire, packet, peer};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Sends a packet each way each 50 ms, numbered from `first`; the number after the last.
fn talk(wire: &mut Wire, first: u32, time: Duration) -> u32 {
    let last = first + u32::try_from(time.as_millis() / 50).unwrap();
    for number in first..last {
        wire.send(0, 1, &packet(0, 1, number));
        wire.send(1, 0, &packet(1, 0, number));
        wire.run(50 * MS);
    }
    last
}

fn all_arrived(wire: &Wire, count: u32) {
    for (node, from) in [(0, 1), (1, 0)] {
        let mut numbers = wire.numbers(node, from);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn session_is_rekeyed_after_two_minutes_without_loss() {
    let mut wire = Wire::connected(2);
    wire.jitter = 3 * MS;
    let handshakes = wire.nodes[0].mesh.status(wire.now)[0].handshakes;
    let sent = talk(&mut wire, 0, Duration::from_secs(400));
    wire.run(50 * MS);
    all_arrived(&wire, sent);
    let status = &wire.nodes[0].mesh.status(wire.now)[0];
    assert!(status.handshakes >= handshakes + 3, "{}", status.handshakes);
    assert!(status.last_handshake.unwrap() < Duration::from_secs(125));
    assert!(!wire.marker_was_seen());
}

#[test]
fn idle_peers_are_silent_and_expired_sessions_are_made_anew_for_the_next_packet() {
    let mut wire = Wire::connected(2);
    wire.send(0, 1, &packet(0, 1, 0));
    wire.run(30 * SECOND);
    let quiet = wire.seen.len();
    wire.run(400 * SECOND);
    assert_eq!(wire.seen.len(), quiet);
    assert!(!wire.nodes[0].mesh.status(wire.now)[0].ready);
    assert_eq!(wire.send(0, 1, &packet(0, 1, 1)), Encapsulated::Queued);
    wire.run(10 * MS);
    assert_eq!(wire.numbers(1, 0), [0, 1]);
}

#[test]
fn session_beyond_its_life_is_never_used() {
    let mut wire = Wire::connected(2);
    // The peer is gone, so that no rekeying succeeds.
    wire.loss = 1000;
    let mut last_clear = Duration::ZERO;
    let start = wire.now;
    for number in 0..250 {
        if let Encapsulated::Datagrams { .. } = wire.send(0, 1, &packet(0, 1, number)) {
            last_clear = wire.now.since(start);
        }
        wire.run(SECOND);
    }
    assert!(last_clear <= Duration::from_secs(181), "{last_clear:?}");
    assert!(!wire.marker_was_seen());
}

#[test]
fn receiver_that_is_silent_confirms_with_a_keepalive() {
    let mut wire = Wire::connected(2);
    wire.run(SECOND);
    wire.send(0, 1, &packet(0, 1, 0));
    wire.run(SECOND);
    let before = wire.seen.len();
    wire.run(15 * SECOND);
    let keepalives: Vec<_> = wire.seen[before..].iter().map(|f| f.bytes.len()).collect();
    assert_eq!(keepalives, [32]);
}

#[test]
fn partition_of_ten_minutes_heals_with_the_next_attempt() {
    let mut wire = Wire::connected(2);
    wire.loss = 1000;
    for number in 0..600 {
        wire.send(0, 1, &packet(0, 1, number));
        wire.run(SECOND);
    }
    wire.loss = 0;
    wire.nodes[1].inbox.clear();
    for number in 1000..1010 {
        wire.send(0, 1, &packet(0, 1, number));
        wire.run(SECOND);
    }
    let numbers = wire.numbers(1, 0);
    assert!((1000..1010).all(|n| numbers.contains(&n)), "{numbers:?}");
    assert!(numbers.len() < 25, "what waited too long comes after all: {numbers:?}");
    let completed =
        |e: &&Event| matches!(e, Event::HandshakeCompleted { peer: p, .. } if *p == peer(1));
    assert!(wire.nodes[0].events.iter().filter(completed).count() >= 2);
    let timed_out = |e: &&Event| matches!(e, Event::HandshakeTimedOut { .. });
    let reports = wire.nodes[0].events.iter().filter(timed_out).count();
    assert!((3..=5).contains(&reports), "reported {reports} times under traffic");
}

#[test]
fn lossy_wire_rekeys_all_the_same() {
    let mut wire = Wire::connected(2);
    (wire.loss, wire.jitter) = (200, 20 * MS);
    let sent = talk(&mut wire, 0, Duration::from_secs(600));
    let got = wire.numbers(1, 0).len();
    assert!(got > usize::try_from(sent).unwrap() * 75 / 100, "{got} of {sent}");
    assert!(!wire.marker_was_seen());
}
