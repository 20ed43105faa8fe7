use super::*;

fn settings() -> NodeSettings {
    NodeSettings {
        interface: "weft0".into(),
        mtu: 1450,
        encapsulation: weft_proto::v1::Encapsulation::Vxlan.into(),
        port: 4789,
        vni: 1,
        vtep_mac: "0a:00:00:00:00:01".into(),
        addresses: vec!["10.1.0.1".into()],
        subnets: vec!["10.1.0.0/24".into()],
        pod_cidrs: vec!["10.1.0.0/16".into()],
        key_files: vec![],
        host_sources: vec![],
    }
}

fn complete(generation: u64) -> ApplyRequest {
    let peer = |id: u32| Peer { id, name: format!("n{id}"), ..Peer::default() };
    ApplyRequest {
        generation,
        settings: Some(settings()),
        peers: vec![peer(1), peer(2)],
        ..ApplyRequest::default()
    }
}

#[test]
fn a_change_adds_replaces_and_removes() {
    let state = Desired::default().after(complete(3)).unwrap();
    let change = ApplyRequest {
        generation: 4,
        from: 3,
        peers: vec![Peer { id: 2, name: "new".into(), ..Peer::default() }],
        removed_peers: vec![1],
        ..ApplyRequest::default()
    };
    let state = state.after(change.clone()).unwrap();
    assert_eq!(state.peers.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(state.peers[&2].name, "new");
    assert_eq!(state.settings, Some(settings()));
    assert_eq!(state.after(change).unwrap(), state, "the same change may come again");
}

#[test]
fn a_change_to_another_generation_is_refused() {
    let state = Desired::default().after(complete(3)).unwrap();
    let change = ApplyRequest { generation: 6, from: 5, ..ApplyRequest::default() };
    let error = state.after(change).unwrap_err();
    assert!(matches!(error, TablesError::OtherGeneration { from: 5, at: 3 }));
}

#[test]
fn a_complete_state_replaces_everything() {
    let state = Desired::default().after(complete(3)).unwrap();
    let request = ApplyRequest { peers: vec![], ..complete(1) };
    let state = state.after(request).unwrap();
    assert!(state.peers.is_empty());
    assert_eq!(state.generation, 1);
    assert_eq!(Desired::default().after(state.to_request()).unwrap(), state);
}

#[test]
fn a_wrong_field_is_named() {
    let with = |change: fn(&mut ApplyRequest)| {
        let mut request = complete(1);
        change(&mut request);
        let state = Desired::default().after(request).unwrap();
        Tables::try_new(&state).err().map(|e| e.to_string()).unwrap_or_default()
    };
    fn s(r: &mut ApplyRequest) -> &mut NodeSettings {
        r.settings.as_mut().unwrap()
    }
    assert_eq!(with(|_| ()), "");
    assert!(with(|r| s(r).mtu = 100).contains("`settings.mtu`"));
    assert!(with(|r| s(r).subnets = vec!["10.0.0.0/40".into()]).contains("`settings.subnets[0]`"));
    assert!(with(|r| s(r).encapsulation = 1).contains("`settings.key_files`"));
    assert!(with(|r| s(r).vtep_mac = "x".into()).contains("`settings.vtep_mac`"));
    assert!(with(|r| s(r).vtep_mac = String::new()).contains("`settings.vtep_mac`"));
    assert!(with(|r| r.peers[1].endpoint = "nowhere".into()).contains("`peers[n2].endpoint`"));
    assert!(with(|r| r.peers[0].keys = vec![vec![1]]).contains("`peers[n1].keys[0]`"));
}

#[test]
fn a_private_key_is_read_as_wg_prints_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n").unwrap();
    assert_eq!(read_key(path.to_str().unwrap()).unwrap().0[..3], [0xc5, 0x32, 0x01]);
    std::fs::write(&path, "no key").unwrap();
    assert!(matches!(read_key(path.to_str().unwrap()), Err(TablesError::Key(_))));
}
