//! Container images from Debian packages: resolves and downloads the packages' closure with apt, unpacks it into a root
//! file system of its own (maintainer scripts are not run), and makes one layer of it. The host's packages stay as they are.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::command::{command, run};
use crate::images::{ImageConfig, cached};
use crate::paths;

/// Left out of the images: nobody reads them there.
const UNUSED: &[&str] = &["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];

/// Packages, by the start of their names, that others depend on for their maintainer scripts alone.
const ONLY_FOR_SCRIPTS: &[&str] = &["dpkg", "libperl", "mailcap", "media-types", "mime-support", "perl"];

/// The image of the training pods: Python with numpy and Pillow, a shell, sha256sum.
pub fn training_image() -> Result<PathBuf> {
    let config = ImageConfig {
        name: "forebay-train:dev".into(),
        entrypoint: vec!["/usr/bin/python3".into()],
        environment: vec!["PATH=/usr/sbin:/usr/bin".into(), "LANG=C.UTF-8".into()],
    };
    let packages = ["python3-minimal", "python3-numpy", "python3-pil", "coreutils", "dash", "findutils", "grep", "sed"];
    // Compiles what training programs import, once, and shows that it can be imported.
    let check = [
        "sh",
        "-c",
        "sha256sum /bin/sh && find /tmp && python3 -c 'import numpy, numpy.linalg, PIL.Image, PIL.PngImagePlugin, hashlib, json, concurrent.futures, argparse'",
    ];
    from_packages(&config, &packages, &check)
}

/// An image with these packages and all they depend on. `check` is run in its root file system before it is packed.
pub fn from_packages(config: &ImageConfig, packages: &[&str], check: &[&str]) -> Result<PathBuf> {
    let inputs = format!("4 {config:?} {packages:?} {check:?}");
    cached(config, &inputs, |layer| {
        eprintln!("making image {} from Debian packages", config.name);
        let work = paths::kept().join("debian");
        let root = work.join("root");
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        }
        for archive in download(&work, packages)? {
            unpack(&archive, &root)?;
        }
        finish(&root)?;
        run(command("chroot", [root.as_os_str()]).args(check).env_clear().envs(variables(config)))
            .context("trying the image's programs")?;
        let mut tar = tar::Builder::new(layer);
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &root).context("packing the root file system")?;
        tar.finish()?;
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))
    })
}

fn variables(config: &ImageConfig) -> impl Iterator<Item = (&str, &str)> {
    config.environment.iter().filter_map(|variable| variable.split_once('='))
}

/// Downloads the packages and their closure, as if nothing were installed; returns the archives.
fn download(work: &Path, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let archives = work.join("archives");
    fs::create_dir_all(archives.join("partial")).with_context(|| format!("making {}", archives.display()))?;
    let nothing_installed = work.join("status");
    fs::write(&nothing_installed, "")?;
    let apt = |arguments: &[&str]| {
        let mut apt = command("apt-get", ["-qq", "--yes", "--no-install-recommends"]);
        apt.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]);
        apt.arg("-o").arg(format!("Dir::State::status={}", nothing_installed.display()));
        apt.arg("-o").arg(format!("Dir::Cache::archives={}/", archives.display()));
        apt.arg("-o").arg(format!("Dir::Cache::pkgcache={}", work.join("pkgcache.bin").display()));
        run(apt.args(arguments).args(packages))
    };
    let mut resolved = apt(&["install", "--simulate"]);
    if resolved.is_err() {
        // A machine whose package lists were never fetched, or are too old.
        run(&mut command("apt-get", ["-qq", "update"])).context("fetching Debian's package lists")?;
        resolved = apt(&["install", "--simulate"]);
    }
    let resolved = resolved.context("resolving Debian packages")?;
    apt(&["install", "--download-only"]).context("downloading Debian packages")?;
    // Lines are `Inst NAME (VERSION ...)`; the folder may hold archives of an earlier download, too.
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&resolved.stdout).lines() {
        let Some((name, rest)) = line.strip_prefix("Inst ").and_then(|line| line.split_once(" (")) else { continue };
        if ONLY_FOR_SCRIPTS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let version = rest.split_whitespace().next().unwrap_or_default().replace(':', "%3a");
        let start = format!("{name}_{version}_");
        let file =
            fs::read_dir(&archives)?.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(&start));
        match file {
            Some(file) => found.push(file.path()),
            None => bail!("apt downloaded no archive {start}*.deb to {}", archives.display()),
        }
    }
    Ok(found)
}

/// Unpacks an archive below `root`, where `/bin`, `/lib` and `/sbin` are links into `/usr` as on every Debian of today.
fn unpack(archive: &Path, root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let target = root.join("usr").join(name);
        if !target.exists() {
            fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
            symlink(Path::new("usr").join(name), root.join(name))?;
        }
    }
    // `dpkg-deb --extract` would put folders in place of those links.
    let script = r#"dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --directory "$2""#;
    run(command("sh", ["-c", script, "sh"]).arg(archive).arg(root))
        .with_context(|| format!("unpacking {}", archive.display()))?;
    Ok(())
}

/// Does what the packages' scripts would have done, as far as programs need it.
fn finish(root: &Path) -> Result<()> {
    for folder in UNUSED {
        let folder = root.join(folder);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
    }
    for folder in ["etc", "tmp", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    if !root.join("bin/sh").exists() {
        symlink("dash", root.join("bin/sh"))?;
    }
    // BLAS and LAPACK are alternatives: the library's name is a link to one of its implementations.
    for entry in fs::read_dir(root.join("usr/lib"))?.flatten() {
        for (folder, library) in [("blas", "libblas.so.3"), ("lapack", "liblapack.so.3")] {
            let link = entry.path().join(library);
            if entry.path().join(folder).join(library).exists() && !link.exists() {
                symlink(Path::new(folder).join(library), link)?;
            }
        }
    }
    Ok(())
}
