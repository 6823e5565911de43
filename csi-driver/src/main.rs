//! `forebay-csi`: the CSI driver of a Kubernetes node, privileged.

use clap::Parser;
use forebay_csi::server::{Arguments, run};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    let arguments = Arguments::parse();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(arguments, shutdown).await?;
    Ok(())
}
