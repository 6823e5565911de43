//! How fast many small files come from a cold source, beside a plain client that asks for as many at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Context, Outcome, missing};
use crate::cluster::content::{content, free_address};
use crate::cluster::counting_proxy::CountingProxy;
use crate::cluster::s3::{ACCESS, BUCKET, S3Server, SECRET};
use crate::programs::{Line, figure, figures};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::{Sample, in_turn};

pub const NAME: &str = "small-files";
pub const HOW: &str = "\
`cache-node/examples/small_files.rs`: 20,000 files of 4 KiB from versitygw, cold each time: as a preload, and as an epoch of readers at the local
socket, which run in the node's own process and are part of what it costs. The limit is a loop of object_store with 64 requests at once against
the same server; it keeps nothing. The long line is a proxy in front of the server that holds each answer back for 20 ms, as 4,000 km do; it counts
the requests in flight.";

const FILE_BYTES: usize = 4096;
const LINE: Duration = Duration::from_millis(20);

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("small_files") else { return Ok(missing("small_files")) };
    let files = if context.quick { 5_000 } else { 20_000 };
    let server = S3Server::start(free_address([127, 0, 0, 1])?, context.folder.part("s3")?).await?;
    for number in 0..files {
        server.put(&format!("{:03}/{number}", number % 100), &content(number, FILE_BYTES))?;
    }
    let run = Run { context, example };
    let endpoint = format!("http://{}", server.address);
    let mut rows = Vec::new();
    for mode in ["preload", "epoch"] {
        let (ours, sample) = in_turn(
            context.runs,
            async || run.rate(&endpoint, mode).await,
            async || run.rate(&endpoint, "limit").await,
        )
        .await?;
        rows.push(Row {
            what: format!("small files, cold {mode}"),
            unit: Unit::ObjectsPerSecond,
            ours,
            limit: Some(Limit { what: "object_store x 64".to_owned(), sample }),
            required: Required::RatioAtLeast(0.9),
        });
    }
    // One each, so that only our requests are counted.
    let (proxy, other) = (
        CountingProxy::start_slow(server.address, LINE).await?,
        CountingProxy::start_slow(server.address, LINE).await?,
    );
    let (ours, limit) = (format!("http://{}", proxy.address), format!("http://{}", other.address));
    let (ours, sample) =
        in_turn(context.runs, async || run.rate(&ours, "epoch").await, async || run.rate(&limit, "limit").await)
            .await?;
    rows.push(Row {
        what: "small files, cold epoch over a long line".to_owned(),
        unit: Unit::ObjectsPerSecond,
        ours,
        limit: Some(Limit { what: "object_store x 64".to_owned(), sample }),
        required: Required::RatioAtLeast(0.9),
    });
    rows.push(Row {
        what: "requests in flight, cold epoch over a long line".to_owned(),
        unit: Unit::Count,
        ours: Sample::one(proxy.most_waiting() as f64).context("nothing was counted")?,
        limit: None,
        required: Required::AtLeast(64.0),
    });
    Ok(Outcome::Rows(rows))
}

struct Run<'a> {
    context: &'a Context,
    example: PathBuf,
}

impl Run<'_> {
    async fn rate(&self, endpoint: &str, mode: &str) -> Result<f64> {
        let folder = self.context.folder.part(NAME)?;
        let cache = folder.path().join("cache");
        std::fs::create_dir(&cache)?;
        let cache = text(&cache)?;
        let mut arguments =
            vec!["--endpoint", endpoint, "--bucket", BUCKET, "--access-key", ACCESS, "--secret-key", SECRET, mode];
        if mode != "limit" {
            arguments.extend(["--cache", cache]);
        }
        rate(&figures(&self.example, &arguments, folder.path()).await?)
    }
}

/// By either of its names.
fn rate(lines: &[Line]) -> Result<f64> {
    for key in ["objects_per_second", "files_per_second"] {
        if lines.iter().any(|line| line.contains_key(key)) {
            return figure(lines, key);
        }
    }
    bail!("neither objects_per_second= nor files_per_second= was printed")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
