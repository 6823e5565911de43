//! How fast one node gives another what it has, beside minimal programs that do nothing but send.

use anyhow::Result;

use super::{Context, Outcome, missing};
use crate::programs::{figure, figures};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::in_turn;

pub const NAME: &str = "transfer";
pub const HOW: &str = "\
`cache-node/examples/transfer.rs`: one process serves cached chunks of 4 MiB, another fetches and verifies them, over TCP on loopback. The
limits are two minimal programs between two processes on the same machine: `sendfile` of the same files into a socket that is read and thrown
away, and a rustls stream of the same length. The requirement is met on equal terms: one connection, the same buffers of the kernel.";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("transfer") else { return Ok(missing("transfer")) };
    let folder = context.folder.part(NAME)?;
    let rate = async |arguments: &[&str]| {
        let lines = figures(&example, arguments, folder.path()).await?;
        figure(&lines, "bytes_per_second")
    };
    let mut rows = Vec::new();
    for (what, ours, limit, mode, least) in [
        ("plain text", &["fetch"][..], "sendfile", "limit-sendfile", 0.7),
        ("TLS", &["fetch", "--tls"], "rustls", "limit-rustls", 0.8),
    ] {
        let (ours, sample) = in_turn(context.runs, async || rate(ours).await, async || rate(&[mode]).await).await?;
        rows.push(Row {
            what: format!("large chunks between two nodes, {what}"),
            unit: Unit::BytesPerSecond,
            ours,
            limit: Some(Limit { what: limit.to_owned(), sample }),
            required: Required::RatioAtLeast(least),
        });
    }
    Ok(Outcome::Rows(rows))
}
