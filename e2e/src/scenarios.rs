//! Runs tests that share one cluster: brings it up, runs them in their order, and takes it down whatever happened. Used by
//! test targets without libtest's harness, which could not tell when the last of its threads is done with the cluster.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cluster::{Cluster, Options};

/// Set by `cargo xtask test`. Without it these tests are left out: they need root, and minutes.
pub const ENABLE: &str = "FOREBAY_E2E";
/// Leaves the cluster up for a look.
pub const KEEP: &str = "FOREBAY_E2E_KEEP";

/// One test: a sentence of behaviour and what shows it.
pub struct Scenario {
    /// The sentence, with underscores as in a function's name.
    pub name: &'static str,
    /// Fails with an error or a panic.
    pub run: fn(&Cluster) -> Result<()>,
}

/// The `main` of a test target: `cargo test` arguments that are no options choose scenarios by parts of their names.
/// `prepare` makes what the cluster needs, such as images; it is called only if there is something to run.
pub fn main(prepare: impl FnOnce() -> Result<Options>, scenarios: &[Scenario]) -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let chosen =
        |scenario: &&Scenario| filters.is_empty() || filters.iter().any(|filter| scenario.name.contains(filter));
    let chosen: Vec<&Scenario> = scenarios.iter().filter(chosen).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for scenario in &chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(ENABLE).is_none() {
        println!("{} tests on a real cluster are left out; `cargo xtask test` runs them ({ENABLE}=1)", chosen.len());
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    let cluster = match prepare().and_then(|options| Cluster::up(&options)) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("the cluster did not come up: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let failed = chosen.iter().filter(|scenario| !run(scenario, &cluster)).count();
    println!("\n{} passed, {failed} failed", chosen.len() - failed);
    if std::env::var_os(KEEP).is_some() {
        println!("the cluster stays up, see {}", cluster.run_folder.display());
    } else if let Err(error) = cluster.down() {
        eprintln!("the cluster did not go down: {error:#}");
        return ExitCode::FAILURE;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(scenario: &Scenario, cluster: &Cluster) -> bool {
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(cluster)));
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(Ok(())) => println!("test {} ... ok ({seconds:.1} s)", scenario.name),
        // A panic has said why on standard error already.
        Err(_) => println!("test {} ... FAILED ({seconds:.1} s)", scenario.name),
        Ok(Err(error)) => println!("test {} ... FAILED ({seconds:.1} s)\n{error:#}", scenario.name),
    }
    matches!(result, Ok(Ok(())))
}
