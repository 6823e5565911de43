//! Forebay's processes and mounts on this machine. Reads /proc only, so it can't hang on a mount that does.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use forebay_csi::mount::{fuse, mountinfo};

use super::finding::Finding;
use crate::mounted::{self, Mounted};

/// Our programs, as `/proc/PID/comm` has their names.
const PROGRAMS: [&str; 4] = ["forebay", "forebay-csi", "forebay-fuse", "forebay-node"];

/// What the mount table shows as the source of a Kubernetes volume's overlay, before UID and catalog.
const VOLUME_PREFIX: &str = "forebay-";

/// Processes, then mounts, a line each.
pub fn examine() -> anyhow::Result<Vec<Finding>> {
    let mounts = mountinfo::mounts().context("reading /proc/self/mountinfo")?;
    let programs = running();
    let mut findings = vec![processes(&programs)];
    findings.extend(mounts.into_iter().filter_map(|mount| examine_mount(mount, &programs)));
    Ok(findings)
}

/// How many processes there are of each of our programs, besides this one.
fn running() -> BTreeMap<String, usize> {
    let mut programs = BTreeMap::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return programs };
    let own = std::process::id().to_string();
    for process in processes.flatten().filter(|process| process.file_name() != own.as_str()) {
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if PROGRAMS.contains(&name.trim()) {
            *programs.entry(name.trim().to_owned()).or_default() += 1;
        }
    }
    programs
}

fn processes(programs: &BTreeMap<String, usize>) -> Finding {
    let names: Vec<String> = programs.iter().map(|(name, count)| format!("{count} {name}")).collect();
    Finding::ok("processes", if names.is_empty() { "none of ours".to_owned() } else { names.join(", ") })
}

fn examine_mount(mount: mountinfo::Mount, programs: &BTreeMap<String, usize>) -> Option<Finding> {
    const ABOUT: &str = "mount";
    let at = mount.mount_point.display().to_string();
    let mode = if mount.filesystem == fuse::FILESYSTEM { "Fuse" } else { "Kernel" };
    let of_a_node = is_of_a_node(&mount);
    if let Some(mounted) = mounted::of(mount) {
        return Some(examine_own(&at, mode, &mounted));
    }
    if !of_a_node {
        return None;
    }
    Some(if programs.contains_key("forebay-fuse") {
        Finding::ok(ABOUT, format!("{at}, mode {mode}"))
    } else {
        let says = format!("{at}, mode {mode}, whose forebay-fuse does not run here");
        Finding::missing(
            ABOUT,
            says,
            "`kubectl -n forebay get pods -o wide`; in a container run this in the host's PID namespace",
        )
    })
}

/// Whether it is a volume or the object FUSE of a Kubernetes node.
fn is_of_a_node(mount: &mountinfo::Mount) -> bool {
    match mount.filesystem.as_str() {
        "overlay" => mount.source.starts_with(VOLUME_PREFIX),
        fuse::FILESYSTEM => mount.source == fuse::SOURCE && mount.root != Path::new("/"),
        _ => false,
    }
}

fn examine_own(at: &str, mode: &str, mounted: &Mounted) -> Finding {
    const ABOUT: &str = "mount";
    let pid = mounted.pid.as_raw_pid();
    if mounted.is_served() {
        Finding::ok(ABOUT, format!("{at}, mode {mode}, served by process {pid}"))
    } else {
        let says = format!("{at}, mode {mode}, of process {pid}, which is gone");
        Finding::missing(ABOUT, says, format!("`forebay umount {at}`, then mount it anew"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn mount(filesystem: &str, source: &str, root: &str) -> mountinfo::Mount {
        mountinfo::Mount {
            device: (0, 1),
            root: root.into(),
            mount_point: "/mnt/data".into(),
            filesystem: filesystem.into(),
            source: source.into(),
        }
    }

    #[test]
    fn mounts_of_ours_are_told_with_mode_and_whether_they_are_served() {
        let running = BTreeMap::from([("forebay-fuse".to_owned(), 2)]);
        let level = |filesystem: &str, source: &str, root: &str, running: &BTreeMap<String, usize>| {
            examine_mount(mount(filesystem, source, root), running).map(|finding| (finding.level, finding.says))
        };
        let found = level("overlay", "forebay-uid-catalog", "/", &running).unwrap();
        assert_eq!(found, (Level::Ok, "/mnt/data, mode Kernel".to_owned()));
        let found = level("fuse.forebay", "forebay-objects", "/tree-3", &running).unwrap();
        assert_eq!(found, (Level::Ok, "/mnt/data, mode Fuse".to_owned()));
        let dead = level("fuse.forebay", "forebay-objects", "/tree-3", &BTreeMap::new()).unwrap();
        assert_eq!(dead.0, Level::Missing);
        let gone = level("overlay", "forebay:2147483647", "/", &running).unwrap();
        assert_eq!(gone.0, Level::Missing);
        for (filesystem, source, root) in
            [("overlay", "overlay", "/"), ("ext4", "/dev/sda1", "/"), ("fuse.forebay", "forebay-objects", "/")]
        {
            assert_eq!(level(filesystem, source, root, &running), None, "{filesystem} {source}");
        }
    }

    #[test]
    fn processes_are_counted_by_program() {
        let programs = BTreeMap::from([("forebay-csi".to_owned(), 1), ("forebay-fuse".to_owned(), 2)]);
        assert_eq!(processes(&programs).says, "1 forebay-csi, 2 forebay-fuse");
        assert_eq!(processes(&BTreeMap::new()).says, "none of ours");
    }
}
