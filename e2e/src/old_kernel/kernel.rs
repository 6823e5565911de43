//! The kernel: from Debian's package, unpacked into a folder of ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::command::{command, run, text};
use crate::paths;

/// Names the package of the current version.
const META_PACKAGE: &str = "linux-image-amd64";

/// What the machine needs, in this order, with what each needs before it.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "virtio-rng", "fuse", "overlay", "erofs", "loop"];

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says.
    pub version: String,
    /// What boots.
    pub image: PathBuf,
    /// Modules in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
    /// Where it is unpacked.
    pub folder: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks it, unless it is there.
    pub fn ensure() -> Result<Self> {
        let package = if let Ok(package) = current_package() {
            package
        } else {
            // A machine whose package lists were never fetched.
            run(&mut command("apt-get", ["-qq", "update"])).context("fetching Debian's package lists")?;
            current_package()?
        };
        let version = package.trim_start_matches("linux-image-").to_owned();
        let folder = paths::kept().join("old-kernel").join(&version);
        let image = folder.join(format!("boot/vmlinuz-{version}"));
        if !image.exists() {
            unpack(&package, &folder).with_context(|| format!("fetching {package}"))?;
        }
        let modules = modules(&folder, &version)?;
        Ok(Self { version, image, modules, folder })
    }
}

fn current_package() -> Result<String> {
    let depends = text(&mut command("apt-cache", ["depends", "--important", META_PACKAGE]))?;
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut versioned = names.filter(|name| name.starts_with("linux-image-"));
    versioned.next().map(str::to_owned).with_context(|| format!("apt knows no kernel by {META_PACKAGE}"))
}

fn unpack(package: &str, folder: &Path) -> Result<()> {
    eprintln!("fetching {package}");
    let work = folder.with_extension("new");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let mut download = command("apt-get", ["-qq", "-o", "APT::Sandbox::User=root", "download", package]);
    if run(download.current_dir(&work)).is_err() {
        // The lists are older than the archive.
        run(&mut command("apt-get", ["-qq", "update"])).context("fetching Debian's package lists")?;
        run(&mut download)?;
    }
    let Some(archive) = fs::read_dir(&work)?.flatten().map(|entry| entry.path()).next() else {
        bail!("apt-get download has left no archive in {}", work.display());
    };
    run(command("dpkg-deb", ["--extract"]).arg(&archive).arg(&work))?;
    fs::remove_file(archive)?;
    let version = package.trim_start_matches("linux-image-");
    run(command("/sbin/depmod", ["-b"]).arg(&work).arg(version)).context("finding what the modules need")?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&work, folder).with_context(|| format!("naming {}", folder.display()))
}

/// The modules and all that they need, each once.
fn modules(folder: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut modprobe = command("/sbin/modprobe", ["-S", version, "--show-depends", module, "-d"]);
        let lines = text(modprobe.arg(folder)).with_context(|| format!("finding module {module}"))?;
        // `insmod PATH`, or `builtin NAME`.
        let paths = lines.lines().filter_map(|line| line.trim().strip_prefix("insmod ")).map(PathBuf::from);
        for path in paths {
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
