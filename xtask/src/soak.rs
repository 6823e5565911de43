//! `cargo xtask soak`: random faults on real cache nodes.

use anyhow::Result;
use clap::Args;

use crate::bench;

const EXAMPLES: &str = "Examples:
  A night:
    cargo xtask soak --minutes 480
  The faults of a run that printed this seed, once more:
    cargo xtask soak --seconds 20 --seed 1234";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Soak {
    /// How long faults go on
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How long, in seconds; counts instead of the minutes
    #[arg(long)]
    seconds: Option<u64>,
    /// Repeat the faults of a run that printed this seed
    #[arg(long)]
    seed: Option<u64>,
}

impl Soak {
    pub fn run(self) -> Result<()> {
        let seconds = self.seconds.unwrap_or(self.minutes * 60);
        let mut arguments = vec!["soak".to_owned(), format!("--seconds={seconds}")];
        arguments.extend(self.seed.map(|seed| format!("--seed={seed}")));
        // A development build has assertions and overflow checks, which is what is wanted here.
        bench::run(true, &arguments)
    }
}
