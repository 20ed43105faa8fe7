//! What this process may do, told before it has done half of it.

/// Bit of `CAP_NET_ADMIN` in a capability set. Source: linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;

/// False if this process lacks `CAP_NET_ADMIN`, without which interfaces, routes and tables of the
/// network namespace cannot be changed.
#[must_use]
pub fn may_change_network() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_capability(&status, CAP_NET_ADMIN).unwrap_or(true)
}

/// Whether `/proc/PID/status` shows a capability as effective; `None` if it does not say.
fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    Some(set & (1 << bit) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_is_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\tffff\nCapEff:\t0000000000001000\n";
        assert_eq!(has_capability(status, CAP_NET_ADMIN), Some(true));
        assert_eq!(has_capability("CapEff:\t0000\n", CAP_NET_ADMIN), Some(false));
        assert_eq!(has_capability("", CAP_NET_ADMIN), None);
    }
}
