//! `forebay-bench`: measures the cache nodes and the mount, or breaks nodes at random.

use std::process::ExitCode;

use clap::Parser as _;
use forebay_bench::args::Arguments;
use forebay_bench::wait::or_interrupted;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // When we are told to end, what is dropped here ends processes and removes folders and networks.
    let work = || tokio::runtime::Runtime::new()?.block_on(or_interrupted(arguments.run()));
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
