//! The index on disk (redb): object id to [`Record`], and the numbers of the datasets. Only says that something is present once it is
//! safely on the disk; that order is the committer's business.

use std::collections::HashMap;
use std::path::Path;

use forebay_catalog::ObjectId;
use parking_lot::RwLock;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::StoreError;
use super::record::{DatasetSlot, Record};
use crate::units::ChunkIndex;

const OBJECTS: TableDefinition<[u8; 16], &[u8]> = TableDefinition::new("objects");
const DATASETS: TableDefinition<u32, &str> = TableDefinition::new("datasets");

/// redb's page cache; the hot part of the index of ten million objects.
const CACHE_BYTES: usize = 64 << 20;

/// What to do with one object's entry.
#[derive(Debug)]
pub enum Change {
    /// Write it.
    Put(Record),
    /// Remove it.
    Remove,
}

/// The index, until it is closed.
#[derive(Debug)]
pub struct Index {
    database: RwLock<Option<Database>>,
}

impl Index {
    /// Opens or creates the index.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(StoreError::index)?;
        let transaction = database.begin_write().map_err(StoreError::index)?;
        transaction.open_table(OBJECTS).map_err(StoreError::index)?;
        transaction.open_table(DATASETS).map_err(StoreError::index)?;
        transaction.commit().map_err(StoreError::index)?;
        Ok(Self { database: RwLock::new(Some(database)) })
    }

    /// Calls `each` with every entry. Entries that can't be read are left out, as if they had never been.
    pub fn load(&self, mut each: impl FnMut(ObjectId, Record)) -> Result<(), StoreError> {
        self.with(|database| {
            let table =
                database.begin_read().map_err(StoreError::index)?.open_table(OBJECTS).map_err(StoreError::index)?;
            for entry in table.iter().map_err(StoreError::index)? {
                let (id, bytes) = entry.map_err(StoreError::index)?;
                if let Some(record) = Record::decode(bytes.value()) {
                    each(ObjectId::from_bytes(id.value()), record);
                }
            }
            Ok(())
        })
    }

    /// The checksum of one chunk; none when the index does not know the object.
    pub fn crc(&self, id: &ObjectId, chunk: ChunkIndex) -> Result<Option<u32>, StoreError> {
        self.with(|database| {
            let table =
                database.begin_read().map_err(StoreError::index)?.open_table(OBJECTS).map_err(StoreError::index)?;
            let entry = table.get(id.as_bytes()).map_err(StoreError::index)?;
            Ok(entry.and_then(|bytes| Record::decode_crc(bytes.value(), chunk)))
        })
    }

    /// Applies all changes or none; they are on the disk when this returns.
    pub fn commit(&self, changes: &HashMap<ObjectId, Change>) -> Result<(), StoreError> {
        self.with(|database| {
            let mut transaction = database.begin_write().map_err(StoreError::index)?;
            transaction.set_durability(Durability::Immediate).map_err(StoreError::index)?;
            {
                let mut table = transaction.open_table(OBJECTS).map_err(StoreError::index)?;
                for (id, change) in changes {
                    match change {
                        Change::Put(record) => {
                            table.insert(id.as_bytes(), record.encode().as_slice()).map_err(StoreError::index)?;
                        }
                        Change::Remove => {
                            table.remove(id.as_bytes()).map_err(StoreError::index)?;
                        }
                    }
                }
            }
            transaction.commit().map_err(StoreError::index)
        })
    }

    /// The datasets and their numbers.
    pub fn datasets(&self) -> Result<HashMap<String, DatasetSlot>, StoreError> {
        self.with(|database| {
            let table =
                database.begin_read().map_err(StoreError::index)?.open_table(DATASETS).map_err(StoreError::index)?;
            let mut datasets = HashMap::new();
            for entry in table.iter().map_err(StoreError::index)? {
                let (slot, uid) = entry.map_err(StoreError::index)?;
                datasets.insert(uid.value().to_owned(), DatasetSlot(slot.value()));
            }
            Ok(datasets)
        })
    }

    /// Gives a dataset a number.
    pub fn add_dataset(&self, uid: &str, slot: DatasetSlot) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = database.begin_write().map_err(StoreError::index)?;
            transaction
                .open_table(DATASETS)
                .map_err(StoreError::index)?
                .insert(slot.0, uid)
                .map_err(StoreError::index)?;
            transaction.commit().map_err(StoreError::index)
        })
    }

    /// Closes the file; everything fails from now on.
    pub fn close(&self) {
        drop(self.database.write().take());
    }

    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.database.read().as_ref().map_or(Err(StoreError::Closed), run)
    }
}
