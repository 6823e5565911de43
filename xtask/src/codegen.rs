//! `cargo xtask codegen`: the generated files that are checked in. Run apart, so that this program need not link the API types.

use anyhow::{Context as _, Result};
use forebay_e2e::command::{command, run_shown};
use forebay_e2e::paths;

/// Writes them.
pub fn run() -> Result<()> {
    let mut cargo = command("cargo", ["run", "--quiet", "--package", "forebay-crds", "--example", "write_generated"]);
    run_shown(cargo.current_dir(paths::repository())).context("writing what is generated from crds/src")
}
