use std::net::IpAddr;
use std::path::Path;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use weft_control::JoinToken;
use weft_model::{MacAddr, NodeName};

use super::*;
use crate::config::{AgentConfig, TokenSource};

/// An agent that has not joined.
fn task(dir: &Path, hub: String) -> HubTask {
    let ca = rcgen::generate_simple_self_signed(vec!["ca".into()]).unwrap();
    let token = JoinToken::try_new([1; 32], ca.cert.der().to_vec()).unwrap();
    let config = AgentConfig {
        state_dir: dir.to_owned(),
        token: TokenSource::Text(token.to_string()),
        ..AgentConfig::new(NodeName::try_new("n").unwrap(), hub)
    };
    HubTask {
        link: Arc::default(),
        identity: IdentityStore::open(config.state("identity")).unwrap(),
        keys: Arc::new(KeyStore::open(config.state("keys")).unwrap()),
        snapshot_file: SnapshotFile::new(dir),
        core: Arc::new(Core::new(config, "uid".into(), MacAddr([2; 6]))),
    }
}

/// Waits for the next attempt and lets it fail.
async fn attempt(hub: &TcpListener) {
    drop(timeout(BACKOFF_MAX * 2, hub.accept()).await.unwrap().unwrap());
}

/// After some failures the pauses are longer than the time in which the hub has to be asked here.
#[tokio::test]
async fn hub_is_asked_at_once_when_the_node_gets_another_address() {
    let dir = tempfile::tempdir().unwrap();
    let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let task = task(dir.path(), hub.local_addr().unwrap().to_string());
    let core = task.core.clone();
    let running = tokio::spawn(task.run());
    // Pauses of 250, 500 and 1000 ms, the one of 2000 ms after the last.
    for _ in 0..4 {
        attempt(&hub).await;
    }
    let failed = Instant::now();
    sleep(Duration::from_millis(150)).await;
    // Something else changes: no reason to hurry.
    core.update(|s| s.resume = vec![1]);
    let early = timeout(Duration::from_millis(350), hub.accept()).await;
    assert!(early.is_err(), "asked again after {:?}", failed.elapsed());
    core.update(|s| s.host_addresses = [IpAddr::from([192, 0, 2, 9])].into());
    // Half of the pause is the least that is waited otherwise.
    timeout(Duration::from_millis(300), hub.accept()).await.unwrap().unwrap();
    assert!(failed.elapsed() < BACKOFF_MIN * 8 / 2, "{:?} is a pause's end", failed.elapsed());
    running.abort();
}
