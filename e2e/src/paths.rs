//! Where things are: the checkout, what is built for the tests (kept), and a cluster's run folder (gone with the cluster).

use std::path::{Path, PathBuf};

/// The root of the checkout that this program was built from.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// What is built or fetched for the tests and kept between runs.
pub fn kept() -> PathBuf {
    target().join("e2e")
}

/// The Go programs: `forebay-cluster`, `helm`, `pause`, `csi-sanity`, `versitygw`.
pub fn bin() -> PathBuf {
    kept().join("bin")
}

/// Image archives.
pub fn images() -> PathBuf {
    kept().join("images")
}
