//! Readers of every kind at once, each of which verifies every byte, while something dies under them. They are a process of their own: a page fault may
//! wait for a file's data with the lock of the whole address space held, and whoever brings the data must not need that lock.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::map::Map;
use super::{Dataset, File, mapped, patience};

/// Ways to read; with 16 readers there are two of each.
const KINDS: [&str; 8] =
    ["sequential", "random", "mapped", "direct", "kept open", "walk", "complete sequential", "complete mapped"];

/// Names the readers' process, and holds what it is to do.
const TASK: &str = "FOREBAY_TEST_READERS";

/// How long a kind of reader may take to come round.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the process is to read.
#[derive(Serialize, Deserialize)]
struct Task {
    number: usize,
    tree: PathBuf,
    /// Path and size of the files that stand complete in the cache, and of the others.
    complete: Vec<(String, u64)>,
    partial: Vec<(String, u64)>,
}

/// What it answers to each line that it is sent.
#[derive(Serialize, Deserialize)]
struct Report {
    /// How often each kind of reader has come round.
    rounds: [u64; KINDS.len()],
    /// Milliseconds that the longest single call took, by kind.
    longest: [u64; KINDS.len()],
    failures: Vec<String>,
}

impl Report {
    /// How often the laziest kind has come round. No failure may have been seen.
    fn rounds(&self) -> u64 {
        assert!(self.failures.is_empty(), "{} failures, the first: {}", self.failures.len(), self.failures[0]);
        *self.rounds.iter().min().unwrap()
    }
}

/// A process whose threads read until they are stopped; killed when it is dropped.
pub struct Readers {
    process: Child,
    questions: ChildStdin,
    answers: mpsc::UnboundedReceiver<Report>,
}

impl Readers {
    /// So many of them, over files of which some are complete. The test file has a test `readers_process`, ignored, which calls [`run`].
    pub fn start(number: usize, tree: &Path, dataset: &Dataset, is_complete: impl Fn(&File) -> bool) -> Self {
        let (complete, partial): (Vec<_>, Vec<_>) = dataset.files.iter().partition(|file| is_complete(file));
        let named = |files: Vec<&File>| files.iter().map(|file| (file.path.clone(), file.size)).collect();
        let task = Task { number, tree: tree.to_owned(), complete: named(complete), partial: named(partial) };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["readers_process", "--exact", "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(&task).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (send, answers) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            // libtest has a word to say, too.
            for report in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                let _ = send.send(report);
            }
        });
        Self { process, questions, answers }
    }

    async fn ask(&mut self, question: &str) -> Report {
        writeln!(self.questions, "{question}").unwrap();
        let answer = tokio::time::timeout(patience(PATIENCE), self.answers.recv()).await;
        match answer {
            Ok(Some(report)) => report,
            Ok(None) => panic!("the readers' process ended"),
            Err(elapsed) => panic!("the readers don't answer: {elapsed}"),
        }
    }

    /// Waits until every kind of reader has come round again. No failure may have been seen.
    pub async fn go_on(&mut self, why: &str) {
        let (before, since) = (self.ask("rounds").await.rounds(), Instant::now());
        while self.ask("rounds").await.rounds() < before + 2 {
            assert!(since.elapsed() < patience(PATIENCE), "no progress within {PATIENCE:?}: {why}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends them; gives the longest call of all and prints those of each kind.
    pub async fn stop(mut self) -> Duration {
        let report = self.ask(STOP).await;
        report.rounds();
        for (kind, name) in KINDS.iter().enumerate() {
            eprintln!("{name}: {} rounds, longest call {} ms", report.rounds[kind], report.longest[kind]);
        }
        Duration::from_millis(*report.longest.iter().max().unwrap())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Not waited for without end: a thread in a call of a tree that nobody serves any more goes with the tree.
        for _ in 0..500 {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Asks for the end of the reading, and the last report.
const STOP: &str = "stop";

/// What the readers' process runs: called by a test of that name, which is ignored unless it is asked for.
pub fn run() {
    let Ok(task) = std::env::var(TASK) else { return };
    let Task { number, tree, complete, partial } = serde_json::from_str(&task).unwrap();
    let files = |named: Vec<(String, u64)>| named.iter().map(|(path, size)| File::new(path, *size)).collect();
    let shared = Arc::new(Shared {
        tree,
        complete: files(complete),
        partial: files(partial),
        stop: AtomicBool::new(false),
        rounds: Default::default(),
        longest: Default::default(),
        failures: Mutex::default(),
    });
    let threads = (0..number).map(|number| {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || shared.run(number))
    });
    let mut threads: Vec<_> = threads.collect();
    for question in std::io::stdin().lock().lines() {
        if question.unwrap() == STOP {
            shared.stop.store(true, Ordering::Relaxed);
            for thread in threads.drain(..) {
                thread.join().unwrap();
            }
        }
        let mut answer = serde_json::to_string(&shared.report()).unwrap();
        answer.push('\n');
        std::io::stdout().write_all(answer.as_bytes()).unwrap();
    }
}

struct Shared {
    tree: PathBuf,
    complete: Vec<File>,
    partial: Vec<File>,
    stop: AtomicBool,
    rounds: [AtomicU64; KINDS.len()],
    longest: [AtomicU64; KINDS.len()],
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn report(&self) -> Report {
        let read = |counters: &[AtomicU64; KINDS.len()]| counters.each_ref().map(|one| one.load(Ordering::Relaxed));
        Report {
            rounds: read(&self.rounds),
            longest: read(&self.longest),
            failures: self.failures.lock().unwrap().clone(),
        }
    }

    fn run(&self, number: usize) {
        let kind = number % KINDS.len();
        let mut seed = number as u64 + 1;
        let kept = [&self.partial[0], &self.complete[0]].map(|file| Kept::new(&self.tree, file));
        while !self.stop.load(Ordering::Relaxed) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if let Err(failure) = self.round(kind, seed >> 20, &kept) {
                self.failures.lock().unwrap().push(format!("{}: {failure}", KINDS[kind]));
                return;
            }
            self.rounds[kind].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Does one call, and remembers how long it took if none of its kind took longer.
    fn timed<T>(&self, kind: usize, what: &str, call: impl FnOnce() -> std::io::Result<T>) -> Result<T, String> {
        let since = Instant::now();
        let result = call();
        self.longest[kind].fetch_max(since.elapsed().as_millis() as u64, Ordering::Relaxed);
        result.map_err(|error| format!("{what}: {error}"))
    }

    fn round(&self, kind: usize, random: u64, kept: &[Kept; 2]) -> Result<(), String> {
        let files = if KINDS[kind].starts_with("complete") { &self.complete } else { &self.partial };
        let file = &files[random as usize % files.len()];
        let open = |flags: i32| {
            let path = self.tree.join(&file.path);
            self.timed(kind, "opening", || std::fs::File::options().read(true).custom_flags(flags).open(path))
        };
        match KINDS[kind] {
            "walk" => self.walk(kind),
            "kept open" => {
                let kept = &kept[(random >> 20) as usize % kept.len()];
                self.parts(kind, &kept.opened, &kept.file, random)?;
                kept.map.forget();
                forget(&kept.opened);
                self.mapped(kind, &kept.map, &kept.file, random)
            }
            "random" => self.parts(kind, &open(0)?, file, random),
            "direct" => self.parts(kind, &open(libc::O_DIRECT)?, file, random),
            "mapped" | "complete mapped" => {
                let opened = open(0)?;
                forget(&opened);
                self.mapped(kind, &mapped(&opened, file.size as usize), file, random)
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

    fn mapped(&self, kind: usize, map: &Map, file: &File, random: u64) -> Result<(), String> {
        let offset = random % file.size / 4096 * 4096;
        let length = 70_000.min(file.size - offset) as usize;
        let seen = self.timed(kind, "touching", || Ok(map[offset as usize..][..length].to_vec()))?;
        check(file, offset, &seen)
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
                let known = self.complete.iter().chain(&self.partial).find(|file| file.path == name).unwrap();
                if known.size != facts.len() {
                    return Err(format!("{name} has size {}", facts.len()));
                }
                seen += 1;
            }
        }
        if seen == self.complete.len() + self.partial.len() { Ok(()) } else { Err(format!("{seen} files")) }
    }
}

/// A file that is opened and mapped once, before anything dies.
struct Kept {
    file: File,
    opened: std::fs::File,
    map: Map,
}

impl Kept {
    fn new(tree: &Path, file: &File) -> Self {
        let opened = std::fs::File::open(tree.join(&file.path)).unwrap();
        let map = mapped(&opened, file.size as usize);
        Self { file: file.clone(), opened, map }
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
