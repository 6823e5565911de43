//! How fast many small files come from a cold source, beside a plain client that asks for as many at once.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Context, Outcome, missing};
use crate::programs::{Line, figure, figures};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::{Sample, in_turn};

pub const NAME: &str = "small-files";
pub const HOW: &str = "\
`cache-node/examples/small_files.rs`: files of 4 KiB from versitygw, cold each time: as a preload, and as an epoch of readers. The limit is a loop
of object_store with 64 requests at once against the same server. `in flight` is the most requests that the server saw at once.";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("small_files") else { return Ok(missing("small_files")) };
    let mut rows = Vec::new();
    for mode in ["preload", "epoch"] {
        let mut in_flight = Vec::new();
        let ours = async || {
            let lines = run(context, &example, mode).await?;
            in_flight.extend(figure(&lines, "in_flight").ok());
            figure(&lines, "objects_per_second")
        };
        let limit = async || figure(&run(context, &example, "limit").await?, "objects_per_second");
        let (ours, sample) = in_turn(context.runs, ours, limit).await?;
        rows.push(Row {
            what: format!("small files, cold {mode}"),
            unit: Unit::ObjectsPerSecond,
            ours,
            limit: Some(Limit { what: "object_store x 64".to_owned(), sample }),
            required: Required::RatioAtLeast(0.9),
        });
        if mode == "epoch" {
            let ours = Sample::new(in_flight).context("the example does not say how many requests were in flight")?;
            let what = "requests in flight, cold epoch".to_owned();
            rows.push(Row { what, unit: Unit::Count, ours, limit: None, required: Required::AtLeast(64.0) });
        }
    }
    Ok(Outcome::Rows(rows))
}

async fn run(context: &Context, example: &Path, mode: &str) -> Result<Vec<Line>> {
    let folder = context.folder.part(NAME)?;
    figures(example, &[mode], folder.path()).await
}
