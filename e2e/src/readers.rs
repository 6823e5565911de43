//! The programs whose reading of a mounted tree is tested: Debian packages, and a Python with what data people use, in `target/e2e/python`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::command::{command, run};
use crate::{paths, setup};

const PACKAGES: &[&str] = &["diffutils", "findutils", "git", "python3", "python3-venv", "rsync", "sqlite3", "tar"];

/// Newest on the day they were chosen; all as wheels, so that nothing is compiled.
const PYTHON_PACKAGES: &[&str] = &["numpy==2.4.6", "pyarrow==26.0.1", "safetensors==0.8.0"];

/// Where the Python is; `bin/python3` runs it.
pub fn python() -> PathBuf {
    paths::kept().join("python")
}

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    setup::ensure_packages(PACKAGES)?;
    let (folder, wanted) = (python(), PYTHON_PACKAGES.join("\n"));
    // Written last: without it the folder is unfinished, or of other packages.
    let stamp = folder.join("packages");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("installing Python packages: {}", PYTHON_PACKAGES.join(" "));
    run(command("/usr/bin/python3", ["-m", "venv", "--clear"]).arg(&folder)).context("making a Python environment")?;
    let mut install = command(folder.join("bin/python3"), ["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
    install.arg("--disable-pip-version-check").args(PYTHON_PACKAGES);
    run(&mut install).context("installing Python packages with pip; this needs PyPI")?;
    fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))
}
