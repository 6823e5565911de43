//! How long a node with a full index takes to open it.

use anyhow::{Context as _, Result};

use super::{Context, Outcome, missing};
use crate::programs::{figure, figures};
use crate::report::{Required, Row, Unit};
use crate::sample::Sample;

pub const NAME: &str = "restart";
pub const HOW: &str = "\
`cache-node/examples/restart.rs` makes an index of ten million objects of one chunk and opens it again: after a clean end, and after kill -9.
The time is until the store answers; the memory is what the process holds then.";

const OBJECTS: &str = "10000000";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("restart") else { return Ok(missing("restart")) };
    let mut rows = Vec::new();
    for (end, arguments) in
        [("a clean end", &["--objects", OBJECTS][..]), ("kill -9", &["--objects", OBJECTS, "--kill"])]
    {
        let (mut seconds, mut memory) = (Vec::new(), Vec::new());
        // The index takes longer to make than to open, so fewer runs than elsewhere.
        for _ in 0..context.runs.div_ceil(2) {
            let folder = context.folder.part("restart")?;
            let lines = figures(&example, arguments, folder.path()).await?;
            seconds.push(figure(&lines, "open_seconds")?);
            memory.push(figure(&lines, "rss_bytes")?);
        }
        let row = |what: &str, unit, runs, required| {
            let ours = Sample::new(runs).context("no runs")?;
            anyhow::Ok(Row { what: format!("{what} 10 M chunks after {end}"), unit, ours, limit: None, required })
        };
        rows.push(row("open", Unit::Seconds, seconds, Required::AtMost(5.0))?);
        rows.push(row("memory with", Unit::Bytes, memory, Required::Nothing)?);
    }
    Ok(Outcome::Rows(rows))
}
