//! `forebay-fuse`: serves objects to the kernel without any privilege, on a descriptor that the CSI plugin holds.

use std::path::PathBuf;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// The FUSE daemon of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The CSI plugin's socket
    #[arg(long, default_value_os_t = PathBuf::from(forebay_protocol::layout::RUN_DIR).join(forebay_protocol::layout::BROKER_SOCKET))]
    broker: PathBuf,
}

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
    forebay_fuse::daemon::run(&arguments.broker, shutdown).await;
    Ok(())
}
