//! The fetcher over a simulated world, with thousands of seeds: whatever happens, every read returns the right bytes, or an error that the
//! source has caused; nobody waits for ever; the source sends a chunk once, and at most once more for each thing that went wrong; a member that
//! leaves takes nothing with it.
//!
//! `FOREBAY_SEEDS` says how many seeds to run, `FOREBAY_SEED` which one to run again; `FOREBAY_TRACE` prints what happens.

mod scenario;
mod world;

use scenario::{Outcome, play};

const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one seed in a runtime of its own, whose clock goes on when nobody has anything to do.
fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(seed))
}

#[test]
fn whatever_happens_bytes_are_right_and_cross_the_line_once() {
    let seeds = match (number("FOREBAY_SEED"), number("FOREBAY_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS),
    };
    let (mut chunks, mut sent) = (0, 0);
    for seed in seeds {
        let outcome = run(seed);
        assert!(
            outcome.violations.is_empty(),
            "seed {seed} ({}):\n{}\nrun it again: FOREBAY_SEED={seed} cargo test -p forebay-cache-node --lib simulation",
            outcome.what,
            outcome.violations.join("\n")
        );
        chunks += outcome.chunks;
        sent += outcome.sent;
    }
    println!("{chunks} chunks, sent {sent} times");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let first = number("FOREBAY_SEED").unwrap_or(0);
    for seed in first..first + 20 {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(one.trace_hash, other.trace_hash, "seed {seed}");
        assert_ne!(one.trace_hash, run(seed + 1000).trace_hash);
    }
}
