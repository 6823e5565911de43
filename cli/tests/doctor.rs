//! `forebay doctor` on this machine, as its user has it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use support::program::{Background, Mode, forebay, mount};
use support::s3::{KEY_ID, S3, SECRET};
use support::{Scratch, can_mount, can_mount_in, mounts_below};

/// Exit status and what was printed.
fn doctor(command: &mut Command) -> (i32, String) {
    let output = command.arg("doctor").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The line about something, blanks made one.
fn line(said: &str, about: &str) -> String {
    let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut lines = lines.filter(|line| line.split_once(' ').is_some_and(|(_, rest)| rest.starts_with(about)));
    lines.next().unwrap_or_else(|| panic!("no line about {about}:\n{said}"))
}

#[test]
fn a_machine_that_can_mount_is_told_so_and_nothing_stays_mounted() {
    if !can_mount_in(Mode("kernel")) {
        return;
    }
    let scratch = Scratch::in_memory();
    let mut command = forebay();
    command.env("TMPDIR", scratch.path());
    let output = command.arg("doctor").arg("--cache-dir").arg(scratch.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for (about, found) in [
        ("kernel", "ok kernel Linux"),
        ("data-only layers", "ok"),
        ("erofs", "ok"),
        ("overlay", "ok"),
        ("fuse", "ok"),
        ("/dev/fuse", "ok"),
        ("mount mode", "ok mount mode Kernel, because the kernel has all that it needs"),
        ("cache folder", "ok"),
    ] {
        assert!(line(&said, about).starts_with(found), "{said}");
    }
    assert!(line(&said, "cache folder").contains("tmpfs"), "{said}");
    assert_eq!(mounts_below(&scratch.path()), Vec::<std::path::PathBuf>::new());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn the_mode_that_is_chosen_is_told_and_why() {
    if !can_mount() {
        return;
    }
    let (_, said) = doctor(&mut forebay());
    let mode = line(&said, "mount mode");
    let why = forebay_csi::mode::Wanted::Auto.choose().unwrap().to_string();
    assert!(mode.contains(&format!("mount mode {why}")), "{said}");
}

#[test]
fn a_mount_is_shown_and_one_whose_process_is_gone_is_a_failure() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::in_memory();
    let server = S3::start(&scratch.folder("s3"));
    server.make_bucket("things");
    server.upload("things", &[("a", b"content".to_vec())]);
    let manifest = format!(
        "{{apiVersion: forebay.dev/v1alpha1, kind: Dataset, metadata: {{name: a}}, spec: {{mounts: [{{path: /, sources: [{{url: 's3://things/', endpoint: '{}'}}]}}]}}}}",
        server.endpoint()
    );
    let manifest = scratch.file("dataset.yaml", manifest);
    let tree = scratch.folder("tree");
    let mut command = mount(Mode("fuse"), &manifest, &tree, &scratch.path().join("cache"));
    command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
    assert!(command.output().unwrap().status.success());
    let process = Background::at(&tree);
    let about = format!("mount {}", tree.display());
    let (_, said) = doctor(&mut forebay());
    assert!(line(&said, &about).ends_with(&format!("mode Fuse, served by process {}", process.0)), "{said}");
    process.kill();
    let (code, said) = doctor(&mut forebay());
    assert_eq!(code, 1, "{said}");
    let dead = line(&said, &about);
    assert!(dead.starts_with("missing") && dead.contains("next: `forebay umount"), "{said}");
    assert!(forebay().arg("umount").arg(&tree).status().unwrap().success());
}

#[test]
fn what_is_missing_is_said_with_exit_status_1() {
    let mut command = forebay();
    let output = command.args(["doctor", "--cache-dir", "/nowhere/at/all"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        line(&said, "cache folder"),
        "missing cache folder /nowhere/at/all: No such file or directory (os error 2); next: `mkdir -p /nowhere/at/all`"
    );
}

#[test]
fn another_user_than_root_sees_what_there_is_to_see() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return;
    }
    let scratch = Scratch::in_memory();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = scratch.path().join("forebay");
    std::fs::copy(env!("CARGO_BIN_EXE_forebay"), &program).unwrap();
    let (_, said) = doctor(Command::new(&program).uid(65534).gid(65534));
    assert!(line(&said, "user").starts_with("note user not root"), "{said}");
    assert!(line(&said, "kernel").starts_with("ok"), "{said}");
}
