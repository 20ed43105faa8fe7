use std::net::IpAddr;

use super::*;
use crate::cni::tests::record;
use crate::datapath::tests::{FakeDatapath, joined_core, start_client};
use crate::tables::tests::{dns, fqdn_policy};

const POD: &str = "10.42.1.2";
const KEY: &str = "weft/a/eth0";

/// A node with pods a and b, of which a policy lets all send to `*.example` and to names of the cluster.
fn core(directory: &std::path::Path) -> Arc<Core> {
    let core = joined_core(directory);
    let policy = fqdn_policy("default", "p", &["*.example", "*.cluster.local"], None);
    core.update(|state| {
        let snapshot = state.snapshot.as_mut().unwrap();
        snapshot.policies.insert(policy.name.clone(), policy.into());
        for (container, address) in [("a", "10.42.1.2/24"), ("b", "10.42.1.3/24")] {
            let record = record(container, container, address);
            let pod = weft_model::Pod {
                name: record.pod_name().unwrap(),
                node: None,
                addresses: record.addresses(),
                labels: std::collections::BTreeMap::new(),
                ports: Vec::new(),
                finished: false,
                own_search: false,
            };
            snapshot.pods.insert(pod.name.clone(), pod.into());
            state.attachments.insert(format!("weft/{container}/eth0"), record);
        }
    });
    core
}

fn ear(core: &Arc<Core>) -> Ear {
    let store = Arc::new(Store::open(core).unwrap());
    store.restore(core).unwrap();
    Ear { core: Arc::clone(core), store }
}

fn found(names: &[&str], last: u8) -> Found {
    Found {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        addresses: vec![IpAddr::from([203, 0, 113, last])],
        ttl: Duration::from_secs(60),
    }
}

fn known(core: &Core) -> Vec<String> {
    let known = core.read(|state| state.learned.known(KEY).cloned()).unwrap_or_default();
    known.keys().map(ToString::to_string).collect()
}

/// NP-153: an answer waits until the datapath confirms, and one that changes nothing does not.
#[tokio::test]
async fn answer_waits_for_the_datapath() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());
    let ear = ear(&core);
    let pod = POD.parse().unwrap();
    assert!(ear.cares(pod) && !ear.cares("10.42.1.9".parse().unwrap()));
    assert!(!ear.hear(pod, found(&["a.example"], 1)).await, "without a datapath");
    let _datapath = FakeDatapath::start(directory.path()).await;
    start_client(&core, directory.path());
    assert!(core.wait_applied(Duration::from_secs(5)).await);
    // By another name that the same rule has an address is known already.
    for (name, last, is_change) in [
        ("a.example", 2, true),
        ("a.example", 2, false),
        ("b.example", 2, false),
        ("other", 3, false),
    ] {
        let before = core.target().unwrap().version;
        assert!(ear.hear(pod, found(&[name], last)).await);
        let version = core.target().unwrap().version;
        assert!(core.applied().borrow().version >= version);
        assert_eq!(version > before, is_change, "{name}");
    }
    assert_eq!(known(&core), ["a.example", "b.example"]);
}

/// What a name of the cluster stands for was asked for with it, and what others stand for was not.
#[tokio::test]
async fn aliases_of_the_cluster_are_asked_for_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let core = core(directory.path());
    core.update(|state| {
        state.snapshot.as_mut().unwrap().cluster.dns = Some(dns());
    });
    let names = |chain: &[&str]| {
        let chain: Vec<_> = chain.iter().map(|n| (*n).to_owned()).collect();
        core.read(|state| concerned(state, POD.parse().unwrap(), &chain)).map(|(_, names)| names)
    };
    let chain = ["ext.default.svc.cluster.local", "a.example", "cdn.example"];
    assert_eq!(names(&chain).unwrap(), chain[..2]);
    assert_eq!(names(&chain[1..]).unwrap(), ["a.example"]);
    assert_eq!(names(&["other", "a.example"]), None);
    assert_eq!(names(&["cluster.local"]), None);
}

/// NP-164: what is on disk is of this boot, and of pods that are attached.
#[tokio::test]
async fn names_on_disk_come_back_to_their_pods() {
    let directory = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(directory.path().join(DIRECTORY)).unwrap().count();
    let learn = |core: &Core| {
        let (names, addresses) = (["a.example".to_owned()], [IpAddr::from([203, 0, 113, 1])]);
        let now = clock::now();
        core.learn(KEY, &names, &addresses, now, now + Duration::from_secs(60))
    };
    let first = core(directory.path());
    let one = ear(&first);
    learn(&first);
    one.store.write(&first, KEY).unwrap();
    let second = core(directory.path());
    let mut two = Store::open(&second).unwrap();
    two.restore(&second).unwrap();
    assert_eq!((known(&second), files()), (vec!["a.example".to_owned()], 1));
    assert_eq!(second.target().unwrap().tables.policies().complete().learned.len(), 1);
    // Another boot.
    two.boot.push('x');
    let third = core(directory.path());
    two.restore(&third).unwrap();
    assert_eq!((known(&third), files()), (vec![], 0));
    // A pod that is gone.
    learn(&first);
    one.store.write(&first, KEY).unwrap();
    first.update(|state| drop(state.attachments.remove(KEY)));
    assert_eq!((known(&first), files()), (vec![], 1));
    one.store.remove_gone(&first).unwrap();
    assert_eq!(files(), 0);
}
