//! How fast one node gives another what it has, beside minimal programs that do nothing but send.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Context, Outcome, missing};
use crate::programs::{Line, Running, figure, figures, serve};
use crate::report::{Limit, Required, Row, Unit};
use crate::sample::in_turn;

pub const NAME: &str = "transfer";
pub const HOW: &str = "\
`cache-node/examples/transfer.rs`: a node in one process serves cached chunks of 4 MiB, another process asks for them as a node does, over TCP
on loopback, and verifies them. The limits are two minimal programs, each between two processes on the same machine: `sendfile` of a file into
a socket that is read and thrown away, and a rustls stream.";

pub async fn measure(context: &Context) -> Result<Outcome> {
    let Some(example) = context.programs.example("transfer") else { return Ok(missing("transfer")) };
    let seconds = if context.quick { "2" } else { "5" };
    let mut rows = Vec::new();
    for (what, tls, limit, mode, least) in
        [("plain text", false, "sendfile", "limit-sendfile", 0.7), ("TLS", true, "rustls", "limit-rustls", 0.8)]
    {
        let server = Server::start(context, &example, tls).await?;
        let limit_folder = context.folder.part(NAME)?;
        let limit_path = limit_folder.path().to_str().context("a folder's name is not UTF-8")?;
        let ours = async || figure(&server.fetch(&["--seconds", seconds]).await?, "bytes_per_second");
        let bare = async || {
            let lines = figures(&example, &[mode, limit_path, "--seconds", seconds], limit_folder.path()).await?;
            figure(&lines, "bytes_per_second")
        };
        let (ours, sample) = in_turn(context.runs, ours, bare).await?;
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

/// The example's node, with everything in its cache.
pub(super) struct Server {
    example: PathBuf,
    folder: TempDir,
    printed: Line,
    tls: bool,
    _running: Running,
}

impl Server {
    pub(super) async fn start(context: &Context, example: &Path, tls: bool) -> Result<Self> {
        let folder = context.folder.part("serve")?;
        let path = folder.path().to_str().context("a folder's name is not UTF-8")?;
        let mut arguments = vec!["serve", path];
        arguments.extend(tls.then_some("--tls"));
        let (running, printed) = serve(example, &arguments, folder.path(), "catalog").await?;
        Ok(Self { example: example.to_owned(), folder, printed, tls, _running: running })
    }

    /// Asks it for chunks from another process; what that prints.
    pub(super) async fn fetch(&self, options: &[&str]) -> Result<Vec<Line>> {
        let printed = |key: &str| self.printed.get(key).with_context(|| format!("the serving node printed no {key}="));
        let path = self.folder.path().to_str().context("a folder's name is not UTF-8")?;
        let mut arguments = vec!["fetch", path, "--address", printed("address")?, "--pid", printed("pid")?];
        arguments.extend(self.tls.then_some("--tls"));
        arguments.extend(options);
        figures(&self.example, &arguments, self.folder.path()).await
    }
}
