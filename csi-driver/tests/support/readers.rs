//! Readers of every kind at once, each of which verifies every byte, while something dies under them.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use super::{Dataset, File, mapped};

/// Ways to read; with 16 readers there are two of each.
const KINDS: [&str; 8] =
    ["sequential", "random", "mapped", "direct", "kept open", "walk", "complete sequential", "complete mapped"];

/// Threads that read until they are stopped.
pub struct Readers {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    tree: PathBuf,
    dataset: Arc<Dataset>,
    /// Files that stand complete in the cache.
    complete: Vec<File>,
    partial: Vec<File>,
    stop: AtomicBool,
    reads: [AtomicU64; KINDS.len()],
    /// Milliseconds that the longest single call took, by kind.
    longest: [AtomicU64; KINDS.len()],
    failures: Mutex<Vec<String>>,
}

impl Readers {
    /// So many of them, over files of which some are complete.
    pub fn start(number: usize, tree: &Path, dataset: &Arc<Dataset>, is_complete: impl Fn(&File) -> bool) -> Self {
        let (complete, partial) = dataset.files.iter().cloned().partition(is_complete);
        let shared = Arc::new(Shared {
            tree: tree.to_owned(),
            dataset: Arc::clone(dataset),
            complete,
            partial,
            stop: AtomicBool::new(false),
            reads: Default::default(),
            longest: Default::default(),
            failures: Mutex::default(),
        });
        let threads = (0..number).map(|number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.run(number))
        });
        Self { threads: threads.collect(), shared }
    }

    /// How often the laziest kind of reader has come round.
    pub fn rounds(&self) -> u64 {
        self.shared.reads.iter().map(|reads| reads.load(Ordering::Relaxed)).min().unwrap()
    }

    /// Waits until every kind of reader has come round again. No failure may have been seen.
    pub async fn go_on(&self, why: &str) {
        let (before, since) = (self.rounds(), Instant::now());
        while self.rounds() < before + 2 {
            self.assert_no_failure();
            assert!(since.elapsed() < Duration::from_secs(30), "no progress within 30 s: {why}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn assert_no_failure(&self) {
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
    }

    /// Ends them; gives the longest call of all and prints those of each kind.
    pub fn stop(mut self) -> Duration {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.assert_no_failure();
        for (kind, name) in KINDS.iter().enumerate() {
            let (reads, longest) = (&self.shared.reads[kind], &self.shared.longest[kind]);
            eprintln!(
                "{name}: {} rounds, longest call {} ms",
                reads.load(Ordering::Relaxed),
                longest.load(Ordering::Relaxed)
            );
        }
        let longest = self.shared.longest.iter().map(|longest| longest.load(Ordering::Relaxed)).max();
        Duration::from_millis(longest.unwrap())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn run(&self, number: usize) {
        let kind = number % KINDS.len();
        let mut seed = number as u64 + 1;
        let kept = std::fs::File::open(self.tree.join(&self.partial[0].path)).unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if let Err(failure) = self.round(kind, seed >> 20, &kept) {
                self.failures.lock().unwrap().push(format!("{}: {failure}", KINDS[kind]));
                return;
            }
            self.reads[kind].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Does one call, and remembers how long it took if none of its kind took longer.
    fn timed<T>(&self, kind: usize, what: &str, call: impl FnOnce() -> std::io::Result<T>) -> Result<T, String> {
        let since = Instant::now();
        let result = call();
        self.longest[kind].fetch_max(since.elapsed().as_millis() as u64, Ordering::Relaxed);
        result.map_err(|error| format!("{what}: {error}"))
    }

    fn round(&self, kind: usize, random: u64, kept: &std::fs::File) -> Result<(), String> {
        let files = if KINDS[kind].starts_with("complete") { &self.complete } else { &self.partial };
        let file = &files[random as usize % files.len()];
        let open = |flags: i32| {
            let path = self.tree.join(&file.path);
            self.timed(kind, "opening", || std::fs::File::options().read(true).custom_flags(flags).open(path))
        };
        match KINDS[kind] {
            "walk" => self.walk(kind),
            "kept open" => self.parts(kind, kept, &self.partial[0], random),
            "random" => self.parts(kind, &open(0)?, file, random),
            "direct" => self.parts(kind, &open(libc::O_DIRECT)?, file, random),
            "mapped" | "complete mapped" => {
                let opened = open(0)?;
                forget(&opened);
                let map = mapped(&opened, file.size as usize);
                let offset = random % file.size / 4096 * 4096;
                let length = 70_000.min(file.size - offset) as usize;
                let seen = self.timed(kind, "touching", || Ok(map[offset as usize..][..length].to_vec()))?;
                check(file, offset, &seen)
            }
            _ => {
                let opened = open(0)?;
                forget(&opened);
                let mut offset = 0;
                while offset < file.size {
                    let mut buffer = vec![0; (128 << 10).min(file.size - offset) as usize];
                    self.timed(kind, "reading", || opened.read_exact_at(&mut buffer, offset))?;
                    check(file, offset, &buffer)?;
                    offset += buffer.len() as u64;
                }
                Ok(())
            }
        }
    }

    fn parts(&self, kind: usize, opened: &std::fs::File, file: &File, random: u64) -> Result<(), String> {
        for part in 0..4_u32 {
            let offset = random.rotate_left(part * 7) % file.size / 4096 * 4096;
            let mut buffer = vec![0; 100_000.min(file.size - offset) as usize];
            forget(opened);
            self.timed(kind, "reading", || opened.read_exact_at(&mut buffer, offset))?;
            check(file, offset, &buffer)?;
        }
        Ok(())
    }

    fn walk(&self, kind: usize) -> Result<(), String> {
        let (mut folders, mut seen) = (vec![self.tree.clone()], 0);
        while let Some(folder) = folders.pop() {
            for entry in self.timed(kind, "listing", || std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>())? {
                let path = entry.path();
                let facts = self.timed(kind, "stat", || std::fs::metadata(&path))?;
                if facts.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(&self.tree).unwrap().to_str().unwrap();
                if self.dataset.file(name).size != facts.len() {
                    return Err(format!("{name} has size {}", facts.len()));
                }
                seen += 1;
            }
        }
        if seen == self.dataset.files.len() { Ok(()) } else { Err(format!("{seen} files")) }
    }
}

/// Has the next read of it reach who serves it.
fn forget(file: &std::fs::File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

fn check(file: &File, offset: u64, seen: &[u8]) -> Result<(), String> {
    if *seen == file.bytes(offset, seen.len())[..] {
        Ok(())
    } else {
        Err(format!("wrong bytes in {} at {offset}", file.path))
    }
}
