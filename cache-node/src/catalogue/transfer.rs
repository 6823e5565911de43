//! Catalogs between members: three files one after the other, verified by the receiver before they count.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_catalog::{Catalog, CatalogId};
use forebay_protocol::layout::{CATALOG_IMAGE, CATALOG_SUMMARY, CATALOG_TABLE};
use forebay_protocol::node::read_catalog_response::Part;
use forebay_protocol::node::{CatalogHeader, ReadCatalogRequest, ReadCatalogResponse};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::folder::CatalogFolders;
use super::listing::chain;
use crate::dataset::Dataset;
use crate::fetch::peers::Peers;

const PIECE: usize = 256 << 10;
/// A peer that says nothing for so long is given up for now.
const SILENCE: Duration = Duration::from_secs(5);
/// No catalog is larger: 2^31 entries of some hundred bytes.
const MAX_BYTES: u64 = 1 << 40;

/// Why no catalog came.
#[derive(Debug, thiserror::Error)]
#[error("catalog from {address}: {cause}")]
pub struct TransferError {
    address: SocketAddr,
    cause: String,
}

/// Gets the catalog that a member has; none when it has none, or one that this dataset does not accept.
pub async fn receive(
    peers: &Peers,
    address: SocketAddr,
    dataset: &Dataset,
    folders: &CatalogFolders,
) -> Result<Option<Arc<Catalog>>, TransferError> {
    let failed = |cause: String| TransferError { address, cause };
    let mut client = peers.client(address).map_err(|error| failed(error.to_string()))?;
    let request = ReadCatalogRequest { dataset_uid: dataset.uid().to_owned() };
    let answer = tokio::time::timeout(SILENCE, client.read_catalog(request)).await;
    let mut parts = match answer.map_err(|_| failed("no answer".to_owned()))? {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(failed(status.to_string())),
    };
    let mut next = async || {
        let message =
            tokio::time::timeout(SILENCE, parts.message()).await.map_err(|_| failed("it fell silent".to_owned()))?;
        message.map(|message| message.and_then(|message| message.part)).map_err(|status| failed(status.to_string()))
    };
    let Some(Part::Header(header)) = next().await? else { return Err(failed("it sent no header".to_owned())) };
    let id: CatalogId = header.id.parse().map_err(|_| failed("its id is no id".to_owned()))?;
    let total = header.image_bytes.saturating_add(header.table_bytes).saturating_add(header.summary_bytes);
    if total > MAX_BYTES {
        return Err(failed(format!("it would have {total} bytes")));
    }
    if dataset.config.catalog.as_ref().is_some_and(|published| *published != header.id) {
        return Ok(None);
    }
    let draft = folders.draft(dataset.uid()).map_err(|error| failed(error.to_string()))?;
    let mut data = Bytes::new();
    for (name, length) in files(&header) {
        let mut file = File::create_new(draft.path().join(name)).map_err(|error| failed(error.to_string()))?;
        let mut missing = length;
        while missing > 0 {
            if data.is_empty() {
                let Some(Part::Data(more)) = next().await? else { return Err(failed("it ended early".to_owned())) };
                data = more;
                continue;
            }
            let piece = data.split_to(usize::try_from(missing).unwrap_or(usize::MAX).min(data.len()));
            // Pieces are small, and the page cache takes them.
            file.write_all(&piece).map_err(|error| failed(error.to_string()))?;
            missing -= piece.len() as u64;
        }
        file.sync_all().map_err(|error| failed(error.to_string()))?;
    }
    let path = draft.path().to_owned();
    let verified = tokio::task::spawn_blocking(move || {
        File::open(&path).and_then(|folder| folder.sync_all()).map_err(|error| error.to_string())?;
        Catalog::verify(&path, id).map_err(|error| chain(&error))
    });
    let catalog = verified.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    if let Err(problem) = dataset.accepts(&catalog) {
        tracing::debug!(%address, %problem, "a peer's catalog is not ours");
        return Ok(None);
    }
    let catalog = folders.publish(dataset.uid(), draft, id).map_err(|error| failed(error.to_string()))?;
    tracing::info!(dataset = dataset.config.full_name(), catalog = %id, %address, bytes = total, "received");
    Ok(Some(catalog))
}

/// Sends a catalog's files; ends early when nobody listens.
pub fn send(catalog: &Catalog, to: &mpsc::Sender<Result<ReadCatalogResponse, Status>>) -> io::Result<()> {
    let open = |name| {
        let file = File::open(catalog.folder().join(name))?;
        let length = file.metadata()?.len();
        Ok::<_, io::Error>((file, length))
    };
    let (image, table, summary) = (open(CATALOG_IMAGE)?, open(CATALOG_TABLE)?, open(CATALOG_SUMMARY)?);
    let header = CatalogHeader {
        id: catalog.id().to_string(),
        image_bytes: image.1,
        table_bytes: table.1,
        summary_bytes: summary.1,
    };
    let deliver = |part| to.blocking_send(Ok(ReadCatalogResponse { part: Some(part) })).is_ok();
    if !deliver(Part::Header(header)) {
        return Ok(());
    }
    for (file, length) in [image, table, summary] {
        let mut file = file.take(length);
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if file.by_ref().take(PIECE as u64).read_to_end(&mut piece)? == 0 {
                break;
            }
            if !deliver(Part::Data(piece.into())) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn files(header: &CatalogHeader) -> [(&'static str, u64); 3] {
    [(CATALOG_IMAGE, header.image_bytes), (CATALOG_TABLE, header.table_bytes), (CATALOG_SUMMARY, header.summary_bytes)]
}
