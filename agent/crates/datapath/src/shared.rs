//! What all workers share.

use std::sync::Arc;

use weft_mesh::Mesh;
use weft_pipeline::{DropLog, Pipeline, Plugin, Routes};

use crate::flows::Flows;

/// MTU of the tunnel until the first tables: nothing passes before them.
const MTU_UNTIL_TOLD: u16 = 1280;

pub(crate) struct Shared {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) flows: Flows,
    pub(crate) dropped: Arc<DropLog>,
}

impl Shared {
    /// A pipeline for one worker, without routes and plugins.
    pub(crate) fn new_pipeline<P: Plugin>(&self) -> Pipeline<P> {
        let flows = Arc::clone(self.flows.table());
        let log = Arc::clone(&self.dropped);
        Pipeline::with_log(flows, Arc::new(Routes::default()), MTU_UNTIL_TOLD, log)
    }
}
