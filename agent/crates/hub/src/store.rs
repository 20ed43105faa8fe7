//! What survives the hub: one redb file. Every write is on disk when the call returns, so that an
//! answer given to a node still holds after a kill -9.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

type Definition = TableDefinition<'static, &'static str, &'static [u8]>;

/// The tables. Keys are text, values are documents of the module that owns the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Subnet -> holder.
    Leases,
    /// Node name -> who joined under it.
    Nodes,
    /// Node name -> its last report.
    Reports,
    /// Uid of a removed node -> when.
    Removed,
    /// Plugin name -> specification, of those loaded by the API.
    Plugins,
    /// Digest in hex -> module, of those loaded by the API.
    Modules,
    /// Namespace/name of a Service -> addresses and ports that are its own.
    Services,
    /// Name of a policy -> the policy.
    Policies,
    /// Namespace/name of a pod that a node has -> the pod as its manifest had it.
    Pods,
    /// Single values.
    Meta,
}

impl Table {
    fn definition(self) -> Definition {
        TableDefinition::new(match self {
            Self::Leases => "leases",
            Self::Nodes => "nodes",
            Self::Reports => "reports",
            Self::Removed => "removed",
            Self::Plugins => "plugins",
            Self::Modules => "modules",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::Pods => "pods",
            Self::Meta => "meta",
        })
    }
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Locked by another process.
    #[error("{} is in use by another hub: stop that one, or give this one its own --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file cannot be opened.
    #[error("{} cannot be opened ({source}): is there space, and may this user write there?", .path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A transaction failed.
    #[error("the hub's state cannot be read or written ({0}): is the disk full?")]
    Database(#[source] Box<redb::Error>),
    /// A document that cannot be read.
    #[error("the hub's state is damaged at {table:?} `{key}`: restore it from a backup")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Which key.
        key: String,
    },
}

impl StoreError {
    fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// A change of several rows, done whole or not at all.
pub(crate) enum Change<'a> {
    /// Sets a row.
    Put(Table, &'a str, &'a [u8]),
    /// Takes a row out.
    Remove(Table, &'a str),
}

/// The open file. One process at a time.
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens or makes `hub.redb` in `directory`, mode 0600.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("hub.redb");
        let open =
            |source: redb::Error| StoreError::Open { path: path.clone(), source: Box::new(source) };
        fs::create_dir_all(directory).map_err(|e| open(redb::Error::Io(e)))?;
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| open(redb::Error::Io(e)))?;
        match Database::create(&path) {
            Ok(database) => Ok(Self { database }),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(path)),
            Err(error) => Err(open(error.into())),
        }
    }

    /// One row.
    pub(crate) fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::database)?;
        let table = match transaction.open_table(table.definition()) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(StoreError::database(error)),
        };
        let value = table.get(key).map_err(StoreError::database)?;
        Ok(value.map(|v| v.value().to_vec()))
    }

    /// All rows, by key.
    pub(crate) fn all(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let transaction = self.database.begin_read().map_err(StoreError::database)?;
        let table = match transaction.open_table(table.definition()) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::database(error)),
        };
        let rows = table.iter().map_err(StoreError::database)?;
        rows.map(|row| {
            let (key, value) = row.map_err(StoreError::database)?;
            Ok((key.value().to_owned(), value.value().to_vec()))
        })
        .collect()
    }

    /// Does every change, or none.
    pub(crate) fn write(&self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(StoreError::database)?;
        for change in changes {
            match change {
                Change::Put(table, key, value) => {
                    let mut table =
                        transaction.open_table(table.definition()).map_err(StoreError::database)?;
                    table.insert(*key, *value).map_err(StoreError::database)?;
                }
                Change::Remove(table, key) => {
                    let mut table =
                        transaction.open_table(table.definition()).map_err(StoreError::database)?;
                    table.remove(*key).map_err(StoreError::database)?;
                }
            }
        }
        transaction.commit().map_err(StoreError::database)
    }

    /// Sets or removes a row if it is `expected`; false, and nothing done, if it is not.
    pub(crate) fn compare_and_swap(
        &self,
        table: Table,
        key: &str,
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, StoreError> {
        let transaction = self.database.begin_write().map_err(StoreError::database)?;
        {
            let mut table =
                transaction.open_table(table.definition()).map_err(StoreError::database)?;
            let matches = {
                let found = table.get(key).map_err(StoreError::database)?;
                found.as_ref().map(|f| f.value()) == expected
            };
            if !matches {
                return Ok(false);
            }
            match new {
                Some(value) => table.insert(key, value).map_err(StoreError::database)?,
                None => table.remove(key).map_err(StoreError::database)?,
            };
        }
        transaction.commit().map_err(StoreError::database)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_hub_on_one_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
    }

    #[test]
    fn swap_happens_only_from_the_expected_value() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let swap = |old, new| store.compare_and_swap(Table::Leases, "k", old, new).unwrap();
        assert!(swap(None, Some(b"a".as_slice())));
        assert!(!swap(None, Some(b"b".as_slice())));
        assert!(!swap(Some(b"b".as_slice()), None));
        assert!(swap(Some(b"a".as_slice()), None));
        assert_eq!(store.get(Table::Leases, "k").unwrap(), None);
    }
}
