//! Where leases are kept. The trait is what redb, etcd and the Kubernetes API can all do.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Holder, Lease};
use crate::store::{Store, StoreError, Table};

/// A register of leases that several hubs may share.
pub trait LeaseStore {
    /// Every lease.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    fn list(&self) -> Result<Vec<Lease>, StoreError>;

    /// Sets the holder of `subnet` to `new` (`None`: free) if it is `expected` (`None`: nobody has
    /// it). False, and nothing done, if it is another. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be written; then it is not known whether it was.
    fn compare_and_swap(
        &self,
        subnet: IpNet,
        expected: Option<&Holder>,
        new: Option<&Holder>,
    ) -> Result<bool, StoreError>;
}

impl LeaseStore for Arc<Store> {
    fn list(&self) -> Result<Vec<Lease>, StoreError> {
        let damaged = |key: &str| StoreError::Damaged { table: "leases", key: key.to_owned() };
        let read = |(key, value): (String, Vec<u8>)| {
            let subnet = key.parse().map_err(|_| damaged(&key))?;
            let holder = serde_json::from_slice(&value).map_err(|_| damaged(&key))?;
            Ok(Lease { subnet, holder })
        };
        self.all(Table::Leases)?.into_iter().map(read).collect()
    }

    fn compare_and_swap(
        &self,
        subnet: IpNet,
        expected: Option<&Holder>,
        new: Option<&Holder>,
    ) -> Result<bool, StoreError> {
        let key = subnet.to_string();
        let (expected, new) = (expected.map(document), new.map(document));
        Store::compare_and_swap(self, Table::Leases, &key, expected.as_deref(), new.as_deref())
    }
}

fn document(holder: &Holder) -> Vec<u8> {
    // Of two variants with a text or a number: cannot fail.
    serde_json::to_vec(holder).unwrap_or_default()
}
