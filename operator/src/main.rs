//! `forebay-operator`: the controllers of CacheRuntime and Dataset.

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    forebay_operator::run(forebay_operator::Arguments::parse()).await
}
