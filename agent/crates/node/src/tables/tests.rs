use proptest::prelude::*;
use weft_model::{
    Cluster, Encapsulation, Endpoint, Generation, NamespaceSelector, PodSelector, Policy,
    PolicyAction, PolicyKind, PolicyName, PolicyPeer, PolicyPort, PolicyRule, PolicyTier, Selector,
    Service, ServiceName, ServicePort, ServiceProtocol, TrafficPolicy, Vni,
};

pub(crate) use super::dns::tests::dns;
use super::*;

/// A policy for all pods of a namespace that allows these names, at these ports only if there are any.
pub(crate) fn fqdn_policy(
    namespace: &str,
    name: &str,
    domains: &[&str],
    ports: Option<Vec<PolicyPort>>,
) -> Policy {
    let domains = domains.iter().map(|d| PolicyPeer::Domain(d.parse().unwrap())).collect();
    let rule = PolicyRule {
        name: "egress[0]".into(),
        action: PolicyAction::Accept,
        peers: Some(domains),
        ports,
    };
    Policy {
        name: PolicyName { namespace: namespace.into(), name: name.into(), kind: PolicyKind::Fqdn },
        tier: PolicyTier::Namespace,
        watched: false,
        subject: PodSelector {
            namespaces: NamespaceSelector::Named(namespace.into()),
            pods: Selector::default(),
        },
        ingress: None,
        egress: Some(vec![rule]),
    }
}

pub(crate) fn cluster() -> Cluster {
    Cluster {
        pod_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
        encapsulation: Encapsulation::WireGuard,
        port: 51820,
        vni: Vni::DEFAULT,
        mtu: None,
        service_cidrs: vec![],
        node_port_cidrs: vec![],
        dns: None,
    }
}

/// `default/web` at 10.96.0.10:80.
pub(crate) fn service(endpoints: Vec<Endpoint>) -> Service {
    Service {
        name: ServiceName { namespace: "default".into(), name: "web".into() },
        cluster_ips: vec![IpAddr::from([10, 96, 0, 10])],
        load_balancer_ips: Vec::new(),
        announcers: BTreeMap::new(),
        external_ips: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_s: None,
        health_check_node_port: None,
        ports: vec![ServicePort {
            name: String::new(),
            protocol: ServiceProtocol::Tcp,
            port: 80,
            node_port: None,
        }],
        endpoints,
    }
}

pub(crate) fn node(id: u8) -> Node {
    Node {
        name: NodeName::try_new(format!("n{id}")).unwrap(),
        uid: format!("uid-{id}"),
        endpoint: Some(format!("192.0.2.{id}:51820").parse().unwrap()),
        addresses: vec![IpAddr::from([192, 0, 2, id])],
        subnets: vec![
            format!("10.42.{id}.0/24").parse().unwrap(),
            format!("fd42:0:0:{id}::/64").parse().unwrap(),
        ],
        keys: vec![PublicKey([id; 32])],
        vtep_mac: Some(MacAddr([2, 0, 0, 0, 0, id])),
        labels: BTreeMap::new(),
    }
}

pub(crate) fn snapshot(generation: u64, nodes: &[u8]) -> Snapshot {
    let mut snapshot = Snapshot::empty(cluster());
    snapshot.generation = Generation(generation);
    snapshot.nodes.extend(nodes.iter().map(|id| (node(*id).name, node(*id))));
    snapshot
}

fn pod(id: u8) -> LocalPod {
    LocalPod {
        attachment: format!("weft/c{id}/eth0"),
        name: None,
        addresses: vec![format!("10.42.1.{id}")],
    }
}

/// Everything that can differ between two sets of tables.
#[derive(Clone, Debug)]
struct World {
    nodes: BTreeMap<u8, u8>,
    pods: BTreeMap<u8, u8>,
    plugins: BTreeMap<u8, u8>,
    key: u8,
    mtu: u16,
}

fn world() -> impl Strategy<Value = World> {
    let map = || proptest::collection::btree_map(2u8..6, any::<u8>(), 0..4);
    (map(), map(), map(), any::<u8>(), 1280u16..1282)
        .prop_map(|(nodes, pods, plugins, key, mtu)| World { nodes, pods, plugins, key, mtu })
}

fn tables(world: &World, ids: &mut PeerIds) -> Tables {
    let mut snapshot = snapshot(1, &[1]);
    for (id, address) in &world.nodes {
        let mut node = node(*id);
        node.addresses = vec![IpAddr::from([198, 51, 100, *address])];
        snapshot.nodes.insert(node.name.clone(), node);
    }
    for (id, byte) in &world.plugins {
        let spec = weft_model::PluginSpec {
            name: format!("p{id}"),
            digest: [*byte; 32],
            config: vec![],
            priority: 0,
            position: None,
            on_fault: None,
            deadline_us: None,
        };
        snapshot.plugins.insert(spec.name.clone(), spec);
    }
    let pods = world.pods.iter().map(|(id, byte)| {
        let pod = LocalPod { addresses: vec![format!("10.42.1.{byte}")], ..pod(*id) };
        (pod.attachment.clone(), pod)
    });
    let keys = [KeyFile { path: "/k/current".into(), public: PublicKey([world.key; 32]) }];
    ids.assign(snapshot.nodes.keys().map(NodeName::as_str));
    let local = Local {
        node: &node(1).name,
        interface: "weft0",
        mtu: world.mtu,
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        addresses: &BTreeSet::from([IpAddr::from([192, 0, 2, 1])]),
        keys: &keys,
        pods: &pods.collect(),
        policed: &[],
        known: &BTreeMap::new(),
    };
    Tables::compile(&snapshot, &local, ids, None)
}

/// What a datapath does with a request, as `datapath.proto` says it.
fn apply(mut at: Tables, request: ApplyRequest) -> Tables {
    if request.from == 0 {
        at = Tables::default();
    }
    at.settings = request.settings.unwrap_or(at.settings);
    request.removed_peers.iter().for_each(|p| drop(at.peers.remove(p)));
    request.removed_pods.iter().for_each(|p| drop(at.pods.remove(p)));
    request.removed_plugins.iter().for_each(|p| drop(at.plugins.remove(p)));
    at.peers.extend(request.peers.into_iter().map(|p| (p.id, p)));
    at.pods.extend(request.pods.into_iter().map(|p| (p.attachment.clone(), p)));
    at.plugins.extend(request.plugins.into_iter().map(|p| (p.name.clone(), p)));
    at.keys = vec![];
    at
}

fn without_keys(mut tables: Tables) -> Tables {
    tables.keys = vec![];
    tables
}

proptest! {
    #[test]
    fn change_leads_where_the_complete_request_leads(old in world(), new in world()) {
        let mut ids = PeerIds::default();
        let (old, new) = (tables(&old, &mut ids), tables(&new, &mut ids));
        let at = apply(Tables::default(), old.complete(1));
        let changed = apply(at, new.change_from(&old, 1, 2));
        prop_assert_eq!(&changed, &apply(Tables::default(), new.complete(2)));
        prop_assert_eq!(changed, without_keys(new));
    }

    #[test]
    fn peer_keeps_its_index_whatever_comes_and_goes(worlds in proptest::collection::vec(world(), 1..6)) {
        let mut ids = PeerIds::default();
        let mut seen: BTreeMap<u32, String> = BTreeMap::new();
        for world in worlds {
            let before = ids.by_name.clone();
            let tables = tables(&world, &mut ids);
            for (id, peer) in &tables.peers {
                prop_assert_eq!(before.get(&peer.name).unwrap_or(id), id);
                let name = seen.entry(*id).or_insert_with(|| peer.name.clone());
                prop_assert_eq!(name, &peer.name);
            }
        }
    }
}

#[test]
fn rotated_key_is_a_change_though_its_file_has_the_same_name() {
    let world = |key| World {
        nodes: BTreeMap::new(),
        pods: BTreeMap::new(),
        plugins: BTreeMap::new(),
        key,
        mtu: 1420,
    };
    let mut ids = PeerIds::default();
    let (old, new) = (tables(&world(1), &mut ids), tables(&world(2), &mut ids));
    assert!(new.change_from(&old, 1, 2).settings.is_some());
    assert!(new.change_from(&new, 2, 3).settings.is_none());
}

#[test]
fn node_is_no_peer_of_itself_and_others_may_speak_for_what_they_lease() {
    let mut ids = PeerIds::default();
    let world = World {
        nodes: BTreeMap::from([(2, 2)]),
        pods: BTreeMap::new(),
        plugins: BTreeMap::new(),
        key: 1,
        mtu: 1420,
    };
    let tables = tables(&world, &mut ids);
    let peers: Vec<&Peer> = tables.peers.values().collect();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].name, "n2");
    assert_eq!(peers[0].allowed_ips, ["10.42.2.0/24", "fd42:0:0:2::/64", "198.51.100.2/32"]);
    assert_eq!(tables.settings.subnets, ["10.42.1.0/24", "fd42:0:0:1::/64"]);
}
