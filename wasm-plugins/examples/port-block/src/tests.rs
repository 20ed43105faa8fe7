//! What is on the list is blocked, and nothing else.

use weft_policy_testing::{Answered, Bench, NativePlugin, PacketBuilder, tcp, udp};

use super::{BLOCKED, PortBlock};

fn bench(config: &str) -> Bench<NativePlugin<PortBlock>> {
    Bench::new(NativePlugin::new(config).unwrap())
}

fn answer(config: &str, packet: &PacketBuilder) -> Answered {
    bench(config).ask(&packet.build())
}

fn tcp_to(port: u16) -> PacketBuilder {
    tcp("10.0.0.1:40000", &format!("10.0.1.1:{port}"))
}

#[test]
fn range_is_blocked_from_its_first_to_its_last_port() {
    let mut bench = bench("block = tcp/8000-8100, tcp/80\nblock = tcp/65535");
    let blocked = Answered::Reject(BLOCKED);
    for port in [80, 8000, 8050, 8100, 65_535] {
        assert_eq!(bench.ask(&tcp_to(port).build()), blocked, "{port}");
    }
    for port in [1, 79, 81, 7999, 8101, 65_534] {
        assert_eq!(bench.ask(&tcp_to(port).build()), Answered::Continue, "{port}");
    }
}

#[test]
fn port_of_one_protocol_is_free_in_another() {
    let datagram = udp("10.0.0.1:40000", "10.0.1.1:53");
    assert_eq!(answer("block = tcp/53", &datagram), Answered::Continue);
    assert_eq!(answer("block = udp/53", &datagram), Answered::Reject(BLOCKED));
    assert_eq!(answer("block = udp/53", &tcp_to(53)), Answered::Continue);
}

#[test]
fn ipv6_is_blocked_as_ipv4_is() {
    let packet = tcp("[fd00::1]:40000", "[fd00::2]:80");
    assert_eq!(answer("block = tcp/80", &packet), Answered::Reject(BLOCKED));
}

#[test]
fn reply_from_a_blocked_port_number_passes() {
    let mut bench = bench("block = tcp/40000");
    assert_eq!(bench.ask(&tcp_to(443).build()), Answered::Continue);
    let reply = tcp("10.0.1.1:443", "10.0.0.1:40000");
    assert_eq!(bench.ask(&reply.build()), Answered::Continue);
}

#[test]
fn silent_action_drops() {
    assert_eq!(answer("tcp/80\naction = drop", &tcp_to(80)), Answered::Drop(BLOCKED));
}

#[test]
fn list_needs_no_key() {
    let config = "# comment\n\n  tcp/5201 , udp/53  \n";
    assert_eq!(answer(config, &tcp_to(5201)), Answered::Reject(BLOCKED));
    assert_eq!(answer(config, &udp("10.0.0.1:1", "10.0.1.1:53")), Answered::Reject(BLOCKED));
}

#[test]
fn empty_configuration_blocks_nothing() {
    assert_eq!(answer("", &tcp_to(80)), Answered::Continue);
}

#[test]
fn refusal_names_the_part_that_is_wrong() {
    let cases = [
        ("block = tcp/80, tcp/0", "`tcp/0`: a port is 1 to 65535"),
        ("block = tcp/65536", "`tcp/65536`: a port is 1 to 65535"),
        ("block = tcp/9-8", "`tcp/9-8`: the first port is above the last"),
        ("block = icmp/1", "`icmp/1`: the protocol is"),
        ("block = 80", "`80`: expected protocol/port"),
        ("block = tcp/80,", "``: expected protocol/port"),
        ("action = explode", "action `explode`"),
        ("blocks = tcp/80", "unknown key `blocks`"),
        ("hello", "`hello`: expected protocol/port"),
    ];
    for (config, names) in cases {
        let text = NativePlugin::<PortBlock>::new(config).map(drop).unwrap_err();
        assert!(text.starts_with(names), "{config}: {text}");
    }
}
