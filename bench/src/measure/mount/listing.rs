//! A large folder, as `ls -l` reads it.

use anyhow::Result;

use super::{Compared, MODES, client};
use crate::measure::{Context, Outcome};
use crate::mounted::{Mounted, What, folder_source};
use crate::report::{Required, Unit};

pub const NAME: &str = "listing";
pub const HOW: &str = "\
`forebay mount` of one folder of 100,000 files; one thread reads the folder and asks for each entry's attributes as it comes, with the kernel's caches dropped before each run, and
repeated. The limit is the same in the source folder, whose dentries are never cold.";

const ENTRIES: usize = 100_000;

pub async fn measure(context: &Context) -> Result<Outcome> {
    let source = context.folder.part("source")?;
    let folder = source.path().join("images");
    std::fs::create_dir(&folder)?;
    for number in 0..ENTRIES {
        std::fs::write(folder.join(format!("{number:08}.jpg")), "x")?;
    }
    let mut rows = Vec::new();
    for mode in MODES {
        let from = folder_source(source.path());
        let what = What::cold(&from, mode.options);
        let mounted = Mounted::start(&context.programs, context.folder.part("mount")?, what).await?;
        for (what, cold, required) in [("cold", true, mode.listing), ("repeated", false, Required::Nothing)] {
            let compared = Compared {
                what: format!("{}: scandir and stat of 100,000 entries, {what}", mode.name),
                unit: Unit::Seconds,
                required,
                cold,
                paths: (&[mounted.tree().join("images")], std::slice::from_ref(&folder)),
            };
            rows.push(compared.row(context, |folders| client::list(&folders[0], ENTRIES)).await?);
        }
    }
    Ok(Outcome::Rows(rows))
}
