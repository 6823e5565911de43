//! What the kernel has, and in which mode it mounts.

use forebay_csi::mode::{Mode, Wanted};
use forebay_csi::mount::{self, kernel};
use forebay_fuse::handshake::Agreed;

use super::finding::Finding;

/// Oldest kernel whose FUSE has what we use (protocol 7.31).
const OLDEST: kernel::Version = kernel::Version(5, 4);

/// User, kernel, file systems, FUSE, and the mode that follows.
pub fn examine(wanted: Wanted) -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let version = kernel::version();
    let mut findings = vec![user(root), release(version), data_only_layers(version)];
    findings.extend(["erofs", "overlay", "fuse"].map(filesystem));
    findings.push(device());
    findings.push(loop_devices(version));
    if root {
        findings.push(passthrough(&handshake()));
    } else {
        findings.push(Finding::note("passthrough", "only root can try it", "run the command with sudo"));
    }
    findings.push(mode(wanted));
    findings
}

fn user(root: bool) -> Finding {
    if root {
        Finding::ok("user", "root: may mount")
    } else {
        Finding::note("user", "not root: may not mount, and sees less here", "run the command with sudo")
    }
}

fn release(kernel::Version(major, minor): kernel::Version) -> Finding {
    let says = format!("Linux {major}.{minor}");
    if kernel::Version(major, minor) < OLDEST {
        let next = format!("use Linux {}.{} or newer", OLDEST.0, OLDEST.1);
        return Finding::missing("kernel", says, next);
    }
    Finding::ok("kernel", says)
}

fn data_only_layers(version: kernel::Version) -> Finding {
    match kernel::missing_by_version(version).first() {
        None => Finding::ok("data-only layers", "overlayfs has them"),
        Some(missing) => {
            Finding::note("data-only layers", missing.to_string(), "nothing, if mount mode Fuse is fast enough")
        }
    }
}

fn filesystem(name: &'static str) -> Finding {
    match kernel::missing_filesystem(name) {
        None => Finding::ok(name, "the kernel has it"),
        Some(_) if name == "fuse" => Finding::missing(
            name,
            "the kernel has no such file system",
            "`modprobe fuse`, or a kernel with CONFIG_FUSE_FS",
        ),
        Some(_) => {
            let next = format!("`modprobe {name}`; without it the mount mode is Fuse");
            Finding::note(name, "the kernel has no such file system", next)
        }
    }
}

fn device() -> Finding {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => Finding::ok("/dev/fuse", "can be opened"),
        Err(error) => {
            let next = "`modprobe fuse`; in a container mount the host's /dev/fuse";
            Finding::missing("/dev/fuse", format!("can't be opened: {error}"), next)
        }
    }
}

fn loop_devices(version: kernel::Version) -> Finding {
    if std::path::Path::new("/dev/loop-control").exists() {
        Finding::ok("loop devices", "there, for catalogs of a cache in memory")
    } else if version >= kernel::Version(6, 12) {
        let next = "keep the cache on a disk, or `modprobe loop`";
        Finding::note("loop devices", "none: mode Kernel can't mount catalogs of a cache in memory", next)
    } else {
        Finding::note("loop devices", "none: mode Kernel needs them before Linux 6.12", "`modprobe loop`")
    }
}

/// What kernel and server agree on, found out with a mount of a moment.
fn handshake() -> anyhow::Result<Agreed> {
    let point = std::env::temp_dir().join(format!("forebay-doctor-{}", std::process::id()));
    mount::make_mount_point(&point)?;
    let mounted = mount::fuse::mount(mount::fuse::SOURCE, &point).map(|mounted| mounted.agreed);
    mount::unmount_and_remove(&point)?;
    Ok(mounted?)
}

fn passthrough(agreed: &anyhow::Result<Agreed>) -> Finding {
    const ABOUT: &str = "passthrough";
    match agreed {
        Ok(Agreed { passthrough: true, .. }) => {
            Finding::ok(ABOUT, "FUSE has it; what is complete is read without a daemon, once it is open")
        }
        Ok(_) => {
            let says = "FUSE has it not: in mode Fuse the daemon copies every byte that is read";
            Finding::note(ABOUT, says, "use a kernel with CONFIG_FUSE_PASSTHROUGH (Linux 6.9 or newer)")
        }
        Err(error) => {
            Finding::missing(ABOUT, format!("a FUSE mount fails: {error:#}"), "see the lines above, and `dmesg`")
        }
    }
}

fn mode(wanted: Wanted) -> Finding {
    const ABOUT: &str = "mount mode";
    match wanted.choose() {
        Ok(chosen) if chosen.mode == Mode::Kernel || wanted == Wanted::Fuse => Finding::ok(ABOUT, chosen.to_string()),
        Ok(chosen) => Finding::note(ABOUT, chosen.to_string(), "mend what is missing above, if it is not fast enough"),
        Err(missing) => Finding::missing(ABOUT, format!("none: {missing}"), "mend what is missing above"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn an_old_kernel_works_with_less_and_a_very_old_one_does_not() {
        assert_eq!(release(kernel::Version(5, 3)).level, Level::Missing);
        assert_eq!(release(kernel::Version(5, 15)).level, Level::Ok);
        let layers = data_only_layers(kernel::Version(5, 15));
        assert_eq!(layers.level, Level::Note);
        assert!(layers.says.contains("needs Linux 6.8"), "{layers:?}");
        let without = Agreed { kernel_minor: 31, passthrough: false, resend: false };
        assert_eq!(passthrough(&Ok(without)).level, Level::Note);
        assert_eq!(passthrough(&Err(anyhow::anyhow!("refused"))).level, Level::Missing);
    }
}
