//! Keeps a session's descriptors while no process has them: in the queue of a socket whose two ends the worker's parent holds and each worker
//! inherits. The parent never reads or writes it, so it still does nothing that could kill it. A worker that is killed at any moment leaves one
//! message in the queue, or the old one and the new, of which the last counts. Ends with the parent and its worker.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionread};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Most descriptors of a session: /dev/fuse, its table of open inodes, its log of requests.
const MAX_FDS: usize = 3;

/// Longest name of a session in bytes. The plugin's have some thirty.
const MAX_NAME: usize = 256;

/// The queue. One process at a time may use it.
#[derive(Debug)]
pub struct Keeper {
    ends: Arc<Ends>,
}

#[derive(Debug)]
struct Ends {
    into: OwnedFd,
    from: OwnedFd,
}

/// What a worker left for the next one.
#[derive(Debug)]
pub struct Kept {
    /// Name of the session.
    pub session: String,
    /// What [`crate::SessionFiles`] sorts.
    pub fds: Vec<OwnedFd>,
}

impl Keeper {
    /// For the parent, before the first worker.
    pub fn new() -> io::Result<Self> {
        let (into, from) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok(Self { ends: Arc::new(Ends { into, from }) })
    }

    /// Has what `command` starts inherit it: what to tell that for [`Keeper::inherited`].
    pub fn pass_to(&self, command: &mut Command) -> String {
        let ends = Arc::clone(&self.ends);
        let inherit = move || {
            for end in [&ends.into, &ends.from] {
                fcntl_setfd(end, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes two system calls and no allocation.
        unsafe { command.pre_exec(inherit) };
        format!("{},{}", self.ends.into.as_raw_fd(), self.ends.from.as_raw_fd())
    }

    /// For the worker, which was told `numbers` by who called [`Keeper::pass_to`]. To be called once.
    pub fn inherited(numbers: &str) -> io::Result<Self> {
        let refused = |cause: &dyn std::fmt::Display| {
            let text =
                format!("the descriptors {numbers:?} that the parent left for a session are no sockets: {cause}");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let (into, from) = numbers.split_once(',').ok_or_else(|| refused(&"they must be two numbers"))?;
        let [into, from] = [into, from].map(inherited_socket);
        let (into, from) = (into.map_err(|error| refused(&error))?, from.map_err(|error| refused(&error))?);
        Ok(Self { ends: Arc::new(Ends { into, from }) })
    }

    /// Keeps these in place of what it has.
    pub fn keep(&self, session: &str, fds: &[impl AsFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if session.is_empty() || session.len() > MAX_NAME || fds.is_empty() || fds.len() > MAX_FDS {
            let text = format!("a session named {session:?} with {} descriptors can't be kept", fds.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.send(session, &fds)?;
        self.drop_older()
    }

    /// Copies of what was kept last; it stays kept.
    pub fn kept(&self) -> io::Result<Option<Kept>> {
        self.drop_older()?;
        let mut name = [0; MAX_NAME];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [io::IoSliceMut::new(&mut name)];
        let received = match rustix::net::recvmsg(&self.ends.from, parts, &mut control, flags) {
            Err(Errno::AGAIN) => return Ok(None),
            received => received?,
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let session = name.get(..received.bytes).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default();
        if session.is_empty() || fds.is_empty() || received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let text = format!("what was kept of session {session:?} came with {} descriptors and is cut", fds.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(Kept { session: session.to_owned(), fds }))
    }

    /// Lets go of what it has.
    pub fn forget(&self) {
        while self.drop_first().is_ok() {}
    }

    fn send(&self, session: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("the control buffer is too small for the descriptors"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.ends.into, &[io::IoSlice::new(session.as_bytes())], &mut control, flags)?;
        Ok(())
    }

    /// Drops all but the last, so that there is one at each moment.
    fn drop_older(&self) -> io::Result<()> {
        loop {
            let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            let first = match rustix::net::recv(&self.ends.from, &mut [0_u8; 1][..], flags) {
                Err(Errno::AGAIN) => return Ok(()),
                received => received?.1,
            };
            // Of SOCK_SEQPACKET it counts the bytes of all messages; none is empty.
            if ioctl_fionread(&self.ends.from)? <= first as u64 {
                return Ok(());
            }
            self.drop_first()?;
        }
    }

    /// Without room for them, descriptors never become this process's own. Closing one of a table of open inodes would take the process's file lock
    /// away, should it have one.
    fn drop_first(&self) -> io::Result<()> {
        rustix::net::recv(&self.ends.from, &mut [0_u8; 1][..], RecvFlags::DONTWAIT)?;
        Ok(())
    }
}

fn inherited_socket(number: &str) -> io::Result<OwnedFd> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{number}: {why}"));
    let number: RawFd = number.parse().map_err(|_| invalid("no number"))?;
    if number <= libc::STDERR_FILENO {
        return Err(invalid("a descriptor that other parts of the process use"));
    }
    // SAFETY: it is not -1, and is only asked what it is: a number that is no descriptor gives EBADF.
    let socket = unsafe { BorrowedFd::borrow_raw(number) };
    let kind = rustix::net::sockopt::socket_type(socket)?;
    if kind != SocketType::SEQPACKET {
        return Err(invalid("a socket of another type"));
    }
    fcntl_setfd(socket, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and by the word of who started this process it was inherited for this; nothing else in the process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn file(content: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.into()
    }

    /// Name and contents of what is kept, in one.
    fn kept(keeper: &Keeper) -> Option<String> {
        let kept = keeper.kept().unwrap()?;
        let contents = kept.fds.into_iter().map(|fd| {
            let (mut file, mut content) = (File::from(fd), String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut content).unwrap();
            content
        });
        Some(format!("{}: {}", kept.session, contents.collect::<Vec<_>>().join(" ")))
    }

    #[test]
    fn what_is_kept_outlives_its_descriptors_and_is_given_again_and_again() {
        let keeper = Keeper::new().unwrap();
        assert_eq!(kept(&keeper), None);
        keeper.keep("0:41-a", &[file("fuse"), file("table")]).unwrap();
        for _ in 0..3 {
            assert_eq!(kept(&keeper).unwrap(), "0:41-a: fuse table");
        }
    }

    #[test]
    fn what_is_kept_takes_the_place_of_what_was() {
        let keeper = Keeper::new().unwrap();
        for round in 0..1000 {
            let session = format!("session {round}");
            keeper.keep(&session, &[file(&session)]).unwrap();
            assert_eq!(kept(&keeper).unwrap(), format!("{session}: {session}"));
            assert_eq!(ioctl_fionread(&keeper.ends.from).unwrap(), session.len() as u64);
        }
    }

    #[test]
    fn of_what_workers_left_that_died_before_they_dropped_the_older_the_last_counts() {
        for (left, keep) in [(2, false), (2, true), (5, false), (5, true)] {
            let keeper = Keeper::new().unwrap();
            for number in 0..left {
                // Of one length too: nothing but the order tells them apart.
                let fd = file(&number.to_string());
                keeper.send(&format!("session-{number}"), &[fd.as_fd()]).unwrap();
            }
            let last = if keep {
                keeper.keep("another", &[file("it")]).unwrap();
                "another: it".to_owned()
            } else {
                format!("session-{0}: {0}", left - 1)
            };
            assert_eq!(kept(&keeper).unwrap(), last);
            keeper.drop_first().unwrap();
            assert_eq!(kept(&keeper), None, "there was more than one");
        }
    }

    #[test]
    fn what_is_forgotten_is_closed() {
        let keeper = Keeper::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let writer = [writer];
        for _ in 0..2 {
            keeper.send("session", &[writer[0].as_fd()]).unwrap();
        }
        drop(writer);
        keeper.forget();
        // The end of the file: nobody can write any more.
        assert_eq!(File::from(reader).read(&mut [0]).unwrap(), 0);
        assert_eq!(kept(&keeper), None);
    }

    #[test]
    fn what_can_not_be_kept_is_refused_and_the_rest_stays() {
        let keeper = Keeper::new().unwrap();
        keeper.keep("session", &[file("fuse")]).unwrap();
        assert!(keeper.keep("", &[file("x")]).is_err());
        assert!(keeper.keep(&"x".repeat(MAX_NAME + 1), &[file("x")]).is_err());
        assert!(keeper.keep("session", &[] as &[OwnedFd]).is_err());
        assert!(keeper.keep("session", &["w", "x", "y", "z"].map(file)).is_err());
        assert_eq!(kept(&keeper).unwrap(), "session: fuse");
    }

    #[test]
    fn a_child_inherits_what_is_passed_to_it_and_no_other_does() {
        let keeper = Keeper::new().unwrap();
        let sees = |command: &mut Command, numbers: &str| {
            let files = numbers.split(',').map(|number| format!("/proc/self/fd/{number}"));
            let output = command.args(files).output().unwrap();
            String::from_utf8(output.stdout).unwrap().matches("socket:").count()
        };
        let mut child = Command::new("readlink");
        let numbers = keeper.pass_to(&mut child);
        assert_eq!(sees(&mut child, &numbers), 2);
        assert_eq!(sees(&mut Command::new("readlink"), &numbers), 0);
    }

    #[test]
    fn numbers_that_are_no_sockets_are_refused() {
        let file = file("x");
        for numbers in ["", "7", "1,2", "-1,-1", "a,b", &format!("{0},{0}", file.as_raw_fd()), "100000,100001"] {
            let error = Keeper::inherited(numbers).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }
}
