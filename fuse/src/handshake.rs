//! Opening /dev/fuse and answering INIT: what the holder of a session (the CSI plugin, `forebay mount`) does once per mount. From then on
//! any process with the descriptor can serve, and a takeover needs no second INIT. Needs privilege only for the mount itself, which is the
//! caller's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{self, InHeader, InitIn, InitOut, OutHeader, init, op};

/// Pages of one request: 1 MiB, the kernel's limit without raising a sysctl. More was not faster (`docs/performance.md`).
pub const MAX_PAGES: u16 = 256;

/// What the mount's backing device should read ahead, in KiB; INIT can't raise it above the device's default of 128, so the holder writes it
/// to the device after mounting.
pub const READ_AHEAD_KIB: u32 = 4096;

/// Background requests (read-ahead, asynchronous direct reads) in flight. The kernel's default of 12 would be four readers with their
/// read-ahead windows; reads that wait for the source must not hold up those that need not.
const MAX_BACKGROUND: u16 = 64;

/// We are read-only: the smallest value that the kernel accepts, which keeps request buffers small.
const MAX_WRITE: u32 = 4096;

/// What kernel and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The kernel's minor protocol version.
    pub kernel_minor: u32,
    /// Opened files may be passed through to a backing file.
    pub passthrough: bool,
    /// A server that takes over can have waiting requests sent again.
    pub resend: bool,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// /dev/fuse can't be opened.
    #[error("opening /dev/fuse: {0}; load the fuse kernel module, and in a container mount the host's /dev")]
    Open(#[source] io::Error),
    /// The INIT request can't be read.
    #[error("reading INIT from /dev/fuse: {0}")]
    Read(#[source] io::Error),
    /// The answer was refused.
    #[error("answering INIT: {0}")]
    Write(#[source] io::Error),
    /// The first request is something else.
    #[error("the first request is operation {0}, not INIT: the session is not a new one")]
    NotInit(u32),
    /// The request is cut short.
    #[error("INIT has only {0} bytes")]
    Short(usize),
    /// A kernel older than we support.
    #[error("the kernel speaks FUSE {0}.{1}; 7.{oldest} (Linux 5.4) or newer is needed", oldest = abi::OLDEST_MINOR_VERSION)]
    Version(u32, u32),
}

/// Opens the device for a new session. Pass the descriptor to the mount, then call [`answer_init`].
pub fn open_device() -> Result<OwnedFd, HandshakeError> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| HandshakeError::Open(error.into()))
}

/// Reads INIT, which the kernel queues when the mount is made, and answers it. Blocks until it is there.
pub fn answer_init(device: impl AsFd) -> Result<Agreed, HandshakeError> {
    let mut request = vec![0_u8; abi::MIN_READ_BUFFER + MAX_WRITE as usize];
    let length = loop {
        match rustix::io::read(&device, &mut request[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(HandshakeError::Read(error.into())),
        }
    };
    request.truncate(length);
    let (header, body) = InHeader::read_from_prefix(&request).map_err(|_| HandshakeError::Short(length))?;
    if header.opcode != op::INIT {
        return Err(HandshakeError::NotInit(header.opcode));
    }
    let (offer, rest) = InitIn::read_from_prefix(body).map_err(|_| HandshakeError::Short(length))?;
    let flags2 = u32::read_from_prefix(rest).map_or(0, |(flags, _)| flags);
    if offer.major != abi::KERNEL_VERSION || offer.minor < abi::OLDEST_MINOR_VERSION {
        return Err(HandshakeError::Version(offer.major, offer.minor));
    }
    let (answer, agreed) = negotiate(&offer, flags2);
    let out =
        OutHeader { len: (size_of::<OutHeader>() + size_of::<InitOut>()) as u32, error: 0, unique: header.unique };
    let parts = [io::IoSlice::new(out.as_bytes()), io::IoSlice::new(answer.as_bytes())];
    rustix::io::writev(&device, &parts).map_err(|error| HandshakeError::Write(error.into()))?;
    Ok(agreed)
}

/// What to answer to an offer: of what we can use, what the kernel has.
fn negotiate(offer: &InitIn, flags2: u32) -> (InitOut, Agreed) {
    let extended = u64::from(offer.flags) & init::INIT_EXT != 0;
    let offered = u64::from(offer.flags) | if extended { u64::from(flags2) << 32 } else { 0 };
    // Not ASYNC_DIO: with it a direct read is waited for uninterruptibly, so a reader could not be killed while the source is slow.
    // READDIRPLUS: attributes come with the names, so that `ls -l` needs no request an entry; AUTO, only to who asks for attributes.
    let wanted = init::ASYNC_READ
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::INIT_EXT
        | init::PASSTHROUGH
        | init::HAS_RESEND;
    let flags = offered & wanted;
    let passthrough = flags & init::PASSTHROUGH != 0;
    let answer = InitOut {
        major: abi::KERNEL_VERSION,
        minor: offer.minor.min(abi::MINOR_VERSION),
        max_readahead: offer.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: MAX_PAGES,
        // 1 of the kernel's limit of 2, so that an overlay can still be mounted above.
        max_stack_depth: u32::from(passthrough),
        ..InitOut::default()
    };
    (answer, Agreed { kernel_minor: offer.minor, passthrough, resend: flags & init::HAS_RESEND != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: u64) -> (InitIn, u32) {
        (InitIn { major: 7, minor, max_readahead: 131_072, flags: flags as u32 }, (flags >> 32) as u32)
    }

    #[test]
    fn nothing_is_asked_for_that_the_kernel_does_not_have() {
        let (offer, flags2) = offer(31, init::ASYNC_READ | init::MAX_PAGES);
        let (answer, agreed) = negotiate(&offer, flags2);
        assert_eq!(u64::from(answer.flags), init::ASYNC_READ | init::MAX_PAGES);
        assert_eq!((answer.flags2, answer.max_stack_depth, answer.minor), (0, 0, 31));
        assert_eq!(agreed, Agreed { kernel_minor: 31, passthrough: false, resend: false });
    }

    #[test]
    fn a_new_kernel_is_answered_with_passthrough_that_leaves_room_for_an_overlay() {
        let (offer, flags2) = offer(50, u64::MAX);
        let (answer, agreed) = negotiate(&offer, flags2);
        assert_eq!((answer.max_stack_depth, answer.minor), (1, abi::MINOR_VERSION));
        assert!(agreed.passthrough && agreed.resend);
    }

    #[test]
    fn upper_flags_without_the_extension_are_not_believed() {
        let (offer, flags2) = offer(36, init::PASSTHROUGH);
        assert!(!negotiate(&offer, flags2).1.passthrough);
    }
}
