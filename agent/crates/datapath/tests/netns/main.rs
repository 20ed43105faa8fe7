//! Two datapaths in namespaces of their own, joined by an underlay, driven over their gRPC sockets
//! without an agent. Pods are namespaces with a veth whose host end is redirected into the TUN.
//!
//! Needs root; skipped with a reason where it cannot run, which is a failure where `CI` is `true`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod fabric;

use std::time::{Duration, Instant};

use fabric::{Fabric, can_run, pod_v4, pod_v6};
use weft_proto::v1::Encapsulation;

/// Not a test: what the children run, told by the environment.
#[test]
fn child() {
    fabric::run_child();
}

fn pings(fabric: &Fabric) {
    for (from, to) in [(0, 1), (1, 0)] {
        fabric.ping(from, &pod_v4(to));
        fabric.ping(from, &pod_v6(to));
    }
}

fn both_families_and_a_stream(encapsulation: Encapsulation) {
    if !can_run() {
        return;
    }
    let fabric = Fabric::up(encapsulation);
    pings(&fabric);
    fabric.transfer(0, 1, &pod_v4(1), 20 << 20);
    fabric.transfer(1, 0, &pod_v6(0), 20 << 20);
}

#[test]
fn pods_of_two_nodes_exchange_packets_through_wireguard() {
    both_families_and_a_stream(Encapsulation::Wireguard);
}

#[test]
fn pods_of_two_nodes_exchange_packets_through_vxlan() {
    both_families_and_a_stream(Encapsulation::Vxlan);
}

#[test]
fn spoofed_source_is_dropped_and_counted() {
    if !can_run() {
        return;
    }
    let fabric = Fabric::up(Encapsulation::Vxlan);
    fabric.spoof(0, "10.77.0.99", &pod_v4(1));
    assert!(fabric.drops(0, "spoofed_source") > 0);
}

#[test]
fn flows_and_tables_survive_the_death_of_the_process() {
    if !can_run() {
        return;
    }
    let mut fabric = Fabric::up(Encapsulation::Wireguard);
    pings(&fabric);
    let before = fabric.status(0);
    assert!(before.flows > 0);
    fabric.kill(0);
    let started = Instant::now();
    fabric.start(0);
    let after = fabric.status(0);
    assert_eq!(after.generation, before.generation, "tables are in force without an agent");
    assert!(after.flows > 0, "flows are kept");
    pings(&fabric);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_deleted_interface_comes_back() {
    if !can_run() {
        return;
    }
    let fabric = Fabric::up(Encapsulation::Vxlan);
    fabric.delete_interface(0);
    fabric.wait_for_interface(0);
    fabric.wire(0);
    fabric.ping(0, &pod_v4(1));
}
