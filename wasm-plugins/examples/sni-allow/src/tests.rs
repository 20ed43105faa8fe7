//! The name decides, however the ClientHello is cut into segments.

use weft_policy_testing::{Answered, Bench, NativePlugin, tcp};

use crate::{SniAllow, reason};

type Tls = Bench<NativePlugin<SniAllow>>;

const ALLOW: &str = "allow = example.com, *.example.org";
const ISN: u32 = 0xffff_fff0;
const PASS: Answered = Answered::Continue;
const DENIED: Answered = Answered::Reject(reason::NAME);

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn bench(config: &str) -> Tls {
    Bench::new(NativePlugin::new(config).unwrap())
}

/// A ClientHello in one record, with `padding` bytes in an extension before the name.
fn hello(name: Option<&str>, padding: usize) -> Vec<u8> {
    record(22, &client_hello(name, padding))
}

fn client_hello(name: Option<&str>, padding: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    extensions.extend(field(&21_u16.to_be_bytes(), &vec![0; padding]));
    if let Some(name) = name {
        let entry = field(&[0], name.as_bytes());
        extensions.extend(field(&0_u16.to_be_bytes(), &field(&[], &entry)));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(field(&[], &extensions));
    let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[..], &body].concat()
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    field(&[kind, 3, 1], content)
}

/// `head`, a length of two bytes, `content`.
fn field(head: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [head, &length, content].concat()
}

/// A segment to port 443 at `offset` bytes of the stream.
fn send(bench: &mut Tls, flags: u8, offset: u32, payload: &[u8]) -> Answered {
    let sequence = ISN.wrapping_add(1).wrapping_add(offset);
    let packet = tcp("10.0.0.1:40000", "192.0.2.1:443").flags(flags).sequence(sequence);
    bench.ask(&packet.payload(payload).build())
}

fn connect(bench: &mut Tls) {
    assert_eq!(send(bench, SYN, u32::MAX, b""), PASS);
    assert_eq!(send(bench, ACK, 0, b""), PASS);
}

/// Connects and sends the stream in segments of `size` bytes; the last answer that was not a pass.
fn stream(bench: &mut Tls, stream: &[u8], size: usize) -> Answered {
    connect(bench);
    for (number, part) in stream.chunks(size).enumerate() {
        let offset = u32::try_from(number * size).unwrap();
        let answer = send(bench, ACK, offset, part);
        if answer != PASS {
            return answer;
        }
    }
    PASS
}

#[test]
fn name_on_the_list_passes_and_another_is_rejected() {
    let cases = [
        ("example.com", PASS),
        ("EXAMPLE.com", PASS),
        ("example.com.", PASS),
        ("www.example.org", PASS),
        ("a.b.example.org", PASS),
        ("example.org", DENIED),
        ("www.example.com", DENIED),
        ("badexample.org", DENIED),
        ("evil.net\0.example.org", DENIED),
        ("", DENIED),
    ];
    for (name, expected) in cases {
        let answer = stream(&mut bench(ALLOW), &hello(Some(name), 0), 4000);
        assert_eq!(answer, expected, "{name:?}");
    }
}

#[test]
fn decision_is_the_same_at_every_segment_size() {
    for size in [1, 2, 3, 5, 7, 64, 255, 256, 257, 511, 1000, 1460] {
        for padding in [0, 200, 1700] {
            let mut good = bench(ALLOW);
            assert_eq!(stream(&mut good, &hello(Some("example.com"), padding), size), PASS);
            assert!(good.plugin().map().is_empty(), "nothing is left behind at {size}");
            assert_eq!(send(&mut good, ACK, 60_000, b"data"), PASS, "the flow stays allowed");
            let mut bad = bench(ALLOW);
            assert_eq!(stream(&mut bad, &hello(Some("example.net"), padding), size), DENIED);
            assert!(bad.plugin().map().is_empty(), "nothing is left behind at {size}");
        }
    }
}

#[test]
fn message_split_over_records_is_joined() {
    let message = client_hello(Some("www.example.org"), 100);
    for size in [1, 3, 50, 120] {
        let records: Vec<u8> = message.chunks(size).flat_map(|part| record(22, part)).collect();
        for segment in [4, 33, 1460] {
            assert_eq!(stream(&mut bench(ALLOW), &records, segment), PASS);
        }
    }
}

#[test]
fn decision_stays_with_the_flow() {
    let mut bench = bench(ALLOW);
    assert_eq!(stream(&mut bench, &hello(Some("example.net"), 0), 4000), DENIED);
    assert_eq!(send(&mut bench, ACK, 500, b"data"), DENIED);
    assert_eq!(send(&mut bench, RST, 500, b""), PASS, "an answer to our own reset");
}

#[test]
fn segment_before_its_time_is_dropped_until_the_gap_is_filled() {
    let (mut bench, hello) = (bench(ALLOW), hello(Some("example.com"), 300));
    connect(&mut bench);
    let early = Answered::Drop(reason::OUT_OF_ORDER);
    assert_eq!(send(&mut bench, ACK, 100, &hello[100..]), early);
    assert_eq!(send(&mut bench, ACK, 0, &hello[..100]), PASS);
    assert_eq!(send(&mut bench, ACK, 200, &hello[200..]), early);
    assert_eq!(send(&mut bench, ACK, 100, &hello[100..]), PASS);
    assert_eq!(send(&mut bench, ACK, 5000, b"data"), PASS);
}

#[test]
fn segment_that_overlaps_what_was_seen_adds_its_end_only() {
    let (mut bench, hello) = (bench(ALLOW), hello(Some("example.net"), 300));
    connect(&mut bench);
    assert_eq!(send(&mut bench, ACK, 0, &hello[..150]), PASS);
    assert_eq!(send(&mut bench, ACK, 0, &hello[..150]), PASS, "sent again");
    assert_eq!(send(&mut bench, ACK, u32::MAX, b"x"), PASS, "a keepalive");
    let mut forged = hello[50..200].to_vec();
    forged[..100].fill(0xff);
    assert_eq!(send(&mut bench, ACK, 50, &forged), PASS);
    assert_eq!(send(&mut bench, ACK, 200, &hello[200..]), DENIED);
}

#[test]
fn syn_sent_again_does_not_take_the_stream_back() {
    let (mut bench, hello) = (bench(ALLOW), hello(Some("example.com"), 300));
    connect(&mut bench);
    assert_eq!(send(&mut bench, ACK, 0, &hello[..100]), PASS);
    assert_eq!(send(&mut bench, SYN, u32::MAX, b""), PASS);
    assert_eq!(send(&mut bench, ACK, 100, &hello[100..]), PASS);
    assert_eq!(send(&mut bench, SYN, u32::MAX, b""), PASS);
    assert_eq!(send(&mut bench, ACK, 9000, b"data"), PASS);
}

#[test]
fn new_connection_on_the_same_ports_is_decided_anew() {
    let mut bench = bench(ALLOW);
    assert_eq!(stream(&mut bench, &hello(Some("example.com"), 0), 4000), PASS);
    assert_eq!(send(&mut bench, SYN, 70_000, b""), PASS);
    assert_eq!(send(&mut bench, ACK, 70_001, &hello(Some("example.net"), 0)), DENIED);
}

#[test]
fn name_in_the_syn_itself_decides() {
    assert_eq!(send(&mut bench(ALLOW), SYN, u32::MAX, &hello(Some("example.net"), 0)), DENIED);
    let (mut bench, hello) = (bench(ALLOW), hello(Some("example.com"), 300));
    assert_eq!(send(&mut bench, SYN, u32::MAX, &hello[..100]), PASS);
    assert_eq!(send(&mut bench, ACK, 100, &hello[100..]), PASS);
    assert_eq!(send(&mut bench, ACK, 9000, b"data"), PASS);
}

#[test]
fn what_is_not_tls_is_rejected_unless_allowed() {
    let lenient = format!("{ALLOW}\nother = allow");
    let http = b"GET / HTTP/1.1\r\n\r\n";
    let not_tls = Answered::Reject(reason::NOT_TLS);
    assert_eq!(stream(&mut bench(ALLOW), http, 1000), not_tls);
    assert_eq!(stream(&mut bench(&lenient), http, 1000), PASS);
    assert_eq!(send(&mut bench(ALLOW), ACK, 0, b"under way"), not_tls);
    assert_eq!(send(&mut bench(&lenient), ACK, 0, b"under way"), PASS);
    let no_name = stream(&mut bench(&lenient), &hello(None, 5), 1000);
    assert_eq!(no_name, Answered::Reject(reason::NO_NAME), "TLS it is");
}

#[test]
fn client_hello_that_breaks_its_lengths_or_never_ends_is_rejected() {
    let lenient = format!("{ALLOW}\nother = allow");
    let mut broken = hello(Some("example.com"), 0);
    broken[5 + 4 + 2 + 32] = 200;
    let answer = stream(&mut bench(&lenient), &broken, 1000);
    assert_eq!(answer, Answered::Reject(reason::MALFORMED));
    let long = hello(Some("example.com"), 5000);
    assert_eq!(stream(&mut bench(ALLOW), &long, 1460), Answered::Reject(reason::TOO_LONG));
    let drip: Vec<u8> = (0..1000).flat_map(|_| record(22, b"")).collect();
    assert_eq!(stream(&mut bench(ALLOW), &drip, 100), Answered::Reject(reason::TOO_LONG));
}

#[test]
fn half_a_client_hello_is_forgotten_in_time_and_then_denied() {
    let (mut bench, hello) = (bench(ALLOW), hello(Some("example.com"), 300));
    connect(&mut bench);
    assert_eq!(send(&mut bench, ACK, 0, &hello[..100]), PASS);
    bench.set_now(bench.now() + std::time::Duration::from_secs(30));
    let answer = send(&mut bench, ACK, 100, &hello[100..]);
    assert_eq!(answer, Answered::Reject(reason::NO_ROOM));
}

#[test]
fn ports_that_are_not_watched_and_replies_pass() {
    let http = |port: u16| tcp("10.0.0.1:40000", &format!("192.0.2.1:{port}")).payload(b"GET /");
    let not_tls = Answered::Reject(reason::NOT_TLS);
    assert_eq!(bench(ALLOW).ask(&http(80).build()), PASS);
    let mut other = bench(&format!("{ALLOW}\nports = 80, 8443"));
    assert_eq!(other.ask(&http(80).build()), not_tls);
    assert_eq!(other.ask(&http(443).build()), PASS);
    let mut server = bench(&format!("{ALLOW}\nports = 40000"));
    assert_eq!(server.ask(&http(80).build()), PASS);
    let reply = tcp("192.0.2.1:80", "10.0.0.1:40000").payload(b"200 OK");
    assert_eq!(server.ask(&reply.build()), PASS);
}

#[test]
fn refusal_names_the_part_that_is_wrong() {
    let cases = [
        ("allow = a.example, *", "allow `*`"),
        ("allow = two words", "allow `two words`"),
        ("allow = *.*.example", "allow `*.*.example`"),
        ("allow = example.com,", "allow ``"),
        ("ports = 443, 0", "ports `443, 0`"),
        ("ports = https", "ports `https`"),
        ("other = maybe", "other `maybe`"),
        ("deny = example.com", "unknown key `deny`"),
    ];
    for (config, names) in cases {
        let text = NativePlugin::<SniAllow>::new(config).map(drop).unwrap_err();
        assert!(text.starts_with(names), "{config}: {text}");
    }
}
