//! `forebay-bench`: measures the cache nodes, or breaks them at random.

use clap::Parser as _;
use forebay_bench::args::Arguments;
use forebay_bench::wait::or_interrupted;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // When we are told to end, what is dropped here ends processes and removes folders and networks.
    tokio::runtime::Runtime::new()?.block_on(or_interrupted(arguments.run()))
}
