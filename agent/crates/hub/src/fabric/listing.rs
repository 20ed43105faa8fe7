//! What operators are shown of the snapshot.

use weft_control::ToProto;
use weft_proto::v1;

use super::Fabric;

impl Fabric {
    /// Services of a namespace, or of all if it is empty, by name.
    pub(crate) fn services(&self, namespace: &str) -> Vec<v1::Service> {
        let snapshot = self.history.newest().snapshot;
        let wanted = |n: &str| namespace.is_empty() || n == namespace;
        let services = snapshot.services.values().filter(|s| wanted(&s.name.namespace));
        services.map(|s| s.to_proto()).collect()
    }
}
