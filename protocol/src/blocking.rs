//! A Unix socket like [`crate::fdsocket`]'s for threads that wait by themselves: where a question and its answer take microseconds, waking a
//! runtime's thread in between would double them. Carries no descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use rustix::fs::OFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// Largest message in bytes: questions and answers are some hundred.
const MAX_MESSAGE: usize = 4 << 10;

/// One end of a connection.
#[derive(Debug)]
pub struct BlockingSocket {
    fd: OwnedFd,
}

impl BlockingSocket {
    /// Connects to the listener at `path`. Sending and receiving fail when they take longer than `patience`.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        Self::connect_to(&SocketAddrUnix::new(path)?, patience)
    }

    /// The same with a listener that has a name and no path.
    pub fn connect_abstract(name: &[u8], patience: Duration) -> io::Result<Self> {
        Self::connect_to(&SocketAddrUnix::new_abstract_name(name)?, patience)
    }

    fn connect_to(address: &SocketAddrUnix, patience: Duration) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&fd, timeout, Some(patience))?;
        }
        rustix::net::connect(&fd, address)?;
        Ok(Self { fd })
    }

    /// Takes over a connected SOCK_SEQPACKET socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Another handle of this end, to shut it down while a thread waits.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Ends the connection for all handles of both ends.
    pub fn shut_down(&self) {
        // Fails when the other end is gone, which is as good.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// Sends one message.
    pub fn send<M: Message>(&self, message: &M) -> io::Result<()> {
        let bytes = message.encode_to_vec();
        loop {
            match rustix::net::send(&self.fd, &bytes, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message; `None` when the peer has closed.
    pub fn receive<M: Message + Default>(&self) -> io::Result<Option<M>> {
        let mut bytes = [0_u8; MAX_MESSAGE];
        let length = loop {
            // Without TRUNC a longer message would be cut, and its length be that of what is left of it.
            match rustix::net::recv(&self.fd, &mut bytes[..], RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let message = bytes.get(..length).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {length} bytes is longer than the protocol allows"),
            )
        })?;
        M::decode(message).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Register;
    use crate::fdsocket::{FdListener, FdSocket};

    fn register(dataset_uid: String) -> Register {
        Register { dataset_uid, ..Register::default() }
    }

    #[tokio::test]
    async fn both_ends_may_wait_by_themselves_and_no_wait_is_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.sock");
        let listener = FdListener::bind(&path, 0o660, None).await.unwrap();
        let client = BlockingSocket::connect(&path, Duration::from_millis(20)).unwrap();
        let server: FdSocket = listener.accept().await.unwrap();
        client.send(&register("a".into())).unwrap();
        let server = server.into_blocking().unwrap();
        assert_eq!(server.receive::<Register>().unwrap(), Some(register("a".into())));
        assert_eq!(client.receive::<Register>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.send(&register("b".repeat(MAX_MESSAGE))).unwrap();
        assert_eq!(server.receive::<Register>().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let waiting = server.try_clone().unwrap();
        let thread = std::thread::spawn(move || waiting.receive::<Register>());
        server.shut_down();
        assert!(matches!(thread.join().unwrap(), Ok(None)));
    }
}
