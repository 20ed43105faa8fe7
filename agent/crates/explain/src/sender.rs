//! Who on a node begins something, for questions that are of one end only.

use std::net::IpAddr;
use std::sync::Arc;

use weft_model::{NodeName, Pod, Snapshot};

use crate::AskError;
use crate::party::{Party, Place};

/// A pod or a node of the fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// In words.
    pub name: String,
    /// Where it is.
    pub node: NodeName,
    /// A pod's first address; `None`: it is the node itself.
    pub address: Option<IpAddr>,
    /// The pod, if it is a known one.
    pub pod: Option<Arc<Pod>>,
}

impl Sender {
    /// Whoever an operator means by `text`.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn read(snapshot: &Snapshot, text: &str) -> Result<Self, AskError> {
        let Party { name, place, addresses } = Party::source(snapshot, text)?;
        match place {
            Place::Node(node) => Ok(Self { name, node, address: None, pod: None }),
            Place::Pod { node: Some(node), pod } => {
                let name = if pod.is_some() { format!("pod {name}") } else { name };
                Ok(Self { name, node, address: addresses.first().copied(), pod })
            }
            Place::Pod { node: None, .. } | Place::Outside => {
                Err(AskError::Elsewhere(text.trim().to_owned()))
            }
        }
    }
}
