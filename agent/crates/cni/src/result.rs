//! Reading a delegate's result, in the shape of any supported version.

use ipnet::IpNet;
use serde_json::Value;
use weft_model::cni::Wiring;

use crate::CniError;
use crate::error::code::DECODE;

/// Takes host interface and the pod's addresses out of a result.
///
/// The host end is the interface without a sandbox that is not `bridge`; 0.1.0 and 0.2.0 have no
/// interfaces, so they cannot be attached.
///
/// # Errors
/// Code 6 if the result lacks either.
pub(crate) fn wiring(
    result: &Value,
    netns: &str,
    bridge: Option<&str>,
) -> Result<Wiring, CniError> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let text =
        |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let all = || interfaces.into_iter().flatten();
    let host_interface = all()
        .filter(|i| text(i, "sandbox").is_empty())
        .map(|i| text(i, "name"))
        .find(|name| Some(name.as_str()) != bridge && !name.is_empty())
        .ok_or_else(|| CniError::new(DECODE, "the delegate's result names no host interface"))?;
    let ips = || result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let addresses: Vec<IpNet> = ips().filter_map(|ip| text(ip, "address").parse().ok()).collect();
    let gateways = ips().filter_map(|ip| text(ip, "gateway").parse().ok()).collect();
    if addresses.is_empty() {
        return Err(CniError::new(DECODE, "the delegate's result has no address"));
    }
    let mac =
        all().find(|i| !text(i, "sandbox").is_empty()).and_then(|i| text(i, "mac").parse().ok());
    let bridge = bridge.map(str::to_owned);
    Ok(Wiring { host_interface, netns: netns.to_owned(), addresses, mac, gateways, bridge })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn host_end_is_the_veth_and_not_the_bridge() {
        let result = json!({
            "interfaces": [
                { "name": "weft-br0" },
                { "name": "veth1234" },
                { "name": "eth0", "sandbox": "/run/netns/x", "mac": "02:00:00:00:00:07" },
            ],
            "ips": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2 }, { "address": "fd00::5/64" }],
        });
        let wiring = wiring(&result, "/run/netns/x", Some("weft-br0")).unwrap();
        assert_eq!(wiring.host_interface, "veth1234");
        assert_eq!(wiring.mac.unwrap().to_string(), "02:00:00:00:00:07");
        assert_eq!(wiring.gateway(&[10, 1, 0, 5].into()), Some([10, 1, 0, 1].into()));
        assert_eq!(wiring.bridge.as_deref(), Some("weft-br0"));
        assert_eq!(
            wiring.addresses,
            ["10.1.0.5/24".parse().unwrap(), "fd00::5/64".parse().unwrap()]
        );
    }

    #[test]
    fn result_without_interface_or_address_is_refused() {
        let no_ips = json!({ "interfaces": [{ "name": "veth0" }] });
        assert!(wiring(&no_ips, "", None).is_err());
        let no_interface = json!({ "ips": [{ "address": "10.1.0.5/24" }] });
        assert!(wiring(&no_interface, "", None).is_err());
    }
}
