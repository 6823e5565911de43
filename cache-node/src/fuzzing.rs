//! Doors for the fuzz targets (`fuzz/`) to parsers that are private otherwise. No part of the crate's API.

use crate::source::location::S3Location;
use crate::source::{Listed, SourceError, s3};
use crate::store::record::{self, Entries, Entry};

/// A page of a listing and the token of the next one, as read from the store's answer; the error says what is wrong with it.
pub fn s3_list_page(body: &[u8], prefix: &[u8]) -> Result<(Vec<Listed>, Option<String>), String> {
    s3::parse_list_page(body, prefix)
}

/// What an error answer of the store is taken for; none when the status is no status.
pub fn s3_error_answer(location: &S3Location, status: u16, body: &[u8]) -> Option<SourceError> {
    Some(s3::classify_answer(location, http::StatusCode::from_u16(status).ok()?, body))
}

/// Entries of the index, read and written again; none when the bytes are no entries.
pub fn store_record(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut entries, mut out) = (Entries::new(bytes), Vec::new());
    for entry in entries.by_ref() {
        match entry {
            Entry::Whole { id, dataset, size, crcs } => {
                record::put_whole(&mut out, &id, dataset, size, &crcs.iter().collect::<Vec<_>>());
            }
            Entry::Part { id, dataset, size, chunks } => {
                let chunks: Vec<_> = chunks.chunks().collect();
                record::put_part(&mut out, &id, dataset, size, chunks.into_iter());
            }
            Entry::Removed { id } => record::put_removed(&mut out, &id),
            Entry::Dataset { slot, uid } => record::put_dataset(&mut out, slot, uid),
            Entry::Count { objects } => record::put_count(&mut out, objects),
        }
    }
    entries.is_through().then_some(out)
}
