//! `forebay mount` and `forebay umount` as their user has them: real processes, a real S3 server, real mounts.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::program::{Background, Foreground, Mode, forebay, mount, run};
use support::s3::{KEY_ID, S3, SECRET};
use support::{Scratch, bytes, digest, digests, loop_devices_of, mounts_below};

in_both_modes! {
    everything_reads_right_and_the_cache_outlives_mount_and_server_in_memory
    everything_reads_right_and_the_cache_outlives_mount_and_server_on_disk
    a_mount_in_the_background_is_ready_when_the_command_returns_and_ends_with_umount
    a_mount_whose_process_was_killed_is_cleared_by_umount
    a_signal_while_the_tree_is_in_use_waits_and_a_second_one_does_not
    a_preload_shows_its_progress_and_needs_the_source_no_more
    a_source_that_refuses_or_is_away_is_said_with_exit_status_1
    the_environment_s_credentials_are_used_where_the_manifest_names_no_secret
}

/// A Dataset of a bucket and a folder, and the Secret of the bucket.
fn manifest(endpoint: &str, bucket: &str, folder: Option<&Path>) -> String {
    let local = folder.map_or_else(String::new, |folder| {
        format!("  - path: /local/files\n    sources: [{{url: 'file://{}/'}}]\n", folder.display())
    });
    format!(
        "apiVersion: forebay.dev/v1alpha1
kind: Dataset
metadata: {{name: everything, namespace: training}}
spec:
  runtimeRef: {{name: pool}}
  mounts:
  - path: /bucket
    sources: [{{url: 's3://{bucket}/data/', endpoint: '{endpoint}', secretRef: {{name: cloud}}}}]
{local}---
apiVersion: v1
kind: Secret
metadata: {{name: cloud}}
stringData: {{AWS_ACCESS_KEY_ID: {KEY_ID}, AWS_SECRET_ACCESS_KEY: {SECRET}}}
"
    )
}

/// A server with a bucket of a few small files.
fn small_server(scratch: &Scratch) -> S3 {
    let server = S3::start(&scratch.folder("s3"));
    server.make_bucket("things");
    let objects: Vec<_> =
        (0..20_u64).map(|n| (format!("data/small/{n:02}.bin"), bytes(n, 5000 + n as usize))).collect();
    let objects: Vec<_> = objects.iter().map(|(key, content)| (key.as_str(), content.clone())).collect();
    server.upload("things", &objects);
    server
}

/// What is left of a mount that has ended: nothing.
fn assert_nothing_is_left(scratch: &Scratch) {
    assert_eq!(mounts_below(&scratch.path()), Vec::<PathBuf>::new());
    // The kernel detaches a loop device a moment after its last user has gone.
    support::wait_for("loop devices let go", Duration::from_secs(5), || loop_devices_of(&scratch.path()).is_empty());
}

fn everything_reads_right_and_the_cache_outlives_mount_and_server(mode: Mode, scratch: &Scratch) {
    let mut server = S3::start(&scratch.folder("s3"));
    server.make_bucket("things");
    let objects = [
        ("data/large/300M.bin", bytes(1, 300_000_001)),
        ("data/empty", Vec::new()),
        ("data/größe/日本語 mit Leerzeichen.txt", bytes(2, 70_000)),
        ("data/a/b/c/d/deep", bytes(3, 4 << 20)),
        ("data/one-more", bytes(4, (4 << 20) + 1)),
        ("elsewhere/not-in-the-tree", bytes(5, 10)),
    ];
    server.upload("things", &objects);
    let folder = scratch.folder("local");
    scratch.file("local/sub/ä.bin", bytes(6, 123_456));
    scratch.file("local/empty", "");
    scratch.folder("local/empty folder");
    let mut expected: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (key, content) in &objects {
        if let Some(name) = key.strip_prefix("data/") {
            expected.insert(Path::new("bucket").join(name), digest(content));
        }
    }
    expected.insert("local/files/sub/ä.bin".into(), digest(&bytes(6, 123_456)));
    expected.insert("local/files/empty".into(), digest(b""));

    let manifest = scratch.file("dataset.yaml", manifest(&server.endpoint(), "things", Some(&folder)));
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    for round in ["cold", "warm, with the server gone"] {
        let began = Instant::now();
        let mut process = Foreground::start(&mut mount(mode, &manifest, &tree, &cache), scratch);
        let mounted = began.elapsed();
        assert_eq!(mounts_below(&scratch.path()), vec![tree.clone()], "{round}: exactly one mount");
        let began = Instant::now();
        let read = digests(&tree);
        println!("{round}: mounted in {mounted:?}, all read in {:?}", began.elapsed());
        let files: BTreeMap<_, _> = read.iter().filter_map(|(path, sum)| Some((path.clone(), sum.clone()?))).collect();
        assert_eq!(files, expected, "{round}");
        assert!(read.contains_key(Path::new("local/files/empty folder")), "{round}");
        assert_eq!(tree.join("bucket/empty").metadata().unwrap().permissions().mode() & 0o777, 0o444);
        assert!(File::create(tree.join("new")).is_err(), "the tree is read-only");
        process.signal(Signal::INT);
        assert!(process.wait().success(), "{round}: {}", process.said());
        assert_nothing_is_left(scratch);
        server.stop();
    }
}

fn everything_reads_right_and_the_cache_outlives_mount_and_server_in_memory(mode: Mode) {
    everything_reads_right_and_the_cache_outlives_mount_and_server(mode, &Scratch::in_memory());
}

fn everything_reads_right_and_the_cache_outlives_mount_and_server_on_disk(mode: Mode) {
    everything_reads_right_and_the_cache_outlives_mount_and_server(mode, &Scratch::on_disk());
}

fn a_mount_in_the_background_is_ready_when_the_command_returns_and_ends_with_umount(mode: Mode) {
    let scratch = Scratch::in_memory();
    let server = small_server(&scratch);
    let manifest = scratch.file("dataset.yaml", manifest(&server.endpoint(), "things", None));
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    let (code, said) = run(&mut mount(mode, &manifest, &tree, &cache));
    assert_eq!(code, 0, "{said}");
    let process = Background::at(&tree);
    assert!(said.contains("training/everything is mounted at") && said.contains("20 files"), "{said}");
    assert!(said.to_lowercase().contains(&format!("mount mode {}, because --mount-mode says so", mode.0)), "{said}");
    assert_eq!(std::fs::read(tree.join("bucket/small/07.bin")).unwrap(), bytes(7, 5007));

    // Neither the command line nor the log shows the secret.
    let command_line = std::fs::read(format!("/proc/{}/cmdline", process.0)).unwrap();
    let log = std::fs::read(cache.join("mount.log")).unwrap();
    for shown in [command_line, log, said.into_bytes()] {
        assert!(!String::from_utf8_lossy(&shown).contains(SECRET));
    }

    let (code, said) = run(&mut mount(mode, &manifest, &tree, &scratch.path().join("other-cache")));
    assert_eq!(code, 1);
    assert!(said.contains("already has a Dataset") && said.contains("forebay umount"), "{said}");
    let (code, said) = run(&mut mount(mode, &manifest, &scratch.folder("other"), &cache));
    assert_eq!(code, 1);
    assert!(said.contains(&format!("in use by process {}", process.0)), "{said}");

    let open = File::open(tree.join("bucket/small/01.bin")).unwrap();
    let (code, said) = run(forebay().arg("umount").arg(&tree));
    assert_eq!(code, 1);
    assert!(said.contains("is in use by") && said.contains(&format!("({})", std::process::id())), "{said}");
    drop(open);
    let (code, said) = run(forebay().arg("umount").arg(&tree));
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(!process.is_running());
    assert_nothing_is_left(&scratch);

    let (code, said) = run(forebay().arg("umount").arg(&tree));
    assert_eq!(code, 1);
    assert!(said.contains("nothing is mounted at"), "{said}");
    let (_, said) = run(forebay().arg("umount").arg("/proc"));
    assert!(said.contains("which `forebay mount` did not make"), "{said}");
}

fn a_mount_whose_process_was_killed_is_cleared_by_umount(mode: Mode) {
    let scratch = Scratch::in_memory();
    let server = small_server(&scratch);
    let manifest = scratch.file("dataset.yaml", manifest(&server.endpoint(), "things", None));
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    let (code, said) = run(&mut mount(mode, &manifest, &tree, &cache));
    assert_eq!(code, 0, "{said}");
    let process = Background::at(&tree);
    process.kill();
    assert_eq!(mounts_below(&scratch.path()), vec![tree.clone()]);
    let (code, said) = run(&mut mount(mode, &manifest, &tree, &cache));
    assert_eq!(code, 1);
    assert!(said.contains("which is gone") && said.contains("forebay umount"), "{said}");
    let (code, said) = run(forebay().arg("umount").arg(&tree));
    assert_eq!(code, 0, "{said}");
    assert_nothing_is_left(&scratch);
    // And the cache is as good as before.
    let mut again = Foreground::start(&mut mount(mode, &manifest, &tree, &cache), &scratch);
    assert_eq!(std::fs::read(tree.join("bucket/small/03.bin")).unwrap(), bytes(3, 5003));
    again.signal(Signal::TERM);
    assert!(again.wait().success());
}

fn a_signal_while_the_tree_is_in_use_waits_and_a_second_one_does_not(mode: Mode) {
    let scratch = Scratch::in_memory();
    let server = small_server(&scratch);
    let manifest = scratch.file("dataset.yaml", manifest(&server.endpoint(), "things", None));
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    for signals in [1, 2] {
        let mut process = Foreground::start(&mut mount(mode, &manifest, &tree, &cache), &scratch);
        let open = File::open(tree.join("bucket/small/01.bin")).unwrap();
        process.signal(Signal::INT);
        support::wait_for("the name of who uses it", Duration::from_secs(10), || {
            process.said().contains(&format!("({})", std::process::id()))
        });
        if signals == 2 {
            process.signal(Signal::INT);
            assert!(process.wait().success());
        }
        drop(open);
        if signals == 1 {
            assert!(process.wait().success(), "{}", process.said());
        }
        assert_nothing_is_left(&scratch);
    }
}

fn a_preload_shows_its_progress_and_needs_the_source_no_more(mode: Mode) {
    let scratch = Scratch::in_memory();
    let mut server = small_server(&scratch);
    let text = manifest(&server.endpoint(), "things", None).replace("spec:\n", "spec:\n  preload: {}\n");
    let manifest = scratch.file("dataset.yaml", text);
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    let mut process = Foreground::start(&mut mount(mode, &manifest, &tree, &cache), &scratch);
    support::wait_for("the preload", Duration::from_secs(20), || {
        process.said().contains("preload complete: 20 of 20 files")
    });
    server.stop();
    for (n, file) in (0..20).map(|n| (n, tree.join(format!("bucket/small/{n:02}.bin")))) {
        assert_eq!(std::fs::read(file).unwrap(), bytes(n, 5000 + n as usize));
    }
    process.signal(Signal::INT);
    assert!(process.wait().success());
}

fn a_source_that_refuses_or_is_away_is_said_with_exit_status_1(mode: Mode) {
    let scratch = Scratch::in_memory();
    let server = small_server(&scratch);
    let good = manifest(&server.endpoint(), "things", None);
    let cases = [
        ("wrong-key", good.replace(SECRET, "wrong-secret-never-shown"), "AccessDenied"),
        ("no-bucket", good.replace("s3://things/", "s3://no-such-bucket/"), "BucketNotFound"),
        ("no-server", good.replace(&server.endpoint(), "http://127.0.0.1:9"), "EndpointUnreachable"),
    ];
    for (name, text, reason) in cases {
        let manifest = scratch.file(&format!("{name}.yaml"), text);
        for foreground in [false, true] {
            let mut command = mount(mode, &manifest, &scratch.folder("tree"), &scratch.path().join(name));
            if foreground {
                command.arg("--foreground");
            }
            let began = Instant::now();
            let (code, said) = run(&mut command);
            println!("{name}: {said}");
            assert_eq!(code, 1, "{name}: {said}");
            assert!(said.contains(reason) && !said.contains("never-shown"), "{name}: {said}");
            assert!(began.elapsed() < Duration::from_secs(15), "{name}: {:?}", began.elapsed());
            assert_nothing_is_left(&scratch);
        }
    }
}

fn the_environment_s_credentials_are_used_where_the_manifest_names_no_secret(mode: Mode) {
    let scratch = Scratch::in_memory();
    let server = small_server(&scratch);
    let text = manifest(&server.endpoint(), "things", None).replace(", secretRef: {name: cloud}", "");
    let manifest = scratch.file("dataset.yaml", text.split_once("---").unwrap().0);
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    let mut command = mount(mode, &manifest, &tree, &cache);
    let (code, said) = run(command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET));
    assert_eq!(code, 0, "{said}");
    let _process = Background::at(&tree);
    assert_eq!(std::fs::read(tree.join("bucket/small/03.bin")).unwrap(), bytes(3, 5003));
    let (code, said) = run(forebay().arg("umount").arg(&tree));
    assert_eq!(code, 0, "{said}");
}

#[test]
fn what_can_not_be_mounted_is_refused_before_anything_starts() {
    let scratch = Scratch::on_disk();
    let (tree, cache) = (scratch.folder("tree"), scratch.path().join("cache"));
    let good = manifest("http://127.0.0.1:9", "things", None);
    let cases = [
        ("unknown field", good.replace("mounts:", "mountz: []\n  mounts:"), "unknown field spec.mountz"),
        ("missing Secret", good.split_once("---").unwrap().0.to_owned(), "Secret training/cloud"),
        (
            "not supported",
            good.replace("spec:\n", "spec:\n  preload: {priority: 5}\n"),
            "spec.preload.priority is not supported yet",
        ),
        ("two Datasets", format!("{good}---\n{good}"), "2 Datasets"),
        ("no YAML", "{".to_owned(), "document 1"),
    ];
    for (name, text, message) in cases {
        let manifest = scratch.file("dataset.yaml", text);
        let (code, said) = run(&mut mount(Mode("auto"), &manifest, &tree, &cache));
        assert_eq!(code, 1, "{name}: {said}");
        assert!(said.contains(message), "{name}: {said}");
    }
    let manifest = scratch.file("dataset.yaml", good);
    if rustix::process::geteuid().is_root() {
        for (directory, message) in [
            (scratch.path().join("missing"), "must exist"),
            (manifest.clone(), "is not a folder"),
            (scratch.path(), "one inside the other"),
        ] {
            let (code, said) = run(&mut mount(Mode("auto"), &manifest, &directory, &cache));
            assert_eq!(code, 1);
            assert!(said.contains(message), "{said}");
        }
        // Refused without having made it.
        let (code, said) = run(&mut mount(Mode("auto"), &manifest, &tree, &tree.join("cache")));
        assert_eq!(code, 1);
        assert!(said.contains("one inside the other"), "{said}");
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
    }
    assert_eq!(mounts_below(&scratch.path()), Vec::<PathBuf>::new());
}

#[test]
fn another_user_than_root_is_told_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
        return;
    }
    let scratch = Scratch::in_memory();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let manifest = scratch.file("dataset.yaml", manifest("http://127.0.0.1:9", "things", None));
    // The program, where that user can reach it.
    let program = scratch.path().join("forebay");
    std::fs::copy(env!("CARGO_BIN_EXE_forebay"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.arg("mount").arg("-f").arg(&manifest).arg(scratch.folder("tree"));
    command.args(["--capacity", "1Gi", "--cache-dir"]).arg(scratch.path().join("cache")).uid(65534).gid(65534);
    let (code, said) = run(&mut command);
    assert_eq!(code, 1);
    assert!(said.contains("needs root"), "{said}");
}
