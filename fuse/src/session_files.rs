//! The files of a session, as plugin, daemon and keeper hand them on: /dev/fuse, then, each if there is one, the table of open inodes and the log of
//! requests.

use std::os::fd::OwnedFd;

use crate::request_log;

/// The files of a session.
#[derive(Debug)]
pub struct SessionFiles {
    /// /dev/fuse.
    pub fuse: OwnedFd,
    /// The table of open inodes, if files may be passed through.
    pub opens: Option<OwnedFd>,
    /// The log of requests, if the kernel can't send them again.
    pub log: Option<OwnedFd>,
}

impl SessionFiles {
    /// Tells what came with a message: which of the two is there is seen from the file. `None`: no descriptor came.
    pub fn sort(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let mut files = Self { fuse: fds.next()?, opens: None, log: None };
        for fd in fds {
            let place = if request_log::is_log(&fd) { &mut files.log } else { &mut files.opens };
            *place = Some(fd);
        }
        Some(files)
    }
}
