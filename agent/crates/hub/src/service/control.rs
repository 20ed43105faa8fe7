//! `Control`: what operators and automation call.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_control::convert::texts;
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
        let load = move |fabric: &Fabric| {
            let generation = fabric.load_plugin(request)?.0;
            Ok::<_, FabricError>(v1::LoadPluginResponse { generation })
        };
        blocking(&self.fabric, load).await
    }

    async fn configure_plugin(
        &self,
        request: Request<v1::ConfigurePluginRequest>,
    ) -> Result<Response<v1::ConfigurePluginResponse>, Status> {
        let request = self.admit(request)?;
        let configure = move |fabric: &Fabric| {
            let generation = fabric.configure_plugin(&request.name, request.config)?.0;
            Ok::<_, FabricError>(v1::ConfigurePluginResponse { generation })
        };
        blocking(&self.fabric, configure).await
    }

    async fn unload_plugin(
        &self,
        request: Request<v1::UnloadPluginRequest>,
    ) -> Result<Response<v1::UnloadPluginResponse>, Status> {
        let request = self.admit(request)?;
        let unload = move |fabric: &Fabric| {
            let generation = fabric.unload_plugin(&request.name)?.0;
            Ok::<_, FabricError>(v1::UnloadPluginResponse { generation })
        };
        blocking(&self.fabric, unload).await
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
