//! The reader whose speed is measured: plain system calls from compiled loops, the same for a mounted tree and for the files themselves.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags};

use crate::cluster::content::Random;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Reads the first `length` bytes of each file, each in a thread of its own, `passes` times, 1 MiB at a time; bytes a second of all.
pub fn sequential(files: &[PathBuf], length: u64, passes: usize, direct: bool) -> Result<f64> {
    let read = |path: &PathBuf| {
        let flags = if direct { rustix::fs::OFlags::DIRECT.bits() as i32 } else { 0 };
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let mut memory = vec![1_u8; MIB + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let buffer = memory.get_mut(start..start + MIB).context("no aligned memory")?;
        for _ in 0..passes {
            let mut offset = 0;
            while offset < length {
                let read = file.read_at(buffer, offset)?;
                ensure!(read > 0, "{} ends at {offset}", path.display());
                offset += read as u64;
            }
        }
        Ok(())
    };
    let seconds = in_threads(files.len(), |job| files.get(job).map_or(Ok(()), read))?;
    Ok(length as f64 * (passes * files.len()) as f64 / seconds)
}

/// Reads `count` random pages of the first `length` bytes in each of `jobs` threads; pages a second of all.
pub fn random(path: &Path, length: u64, jobs: usize, count: usize) -> Result<f64> {
    let pages = length as usize / PAGE;
    let seconds = in_threads(jobs, |job| {
        let file = File::open(path)?;
        let (mut random, mut buffer) = (Random::new(job as u64), [0; PAGE]);
        for _ in 0..count {
            file.read_exact_at(&mut buffer, (random.below(pages) * PAGE) as u64)?;
        }
        Ok(())
    })?;
    Ok((jobs * count) as f64 / seconds)
}

/// Touches `count` random pages of a mapping of the first `length` bytes; pages a second.
pub fn mapped(path: &Path, length: u64, count: usize) -> Result<f64> {
    let file = File::open(path)?;
    let (length, null) = (length as usize, std::ptr::null_mut());
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start = unsafe { rustix::mm::mmap(null, length, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
    let mut random = Random::new(1);
    let mut sum = 0_u64;
    let began = Instant::now();
    for _ in 0..count {
        let offset = random.below(length / PAGE) * PAGE;
        // SAFETY: below `length`, of a file that nobody cuts.
        sum += u64::from(unsafe { start.cast::<u8>().add(offset).read_volatile() });
    }
    let seconds = began.elapsed().as_secs_f64();
    // SAFETY: our mapping, which nobody refers to any more.
    unsafe { rustix::mm::munmap(start, length) }?;
    ensure!(sum > 0, "{} is all zeros", path.display());
    Ok(count as f64 / seconds)
}

/// Opens, reads whole and closes each file; files a second.
pub fn open_read_close(files: &[PathBuf]) -> Result<f64> {
    let mut buffer = vec![0; MIB];
    let began = Instant::now();
    for path in files {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? == buffer.len() {}
    }
    Ok(files.len() as f64 / began.elapsed().as_secs_f64())
}

/// Opens a file, reads a page of it and closes it, `count` times.
pub fn cycles(path: &Path, length: u64, count: usize) -> Result<()> {
    let (mut random, mut buffer) = (Random::new(2), [0; PAGE]);
    for _ in 0..count {
        File::open(path)?.read_exact_at(&mut buffer, (random.below(length as usize / PAGE) * PAGE) as u64)?;
    }
    Ok(())
}

/// Asks for the attributes of each path; paths a second.
pub fn stat(files: &[PathBuf]) -> Result<f64> {
    let began = Instant::now();
    for path in files {
        std::fs::symlink_metadata(path)?;
    }
    Ok(files.len() as f64 / began.elapsed().as_secs_f64())
}

/// Lists a folder and asks for the attributes of each entry as it comes; seconds.
pub fn list(folder: &Path, expected: usize) -> Result<f64> {
    let began = Instant::now();
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        entry?.metadata()?;
        count += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    ensure!(count == expected, "{} has {count} entries instead of {expected}", folder.display());
    Ok(seconds)
}

/// Runs `jobs` threads at once; seconds until the last has ended.
fn in_threads(jobs: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..jobs).map(|job| scope.spawn(move || work(job))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(began.elapsed().as_secs_f64())
}
