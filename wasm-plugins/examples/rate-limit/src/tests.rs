//! What a bucket holds passes at once, then what flows in; each source has its own.

use std::time::Duration;

use weft_policy_testing::{Answered, Bench, NativeMap, NativePlugin, udp};

use super::{NO_ROOM, OVER_LIMIT, RateLimit};

const OVER: Answered = Answered::Drop(OVER_LIMIT);

fn bench(config: &str) -> Bench<NativePlugin<RateLimit>> {
    Bench::new(NativePlugin::new(config).unwrap())
}

/// A datagram of `len` bytes, its headers of 28 bytes counted in.
fn datagram(source: &str, len: usize) -> Vec<u8> {
    udp(&format!("{source}:1000"), "10.0.9.9:53").payload(&vec![0; len - 28]).build()
}

fn passes(bench: &mut Bench<NativePlugin<RateLimit>>, source: &str, len: usize) -> bool {
    match bench.ask(&datagram(source, len)) {
        Answered::Continue => true,
        OVER => false,
        other => panic!("{other:?}"),
    }
}

fn passing(bench: &mut Bench<NativePlugin<RateLimit>>, packets: usize) -> usize {
    (0..packets).filter(|_| passes(bench, "10.0.0.1", 100)).count()
}

fn wait(bench: &mut Bench<NativePlugin<RateLimit>>, millis: u64) {
    bench.set_now(bench.now() + Duration::from_millis(millis));
}

#[test]
fn burst_passes_at_once_and_then_what_the_rate_brings() {
    let mut bench = bench("packets_per_second = 100\nburst_packets = 5");
    assert_eq!(passing(&mut bench, 20), 5);
    wait(&mut bench, 9);
    assert_eq!(passing(&mut bench, 20), 0, "a packet comes each 10 ms");
    wait(&mut bench, 1);
    assert_eq!(passing(&mut bench, 20), 1);
    wait(&mut bench, 30);
    assert_eq!(passing(&mut bench, 20), 3);
    wait(&mut bench, 60_000);
    assert_eq!(passing(&mut bench, 20), 5, "it holds no more than the burst");
}

#[test]
fn burst_is_a_second_of_the_rate_unless_told_otherwise() {
    let mut bench = bench("packets_per_second = 7");
    assert_eq!(passing(&mut bench, 50), 7);
}

#[test]
fn steady_stream_at_the_rate_loses_nothing_and_twice_the_rate_loses_half() {
    let mut bench = bench("packets_per_second = 100\nburst_packets = 2");
    let stream = |bench: &mut _, gap| {
        let one = |_| {
            wait(bench, gap);
            passes(bench, "10.0.0.1", 100)
        };
        (0..1000).map(one).filter(|passed| *passed).count()
    };
    assert_eq!(stream(&mut bench, 10), 1000);
    let half = stream(&mut bench, 5);
    assert!((500..=502).contains(&half), "{half}");
}

#[test]
fn bytes_are_counted_with_their_headers() {
    let mut bench = bench("bytes_per_second = 1000\nburst_bytes = 1000");
    assert!(passes(&mut bench, "10.0.0.1", 600));
    assert!(!passes(&mut bench, "10.0.0.1", 600));
    assert!(passes(&mut bench, "10.0.0.1", 400));
    wait(&mut bench, 600);
    assert!(!passes(&mut bench, "10.0.0.1", 601));
    assert!(passes(&mut bench, "10.0.0.1", 600));
}

#[test]
fn packet_above_the_burst_passes_and_is_paid_for_afterwards() {
    let mut bench = bench("bytes_per_second = 1000\nburst_bytes = 100");
    assert!(passes(&mut bench, "10.0.0.1", 1100));
    wait(&mut bench, 1000);
    assert!(!passes(&mut bench, "10.0.0.1", 100));
    wait(&mut bench, 100);
    assert!(passes(&mut bench, "10.0.0.1", 100));
}

#[test]
fn both_limits_hold() {
    let config = "packets_per_second = 1\nburst_packets = 3\nbytes_per_second = 1000";
    let mut both = bench(config);
    assert_eq!(passing(&mut both, 20), 3);
    let mut both = bench(config);
    assert!(passes(&mut both, "10.0.0.1", 900));
    assert!(!passes(&mut both, "10.0.0.1", 900));
}

#[test]
fn each_source_has_its_own_bucket_and_an_idle_one_takes_no_room() {
    let mut bench = bench("packets_per_second = 1");
    assert!(passes(&mut bench, "10.0.0.1", 100));
    assert!(passes(&mut bench, "10.0.0.2", 100));
    assert!(!passes(&mut bench, "10.0.0.1", 100));
    assert_eq!(bench.plugin().map().len(), 2);
    wait(&mut bench, 2000);
    assert!(passes(&mut bench, "10.0.0.3", 100));
    assert_eq!(bench.plugin().map().len(), 1);
}

#[test]
fn workers_share_a_bucket() {
    let map = NativeMap::default();
    let worker =
        || Bench::new(NativePlugin::with_map("packets_per_second = 4", map.clone()).unwrap());
    let (mut a, mut b) = (worker(), worker());
    assert_eq!(passing(&mut a, 3), 3);
    assert_eq!(passing(&mut b, 3), 1);
}

#[test]
fn source_that_finds_no_room_is_dropped_or_passes_as_configured() {
    let fill = |config: &str| {
        let mut bench = bench(config);
        for i in 0..16_384_u32 {
            let [.., high, low] = i.to_be_bytes();
            assert!(passes(&mut bench, &format!("10.1.{high}.{low}"), 100));
        }
        bench.ask(&datagram("10.2.0.1", 100))
    };
    assert_eq!(fill("packets_per_second = 1"), Answered::Drop(NO_ROOM));
    assert_eq!(fill("packets_per_second = 1\nwhen_full = pass"), Answered::Continue);
}

#[test]
fn no_limit_is_no_limit() {
    assert_eq!(passing(&mut bench("# nothing"), 1000), 1000);
}

#[test]
fn refusal_names_the_part_that_is_wrong() {
    let cases = [
        ("packets_per_second = 0", "packets_per_second `0`"),
        ("bytes_per_second = many", "bytes_per_second `many`"),
        ("burst_packets = -1", "burst_packets `-1`"),
        ("packets_per_second = 1\nburst_bytes = 5", "burst_bytes without bytes_per_second"),
        ("burst_packets = 5", "burst_packets without packets_per_second"),
        ("when_full = maybe", "when_full `maybe`"),
        ("rate = 5", "unknown key `rate`: expected `packets_per_second`"),
        ("packets_per_second", "line 1: `packets_per_second`"),
    ];
    for (config, names) in cases {
        let text = NativePlugin::<RateLimit>::new(config).map(drop).unwrap_err();
        assert!(text.starts_with(names), "{config}: {text}");
    }
}
