//! The small files of a catalog that this node owns, in the order of their keys: what a reader in order will ask for next.

use std::ops::Range;
use std::sync::Arc;

use forebay_catalog::{Catalog, ObjectId, ObjectRecord};

/// Rows of a catalog's table, sorted. Four bytes for each file.
#[derive(Debug)]
pub struct SmallFiles {
    catalog: Arc<Catalog>,
    rows: Vec<u32>,
}

impl SmallFiles {
    /// The files of up to `largest` bytes that are owned. Reads all of the table: for a thread that may block.
    pub fn new(catalog: Arc<Catalog>, largest: u64, owns: impl Fn(&ObjectId) -> bool) -> Self {
        let table = catalog.table();
        let is_ours =
            |row: &u32| table.get(*row as usize).is_some_and(|record| record.size <= largest && owns(&record.id));
        let mut rows: Vec<u32> = (0..u32::try_from(table.len()).unwrap_or(u32::MAX)).filter(is_ours).collect();
        rows.sort_unstable_by_key(|row| table.get(*row as usize).map(|record| order(&record)));
        Self { catalog, rows }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The file at a position.
    pub fn get(&self, position: usize) -> Option<ObjectRecord<'_>> {
        self.catalog.table().get(*self.rows.get(position)? as usize)
    }

    /// The position of the file with this key in this source.
    pub fn position(&self, source: usize, key: &[u8]) -> Option<usize> {
        let position = self.first_at_least(source, key);
        let found = self.get(position)?;
        (order(&found) == (source, key)).then_some(position)
    }

    /// The positions of the files in the same folder, and below it, as the one with this key.
    pub fn folder(&self, source: usize, key: &[u8]) -> Range<usize> {
        let folder = key.iter().rposition(|byte| *byte == b'/').and_then(|end| key.get(..=end)).unwrap_or_default();
        let begin = self.first_at_least(source, folder);
        let rest = self.rows.get(begin..).unwrap_or_default();
        let inside = rest.partition_point(|row| {
            let record = self.catalog.table().get(*row as usize);
            record.is_some_and(|record| usize::from(record.source_index.0) == source && record.key.starts_with(folder))
        });
        begin..begin + inside
    }

    fn first_at_least(&self, source: usize, key: &[u8]) -> usize {
        let table = self.catalog.table();
        self.rows.partition_point(|row| table.get(*row as usize).is_some_and(|record| order(&record) < (source, key)))
    }
}

fn order<'a>(record: &ObjectRecord<'a>) -> (usize, &'a [u8]) {
    (usize::from(record.source_index.0), record.key)
}
