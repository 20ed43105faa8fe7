//! The gRPC services over the [`Fabric`].

mod access;
mod control;
mod hub;

use std::sync::Arc;

pub(crate) use control::ControlService;
pub(crate) use hub::HubService;

use crate::fabric::Fabric;

/// Runs what blocks on the disk where that hurts nobody.
async fn blocking<T: Send + 'static, E: Into<tonic::Status> + Send + 'static>(
    fabric: &Arc<Fabric>,
    work: impl FnOnce(&Fabric) -> Result<T, E> + Send + 'static,
) -> Result<tonic::Response<T>, tonic::Status> {
    let fabric = fabric.clone();
    let done = tokio::task::spawn_blocking(move || work(&fabric)).await;
    match done {
        Ok(result) => result.map(tonic::Response::new).map_err(Into::into),
        Err(_) => Err(tonic::Status::internal("the hub failed on this request; see its log")),
    }
}
