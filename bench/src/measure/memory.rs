//! How much memory a serving node takes under many streams, and under many small reads.

use anyhow::{Context as _, Result};
use forebay_protocol::config::DEFAULT_MEMORY_BYTES;

use super::transfer::Server;
use super::{Context, Outcome, missing};
use crate::programs::figure;
use crate::report::{Required, Row, Unit};
use crate::sample::Sample;

pub const NAME: &str = "memory";
pub const HOW: &str = "\
`cache-node/examples/transfer.rs`: VmHWM of the serving process with `memoryBytes` at its default of 512 MiB, once under 1,000 streams of large
objects at once, once under small reads from peers as fast as they go for a minute. One run each: a peak is a peak.";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("transfer") else { return Ok(missing("transfer")) };
    let seconds = if context.quick { "10" } else { "60" };
    let mut rows = Vec::new();
    for (what, arguments) in [
        ("1,000 streams", &["--streams", "--concurrent", "1000", "--seconds", "10"][..]),
        ("small reads", &["--small", "--batch", "64", "--concurrent", "64", "--seconds", seconds]),
    ] {
        let server = Server::start(context, &example, false).await?;
        let lines = server.fetch(arguments).await?;
        let row = |name: String, unit, number, required| {
            let ours = Sample::one(number).context("no number")?;
            anyhow::Ok(Row { what: name, unit, ours, limit: None, required })
        };
        let most = Required::AtMost(DEFAULT_MEMORY_BYTES as f64);
        rows.push(row(format!("peak memory under {what}"), Unit::Bytes, figure(&lines, "vm_hwm_bytes")?, most)?);
        if what == "small reads" {
            let rate = figure(&lines, "objects_per_second")?;
            rows.push(row(format!("{what} meanwhile"), Unit::ObjectsPerSecond, rate, Required::AtLeast(100_000.0))?);
        }
    }
    Ok(Outcome::Rows(rows))
}
