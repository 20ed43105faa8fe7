//! The flow table and its file in the run directory: a flow outlives the process.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use weft_netio::{FlowFile, clock};
use weft_pipeline::{FlowTable, RECORD_LEN};

const FLOWS: &str = "flows";

pub(crate) struct Flows {
    table: Arc<FlowTable>,
    file: FlowFile<RECORD_LEN>,
}

impl Flows {
    /// A table for `max` flows with the flows that an earlier process left.
    ///
    /// # Errors
    /// The file cannot be used, or another datapath uses it.
    pub(crate) fn open(directory: &Path, max: usize, seed: u64) -> anyhow::Result<Self> {
        let table = Arc::new(FlowTable::new(max, seed));
        let path = directory.join(FLOWS);
        let file = FlowFile::open(&path, table.capacity())
            .with_context(|| format!("cannot use {}", path.display()))?;
        let now = clock::now();
        for (index, record) in file.load() {
            let Ok(index) = u32::try_from(index) else { break };
            if let Err(error) = table.load(index, &record, now) {
                tracing::debug!(index, %error, "stored flow not taken back");
            }
        }
        let flows = Self { table, file };
        flows.write_through();
        tracing::info!(flows = flows.table.len(), "flow table loaded");
        Ok(flows)
    }

    pub(crate) fn table(&self) -> &Arc<FlowTable> {
        &self.table
    }

    /// Brings the file in line with the table: a few memory writes for each flow that changed.
    pub(crate) fn write_through(&self) {
        self.table.take_dirty(&mut |index, record| {
            let index = index as usize;
            match record {
                Some(record) => drop(self.file.store(index, record)),
                None => self.file.erase(index),
            }
        });
    }
}
