//! `forebay-fuse`: serves objects to the kernel without any privilege, on a descriptor that the CSI plugin holds.

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use forebay_fuse::{daemon, supervise};

/// The FUSE daemon of a Kubernetes node: a parent that does nothing but start the worker again when it dies, and the worker.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The CSI plugin's socket
    #[arg(long, default_value_os_t = PathBuf::from(forebay_protocol::layout::RUN_DIR).join(forebay_protocol::layout::BROKER_SOCKET))]
    broker: PathBuf,
    /// Be the worker (what the parent starts)
    #[arg(long, hide = true)]
    worker: bool,
}

fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    let Arguments { broker, worker } = Arguments::parse();
    if worker {
        supervise::begin_worker()?;
        return serve(&broker);
    }
    let program = std::env::current_exe()?;
    let code = supervise::run(|| {
        let mut command = Command::new(&program);
        command.arg("--worker").arg("--broker").arg(&broker);
        command
    })?;
    std::process::exit(code)
}

#[tokio::main(worker_threads = 2)]
async fn serve(broker: &std::path::Path) -> anyhow::Result<()> {
    daemon::run(broker, forebay_protocol::end::signalled()?).await;
    Ok(())
}
