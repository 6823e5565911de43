//! What the machine starts with: the modules it needs to see this machine's files, and a script that goes over to them.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{BEGIN, END, Kernel, plain, quote};
use crate::command::{command, run};

const BUSYBOX: &str = "/bin/busybox";

/// Folders that hold nothing of this machine there.
const EMPTY: &[&str] = &["/tmp", "/run", "/dev/shm", "/var/tmp", "/mnt"];

/// Makes it anew, which takes no time.
pub fn make(kernel: &Kernel, written: &[&Path]) -> Result<PathBuf> {
    let root = kernel.folder.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for folder in ["bin", "modules", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("making {}", root.display()))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("copying busybox")?;
    for (number, module) in kernel.modules.iter().enumerate() {
        fs::copy(module, root.join(format!("modules/{number:02}.ko")))
            .with_context(|| format!("copying {}", module.display()))?;
    }
    let empty = EMPTY.iter().map(|folder| Ok((*folder).to_owned()));
    let written = written.iter().map(|folder| plain(folder));
    let empty = empty.chain(written).collect::<Result<Vec<_>>>()?;
    let init = root.join("init");
    fs::write(&init, script(&empty))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = kernel.folder.join("initramfs.cpio");
    let pack = format!("find . | {BUSYBOX} cpio -o -H newc > {}", quote(&image.display().to_string()));
    run(command("sh", ["-c", &pack]).current_dir(&root)).context("packing the initramfs")?;
    Ok(image)
}

/// The first process. The script runs as its child, since the first process of a machine may not end.
fn script(empty: &[String]) -> String {
    let mut text = format!(
        "#!{BUSYBOX} sh
set -e
b={BUSYBOX}
for module in /modules/*; do $b insmod $module; done
$b mount -t proc proc /proc
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /root
$b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev
$b mkdir -p /root/dev/shm /root/dev/pts
$b mount -t devpts pts /root/dev/pts
$b mount -t cgroup2 cgroup /root/sys/fs/cgroup
"
    );
    for folder in empty {
        let _ = writeln!(text, "$b mount -t tmpfs -o mode=1777 tmpfs /root{folder}");
    }
    let _ = write!(
        text,
        "script=$($b sed 's/.*forebay.script=\\([^ ]*\\).*/\\1/' /proc/cmdline)
$b mount -t proc proc /root/proc
$b ip link set lo up
$b umount /proc
exec $b switch_root /root /bin/sh -c '
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
mount --make-rshared /
echo {}
sh \"$0\" 2>&1
echo {}
echo o > /proc/sysrq-trigger
while :; do sleep 1; done
' $script
",
        quoted_inside(BEGIN),
        quoted_inside(END)
    );
    text
}

/// For a word of a script that is quoted itself.
fn quoted_inside(word: &str) -> String {
    format!("\"{}\"", word.replace('\'', "'\\''"))
}
