//! `forebay`, also installed as `kubectl-forebay`: shows what Datasets are doing, and mounts one without Kubernetes.

use std::process::ExitCode;

use clap::Parser as _;

mod args;
mod doctor;
mod log;
mod mount;
mod mounted;
mod status;
mod umount;

use args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    // In the background stderr is the log file.
    log::init(if matches!(&args.command, Command::Mount(mount) if mount.report) { "info" } else { "warn" });
    let result = match args.command {
        Command::Status(status) => status::run(&status),
        Command::Mount(mount) => mount::run(&mount),
        Command::Umount(umount) => umount::run(&umount),
        Command::Doctor(doctor) => doctor::run(&doctor),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("forebay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
