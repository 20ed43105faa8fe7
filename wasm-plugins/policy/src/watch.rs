//! What policies that are only watched would drop: a line and a count.

use weft_policy_sdk::{Host, Level};

use crate::End;

/// Tries against other workers that count the same.
const TRIES: usize = 8;

/// Key of the plugin's map for the count of what would have been dropped with a number. Its value
/// is a little-endian `u64`: flows, each once at each of its ends that are pods of this node.
#[must_use]
pub fn watched_key(number: u32) -> [u8; 12] {
    let [a, b, c, d] = number.to_be_bytes();
    [b'w', b'a', b't', b'c', b'h', b'e', b'd', b' ', a, b, c, d]
}

pub(crate) fn note(end: &End, number: u32, host: &Host<'_>) {
    let (from, to) = if end.began { (end.pod, end.peer) } else { (end.peer, end.pod) };
    let way = if end.began { "egress" } else { "ingress" };
    let service = match end.protocol {
        6 => format!("tcp port {}", end.port),
        17 => format!("udp port {}", end.port),
        132 => format!("sctp port {}", end.port),
        other => format!("protocol {other}"),
    };
    let line =
        format!("watched {number}: would drop {way} {} to {}, {service}", from.ip(), to.ip());
    host.log(Level::Info, &line);
    count(number, host);
}

/// A full map counts no further numbers.
fn count(number: u32, host: &Host<'_>) {
    let (map, key) = (host.map(), watched_key(number));
    for _ in 0..TRIES {
        let held = map.get(&key);
        let held = held.as_deref().unwrap_or_default();
        let count = held.try_into().map_or(0, u64::from_le_bytes).saturating_add(1);
        if !matches!(map.swap(&key, held, &count.to_le_bytes(), None), Ok(false)) {
            return;
        }
    }
}
