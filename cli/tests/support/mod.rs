//! What the mount tests share: a scratch folder whose mounts go away with it, an S3 server, the program, and sha256 of trees. All of it ends
//! when it is dropped, also when a test fails.

#![allow(dead_code)]

pub mod mounted;
pub mod program;
pub mod s3;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_csi::mode::Wanted;
use forebay_csi::mount::kernel::MissingFeature;
use forebay_csi::mount::mountinfo;
use forebay_e2e::content;
use forebay_e2e::skipped::kernel_lacks;
use program::Mode;
use sha2::{Digest as _, Sha256};

/// Whether the tests can run here, in the mode that is chosen by itself; says why not.
pub fn can_mount() -> bool {
    can_mount_in(Mode("auto"))
}

/// Whether the tests can run here in a mode; says why not.
pub fn can_mount_in(mode: Mode) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return false;
    }
    if let Err(missing) = why_not(mode) {
        kernel_lacks(missing);
        return false;
    }
    if !s3::program().exists() {
        eprintln!("skipped: {} is not there: `cargo xtask test` builds it", s3::program().display());
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return false;
    }
    true
}

/// What the kernel lacks for a mode.
pub fn why_not(mode: Mode) -> Result<(), MissingFeature> {
    let wanted = [Wanted::Auto, Wanted::Kernel, Wanted::Fuse].into_iter().find(|wanted| wanted.argument() == mode.0);
    wanted.unwrap().choose().map(drop)
}

/// Defines a test for each mount mode of an `fn(Mode)`, named after it with the mode behind.
#[macro_export]
macro_rules! in_both_modes {
    ($($test:ident)*) => { $( mod $test {
        use $crate::support::{can_mount_in, program::Mode};
        #[test]
        fn mode_kernel() {
            if can_mount_in(Mode("kernel")) {
                super::$test(Mode("kernel"));
            }
        }
        #[test]
        fn mode_fuse() {
            if can_mount_in(Mode("fuse")) {
                super::$test(Mode("fuse"));
            }
        }
    } )* };
}

/// A folder in memory or on disk. Mounts below it are taken away when it is dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn in_memory() -> Self {
        Self(tempfile::Builder::new().prefix("forebay-cli-test-").tempdir_in("/dev/shm").unwrap())
    }

    pub fn on_disk() -> Self {
        Self(tempfile::Builder::new().prefix("cli-test-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in mounts_below(&self.path()).iter().rev() {
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(mount, flags);
        }
    }
}

/// Mount points at and below a folder, lower ones first.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let all = mountinfo::mounts().unwrap().into_iter().map(|mount| mount.mount_point);
    all.filter(|path| path.starts_with(folder)).collect()
}

/// Loop devices whose backing file is below a folder.
pub fn loop_devices_of(folder: &Path) -> Vec<PathBuf> {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
    devices
        .filter(|device| {
            let backing = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim()).starts_with(folder)
        })
        .collect()
}

/// Waits for a condition.
pub fn wait_for(what: &str, patience: Duration, condition: impl FnMut() -> bool) {
    let mut condition = condition;
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a file holds, from a seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    content::bytes(seed, 0, length)
}

/// sha256 of every file by its path below `root`; folders have none.
pub fn digests(root: &Path) -> BTreeMap<PathBuf, Option<String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.insert(name, None);
                folders.push(path);
            } else {
                let mut file = std::fs::File::open(&path).unwrap();
                let mut hasher = Sha256::new();
                std::io::copy(&mut file, &mut hasher).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                found.insert(name, Some(hex(&hasher.finalize())));
            }
        }
    }
    found
}

/// sha256 of content.
pub fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
