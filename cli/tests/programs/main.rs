//! Programs that people use on data, reading the mounted tree: what they find there is what they find in the source.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::bytes;
use support::mounted::{Mounted, on_each_mount, write};

/// Runs a program that must succeed; gives what it wrote to its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a program is there; says so when it is not.
fn installed(program: &Path) -> bool {
    let found = if program.is_absolute() {
        program.exists()
    } else {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).exists())
    };
    if !found {
        eprintln!("skipped: {} is not installed: `cargo xtask test` installs it", program.display());
        assert!(std::env::var_os("FOREBAY_REQUIRE_ALL").is_none(), "no test may be skipped");
    }
    found
}

/// The Python in which `cargo xtask test` has installed what data people use.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("e2e/python/bin/python3")
}

/// A script of this folder on a folder.
fn script(name: &str, task: &str, folder: &Path) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    run(Command::new(python()).arg("-B").arg(path).arg(task).arg(folder))
}

/// What a command prints of the tree is what it prints of the source.
fn same(mounted: &Mounted, command: impl Fn(&Path) -> Command) -> String {
    let [expected, found] = [&mounted.source, &mounted.tree].map(|folder| run(&mut command(folder)));
    assert_eq!(found, expected);
    found
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder).args(["-c", "safe.directory=*", "-c", "user.name=T", "-c", "user.email=t@example.org"]);
    git.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    git.env("GIT_OPTIONAL_LOCKS", "0");
    git
}

#[test]
fn git_reads_checks_and_clones_a_repository() {
    if !installed(Path::new("git")) {
        return;
    }
    let fill = |root: &Path| {
        run(&mut git(root, &["init", "--quiet", "--initial-branch=main"]));
        for round in 0..4_u64 {
            for file in 0..20 {
                write(root, format!("src/{file}/code.txt"), format!("{file} {}\n", round.max(file % 3)).repeat(50));
            }
            write(root, format!("data-{round}.bin"), bytes(round, 100_000));
            run(&mut git(root, &["add", "--all"]));
            run(&mut git(root, &["commit", "--quiet", "--message", &format!("round {round}")]));
            if round == 2 {
                run(&mut git(root, &["gc", "--quiet"]));
            }
        }
        run(&mut git(root, &["tag", "v1"]));
    };
    on_each_mount(fill, |mounted| {
        for arguments in [
            &["log", "--stat", "--format=%H %s"][..],
            &["show", "v1:src/7/code.txt"],
            &["grep", "--count", "7 3"],
            &["rev-list", "--objects", "--all"],
            &["cat-file", "--batch-all-objects", "--batch-check"],
        ] {
            assert!(!same(mounted, |folder| git(folder, arguments)).is_empty());
        }
        assert_eq!(run(&mut git(&mounted.tree, &["status", "--porcelain"])), "", "nothing differs from the commit");
        run(&mut git(&mounted.tree, &["fsck", "--full", "--strict"]));
        let outside = mounted.outside();
        run(&mut git(&outside, &["clone", "--quiet", mounted.tree.to_str().unwrap(), "clone"]));
        run(&mut git(&outside.join("clone"), &["fsck", "--full"]));
        run(Command::new("diff")
            .args(["--recursive", "--exclude=.git"])
            .arg(&mounted.source)
            .arg(outside.join("clone")));
    });
}

#[test]
fn sqlite_opens_a_database_read_only() {
    if !installed(Path::new("sqlite3")) {
        return;
    }
    let fill = |root: &Path| {
        let make = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, value REAL);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
            INSERT INTO t SELECT i, 'name ' || (i * 7919 % 1000), i * 0.5 FROM n;
            CREATE INDEX by_name ON t(name);";
        run(Command::new("sqlite3").arg(root.join("data.db")).arg(make));
    };
    on_each_mount(fill, |mounted| {
        for options in ["mode=ro", "immutable=1"] {
            let query = |sql: &str| {
                same(mounted, |folder| {
                    let mut sqlite = Command::new("sqlite3");
                    sqlite.arg(format!("file:{}/data.db?{options}", folder.display())).arg(sql);
                    sqlite
                })
            };
            assert_eq!(query("SELECT count(*), sum(id) FROM t WHERE name = 'name 7'"), "50|1262650\n");
            assert_eq!(query("SELECT count(DISTINCT name), max(value) FROM t"), "1000|25000.0\n");
            assert_eq!(query("PRAGMA integrity_check"), "ok\n");
            assert_eq!(
                query("PRAGMA mmap_size=268435456; SELECT sum(value) FROM t").lines().last(),
                Some("625012500.0")
            );
        }
        let insert = Command::new("sqlite3").arg(mounted.path("data.db")).arg("DELETE FROM t").output().unwrap();
        assert!(String::from_utf8_lossy(&insert.stderr).contains("readonly database"), "{insert:?}");
    });
}

#[test]
fn pyarrow_queries_parquet() {
    if !installed(&python()) {
        return;
    }
    let fill = |root: &Path| drop(script("parquet.py", "make", root));
    on_each_mount(fill, |mounted| {
        let found = script("parquet.py", "query", &mounted.tree);
        assert_eq!(found, script("parquet.py", "query", &mounted.source));
        assert!(found.contains("rows 100000"), "{found}");
    });
}

#[test]
fn safetensors_are_read_by_mmap() {
    if !installed(&python()) {
        return;
    }
    let fill = |root: &Path| drop(script("tensors.py", "make", root));
    on_each_mount(fill, |mounted| {
        let found = script("tensors.py", "read", &mounted.tree);
        assert_eq!(found, script("tensors.py", "read", &mounted.source));
        assert!(found.contains("layer.7"), "{found}");
    });
}

#[test]
fn a_loader_of_many_processes_reads_epochs_in_random_order() {
    if !installed(&python()) {
        return;
    }
    let fill = |root: &Path| drop(script("loader.py", "make", root));
    on_each_mount(fill, |mounted| {
        assert_eq!(script("loader.py", "train", &mounted.tree), "2 epochs of 400 samples by 4 workers, 0 wrong\n");
    });
}

/// Files that copying programs are to copy.
fn fill_folders(root: &Path) {
    for number in 0..200_u64 {
        write(root, format!("{}/{}/{number}.bin", number % 7, number % 3), bytes(number, number as usize * 100));
    }
    write(root, "large.bin", bytes(1, (9 << 20) + 1));
    write(root, b"caf\xe9", "not UTF-8");
    std::fs::create_dir(root.join("empty")).unwrap();
}

fn assert_same_files(one: &Path, other: &Path) {
    assert_eq!(run(Command::new("diff").arg("--recursive").arg(one).arg(other)), "");
}

#[test]
fn tar_packs_and_cp_copies_the_tree() {
    on_each_mount(fill_folders, |mounted| {
        let outside = mounted.outside();
        let archive = outside.join("all.tar");
        run(Command::new("tar").arg("-C").arg(&mounted.tree).arg("-cf").arg(&archive).arg("."));
        let unpacked = outside.join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        run(Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(&archive));
        assert_same_files(&mounted.source, &unpacked);
        // From the extended attributes too, which say where each file came from.
        let copied = outside.join("copied");
        run(Command::new("cp").arg("--archive").arg(&mounted.tree).arg(&copied));
        assert_same_files(&mounted.source, &copied);
    });
}

#[test]
fn rsync_with_checksums_finds_no_difference() {
    if !installed(Path::new("rsync")) {
        return;
    }
    on_each_mount(fill_folders, |mounted| {
        let slash = |folder: &Path| format!("{}/", folder.display());
        let copied = mounted.outside().join("copied");
        let rsync = |options: &[&str], to: &Path| {
            run(Command::new("rsync").args(options).arg(slash(&mounted.tree)).arg(slash(to)))
        };
        rsync(&["--archive", "--checksum", "--sparse"], &copied);
        assert_same_files(&mounted.source, &copied);
        let differing =
            rsync(&["--recursive", "--checksum", "--delete", "--dry-run", "--itemize-changes"], &mounted.source);
        assert_eq!(differing, "");
    });
}

#[test]
fn find_du_and_sha256sum_agree_with_the_source() {
    on_each_mount(fill_folders, |mounted| {
        let shell = |text: &'static str| {
            move |folder: &Path| {
                let mut shell = Command::new("sh");
                shell.args(["-c", text]).current_dir(folder).env("LC_ALL", "C");
                shell
            }
        };
        for text in [
            "find . -xdev -type f | sort",
            "find . -xdev -type d -empty",
            "find . -type f -printf '%p %s %n %T@\\n' | sort",
            "find . -type f -print0 | sort -z | xargs -0 sha256sum",
            "grep -r --files-with-matches --text 'not UTF-8' .",
            "du -x --apparent-size --block-size=1 large.bin",
            "ls -lR --time-style=+%s | awk '{print $2, $5, $6, $7}' | grep bin",
        ] {
            assert!(!same(mounted, shell(text)).is_empty(), "{text}");
        }
    });
}
