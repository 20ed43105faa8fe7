//! `Control`: what operators and automation call.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_control::convert::texts;
use weft_model::Generation;
use weft_proto::v1;
use weft_proto::v1::control_server::Control;

use super::{access, blocking};
use crate::fabric::{Fabric, FabricError};

/// See the module.
#[derive(Clone)]
pub(crate) struct ControlService {
    fabric: Arc<Fabric>,
    /// False on the unix socket: who can open that is root already.
    certificate_needed: bool,
}

impl ControlService {
    /// For the unix socket.
    pub(crate) fn local(fabric: Arc<Fabric>) -> Self {
        Self { fabric, certificate_needed: false }
    }

    /// For the TCP port.
    pub(crate) fn remote(fabric: Arc<Fabric>) -> Self {
        Self { fabric, certificate_needed: true }
    }

    fn admit<T>(&self, request: Request<T>) -> Result<T, Status> {
        if self.certificate_needed {
            access::admin(&request)?;
        }
        Ok(request.into_inner())
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::FabricStatus>, Status> {
        self.admit(request)?;
        blocking(&self.fabric, |fabric| Ok::<_, FabricError>(fabric.status())).await
    }

    async fn load_plugin(
        &self,
        request: Request<v1::LoadPluginRequest>,
    ) -> Result<Response<v1::LoadPluginResponse>, Status> {
        let request = self.admit(request)?;
        let fabric = self.fabric.clone();
        let load = async move { fabric.load_plugin(request).await };
        let generation = to_the_end(load).await?;
        Ok(Response::new(v1::LoadPluginResponse { generation }))
    }

    async fn configure_plugin(
        &self,
        request: Request<v1::ConfigurePluginRequest>,
    ) -> Result<Response<v1::ConfigurePluginResponse>, Status> {
        let v1::ConfigurePluginRequest { name, config } = self.admit(request)?;
        let fabric = self.fabric.clone();
        let configure = async move { fabric.configure_plugin(name, config).await };
        let generation = to_the_end(configure).await?;
        Ok(Response::new(v1::ConfigurePluginResponse { generation }))
    }

    async fn unload_plugin(
        &self,
        request: Request<v1::UnloadPluginRequest>,
    ) -> Result<Response<v1::UnloadPluginResponse>, Status> {
        let name = self.admit(request)?.name;
        let fabric = self.fabric.clone();
        let unload = async move { fabric.unload_plugin(name).await };
        let generation = to_the_end(unload).await?;
        Ok(Response::new(v1::UnloadPluginResponse { generation }))
    }

    async fn list_plugins(
        &self,
        request: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        self.admit(request)?;
        let list = |fabric: &Fabric| {
            Ok::<_, FabricError>(v1::ListPluginsResponse { plugins: fabric.list_plugins() })
        };
        blocking(&self.fabric, list).await
    }

    type ListServicesStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::Service, Status>>>;

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<Self::ListServicesStream>, Status> {
        let namespace = self.admit(request)?.namespace;
        let services: Vec<_> = self.fabric.services(&namespace).into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(services)))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let request = self.admit(request)?;
        Ok(Response::new(self.fabric.explain(&request).await?))
    }

    async fn query_name(
        &self,
        request: Request<v1::QueryNameRequest>,
    ) -> Result<Response<v1::QueryNameResponse>, Status> {
        let request = self.admit(request)?;
        Ok(Response::new(self.fabric.query_name(request).await?))
    }

    async fn rotate_keys(
        &self,
        request: Request<v1::RotateKeysRequest>,
    ) -> Result<Response<v1::RotateKeysResponse>, Status> {
        let request = self.admit(request)?;
        let rotate = move |fabric: &Fabric| {
            let nodes = fabric.rotate_keys(&request.node)?;
            Ok::<_, FabricError>(v1::RotateKeysResponse { nodes: texts(&nodes) })
        };
        blocking(&self.fabric, rotate).await
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let request = self.admit(request)?;
        let remove = move |fabric: &Fabric| {
            fabric.remove_node(&request.node).map(|()| v1::RemoveNodeResponse {})
        };
        blocking(&self.fabric, remove).await
    }
}

/// A change of plugins goes on when the caller has gone: nothing is left on trial.
async fn to_the_end(
    change: impl Future<Output = Result<Generation, FabricError>> + Send + 'static,
) -> Result<u64, Status> {
    let done = tokio::spawn(change).await.unwrap_or(Err(FabricError::Broken));
    Ok(done?.0)
}
