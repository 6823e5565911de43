//! `forebay-node`: one cache node, until it is told to end.

use std::time::Duration;

use clap::Parser;
use forebay_cache_node::args::{Args, Command};
use forebay_cache_node::node::{Node, NodeOptions};
use forebay_cache_node::prepare;
use forebay_protocol::config::RuntimeConfig;

fn main() -> anyhow::Result<()> {
    let command = Args::parse().command();
    forebay_protocol::log::init();
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(run(command));
    // What matters is on the disk by now; a request to a source that hangs does not keep us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn run(command: Command) -> anyhow::Result<()> {
    let (config, advertise) = match command {
        Command::Prepare { cache_dir, memory_dir, run_dir } => {
            return Ok(prepare::prepare(&cache_dir, memory_dir.as_deref(), &run_dir)?);
        }
        Command::Run { config, advertise } => (config, advertise),
    };
    let ended = forebay_protocol::end::signalled()?;
    let options = NodeOptions { watch: Some(config.clone()), advertise, ..NodeOptions::default() };
    let node = Node::start(RuntimeConfig::read(&config)?, options).await?;
    ended.await;
    node.shutdown().await;
    Ok(())
}
