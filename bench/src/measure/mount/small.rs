//! Many small complete files, and the attributes of known paths.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Compared, MODES, client};
use crate::cluster::content::content;
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What, folder_source};
use crate::report::Unit;

pub const NAME: &str = "small";
pub const HOW: &str = "\
`forebay mount` of 2,000 files of 64 KiB and 20,000 of 4 KiB in folders of 100, preloaded. One thread opens, reads and closes each of the former, cold (the kernel's caches are
dropped before each run) and repeated; one thread asks for the attributes of the latter, cold. The limit is the same in the source folder, whose dentries are never cold.";

const FILES: u64 = 2_000;
const FILE_BYTES: usize = 64 << 10;
const TINY_FILES: u64 = 20_000;
const TINY_BYTES: usize = 4 << 10;
const PER_FOLDER: u64 = 100;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let source = context.folder.part("source")?;
    for (name, count, bytes) in [("small", FILES, FILE_BYTES), ("tiny", TINY_FILES, TINY_BYTES)] {
        for (number, path) in (0..count).zip(paths(source.path(), name, count)) {
            std::fs::create_dir_all(path.parent().unwrap_or(source.path()))?;
            std::fs::write(path, content(number, bytes))?;
        }
    }
    let mut rows = Vec::new();
    for mode in MODES {
        let from = folder_source(source.path());
        let what = What::preloaded(&from, mode.options);
        let mounted = Mounted::start(&context.programs, context.folder.part("mount")?, what).await?;
        let both = |name, count| (paths(&mounted.tree(), name, count), paths(source.path(), name, count));
        let (small, tiny) = (both("small", FILES), both("tiny", TINY_FILES));
        for (what, cold, required) in [("cold", true, mode.small_cold), ("repeated", false, mode.small_repeated)] {
            let compared = Compared {
                what: format!("{}: open, read, close 64 KiB, {what}", mode.name),
                unit: Unit::ObjectsPerSecond,
                required,
                cold,
                paths: (&small.0, &small.1),
            };
            rows.push(compared.row(context, client::open_read_close).await?);
        }
        let compared = Compared {
            what: format!("{}: stat of known paths, cold", mode.name),
            unit: Unit::ObjectsPerSecond,
            required: mode.stat,
            cold: true,
            paths: (&tiny.0, &tiny.1),
        };
        rows.push(compared.row(context, client::stat).await?);
    }
    Ok(Outcome::Rows(rows))
}

fn paths(root: &Path, name: &str, count: u64) -> Vec<PathBuf> {
    (0..count).map(|number| root.join(format!("{name}/{:03}/{number:06}", number / PER_FOLDER))).collect()
}
