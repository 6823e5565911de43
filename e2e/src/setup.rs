//! Puts in place what a cluster needs beside Rust and Go: Debian packages, and the Go programs in `target/e2e/bin`.
//! When everything is there already, it finds so in a fraction of a second and touches neither network nor disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::command::{command, output, run_shown, text};
use crate::paths;

/// The Debian packages a cluster runs on.
pub const CLUSTER_PACKAGES: &[&str] = &[
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "iptables",
    "mount",
    "runc",
    "util-linux",
];

/// The Kubernetes version that `e2e/cluster/go.mod` pins.
pub const KUBERNETES_VERSION: &str = "v1.34.4";

const VERSITYGW: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";

/// Makes sure that everything a cluster needs is there; says on standard error what it does when it takes time.
pub fn ensure() -> Result<()> {
    ensure_packages(CLUSTER_PACKAGES)?;
    ensure_programs()
}

/// Installs the Debian packages that are missing.
pub fn ensure_packages(packages: &[&str]) -> Result<()> {
    let missing = missing_packages(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        let mut apt = command("apt-get", ["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"]);
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        // No service of a package shall start on the host: containerd runs inside the nodes only.
        apt.env("RUNLEVEL", "1").stdout(std::io::stderr());
        run_shown(&mut apt)
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(missing.iter().map(String::as_str));
    apt(&install).context("installing Debian packages; this needs root on Debian 12 or later")?;
    let missing = missing_packages(packages)?;
    if !missing.is_empty() {
        bail!("apt-get succeeded, yet these packages are not installed: {}", missing.join(" "));
    }
    Ok(())
}

fn missing_packages(packages: &[&str]) -> Result<Vec<String>> {
    let mut query = command("dpkg-query", ["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    // The status is 1 when a package is unknown; the others are listed all the same.
    let listed =
        output(query.args(packages)).context("looking for Debian packages; only Debian and its like will do")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let installed: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(packages.iter().filter(|package| !installed.contains(**package)).map(|package| (*package).to_owned()).collect())
}

/// Builds the Go programs that are missing or older than their sources.
pub fn ensure_programs() -> Result<()> {
    let bin = paths::bin();
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    // Two builds of the same at once would only be slower.
    let lock = File::create(bin.join(".lock"))?;
    lock.lock().context("waiting for another build of the Go programs")?;

    let source = paths::repository().join("e2e/cluster");
    let sources = hash_tree(&source)?;
    let ldflags = ldflags();
    // Helm comes from the same module, so that it shares the client libraries that are compiled already.
    build(
        &["forebay-cluster", "helm"],
        &format!("{sources} {ldflags}"),
        "the cluster's components (minutes the first time)",
        || {
            let mut go = go(&source, ["build", "-trimpath", "-ldflags", &ldflags, "-o"]);
            run_shown(go.arg(format!("{}/", bin.display())).args([".", "helm.sh/helm/v3/cmd/helm"]))?;
            fs::rename(bin.join("cluster"), bin.join("forebay-cluster")).context("naming the built program")
        },
    )?;
    build(&["pause"], &sources, "pause", || {
        let mut go = go(&source, ["build", "-trimpath", "-ldflags", "-s -w", "-o"]);
        run_shown(go.arg(bin.join("pause")).arg("./pause"))
    })?;
    let source = paths::repository().join("e2e/sanity");
    build(&["csi-sanity"], &hash_tree(&source)?, "the CSI conformance suite", || {
        let mut go = go(&source, ["build", "-trimpath", "-ldflags", "-s -w", "-o"]);
        run_shown(go.arg(bin.join("csi-sanity")).arg("."))
    })?;
    build(&["versitygw"], VERSITYGW, "the S3 server", || {
        let mut go = go(&source, ["install", "-trimpath", "-ldflags", "-s -w", VERSITYGW]);
        run_shown(go.current_dir("/").env("GOBIN", &bin))
    })
}

fn ldflags() -> String {
    let package = "k8s.io/component-base/version";
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    format!(
        "-s -w -X {package}.gitVersion={KUBERNETES_VERSION} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

fn go<const N: usize>(folder: &Path, arguments: [&str; N]) -> std::process::Command {
    let mut go = command("go", arguments);
    // Static programs: they run in images that hold nothing else, and no C compiler is needed.
    go.current_dir(folder).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
    go
}

/// Runs `make` unless `programs` are there, made from the same `inputs`.
fn build(programs: &[&str], inputs: &str, title: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let bin = paths::bin();
    let stamp = bin.join(format!(".{}.stamp", programs[0]));
    let complete = programs.iter().all(|program| bin.join(program).exists());
    if complete && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == inputs) {
        return Ok(());
    }
    let version = text(&mut command("go", ["version"]))
        .context("Go is needed to build the test cluster: install Go 1.24 or later")?;
    eprintln!("building {title} with {version}");
    make().with_context(|| format!("building {title}"))?;
    fs::write(&stamp, inputs).with_context(|| format!("writing {}", stamp.display()))
}

/// A hash over the names and contents of all files below a folder.
pub fn hash_tree(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    list_files(folder, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        hash.update(file.strip_prefix(folder).unwrap_or(file).as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

fn list_files(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
