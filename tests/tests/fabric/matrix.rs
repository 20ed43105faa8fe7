//! Every pod reaches every pod, in each encapsulation, over each family of underlay, with each
//! kind of wiring.

use anyhow::{Result, ensure};
use weft_lab::{Matrix, Options, UnderlayFamily};
use weft_model::Encapsulation;
use weft_tests::{TestLab, can_run};

async fn everybody_reaches_everybody(options: Options) -> Result<()> {
    if !can_run(&["ping", "nft"]) {
        return Ok(());
    }
    let families = options.pod_cidrs.len();
    let lab = TestLab::with_pods(Options { nodes: 2, ..options }, 2).await?;
    complete_matrix(&lab, families).await
}

/// Of a lab with four pods.
pub(crate) async fn complete_matrix(lab: &TestLab, families: usize) -> Result<()> {
    let pods = lab.pods();
    let matrix = tokio::task::spawn_blocking(move || Matrix::run(&pods)).await??;
    // 4 pods x 3 others x families x 3 protocols
    ensure!(matrix.cells.len() == 36 * families, "{matrix}");
    ensure!(matrix.failures().count() == 0, "{matrix}");
    Ok(())
}

/// Pods of one family only, over an underlay of any.
async fn pods_of_one_family(
    cidr: &str,
    underlay: UnderlayFamily,
    encapsulation: Encapsulation,
) -> Result<()> {
    let pod_cidrs = vec![cidr.parse()?];
    everybody_reaches_everybody(Options {
        pod_cidrs,
        underlay,
        encapsulation,
        ..Options::default()
    })
    .await
}

/// CNI-002
#[tokio::test]
async fn ipv4_only_pods_reach_each_other() -> Result<()> {
    pods_of_one_family("10.50.0.0/16", UnderlayFamily::V4, Encapsulation::WireGuard).await?;
    pods_of_one_family("10.50.0.0/16", UnderlayFamily::V6, Encapsulation::Vxlan).await
}

/// CNI-002
#[tokio::test]
async fn ipv6_only_pods_reach_each_other_over_ipv6() -> Result<()> {
    pods_of_one_family("fd50::/48", UnderlayFamily::V6, Encapsulation::WireGuard).await
}

/// CNI-002
#[tokio::test]
async fn ipv6_only_pods_reach_each_other_over_ipv4() -> Result<()> {
    pods_of_one_family("fd50::/48", UnderlayFamily::V4, Encapsulation::WireGuard).await?;
    pods_of_one_family("fd50::/48", UnderlayFamily::V4, Encapsulation::Vxlan).await
}

/// CNI-002, CNI-008
#[tokio::test]
async fn wireguard_over_ipv4_joins_every_pair_of_pods() -> Result<()> {
    everybody_reaches_everybody(Options::default()).await
}

/// CNI-002, CNI-008
#[tokio::test]
async fn wireguard_over_ipv6_joins_every_pair_of_pods() -> Result<()> {
    let underlay = UnderlayFamily::V6;
    everybody_reaches_everybody(Options { underlay, ..Options::default() }).await
}

/// CNI-002, CNI-008
#[tokio::test]
async fn vxlan_over_ipv4_joins_every_pair_of_pods() -> Result<()> {
    let encapsulation = Encapsulation::Vxlan;
    everybody_reaches_everybody(Options { encapsulation, ..Options::default() }).await
}

/// CNI-002, CNI-008
#[tokio::test]
async fn vxlan_over_ipv6_joins_every_pair_of_pods() -> Result<()> {
    let (encapsulation, underlay) = (Encapsulation::Vxlan, UnderlayFamily::V6);
    everybody_reaches_everybody(Options { encapsulation, underlay, ..Options::default() }).await
}

/// CNI-084: the other delegate
#[tokio::test]
async fn pods_on_a_bridge_reach_each_other_and_other_nodes() -> Result<()> {
    everybody_reaches_everybody(Options { delegate: "bridge".into(), ..Options::default() }).await
}
