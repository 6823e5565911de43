//! Several readers at once: locks, and all ways to read mixed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::LARGE;
use crate::support::bytes;
use crate::support::mounted::{on_each_mount, write};

#[test]
fn locks_work_between_readers() {
    on_each_mount(
        |root| write(root, "file", "content"),
        |mounted| {
            let open = || File::open(mounted.path("file")).unwrap();
            let (first, second, third) = (open(), open(), open());
            rustix::fs::flock(&first, FlockOperation::NonBlockingLockShared).unwrap();
            rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared).unwrap();
            let alone = FlockOperation::NonBlockingLockExclusive;
            assert_eq!(rustix::fs::flock(&third, alone), Err(Errno::WOULDBLOCK));
            drop(first);
            rustix::fs::flock(&second, FlockOperation::Unlock).unwrap();
            rustix::fs::flock(&third, alone).unwrap();
            assert_eq!(rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
            drop(third);

            let mut lock =
                nix::libc::flock { l_type: nix::libc::F_RDLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
            fcntl(&second, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
            lock.l_type = nix::libc::F_WRLCK as i16;
            assert_eq!(
                fcntl(&second, FcntlArg::F_OFD_SETLK(&lock)),
                Err(nix::errno::Errno::EBADF),
                "opened for reading"
            );
        },
    );
}

#[test]
fn readers_of_all_kinds_at_once_see_the_right_bytes() {
    const READERS: u64 = 8;
    const ROUNDS: u64 = 60;
    let small = |number: u64| (format!("small/{number:03}"), bytes(number, 300 + number as usize * 37));
    let fill = |root: &Path| {
        for number in 0..2 {
            write(root, format!("large{number}"), bytes(1000 + number, LARGE));
        }
        for (name, content) in (0..100).map(small) {
            write(root, name, content);
        }
    };
    on_each_mount(fill, |mounted| {
        let large: Vec<_> = (0..2).map(|number| bytes(1000 + number, LARGE)).collect();
        let read = |reader: u64| {
            let mut state = reader + 1;
            let mut random = |end: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % end
            };
            for _ in 0..ROUNDS {
                let number = random(2) as usize;
                match random(4) {
                    0 => {
                        let file = File::open(mounted.path(format!("large{number}"))).unwrap();
                        let (offset, mut buffer) =
                            (random(LARGE as u64 - 70_000), vec![0; 1 + random(65_536) as usize]);
                        file.read_exact_at(&mut buffer, offset).unwrap();
                        assert!(large[number][offset as usize..][..buffer.len()] == buffer, "at {offset}");
                    }
                    1 if random(5) == 0 => {
                        assert!(fs::read(mounted.path(format!("large{number}"))).unwrap() == large[number]);
                    }
                    2 => assert_eq!(fs::read_dir(mounted.path("small")).unwrap().count(), 100),
                    _ => {
                        let (name, content) = small(random(100));
                        let path = mounted.path(name);
                        assert_eq!(path.metadata().unwrap().len(), content.len() as u64);
                        assert!(fs::read(path).unwrap() == content);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for reader in 0..READERS {
                scope.spawn(move || read(reader));
            }
        });
    });
}
