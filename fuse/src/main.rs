//! `forebay-fuse`: serves objects to the kernel without any privilege, on a descriptor that the CSI plugin holds.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use forebay_fuse::daemon::Resend;
use forebay_fuse::keeper::Keeper;
use forebay_fuse::status::{Question, STALL_LIMIT};
use forebay_fuse::{daemon, status, supervise};

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
    /// How many workers the parent had before this one
    #[arg(long, hide = true, requires = "worker", default_value_t = 0)]
    restarts: u64,
    /// Be a probe: ask the daemon of this network namespace, with the same broker, how it is, and end with 0 if it is well
    #[arg(long, conflicts_with = "worker")]
    probe: Option<Question>,
    /// How long a request may keep a thread, or not be taken up, before a probe takes the worker for hung, in seconds
    #[arg(long, requires = "probe", default_value_t = STALL_LIMIT.as_secs())]
    stall_limit: u64,
}

/// How long a probe waits for the daemon, to connect and for the answer: together less than the chart's `timeoutSeconds`, so that the reason is told.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    forebay_protocol::log::init();
    let Arguments { broker, without_resend, worker, keeper, restarts, probe, stall_limit } = Arguments::parse();
    if let Some(question) = probe {
        return Ok(status::probe(&broker, question, PROBE_PATIENCE, Duration::from_secs(stall_limit))?);
    }
    let resend = if without_resend { Resend::Never } else { Resend::IfTheKernelCan };
    if worker {
        supervise::begin_worker()?;
        status::note_restarts(restarts);
        return serve(&broker, keeper.as_deref().map(Keeper::inherited).transpose()?, resend);
    }
    let program = std::env::current_exe()?;
    let keeper = Keeper::new()?;
    let mut started = 0_u64;
    let code = supervise::run(|| {
        let mut command = Command::new(&program);
        let kept_in = keeper.pass_to(&mut command);
        command.arg("--worker").arg("--keeper").arg(kept_in).arg("--broker").arg(&broker);
        command.args(without_resend.then_some("--without-resend"));
        command.arg("--restarts").arg(started.to_string());
        started += 1;
        command
    })?;
    std::process::exit(code)
}

#[tokio::main(worker_threads = 2)]
async fn serve(broker: &std::path::Path, keeper: Option<Keeper>, resend: Resend) -> anyhow::Result<()> {
    daemon::run(broker, keeper, resend, forebay_protocol::end::signalled()?).await;
    Ok(())
}
