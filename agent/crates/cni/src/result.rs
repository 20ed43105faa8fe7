//! Reading a delegate's result, in the shape of any supported version, and making it that of the call.

use ipnet::IpNet;
use serde_json::{Value, json};
use weft_model::cni::Wiring;

use crate::CniError;
use crate::config::NetworkConfig;
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

/// What the delegate made, in the version of the request, after what plugins before this one made.
pub(crate) fn of_request(mut made: Value, config: &NetworkConfig) -> Value {
    made["cniVersion"] = json!(config.cni_version);
    let Some(Value::Object(mut whole)) = config.prev_result.clone() else { return made };
    let count = |whole: &serde_json::Map<String, Value>| {
        whole.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len)
    };
    let before = u64::try_from(count(&whole)).unwrap_or(0);
    for ip in made.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        // Counted from the first interface of all.
        if let Some(interface) = ip.get("interface").and_then(Value::as_u64) {
            ip["interface"] = json!(interface + before);
        }
    }
    for key in ["interfaces", "ips", "routes"] {
        let Some(Value::Array(ours)) = made.get_mut(key).map(Value::take) else { continue };
        match whole.get_mut(key).and_then(Value::as_array_mut) {
            Some(theirs) => theirs.extend(ours),
            None => drop(whole.insert(key.to_owned(), Value::Array(ours))),
        }
    }
    whole.insert("cniVersion".to_owned(), made["cniVersion"].take());
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(previous: &Value) -> NetworkConfig {
        let config = json!({ "cniVersion": "1.1.0", "name": "weft", "prevResult": previous });
        NetworkConfig::parse(config.to_string().as_bytes()).unwrap()
    }

    /// CNI-021
    #[test]
    fn result_is_of_the_version_of_the_request() {
        let made = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.5/24" }] });
        let result = of_request(made.clone(), &config(&Value::Null));
        assert_eq!(result, json!({ "cniVersion": "1.1.0", "ips": made["ips"] }));
    }

    /// CNI-080
    #[test]
    fn what_earlier_plugins_made_stays_and_comes_first() {
        let before = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "lo", "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
            "dns": { "nameservers": ["192.0.2.53"] },
        });
        let made = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "veth1" }, { "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "10.1.0.5/24", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": {},
        });
        let result = of_request(made, &config(&before));
        let names: Vec<_> =
            result["interfaces"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
        assert_eq!(names, ["lo", "veth1", "eth0"]);
        assert_eq!(result["ips"][0], before["ips"][0]);
        assert_eq!(result["ips"][1], json!({ "address": "10.1.0.5/24", "interface": 2 }));
        assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0" }]));
        assert_eq!(result["dns"], before["dns"]);
        assert_eq!(result["cniVersion"], "1.1.0");
    }

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
