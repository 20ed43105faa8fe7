//! Attachments on disk: one file for each, so that a restarted agent knows the pods of its node.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_model::PodName;
use weft_model::cni::{Attachment, PodIdentity, Wiring};
use weft_proto::v1::LocalPod;

use crate::durable;

/// An attachment whose names cannot stand in a file name.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no legal part of an attachment")]
pub(crate) struct NameError(String);

/// One attached pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Which attachment.
    pub attachment: Attachment,
    /// Who the pod is, if the runtime said.
    pub pod: Option<PodIdentity>,
    /// What the delegate made.
    pub wiring: Wiring,
}

/// `network/container/ifname`: the key of an attachment in the tables.
pub(crate) fn key(attachment: &Attachment) -> String {
    let Attachment { network, container_id, ifname } = attachment;
    format!("{network}/{container_id}/{ifname}")
}

impl Record {
    /// The pod's addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.wiring.addresses.iter().map(|a| a.addr()).collect()
    }

    /// The pod's name, if the runtime gave one.
    pub(crate) fn pod_name(&self) -> Option<PodName> {
        let pod = self.pod.as_ref().filter(|p| !p.name.is_empty())?;
        Some(PodName { namespace: pod.namespace.clone(), name: pod.name.clone() })
    }

    /// What the datapath is told.
    pub(crate) fn to_local_pod(&self) -> LocalPod {
        LocalPod {
            attachment: key(&self.attachment),
            name: self
                .pod_name()
                .map(|n| weft_proto::v1::PodName { namespace: n.namespace, name: n.name }),
            addresses: self.addresses().iter().map(ToString::to_string).collect(),
        }
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the directory, making it if need be.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        durable::private_dir(&dir)?;
        Ok(Self { dir })
    }

    /// Every record that can be read; a damaged one is reported and left for a look.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "unreadable record of an attachment")
                }
            }
        }
        Ok(records)
    }

    /// Writes a record; it survives a crash when this returns.
    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.attachment).map_err(io::Error::other)?;
        durable::write(&path, &serde_json::to_vec_pretty(record)?, durable::PRIVATE)
    }

    /// Removes a record; fine if there is none.
    pub(crate) fn remove(&self, attachment: &Attachment) -> io::Result<()> {
        match self.path(attachment) {
            Ok(path) => durable::remove(&path),
            Err(NameError(_)) => Ok(()),
        }
    }

    /// Checks that an attachment can be recorded.
    pub(crate) fn check(attachment: &Attachment) -> Result<(), NameError> {
        for part in [&attachment.network, &attachment.container_id, &attachment.ifname] {
            let legal = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b',';
            if part.is_empty() || part.len() > 128 || !part.bytes().all(legal) {
                return Err(NameError(part.clone()));
            }
        }
        Ok(())
    }

    fn path(&self, attachment: &Attachment) -> Result<PathBuf, NameError> {
        Self::check(attachment)?;
        let Attachment { network, container_id, ifname } = attachment;
        Ok(self.dir.join(format!("{network},{container_id},{ifname}.json")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(container: &str, interface: &str, address: &str) -> Record {
        Record {
            attachment: Attachment {
                network: "weft".into(),
                container_id: container.into(),
                ifname: "eth0".into(),
            },
            pod: Some(PodIdentity {
                namespace: "default".into(),
                name: format!("pod-{container}"),
                uid: None,
            }),
            wiring: Wiring {
                host_interface: interface.into(),
                netns: "/run/netns/x".into(),
                addresses: vec![address.parse().unwrap()],
                mac: None,
                gateways: Vec::new(),
                bridge: None,
            },
        }
    }

    #[test]
    fn records_survive_and_are_removed_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("cni")).unwrap();
        let (a, b) = (record("a", "v1", "10.42.1.2/24"), record("b", "v2", "10.42.1.3/24"));
        records.save(&a).unwrap();
        records.save(&b).unwrap();
        records.remove(&a.attachment).unwrap();
        records.remove(&a.attachment).unwrap();
        fs::write(dir.path().join("cni/damaged.json"), "{").unwrap();
        fs::create_dir(dir.path().join("cni/delegates")).unwrap();
        assert_eq!(records.load().unwrap(), [b]);
    }

    #[test]
    fn attachment_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned()).unwrap();
        for bad in ["../x", "", "a/b", "a,b", "a b"] {
            assert!(records.save(&record(bad, "v", "10.0.0.1/24")).is_err(), "{bad}");
        }
    }
}
