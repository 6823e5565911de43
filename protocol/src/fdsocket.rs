//! Unix sockets that carry protobuf messages and descriptors: SOCK_SEQPACKET, one message a packet, so that a message and its descriptors
//! arrive together or not at all. For tokio. What the messages mean is in `local.proto` and `broker.proto`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::blocking::BlockingSocket;

/// Largest message in bytes. Ours are some hundred; a longer one is a mistake or an attack and is refused.
pub const MAX_MESSAGE: usize = 16 << 10;

/// Most descriptors that one message carries.
const MAX_FDS: usize = 4;

/// One end of a connection. `send` and `receive` may be called from several tasks at once; each message goes to one of them.
#[derive(Debug)]
pub struct FdSocket {
    fd: AsyncFd<OwnedFd>,
}

/// Who is at the other end, as the kernel says (SO_PEERCRED, from the time of the connection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id; 0 when it has none in this pid namespace, as between containers.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl FdSocket {
    /// Connects to the listener at `path`.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let this = Self::from_fd(socket)?;
        // A Unix socket connects at once or not at all; this only makes sure that the reactor has seen it.
        drop(this.fd.writable().await?);
        Ok(this)
    }

    /// Takes over a connected, non-blocking SOCK_SEQPACKET socket. Must be called within a tokio runtime.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: register(fd)? })
    }

    /// The same connection for a thread that waits by itself.
    pub fn into_blocking(self) -> io::Result<BlockingSocket> {
        BlockingSocket::from_fd(self.fd.into_inner())
    }

    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        Ok((Self::from_fd(a)?, Self::from_fd(b)?))
    }

    /// Sends one message with descriptors; waits while the peer's queue is full.
    pub async fn send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = message.encode_to_vec();
        if bytes.is_empty() || bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a message of {} bytes with {} descriptors can't be sent", bytes.len(), fds.len()),
            ));
        }
        self.fd
            .async_io(Interest::WRITABLE, |socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::Error::other("the control buffer is too small for the descriptors"));
                }
                let parts = [io::IoSlice::new(&bytes)];
                rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            })
            .await
    }

    /// Receives one message with its descriptors; `None` when the peer has closed.
    pub async fn receive<M: Message + Default>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0_u8; MAX_MESSAGE];
        let (length, fds) = self
            .fd
            .async_io(Interest::READABLE, |socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [io::IoSliceMut::new(&mut bytes)];
                let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let mut fds = Vec::new();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a message is longer than the protocol allows",
                    ));
                }
                // The kernel rounds the room for descriptors up, so one more than we allow may fit.
                if fds.len() > MAX_FDS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a message has more descriptors than the protocol allows",
                    ));
                }
                Ok((received.bytes, fds))
            })
            .await?;
        if length == 0 {
            return Ok(None);
        }
        let message = M::decode(bytes.get(..length).unwrap_or_default())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some((message, fds)))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        // Not by rustix, which refuses the process id 0 that a peer in another pid namespace (another container) has here.
        let credentials = nix::sys::socket::getsockopt(self.fd.get_ref(), nix::sys::socket::sockopt::PeerCredentials)?;
        Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
    }
}

impl AsFd for FdSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// A listening socket at a path, which is removed when it is dropped, or with a name of its network namespace.
#[derive(Debug)]
pub struct FdListener {
    fd: AsyncFd<OwnedFd>,
    path: Option<PathBuf>,
}

impl FdListener {
    /// Listens at `path` with permission bits `mode`, in group `gid` where this process may give it away. A socket left there by a process
    /// that is gone is replaced; one that somebody still answers at is an error, so that two servers never fight for a path.
    pub async fn bind(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<Self> {
        if path.exists() {
            match FdSocket::connect(path).await {
                Ok(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        format!("another process listens at {}", path.display()),
                    ));
                }
                Err(_) => std::fs::remove_file(path)?,
            }
        }
        let socket = new_socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        if let Some(gid) = gid
            && let Err(error) = std::os::unix::fs::chown(path, None, Some(gid))
        {
            // Without the right to do so the group stays our own, which is right where all parts run as one user.
            tracing::debug!(path = %path.display(), gid, %error, "the socket keeps this process's group");
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        rustix::net::listen(&socket, 128)?;
        Ok(Self { fd: register(socket)?, path: Some(path.to_owned()) })
    }

    /// Listens at a name that only processes of this network namespace see, and all of them. It needs no folder, and ends with the process.
    pub fn bind_abstract(name: &[u8]) -> io::Result<Self> {
        let socket = new_socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        rustix::net::listen(&socket, 128)?;
        Ok(Self { fd: register(socket)?, path: None })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<FdSocket> {
        let socket = self
            .fd
            .async_io(Interest::READABLE, |listener| {
                Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
            })
            .await?;
        FdSocket::from_fd(socket)
    }
}

impl Drop for FdListener {
    fn drop(&mut self) {
        // Best effort: a path that is left behind is replaced by the next listener.
        let _ = self.path.as_ref().map(std::fs::remove_file);
    }
}

#[allow(unsafe_code)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor and always names the same one, which is all that `register` asks for.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::local::{Ensure, Request, request::Call};

    fn ensure(id: u64) -> Request {
        Request { id, call: Some(Call::Ensure(Ensure { lease: 1, offset: 2, length: 3 })) }
    }

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptor() {
        let (a, b) = FdSocket::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        a.send(&ensure(7), &[file.as_fd()]).await.unwrap();
        a.send(&ensure(8), &[]).await.unwrap();
        let (request, mut fds) = b.receive::<Request>().await.unwrap().unwrap();
        assert_eq!(request, ensure(7));
        let mut received = std::fs::File::from(fds.pop().unwrap());
        received.rewind().unwrap();
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        let (request, fds) = b.receive::<Request>().await.unwrap().unwrap();
        assert!(request.id == 8 && fds.is_empty());
        drop(a);
        assert!(b.receive::<Request>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_listener_replaces_a_dead_socket_and_respects_a_live_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.sock");
        let first = FdListener::bind(&path, 0o660, None).await.unwrap();
        assert_eq!(FdListener::bind(&path, 0o660, None).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // As a process that was killed leaves it: closed, but still there.
        let link = folder.path().join("kept");
        std::fs::hard_link(&path, &link).unwrap();
        drop(first);
        std::fs::rename(&link, &path).unwrap();
        let second = FdListener::bind(&path, 0o660, None).await.unwrap();
        let (client, server) = tokio::join!(FdSocket::connect(&path), second.accept());
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(server.peer().unwrap().pid, i32::try_from(std::process::id()).unwrap());
        client.send(&ensure(1), &[]).await.unwrap();
        assert_eq!(server.receive::<Request>().await.unwrap().unwrap().0.id, 1);
    }

    #[tokio::test]
    async fn more_descriptors_than_allowed_are_refused_and_closed() {
        let (a, b) = FdSocket::pair().unwrap();
        let lowest_free = || std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/").unwrap());
        let before = lowest_free();
        for count in [MAX_FDS, MAX_FDS + 1, MAX_FDS + 2] {
            let own = [a.as_fd(); MAX_FDS + 2];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&own[..count])));
            let bytes = ensure(1).encode_to_vec();
            rustix::net::sendmsg(&a, &[io::IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
            match b.receive::<Request>().await {
                Ok(Some((_, fds))) => assert_eq!((fds.len(), count), (MAX_FDS, MAX_FDS)),
                other => assert_eq!((other.unwrap_err().kind(), count > MAX_FDS), (io::ErrorKind::InvalidData, true)),
            }
        }
        assert_eq!(lowest_free(), before, "a refused message left descriptors open");
    }

    #[tokio::test]
    async fn bytes_that_are_no_message_are_an_error_not_a_panic() {
        let (a, b) = FdSocket::pair().unwrap();
        rustix::net::send(&a, &[0xff_u8; 40], SendFlags::empty()).unwrap();
        assert_eq!(b.receive::<Request>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
