//! `forebay mount`: a cache node and a FUSE server in one process, and the same mount as in Kubernetes. What can be seen to be wrong is said before
//! anything starts; then the process stays (`--foreground`) or starts itself again in the background.

mod background;
mod cache;
mod credentials;
mod dataset;
mod manifest;
mod node;
mod preflight;
mod preload;
mod report;
mod serve;
mod tree;

use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::MountArgs;
use cache::CacheFolder;
use report::{News, Reporter};

/// Runs the command.
pub fn run(args: &MountArgs) -> anyhow::Result<ExitCode> {
    if !args.report {
        return start(args, Reporter::to_user).map(|()| ExitCode::SUCCESS);
    }
    // A session of its own: the terminal's signals and its end are not this process's.
    rustix::process::setsid().context("leaving the terminal's session")?;
    let result = start(args, Reporter::to_starter);
    if let Err(error) = &result {
        // If it is gone, the log has it.
        let _ = Reporter::to_starter().tell(News::Failed(format!("{error:#}")));
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn start(args: &MountArgs, reporter: impl FnOnce() -> Reporter) -> anyhow::Result<()> {
    let text = manifest::read(&args.file)?;
    let environment = credentials::from_environment(|name| std::env::var(name).ok())?;
    let dataset = dataset::configure(&manifest::parse(&args.file, &text)?, environment.as_ref())?;
    let chosen = preflight::check_machine(args.mount_mode)?;
    let target = preflight::check_target(&args.directory)?;
    // Before it is made.
    preflight::check_apart(&target.directory, &CacheFolder::place(&args.cache_dir)?)?;
    let cache = CacheFolder::open(&args.cache_dir)?;
    let lock = cache.lock(&target.directory)?;
    if !args.report && target.hides {
        eprintln!(
            "Note: {} is not empty; what it holds is hidden while the Dataset is mounted.",
            target.directory.display()
        );
    }
    if args.foreground {
        serve::run(args, &dataset, &chosen, &target.directory, &cache, lock, reporter())
    } else {
        // The process in the background takes it.
        drop(lock);
        background::run(args, &text, &target.directory, &cache)
    }
}
