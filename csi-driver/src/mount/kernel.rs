//! What the kernel must have for our mounts, found out before the first is tried, so that a node that lacks it says so in words.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};

/// Kernel version `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// Overlay layers that hold only data, given one by one (`datadir+`): 6.5 and 6.8.
const DATA_ONLY_LAYERS: Version = Version(6, 8);

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingFeature {
    /// A file system is not in the kernel.
    #[error("this node's kernel has no file system {0}: load the module or choose another kernel (CONFIG_{upper}_FS)", upper = .0.to_uppercase())]
    FileSystem(&'static str),
    /// The kernel is too old.
    #[error("this node's kernel {found}.{found_minor} is too old: {feature} needs Linux {needed}.{needed_minor} or newer",
        found = .found.0, found_minor = .found.1, needed = .needed.0, needed_minor = .needed.1)]
    Version {
        /// What needs it.
        feature: &'static str,
        /// The oldest that has it.
        needed: Version,
        /// What is running.
        found: Version,
    },
    /// No access to the FUSE device.
    #[error("/dev/fuse can't be opened ({0}): load the fuse module, and mount the host's /dev in the container")]
    Fuse(String),
}

/// The running kernel's version.
pub fn version() -> Version {
    // Always there; an unreadable one counts as too old, and the error shows 0.0.
    parse_version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
}

fn parse_version(release: &str) -> Version {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    Version(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Everything that is missing for mode Kernel; empty on a node that can mount so.
pub fn missing_features() -> Vec<MissingFeature> {
    let mut missing = missing_by_version(version());
    missing.extend(["erofs", "overlay"].into_iter().filter_map(missing_filesystem));
    missing.extend(missing_for_fuse());
    missing
}

/// Everything that is missing for mode Fuse.
pub fn missing_for_fuse() -> Vec<MissingFeature> {
    let mut missing: Vec<_> = missing_filesystem("fuse").into_iter().collect();
    if let Err(error) = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        missing.push(MissingFeature::Fuse(error.to_string()));
    }
    missing
}

/// The file system, if the kernel does not have it.
pub fn missing_filesystem(filesystem: &'static str) -> Option<MissingFeature> {
    // Opening a context loads the module.
    let missing = matches!(fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC), Err(Errno::NODEV));
    missing.then_some(MissingFeature::FileSystem(filesystem))
}

/// What kernels of this version lack for mode Kernel.
pub fn missing_by_version(found: Version) -> Vec<MissingFeature> {
    let needed = [("overlayfs with data-only layers", DATA_ONLY_LAYERS)];
    let missing = needed.into_iter().filter(|(_, needed)| found < *needed);
    missing.map(|(feature, needed)| MissingFeature::Version { feature, needed, found }).collect()
}

/// An error that names what is missing for mode Kernel.
pub fn check() -> Result<(), MissingFeature> {
    missing_features().into_iter().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        assert_eq!(parse_version("6.18.44-fc-v595"), Version(6, 18));
        assert_eq!(parse_version("5.15.0-91-generic"), Version(5, 15));
        assert!(missing_by_version(Version(6, 8)).is_empty());
        let missing = missing_by_version(Version(5, 15));
        assert!(missing[0].to_string().contains("overlayfs with data-only layers needs Linux 6.8"), "{}", missing[0]);
    }
}
