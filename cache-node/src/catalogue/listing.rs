//! Lists a dataset's sources into a catalog. Pages go straight into the writer; nothing else is kept.

use std::sync::Arc;

use forebay_catalog::{Catalog, CatalogWriter, SkipReason, SourceIndex, WriteError};
use futures::StreamExt;

use super::folder::Draft;
use crate::dataset::Dataset;
use crate::problem::{Problem, Reason};
use crate::source::Listed;

/// Writes the dataset's catalog into an empty folder.
pub async fn list(dataset: &Arc<Dataset>, draft: &Draft) -> Result<Catalog, Problem> {
    let name = dataset.config.full_name();
    let refused = |error: WriteError| write_problem(&name, &error);
    let mut writer = CatalogWriter::new(dataset.catalog_options()?).map_err(refused)?;
    for (index, source) in (0..).map(SourceIndex).zip(dataset.sources()?) {
        let mut pages = source.list();
        loop {
            let page = pages.next().await.transpose();
            source.observe(page.as_ref().err());
            let Some(page) = page.map_err(|error| error.to_problem())? else { break };
            // A page is some thousand entries, well below a millisecond.
            page.into_iter().try_for_each(|listed| add(&mut writer, index, listed)).map_err(refused)?;
        }
    }
    let path = draft.path().to_owned();
    let written = tokio::task::spawn_blocking(move || {
        writer.finish(&path).map_err(|error| write_problem(&name, &error))?;
        Catalog::open(&path).map_err(|error| Problem::new(Reason::StoreFailed, chain(&error)))
    });
    written.await.map_err(|error| Problem::new(Reason::ListingFailed, error.to_string()))?
}

fn add(writer: &mut CatalogWriter, source: SourceIndex, listed: Listed) -> Result<(), WriteError> {
    match listed {
        Listed::Object { key, size, modified, etag } => writer.add_file(source, &key, size, modified, &etag),
        Listed::Folder { key } => writer.add_directory(source, &key),
        Listed::Unusable { key, reason } => writer.skip(source, &key, &SkipReason::Other(reason)),
    }
}

fn write_problem(dataset: &str, error: &WriteError) -> Problem {
    let reason = match error {
        WriteError::Source(_) | WriteError::TooManySources => Reason::InvalidSource,
        WriteError::Io { .. } => Reason::StoreFailed,
        _ => Reason::ListingFailed,
    };
    Problem::new(reason, format!("dataset {dataset}: {}", chain(error)))
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
