//! `forebay-csi`: the CSI driver of a Kubernetes node, privileged.

use clap::Parser;
use forebay_csi::server::{Arguments, run};

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    let arguments = Arguments::parse();
    run(arguments, forebay_protocol::end::signalled()?).await?;
    Ok(())
}
