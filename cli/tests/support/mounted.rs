//! Trees of files for the tests of what readers see: a folder is the source, `forebay mount` shows it, once with everything complete in the
//! cache and once with nothing there yet.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{Foreground, Mode, mount};
use super::{Scratch, can_mount, wait_for, why_not};

/// The modes that readers must find alike.
pub const MODES: [Mode; 2] = [Mode("kernel"), Mode("fuse")];

/// A mounted tree, and the folder that it shows.
pub struct Mounted {
    /// Where it is mounted.
    pub tree: PathBuf,
    /// The same files on an ordinary file system.
    pub source: PathBuf,
    /// Nothing was in the cache when it was mounted.
    pub cold: bool,
    process: Option<Foreground>,
    scratch: Scratch,
    manifest: PathBuf,
    mode: Mode,
}

/// Has `fill` make the files, and runs `check` on each mount of them: in each mode that the kernel has, complete and cold.
pub fn on_each_mount(fill: impl Fn(&Path), check: impl Fn(&mut Mounted)) {
    on_each_mount_of("", fill, check);
}

/// The same with more lines in the Dataset's `spec`.
pub fn on_each_mount_of(spec: &str, fill: impl Fn(&Path), check: impl Fn(&mut Mounted)) {
    if !can_mount() {
        return;
    }
    for mode in MODES {
        if let Err(missing) = why_not(mode) {
            println!("not in mode {}: {missing}", mode.0);
            continue;
        }
        for cold in [false, true] {
            let mut mounted = Mounted::new(mode, cold, spec, &fill);
            println!("mode {}, {}", mode.0, if cold { "cold" } else { "complete" });
            check(&mut mounted);
        }
    }
}

impl Mounted {
    fn new(mode: Mode, cold: bool, spec: &str, fill: &impl Fn(&Path)) -> Self {
        let scratch = Scratch::in_memory();
        let (source, tree) = (scratch.folder("source"), scratch.folder("tree"));
        fill(&source);
        let preload = if cold { "" } else { "  preload: {}\n" };
        let text = format!(
            "apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {{name: files}}
spec:
{preload}{spec}  mounts: [{{path: /, sources: [{{url: 'file://{}/'}}]}}]
",
            source.display()
        );
        let manifest = scratch.file("dataset.yaml", text);
        let mut mounted = Self { tree, source, cold, process: None, scratch, manifest, mode };
        mounted.mount();
        mounted
    }

    fn mount(&mut self) {
        let mut command = mount(self.mode, &self.manifest, &self.tree, &self.scratch.path().join("cache"));
        let process = Foreground::start(&mut command, &self.scratch);
        if !self.cold {
            wait_for("the preload", Duration::from_secs(60), || process.said().contains("preload complete"));
        }
        self.process = Some(process);
    }

    /// Unmounts, and mounts anew over the same cache.
    pub fn remount(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(rustix::process::Signal::INT);
        assert!(process.wait().success(), "{}", process.said());
        self.mount();
    }

    /// A path in the tree.
    pub fn path(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.tree.join(OsStr::from_bytes(name.as_ref()))
    }

    /// A folder outside of the tree.
    pub fn outside(&self) -> PathBuf {
        self.scratch.folder("outside")
    }
}

/// Makes a file and the folders above it.
pub fn write(root: &Path, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
    let path = root.join(OsStr::from_bytes(name.as_ref()));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
}
