//! Faults of a disk, made in the cache folder of a node that is down.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use forebay_protocol::layout::CacheLayout;

use crate::cluster::content::Random;

/// What is wrong, with a number that picks files and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Some bytes of some files are others.
    Flipped(u64),
    /// Some files are shorter.
    Cut(u64),
    /// Some files are gone.
    Missing(u64),
}

impl Damage {
    /// One of them, or none in half of the cases.
    pub fn random(random: &mut Random) -> Option<Self> {
        let seed = random.next();
        match random.below(6) {
            0 => Some(Self::Flipped(seed)),
            1 => Some(Self::Cut(seed)),
            2 => Some(Self::Missing(seed)),
            _ => None,
        }
    }

    /// For the tally.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Flipped(_) => "flipped bytes",
            Self::Cut(_) => "cut files",
            Self::Missing(_) => "missing files",
        }
    }
}

/// Does it to a quarter of the cached files.
pub fn inflict(layout: &CacheLayout, damage: Damage) -> Result<()> {
    let mut files = Vec::new();
    for folder in [layout.objects(), layout.partial()] {
        list(&folder, &mut files).with_context(|| format!("looking for files below {}", folder.display()))?;
    }
    files.sort();
    let (Damage::Flipped(seed) | Damage::Cut(seed) | Damage::Missing(seed)) = damage;
    let mut random = Random::new(seed);
    for path in files {
        if random.below(4) == 0 {
            inflict_on(&path, damage, &mut random).with_context(|| format!("damaging {}", path.display()))?;
        }
    }
    Ok(())
}

fn inflict_on(path: &Path, damage: Damage, random: &mut Random) -> std::io::Result<()> {
    // Complete objects are read-only; root may all the same.
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let length = fs::metadata(path)?.len();
    let place = random.next() % length.max(1);
    match damage {
        Damage::Flipped(_) if length > 0 => {
            let file = open()?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, place)?;
            file.write_all_at(&[!byte[0]], place)
        }
        Damage::Flipped(_) => Ok(()),
        Damage::Cut(_) => open()?.set_len(place),
        Damage::Missing(_) => fs::remove_file(path),
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { list(&entry.path(), files)? } else { files.push(entry.path()) }
    }
    Ok(())
}
