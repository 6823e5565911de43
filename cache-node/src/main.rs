//! `forebay-node`: one cache node, until it is told to end.

use clap::Parser;
use forebay_cache_node::args::{Args, Command};
use forebay_cache_node::node::{Node, NodeOptions};
use forebay_cache_node::prepare;
use forebay_protocol::config::RuntimeConfig;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Args::parse().command();
    forebay_protocol::log::init();
    let (config, advertise) = match command {
        Command::Prepare { cache_dir, run_dir } => return Ok(prepare::prepare(&cache_dir, &run_dir)?),
        Command::Run { config, advertise } => (config, advertise),
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let node = Node::start(RuntimeConfig::read(&config)?, NodeOptions { watch: Some(config), advertise }).await?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    node.shutdown().await;
    Ok(())
}
