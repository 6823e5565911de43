//! `forebay-fuse`: serves objects to the kernel without any privilege, on a descriptor that the CSI plugin holds.

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use forebay_fuse::daemon::Resend;
use forebay_fuse::keeper::Keeper;
use forebay_fuse::{daemon, supervise};

/// The FUSE daemon of a Kubernetes node: a parent that does nothing but start the worker again when it dies, and the worker.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The CSI plugin's socket
    #[arg(long, default_value_os_t = PathBuf::from(forebay_protocol::layout::RUN_DIR).join(forebay_protocol::layout::BROKER_SOCKET))]
    broker: PathBuf,
    /// Keep a log of what the worker is doing, as on kernels before 6.9, although this one could send it again
    #[arg(long, hide = true)]
    without_resend: bool,
    /// Be the worker (what the parent starts)
    #[arg(long, hide = true)]
    worker: bool,
    /// Where the worker keeps its session for the next one: two descriptors that it inherits
    #[arg(long, hide = true, requires = "worker")]
    keeper: Option<String>,
}

fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    let Arguments { broker, without_resend, worker, keeper } = Arguments::parse();
    let resend = if without_resend { Resend::Never } else { Resend::IfTheKernelCan };
    if worker {
        supervise::begin_worker()?;
        return serve(&broker, keeper.as_deref().map(Keeper::inherited).transpose()?, resend);
    }
    let program = std::env::current_exe()?;
    let keeper = Keeper::new()?;
    let code = supervise::run(|| {
        let mut command = Command::new(&program);
        let kept_in = keeper.pass_to(&mut command);
        command.arg("--worker").arg("--keeper").arg(kept_in).arg("--broker").arg(&broker);
        command.args(without_resend.then_some("--without-resend"));
        command
    })?;
    std::process::exit(code)
}

#[tokio::main(worker_threads = 2)]
async fn serve(broker: &std::path::Path, keeper: Option<Keeper>, resend: Resend) -> anyhow::Result<()> {
    daemon::run(broker, keeper, resend, forebay_protocol::end::signalled()?).await;
    Ok(())
}
