//! The machine that figures are of.

use std::path::Path;

use anyhow::Result;
use forebay_e2e::command::{command, text};
use serde::{Deserialize, Serialize};

/// What is needed to judge a figure, or to measure it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// As the processor calls itself.
    pub processor: String,
    /// Logical processors that we may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Version of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Result<Self> {
        let processors = std::fs::read_to_string("/proc/cpuinfo")?;
        let processor = field(&processors, "model name").or_else(|| field(&processors, "CPU part"));
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let kib = field(&memory, "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        Ok(Self {
            processor: processor.unwrap_or("unknown processor").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: kib.unwrap_or_default() << 10,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next()
}

/// The commit that is checked out, with a plus sign when there are changes beside it.
pub fn commit(repository: &Path) -> String {
    let git = |arguments: &[&str]| text(command("git", arguments).current_dir(repository)).ok();
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    // The pages of figures themselves change with every run.
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks*.md"]);
    if changed.is_some_and(|changed| !changed.is_empty()) { format!("{commit}+") } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_memory_and_a_kernel() {
        let machine = Machine::this().unwrap();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 28 && machine.kernel.contains('.'), "{machine:?}");
    }

    #[test]
    fn the_first_field_of_a_name_counts() {
        assert_eq!(field("a\t: 1\nmodel name\t: X 5\nmodel name\t: Y", "model name"), Some("X 5"));
        assert_eq!(field("a: 1", "b"), None);
    }
}
