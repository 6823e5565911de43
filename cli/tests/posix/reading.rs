//! The ways to read a file: each gives the same bytes.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Advice, SeekFrom as Offset};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::SpliceFlags;

use crate::LARGE;
use crate::support::bytes;
use crate::support::mounted::{Mounted, on_each_mount, write};

const SMALL: usize = 5000;

fn fill(root: &Path) {
    write(root, "large", bytes(1, LARGE));
    write(root, "small", bytes(2, SMALL));
    write(root, "zeros", vec![0; 1 << 20]);
    write(root, "empty", "");
}

fn open(mounted: &Mounted, name: &str) -> File {
    File::open(mounted.path(name)).unwrap()
}

#[test]
fn reads_at_any_place_end_where_the_file_ends() {
    on_each_mount(fill, |mounted| {
        for (name, content) in [("large", bytes(1, LARGE)), ("small", bytes(2, SMALL)), ("empty", Vec::new())] {
            let mut file = open(mounted, name);
            let mut buffer = vec![0; 1 << 16];
            // Backwards, so that what is not there yet is asked for in an unusual order.
            for offset in (0..content.len()).step_by(1_000_003).rev() {
                let expected = &content[offset..content.len().min(offset + buffer.len())];
                assert_eq!(file.read_at(&mut buffer, offset as u64).unwrap(), expected.len());
                assert!(buffer[..expected.len()] == *expected, "{name} at {offset}");
            }
            let size = content.len() as u64;
            for beyond in [size, size + 1, size + (1 << 40), i64::MAX as u64 - (1 << 17)] {
                assert_eq!(file.read_at(&mut buffer, beyond).unwrap(), 0, "{name} at {beyond}");
            }
            assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
            if let Some(last) = content.last() {
                assert_eq!(file.read_at(&mut buffer, size - 1).unwrap(), 1);
                assert_eq!(buffer[0], *last);
            }
            assert_eq!(file.seek(SeekFrom::End(-(size.min(7) as i64))).unwrap(), size - size.min(7));
            let mut end = Vec::new();
            file.read_to_end(&mut end).unwrap();
            assert!(content.ends_with(&end) && end.len() == content.len().min(7));
            let (mut first, mut second) = ([0; 3], [0; 5]);
            let mut parts = [std::io::IoSliceMut::new(&mut first), std::io::IoSliceMut::new(&mut second)];
            let length = rustix::io::preadv(&file, &mut parts, 0).unwrap();
            assert_eq!(length, content.len().min(8));
            assert_eq!([&first[..], &second].concat()[..length], content[..length]);
            rustix::fs::fadvise(&file, 0, None, Advice::WillNeed).unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
    });
}

#[test]
fn direct_io_reads_the_same() {
    on_each_mount(fill, |mounted| {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(mounted.path("large")).unwrap();
        let content = bytes(1, LARGE);
        let mut memory = vec![0_u8; (1 << 20) + 4096];
        let start = memory.as_ptr().align_offset(4096);
        let buffer = &mut memory[start..start + (1 << 20)];
        for offset in (0..LARGE).step_by(1 << 20) {
            let expected = &content[offset..LARGE.min(offset + buffer.len())];
            assert_eq!(file.read_at(buffer, offset as u64).unwrap(), expected.len());
            assert!(buffer[..expected.len()] == *expected, "at {offset}");
        }
        assert_eq!(file.read_at(buffer, (LARGE as u64).next_multiple_of(4096)).unwrap(), 0);
    });
}

#[test]
fn holes_are_told_as_data_up_to_the_end() {
    on_each_mount(fill, |mounted| {
        for (name, size) in [("large", LARGE as u64), ("zeros", 1 << 20)] {
            let file = open(mounted, name);
            for offset in [0, 4096, size - 1] {
                assert_eq!(rustix::fs::seek(&file, Offset::Data(offset)), Ok(offset), "{name}");
                assert_eq!(rustix::fs::seek(&file, Offset::Hole(offset)), Ok(size), "{name}");
            }
            assert_eq!(rustix::fs::seek(&file, Offset::Data(size)), Err(Errno::NXIO), "{name}");
            assert_eq!(rustix::fs::seek(&file, Offset::Hole(size)), Err(Errno::NXIO), "{name}");
        }
        assert_eq!(rustix::fs::seek(open(mounted, "empty"), Offset::Data(0)), Err(Errno::NXIO));
    });
}

/// A mapping that ends with this value.
struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(file: &File, length: usize, prot: ProtFlags, flags: MapFlags) -> Result<Self, Errno> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped so long, by us alone, and nobody writes the file.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, which nobody refers to any more.
        unsafe { rustix::mm::munmap(self.start.cast(), self.length) }.unwrap();
    }
}

#[test]
fn mappings_show_the_file_and_private_ones_keep_their_changes() {
    on_each_mount(fill, |mounted| {
        let (file, content) = (open(mounted, "large"), bytes(1, LARGE));
        let whole = LARGE.next_multiple_of(4096);
        let mut private = Mapping::new(&file, whole, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).unwrap();
        let mut shared = Mapping::new(&file, whole, ProtFlags::READ, MapFlags::SHARED).unwrap();
        // A mapping outlives the descriptor.
        drop(file);
        assert!(private.bytes()[LARGE - 1] == content[LARGE - 1], "the last page first");
        assert!(shared.bytes()[..LARGE] == content);
        assert!(shared.bytes()[LARGE..].iter().all(|byte| *byte == 0), "zeros behind the end");
        private.bytes()[..4].copy_from_slice(b"mine");
        assert_eq!(&private.bytes()[..4], b"mine");
        assert!(private.bytes()[4..LARGE] == content[4..]);
        assert_eq!(shared.bytes()[..4], content[..4], "the file is as it was");

        let file = open(mounted, "large");
        let writable = Mapping::new(&file, 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        assert_eq!(writable.err(), Some(Errno::ACCESS));
        let program = Mapping::new(&file, 4096, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
        assert!(program.is_ok(), "libraries may be loaded from it");
        let populated = Mapping::new(&file, whole, ProtFlags::READ, MapFlags::SHARED | MapFlags::POPULATE);
        assert!(populated.unwrap().bytes()[..LARGE] == content);
    });
}

#[test]
fn the_kernel_copies_out_of_it() {
    on_each_mount(fill, |mounted| {
        let (content, outside) = (bytes(1, LARGE), mounted.outside());
        let target =
            |name: &str| File::options().read(true).write(true).create(true).truncate(true).open(outside.join(name));

        let (file, mut sent) = (open(mounted, "large"), target("sent").unwrap());
        while rustix::fs::sendfile(&sent, &file, None, 1 << 20).unwrap() > 0 {}
        let mut read = Vec::new();
        sent.rewind().unwrap();
        sent.read_to_end(&mut read).unwrap();
        assert!(read == content, "sendfile");

        // Into another file system the kernel copies only for some; who asks must fall back on EXDEV, as std does.
        let copied = outside.join("copied");
        std::fs::copy(mounted.path("large"), &copied).unwrap();
        assert!(std::fs::read(&copied).unwrap() == content, "copy");
        let (file, into) = (open(mounted, "large"), target("range").unwrap());
        let (mut from, mut to) = (4096, 0);
        match rustix::fs::copy_file_range(&file, Some(&mut from), &into, Some(&mut to), 100_000) {
            Ok(length) => {
                assert_eq!((from, to), (4096 + length as u64, length as u64));
                let mut found = vec![0; length];
                into.read_exact_at(&mut found, 0).unwrap();
                assert!(found == content[4096..4096 + length], "copy_file_range");
            }
            Err(error) => assert_eq!(error, Errno::XDEV),
        }

        let (file, (reader, writer)) = (open(mounted, "large"), rustix::pipe::pipe().unwrap());
        let (mut reader, mut offset, mut found) = (File::from(reader), 0, vec![0; 1 << 16]);
        while (offset as usize) < LARGE {
            let before = offset as usize;
            let length =
                rustix::pipe::splice(&file, Some(&mut offset), &writer, None, 1 << 16, SpliceFlags::empty()).unwrap();
            reader.read_exact(&mut found[..length]).unwrap();
            assert!(found[..length] == content[before..before + length], "splice at {before}");
        }
        let tee = rustix::fs::ioctl_ficlone(target("clone").unwrap(), open(mounted, "small"));
        assert!(matches!(tee, Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL)), "no shared blocks: {tee:?}");
    });
}

#[test]
fn a_descriptor_that_only_names_a_file_can_be_opened() {
    on_each_mount(fill, |mounted| {
        use rustix::fs::{Mode, OFlags};
        let named = rustix::fs::open(mounted.path("small"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(rustix::fs::fstat(&named).unwrap().st_size, SMALL as i64);
        let number = std::os::fd::AsRawFd::as_raw_fd(&named);
        assert!(std::fs::read(format!("/proc/self/fd/{number}")).unwrap() == bytes(2, SMALL));
        let folder = rustix::fs::open(&mounted.tree, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = File::from(rustix::fs::openat(&folder, "small", flags, Mode::empty()).unwrap());
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(content == bytes(2, SMALL));
    });
}
