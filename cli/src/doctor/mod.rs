//! `forebay doctor`: whether this machine can mount Datasets, and how: a line for each thing that matters, with what to do where something is missing.
//! Looks only; what it mounts to find out, it takes away again.

mod cache;
mod finding;
mod kernel;
mod mounts;

use std::process::ExitCode;

use crate::args::DoctorArgs;
use finding::Level;

/// Runs the command. Exit status 1 when something keeps Datasets from being mounted or read.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut findings = kernel::examine(args.mount_mode);
    findings.extend(args.cache_dir.iter().map(|folder| cache::examine(folder)));
    findings.extend(mounts::examine()?);
    print!("{}", finding::render(&findings));
    let missing = findings.iter().any(|finding| finding.level == Level::Missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
