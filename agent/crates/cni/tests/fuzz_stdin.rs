//! Whatever a runtime sends on stdin and in `CNI_ARGS`, the answer is an error object or a result.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

const SEEDS: [&str; 3] = [
    r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","socket":"/nonexistent/s","stateDir":"/nonexistent/d","delegate":{"type":"bridge","mtu":1}}"#,
    r#"{"cniVersion":"0.4.0","name":"weft","prevResult":{"interfaces":[{"name":"veth0"}],"ips":[{"address":"10.0.0.2/24"}]},"stateDir":"/nonexistent/d"}"#,
    r#"{"name":"a","runtimeConfig":{"portMappings":[{"hostPort":80}]},"stateDir":"/nonexistent/d","socket":"/nonexistent/s"}"#,
];
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u";

/// A small generator (xorshift64*), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(value).unwrap() % limit.max(1)
    }

    fn mutate(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 if !bytes.is_empty() => bytes[at] = u8::try_from(self.below(256)).unwrap(),
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, b"{}[]\":,0;=\\"[self.below(11)]),
            }
        }
        bytes
    }
}

#[test]
fn fuzz_stdin_and_arguments() {
    let iterations = std::env::var("WEFT_FUZZ_ITERATIONS").map_or(20_000, |n| n.parse().unwrap());
    let mut random = Random(0x5745_4654);
    for _ in 0..iterations {
        let stdin = random.mutate(SEEDS[random.0 as usize % SEEDS.len()]);
        let arguments = String::from_utf8_lossy(&random.mutate(ARGS)).into_owned();
        // CHECK and VERSION change nothing, whatever the configuration says.
        let command = ["CHECK", "VERSION", "STATUS"][random.below(3)];
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some("/nonexistent".to_owned()),
            "CNI_PATH" => Some("/nonexistent".to_owned()),
            "CNI_ARGS" => Some(arguments.clone()),
            _ => None,
        };
        let reply = weft_cni::run(&environment, Ok(stdin));
        let answer: Value = serde_json::from_str(&reply.stdout).unwrap();
        if reply.failed {
            assert!(answer["code"].is_u64() && answer["msg"].is_string(), "{answer}");
            assert!(answer["cniVersion"].is_string(), "{answer}");
        } else {
            assert_eq!(command, "VERSION");
        }
    }
}
