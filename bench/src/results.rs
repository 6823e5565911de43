//! What was measured last, kept in `target/bench`, so that a run of one measurement renews its part of the page and leaves the others.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use forebay_e2e::paths;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measure::Page;
use crate::report::{self, Row};

/// One measurement's last result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What was measured.
    pub commit: String,
    /// When, as `2026-11-23`.
    pub date: String,
    /// How often.
    pub runs: usize,
    /// Where; results of another machine are not shown.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
    /// Why there are none.
    pub not_built: Option<String>,
}

fn path(name: &str) -> PathBuf {
    paths::target().join("bench").join(format!("{name}.json"))
}

/// Keeps a result.
pub fn save(name: &str, saved: &Saved) -> Result<()> {
    let path = path(name);
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        std::fs::write(&path, serde_json::to_vec_pretty(saved)?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// What was kept, if it is of this machine.
pub fn load(name: &str, machine: &Machine) -> Option<Saved> {
    // One that can't be read is one that has to be measured again.
    let saved: Saved = serde_json::from_slice(&std::fs::read(path(name)).ok()?).ok()?;
    (saved.machine == *machine).then_some(saved)
}

/// What of a page has no result here: a page without it would lose figures that another checkout had.
pub fn missing<'a>(page: &'a Page, machine: &'a Machine) -> impl Iterator<Item = &'static str> {
    let names = page.measurements.iter().map(|measurement| measurement.name);
    names.filter(|name| load(name, machine).is_none())
}

/// Writes a page anew from all that was kept; gives its path.
pub fn write_page(page: &Page, machine: &Machine) -> Result<PathBuf> {
    let saved: Vec<_> = page.measurements.iter().map(|measurement| load(measurement.name, machine)).collect();
    let parts: Vec<_> = page
        .measurements
        .iter()
        .zip(&saved)
        .map(|(measurement, saved)| (measurement.name, measurement.how, saved.as_ref()))
        .collect();
    let path = paths::repository().join(page.file);
    std::fs::write(&path, report::page(page, machine, &parts))
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
