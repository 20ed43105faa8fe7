//! Every engine writes and accepts the same bytes.

#![allow(clippy::unwrap_used)]

use weft_aead::{Engine, Key, TAG_LEN};

const KEY: [u8; 32] = *b"the key of a session of the mesh";

fn key(engine: Engine) -> Key {
    Key::new(&KEY, engine).unwrap()
}

/// Lengths around every block of every implementation, and up to what a datagram can hold.
fn lengths() -> impl Iterator<Item = usize> {
    (0..2100).chain([4095, 4096, 4097, 8920, 9000, 16_384, 65_519])
}

fn packet(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

fn sealed(key: &Key, counter: u64, packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    let tag = key.seal(counter, &mut bytes).unwrap();
    bytes.extend(tag);
    bytes
}

/// Otherwise the other tests would compare an engine with itself, and only this one says so.
#[test]
#[cfg(target_arch = "x86_64")]
fn avx512_is_used_where_the_cpu_has_it() {
    let cpu = is_x86_feature_detected!("avx512ifma") && is_x86_feature_detected!("avx512vbmi");
    if cpu && !Engine::fastest().is_avx512() {
        assert!(std::env::var_os("CI").is_none(), "libipsec-mb-dev was not there for the build");
    }
    if !Engine::fastest().is_avx512() {
        eprintln!("skipped: without AVX-512, or libipsec-mb-dev, ring is compared with itself");
    }
    assert!(cpu || !Engine::fastest().is_avx512());
}

#[test]
fn fastest_engine_writes_what_ring_writes() {
    let (ring, fastest) = (key(Engine::Ring), key(Engine::fastest()));
    for len in lengths() {
        let (packet, counter) = (packet(len), u64::MAX - len as u64);
        assert_eq!(sealed(&fastest, counter, &packet), sealed(&ring, counter, &packet), "{len}");
    }
}

#[test]
fn each_engine_opens_what_the_other_sealed() {
    let (ring, fastest) = (key(Engine::Ring), key(Engine::fastest()));
    for len in lengths() {
        for (from, to) in [(&ring, &fastest), (&fastest, &ring)] {
            let mut bytes = sealed(from, 5, &packet(len));
            assert_eq!(to.open(5, &mut bytes), Some(len));
            assert_eq!(bytes[..len], packet(len));
        }
    }
}

#[test]
fn nothing_that_was_changed_is_opened() {
    for engine in [Engine::Ring, Engine::fastest()] {
        let key = key(engine);
        for len in [0, 1, 63, 64, 1420] {
            let good = sealed(&key, 9, &packet(len));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open(9, &mut bad), None, "{engine:?}, length {len}, bit {bit}");
            }
            assert_eq!(key.open(10, &mut good.clone()), None, "another counter");
            let other = Key::new(&[1; 32], engine).unwrap();
            assert_eq!(other.open(9, &mut good.clone()), None, "another key");
        }
    }
}

#[test]
fn what_is_shorter_than_a_tag_is_refused() {
    for engine in [Engine::Ring, Engine::fastest()] {
        for len in 0..TAG_LEN {
            assert_eq!(key(engine).open(0, &mut vec![0; len]), None);
        }
    }
}

/// A key is used by many threads, each of which has a manager of its own.
#[test]
fn threads_share_a_key() {
    let (ring, fastest) = (key(Engine::Ring), key(Engine::fastest()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (ring, fastest) = (&ring, &fastest);
            scope.spawn(move || {
                for round in 0..2000 {
                    let (counter, packet) = (thread << 32 | round, packet(round as usize % 1500));
                    let mut bytes = sealed(fastest, counter, &packet);
                    assert_eq!(ring.open(counter, &mut bytes), Some(packet.len()));
                }
            });
        }
    });
}
