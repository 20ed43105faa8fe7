//! Policies and the first instant of pods.

use anyhow::Result;
use weft_tests::{can_run, race};

/// `./dev bench policy --case race` has a thousand.
const PODS: usize = 200;

/// NP-092, NP-094, NP-100 to NP-104: pods that send before they are wired, and are sent to before they are
/// there, get nothing out or in that is forbidden: on addresses that others had, while policies change,
/// and over the death of agent, hub and datapath.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_forbidden_passes_from_the_first_instant_on() -> Result<()> {
    if !can_run(&["nft", "ip"]) {
        return Ok(());
    }
    println!("{}", race::run(PODS).await?);
    Ok(())
}
