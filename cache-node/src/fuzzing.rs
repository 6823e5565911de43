//! Doors for the fuzz targets (`fuzz/`) to parsers that are private otherwise. No part of the crate's API.

use forebay_protocol::transfer::Status;

use crate::fetch::peers::link::Dial;
use crate::fetch::peers::receive;
use crate::memory::Shares;
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

/// What a request got from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAnswer {
    /// What the peer says came of it.
    pub status: Status,
    /// The chunk or the text.
    pub bytes: Vec<u8>,
    /// The chunk's crc32c as the peer says.
    pub crc: u32,
    /// A chunk of the right length with that crc32c, or no chunk.
    pub sound: bool,
}

/// What requests for chunks of these lengths, numbered from 0, get from a peer that sends `bytes`, read so many at a time; and why the
/// connection ended.
pub fn peer_answers(bytes: &[u8], lengths: &[u32], read_ahead: usize) -> (Vec<Option<PeerAnswer>>, String) {
    let dial =
        Dial { address: ([127, 0, 0, 1], 1).into(), tls: None, buffers: Shares::of(64 << 20).buffers, read_ahead };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
        return (Vec::new(), "no runtime".to_owned());
    };
    let (answers, ended) = runtime.block_on(receive::from_peer(bytes, lengths, &dial));
    let answers = answers.into_iter().map(|answer| {
        answer.map(|it| PeerAnswer { status: it.status, bytes: it.bytes.to_vec(), crc: it.crc, sound: it.sound })
    });
    (answers.collect(), ended.map_or_else(|error| error.to_string(), |()| String::new()))
}
