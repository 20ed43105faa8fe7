use weft_model::cni::Range;

use super::*;

fn delegation() -> Delegation {
    Delegation {
        mtu: 1420,
        segments_max: Some(44),
        ranges: vec![
            Range {
                subnet: "10.42.1.0/24".parse().unwrap(),
                gateway: "10.42.1.1".parse().unwrap(),
            },
            Range {
                subnet: "fd42:0:0:1::/64".parse().unwrap(),
                gateway: "fd42:0:0:1::1".parse().unwrap(),
            },
        ],
    }
}

fn config(dir: &Path) -> AgentConfig {
    let source = dir.join("built");
    fs::write(&source, "#!/bin/true").unwrap();
    AgentConfig {
        state_dir: dir.join("state"),
        run_dir: dir.join("run"),
        cni_conf_dir: dir.join("net.d"),
        cni_bin_dir: dir.join("bin"),
        cni_binary: Some(source),
        ..AgentConfig::new("a".parse().unwrap(), "hub:7443")
    }
}

fn env() -> String {
    let cidrs = ["10.42.0.0/16", "fd42::/48"].map(|c| c.parse().unwrap());
    subnet_env(&cidrs, &delegation(), true)
}

#[test]
fn subnet_file_is_what_flannel_writes() {
    assert_eq!(
        env(),
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n\
         FLANNEL_IPV6_NETWORK=fd42::/48\nFLANNEL_IPV6_SUBNET=fd42:0:0:1::1/64\n\
         FLANNEL_MTU=1420\nFLANNEL_IPMASQ=true\n"
    );
}

#[test]
fn configuration_names_socket_state_and_delegate() {
    let dir = tempfile::tempdir().unwrap();
    let text = conflist(&config(dir.path()));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["cniVersion"], "1.0.0");
    assert_eq!(value["plugins"][0]["type"], "weft-cni");
    assert_eq!(value["plugins"][0]["delegate"]["type"], "ptp");
    assert!(value["plugins"][0]["socket"].as_str().unwrap().ends_with("run/cni.sock"));
    assert!(value["plugins"][0]["stateDir"].as_str().unwrap().ends_with("state/cni"));
}

#[test]
fn deleted_or_edited_files_come_back_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir_all(&config.cni_conf_dir).unwrap();
    let foreign = config.cni_conf_dir.join("99-other.conflist");
    fs::write(&foreign, "theirs").unwrap();
    let mut installer = Installer::new(&config);
    assert!(installer.ensure(&env()).unwrap());
    assert!(!installer.ensure(&env()).unwrap());

    fs::write(config.conflist(), "edited").unwrap();
    fs::remove_file(config.cni_bin_dir.join(BINARY)).unwrap();
    fs::remove_file(config.socket(SUBNET_ENV)).unwrap();
    assert!(installer.ensure(&env()).unwrap());
    assert_eq!(fs::read_to_string(config.conflist()).unwrap(), conflist(&config));
    let mode = fs::metadata(config.cni_bin_dir.join(BINARY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert_eq!(fs::read_to_string(config.socket(SUBNET_ENV)).unwrap(), env());
    assert_eq!(fs::read_to_string(foreign).unwrap(), "theirs");
    assert_eq!(fs::read_dir(&config.cni_conf_dir).unwrap().count(), 2);
}

#[test]
fn upgraded_binary_replaces_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    Installer::new(&config).ensure(&env()).unwrap();
    fs::write(config.cni_binary.as_ref().unwrap(), "new").unwrap();
    assert!(Installer::new(&config).ensure(&env()).unwrap());
    assert_eq!(fs::read(config.cni_bin_dir.join(BINARY)).unwrap(), b"new");
}

#[test]
fn network_that_sorts_first_and_a_missing_delegate_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir_all(&config.cni_conf_dir).unwrap();
    fs::create_dir_all(&config.cni_bin_dir).unwrap();
    fs::write(config.cni_bin_dir.join("ptp"), "").unwrap();
    fs::write(config.cni_conf_dir.join("05-other.conflist"), "").unwrap();
    fs::write(config.cni_conf_dir.join("00-note.txt"), "").unwrap();
    let problems = problems(&config);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("05-other.conflist sorts before"));
    assert!(problems[1].contains("`host-local` is not in"));
}
