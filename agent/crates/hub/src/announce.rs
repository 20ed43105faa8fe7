//! Tells the agents of a cluster where its hub is and who signs its certificate: in a ConfigMap that their
//! pods mount, so that they need neither a ClusterIP, which they are there to serve, nor a right on the API.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};

/// Name of the ConfigMap, and of the writer of its fields.
const NAME: &str = "weft-hub";
/// Key of `host:port`.
const ADDRESS: &str = "address";
/// Key of the authority's certificate, PEM.
const CA: &str = "ca.crt";
/// How often it is looked whether it is still as it was written.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long the API server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// After it could not be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// What is told, and where.
pub(crate) struct Announcement {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// `host:port` at which agents reach the hub.
    pub(crate) address: String,
    pub(crate) ca: String,
}

impl Announcement {
    /// Writes it, and again when others have changed it or taken it away.
    pub(crate) async fn keep(self) -> std::convert::Infallible {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = [(ADDRESS, &self.address), (CA, &self.ca)];
        let data = data.map(|(key, value)| (key.to_owned(), value.clone()));
        let data = BTreeMap::from(data);
        let mut said = false;
        loop {
            let written = match tokio::time::timeout(ANSWER_TIMEOUT, self.write(&api, &data)).await
            {
                Ok(written) => written.map_err(|error| error.to_string()),
                Err(_) => Err("the API server does not answer in time".to_owned()),
            };
            if let Err(error) = &written {
                let (namespace, address) = (&self.namespace, &self.address);
                tracing::warn!(
                    error,
                    namespace,
                    name = NAME,
                    address,
                    "agents cannot be told where the hub is"
                );
            } else if !said {
                tracing::info!(
                    namespace = self.namespace,
                    name = NAME,
                    address = self.address,
                    "agents are told"
                );
                said = true;
            }
            tokio::time::sleep(if written.is_ok() { INTERVAL } else { RETRY_INTERVAL }).await;
        }
    }

    async fn write(
        &self,
        api: &Api<ConfigMap>,
        data: &BTreeMap<String, String>,
    ) -> kube::Result<()> {
        let known = api.get_opt(NAME).await?;
        if known.is_some_and(|known| known.data.as_ref() == Some(data)) {
            return Ok(());
        }
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let wanted = ConfigMap { metadata, data: Some(data.clone()), ..ConfigMap::default() };
        let force = PatchParams::apply(NAME).force();
        api.patch(NAME, &force, &Patch::Apply(&wanted)).await.map(drop)
    }
}
