//! Whatever a runtime sends on stdin and in `CNI_ARGS`, the answer is an error object or a result.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use weft_fuzz::{Random, Report, iterations, mutate};

const SEEDS: [&str; 3] = [
    r#"{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","socket":"/nonexistent/s","stateDir":"/nonexistent/d","delegate":{"type":"bridge","mtu":1}}"#,
    r#"{"cniVersion":"0.4.0","name":"weft","prevResult":{"interfaces":[{"name":"veth0"}],"ips":[{"address":"10.0.0.2/24"}]},"stateDir":"/nonexistent/d"}"#,
    r#"{"name":"a","runtimeConfig":{"portMappings":[{"hostPort":80}]},"stateDir":"/nonexistent/d","socket":"/nonexistent/s"}"#,
];
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u";

/// What JSON and `CNI_ARGS` are made of.
const TELLING: &[u8] = b"{}[]\":,0;=\\";

#[test]
fn fuzz_stdin_and_arguments() {
    let mut random = Random::new(0x5745_4654);
    for iteration in 0..iterations() {
        let stdin = mutate(&mut random, &SEEDS, TELLING);
        let arguments = mutate(&mut random, &[ARGS], TELLING);
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        let report = Report { iteration, input: &stdin };
        // They change nothing, whatever the configuration says.
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
        let reply = weft_cni::run(&environment, Ok(stdin.clone()));
        let answer: Value = serde_json::from_str(&reply.stdout).unwrap();
        if reply.failed {
            assert!(answer["code"].is_u64() && answer["msg"].is_string(), "{answer}");
            assert!(answer["cniVersion"].is_string(), "{answer}");
        } else {
            assert_eq!(command, "VERSION");
        }
        drop(report);
    }
}
