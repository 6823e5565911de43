//! What is refused, and with which error.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::support::mounted::{on_each_mount, on_each_mount_of, write};

fn fill(root: &Path) {
    write(root, "file", "content");
    write(root, "folder/inner", "more");
}

#[track_caller]
fn refused<T>(result: io::Result<T>, errno: Errno, what: &str) {
    let found = result.map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(found, Err(Some(errno.raw_os_error())), "{what}: expected {errno}");
}

#[test]
fn what_would_change_the_tree_is_refused_with_erofs() {
    on_each_mount(fill, |mounted| {
        let [file, folder, new] = ["file", "folder", "new"].map(|name| mounted.path(name));
        let rofs = |result: io::Result<()>, what: &str| refused(result, Errno::ROFS, what);
        let open = |options: &mut OpenOptions| options.open(&file).map(drop);
        rofs(open(OpenOptions::new().write(true)), "O_WRONLY");
        rofs(open(OpenOptions::new().read(true).write(true)), "O_RDWR");
        rofs(open(OpenOptions::new().append(true)), "O_APPEND");
        rofs(open(OpenOptions::new().write(true).truncate(true)), "O_TRUNC");
        rofs(File::create(&new).map(drop), "creat");
        rofs(OpenOptions::new().write(true).create_new(true).open(&new).map(drop), "O_EXCL");
        let unnamed = rustix::fs::open(&folder, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
        rofs(unnamed.map(drop).map_err(io::Error::from), "O_TMPFILE");
        rofs(fs::create_dir(&new), "mkdir");
        rofs(rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RUSR, 0).map_err(io::Error::from), "mknod");
        rofs(symlink("file", &new), "symlink");
        rofs(fs::hard_link(&file, &new), "link");
        rofs(fs::remove_file(&file), "unlink");
        rofs(fs::remove_dir(mounted.path("folder")), "rmdir");
        rofs(fs::rename(&file, &new), "rename");
        rofs(fs::rename(&file, mounted.path("folder/inner")), "rename over a file");
        rofs(fs::set_permissions(&file, Permissions::from_mode(0o600)), "chmod");
        rofs(std::os::unix::fs::chown(&file, Some(1), Some(1)), "chown");
        rofs(nix::unistd::truncate(&file, 0).map_err(io::Error::from), "truncate");
        let now = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: now, last_modification: now };
        rofs(rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty()).map_err(io::Error::from), "utimensat");
        let set = rustix::fs::setxattr(&file, "user.mine", b"1", XattrFlags::empty());
        rofs(set.map_err(io::Error::from), "setxattr");
        rofs(rustix::fs::removexattr(&file, "user.forebay.etag").map_err(io::Error::from), "removexattr");

        let opened = File::open(&file).unwrap();
        rofs(opened.set_permissions(Permissions::from_mode(0o600)), "fchmod");
        refused(opened.write_at(b"x", 0), Errno::BADF, "pwrite to what is open for reading");
        refused(opened.set_len(0), Errno::INVAL, "ftruncate of what is open for reading");
        let allocated = rustix::fs::fallocate(&opened, FallocateFlags::empty(), 0, 1);
        refused(allocated.map_err(io::Error::from), Errno::BADF, "fallocate of what is open for reading");
        opened.sync_all().unwrap();

        assert_eq!(fs::read(&file).unwrap(), b"content", "and all is as before");
        assert!(!new.exists());
    });
}

#[test]
fn a_path_that_leads_nowhere_says_why() {
    on_each_mount(fill, |mounted| {
        let long = "n".repeat(256);
        refused(File::open(mounted.path("missing")), Errno::NOENT, "no such file");
        refused(File::open(mounted.path("missing/inner")), Errno::NOENT, "no such folder");
        refused(File::open(mounted.path("folder/missing")), Errno::NOENT, "no such file in a folder");
        // The second time the kernel may know it by itself.
        refused(fs::metadata(mounted.path("folder/missing")), Errno::NOENT, "no such file, again");
        refused(fs::metadata(mounted.path("file/inner")), Errno::NOTDIR, "a file is no folder");
        refused(fs::metadata(mounted.path("file/")), Errno::NOTDIR, "a slash behind a file");
        refused(fs::read_dir(mounted.path("file")), Errno::NOTDIR, "listing a file");
        refused(fs::metadata(mounted.path(&long)), Errno::NAMETOOLONG, "256 bytes");
        refused(File::open(mounted.path(format!("folder/{long}"))), Errno::NAMETOOLONG, "256 bytes in a folder");
        refused(fs::metadata(mounted.path("folder/".repeat(700))), Errno::NAMETOOLONG, "a path over 4096 bytes");
        refused(fs::read(mounted.path("folder")), Errno::ISDIR, "reading a folder");
        refused(OpenOptions::new().write(true).open(mounted.path("folder")), Errno::ISDIR, "writing a folder");
        refused(fs::read_link(mounted.path("file")), Errno::INVAL, "a file is no link");
        refused(fs::create_dir(mounted.path("folder")), Errno::EXIST, "mkdir of what is there");
        let folder = rustix::fs::open(mounted.path("file"), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty());
        refused(folder.map_err(io::Error::from), Errno::NOTDIR, "O_DIRECTORY of a file");
        refused(fs::hard_link(mounted.path("file"), mounted.outside().join("x")), Errno::XDEV, "link out of it");
        refused(fs::rename(mounted.path("file"), mounted.outside().join("x")), Errno::XDEV, "rename out of it");
    });
}

#[test]
fn links_in_the_source_are_not_in_the_tree_and_links_to_the_tree_are_followed() {
    let with_links = |root: &Path| {
        fill(root);
        symlink("file", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
    };
    on_each_mount(with_links, |mounted| {
        for name in ["link", "loop"] {
            refused(fs::symlink_metadata(mounted.path(name)), Errno::NOENT, name);
        }
        let outside = mounted.outside();
        symlink(mounted.path("file"), outside.join("good")).unwrap();
        assert_eq!(fs::read(outside.join("good")).unwrap(), b"content");
        let not_followed = rustix::fs::open(outside.join("good"), OFlags::NOFOLLOW | OFlags::RDONLY, Mode::empty());
        refused(not_followed.map_err(io::Error::from), Errno::LOOP, "O_NOFOLLOW");
        symlink(outside.join("a"), outside.join("b")).unwrap();
        symlink(outside.join("b").join("../tree"), outside.join("a")).unwrap();
        refused(File::open(outside.join("a")), Errno::LOOP, "links in a circle");
    });
}

#[test]
fn modes_and_owner_decide_who_reads() {
    let spec = "  access: {uid: 1234, gid: 4321, fileMode: '0440', dirMode: '0555'}\n";
    on_each_mount_of(spec, fill, |mounted| {
        fs::set_permissions(mounted.tree.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        for (uid, gid, may) in [(1234, 1, true), (1, 4321, true), (1, 1, false)] {
            let mut cat = Command::new("cat");
            let output = cat.arg(mounted.path("folder/inner")).uid(uid).gid(gid).env("LC_ALL", "C").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), may, "{uid}:{gid}: {said}");
            assert_eq!(output.stdout, if may { &b"more"[..] } else { b"" });
            assert_eq!(said.contains("Permission denied"), !may, "{said}");
        }
    });
}
