//! The first read of an object that nobody has: how fast, and how soon.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use forebay_protocol::config::CHUNK_BYTES;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStoreExt as _;
use object_store::aws::AmazonS3;

use super::{MODES, Mode, client};
use crate::cluster::content::{content, free_address};
use crate::cluster::s3::{ACCESS, BUCKET, S3Server, SECRET};
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::in_turn;

pub const NAME: &str = "cold-read";
pub const HOW: &str = "\
An object of 1 GiB of a local versitygw, read in order 1 MiB at a time through a `forebay mount` with an empty cache. The limit downloads it with object_store, eight ranges
of 8 MiB at once, into a file on the same tmpfs. The first bytes: open and read 4 KiB of a cold object, another one each time, beside one GET of the same 4 KiB; both are connected. What
the first read has set going (the rest of its chunk) is waited for before the next one. It takes milliseconds and is decided by who is woken when, so it is done four times as often.";

const LARGE: &str = "large";
const RANGE_BYTES: u64 = 8 << 20;
const AT_ONCE: usize = 8;
const FIRST_BYTES: u64 = 4096;
const OBJECT_BYTES: usize = 32 << 20;
/// Cold objects for each run.
const FIRSTS: usize = 4;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let length: u64 = if context.quick { 256 << 20 } else { 1 << 30 };
    let server = S3Server::start(free_address([127, 0, 0, 1])?, context.folder.part("s3")?).await?;
    server.put(LARGE, &content(1, length as usize))?;
    // One more, to connect with.
    for number in 0..=context.runs * FIRSTS {
        server.put(&format!("first/{number}"), &content(number as u64, OBJECT_BYTES))?;
    }
    let client = server.client()?;
    let mut rows = Vec::new();
    for mode in MODES {
        let (ours, sample) = in_turn(
            context.runs,
            async || cold(context, mode, &server, length).await,
            async || download(context, &client, length).await,
        )
        .await?;
        rows.push(Row {
            what: format!("{}: cold first read of 1 GiB", mode.name),
            unit: Unit::BytesPerSecond,
            ours,
            limit: Some(Limit { what: "object_store x 8".to_owned(), sample }),
            required: Required::RatioAtLeast(0.8),
        });
        rows.push(first_bytes(context, mode, &server, &client).await?);
    }
    Ok(Outcome::Rows(rows))
}

async fn mount(context: &Context, mode: &Mode, server: &S3Server) -> Result<Mounted> {
    let source = format!("{{url: 's3://{BUCKET}/', endpoint: 'http://{}'}}", server.address);
    let environment = [("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let what = What { environment: &environment, ..What::cold(&source, mode.options) };
    Mounted::start(&context.programs, context.folder.part("mount")?, what).await
}

async fn cold(context: &Context, mode: &Mode, server: &S3Server, length: u64) -> Result<f64> {
    let mounted = mount(context, mode, server).await?;
    client::sequential(&[mounted.tree().join(LARGE)], length, 1, false)
}

async fn download(context: &Context, client: &AmazonS3, length: u64) -> Result<f64> {
    let folder = context.folder.part("plain")?;
    let file = Arc::new(std::fs::File::create(folder.path().join(LARGE))?);
    let began = Instant::now();
    stream::iter((0..length).step_by(RANGE_BYTES as usize))
        .map(async |start| {
            let bytes = client.get_range(&LARGE.into(), start..(start + RANGE_BYTES).min(length)).await?;
            let file = Arc::clone(&file);
            tokio::task::spawn_blocking(move || file.write_all_at(&bytes, start)).await??;
            anyhow::Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(length as f64 / began.elapsed().as_secs_f64())
}

async fn first_bytes(context: &Context, mode: &Mode, server: &S3Server, client: &AmazonS3) -> Result<Row> {
    let mounted = mount(context, mode, server).await?;
    let tree = mounted.tree();
    let runs = context.runs * FIRSTS;
    let (mut ours_next, mut plain_next) = (0..runs, 0..runs);
    let name = |next: Option<usize>| anyhow::Ok(format!("first/{}", next.context("no object is left")?));
    // So that both are connected.
    client.get_range(&LARGE.into(), 0..FIRST_BYTES).await?;
    read_first(&tree.join(name(Some(runs))?))?;
    let (ours, sample) = in_turn(
        runs,
        async || read_first(&tree.join(name(ours_next.next())?)),
        async || {
            let path = name(plain_next.next())?.as_str().into();
            let began = Instant::now();
            client.get_range(&path, 0..FIRST_BYTES).await?;
            Ok(began.elapsed().as_secs_f64())
        },
    )
    .await?;
    Ok(Row {
        what: format!("{}: time to the first 4 KiB of a cold object", mode.name),
        unit: Unit::Seconds,
        ours,
        limit: Some(Limit { what: "one GET".to_owned(), sample }),
        required: Required::RatioAtMost(1.3),
    })
}

fn read_first(path: &Path) -> Result<f64> {
    let mut buffer = [0; FIRST_BYTES as usize];
    let began = Instant::now();
    let file = std::fs::File::open(path)?;
    file.read_exact_at(&mut buffer, 0)?;
    let time = began.elapsed().as_secs_f64();
    // From the middle of the first chunk, which has come then: it would slow down what is measured next. Not further: that would be read ahead.
    file.read_exact_at(&mut buffer, CHUNK_BYTES / 2)?;
    Ok(time)
}
