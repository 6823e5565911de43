//! The descriptor-passing socket between cache node, FUSE daemon and CSI plugin. The first byte says which message is expected and how many
//! descriptors come along; the rest is sent as one packet as it is.

use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use forebay_protocol::broker::{FromDaemon, FromPlugin};
use forebay_protocol::fdsocket::{FdSocket, MAX_MESSAGE};
use forebay_protocol::local::{Close, Ensure, Open, Request, Response, Served, request::Call};
use prost::Message;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use tokio::runtime::Runtime;

use crate::node_api::check;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.unwrap_or_else(|error| panic!("no runtime: {error}"))
});

/// A packet is received as exactly what was sent, or refused; never do descriptors stay open that nobody owns.
pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    // The runtime opens descriptors of its own at first use.
    let runtime = &*RUNTIME;
    let before = lowest_free();
    match kind % 4 {
        0 => exchange::<Request>(runtime, kind / 4, bytes),
        1 => exchange::<Response>(runtime, kind / 4, bytes),
        2 => exchange::<FromDaemon>(runtime, kind / 4, bytes),
        _ => exchange::<FromPlugin>(runtime, kind / 4, bytes),
    }
    assert_eq!(lowest_free(), before, "a descriptor leaked");
}

fn exchange<M: Message + Default>(runtime: &Runtime, fds: u8, bytes: &[u8]) {
    let message = check::<M>(bytes);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.unwrap_or_else(|error| panic!("no sockets: {error}"));
    let fds = usize::from(fds % 8);
    let received = runtime.block_on(async {
        let theirs = FdSocket::from_fd(theirs)?;
        send(&ours, bytes, fds);
        drop(ours);
        theirs.receive::<M>().await
    });
    match received {
        Ok(Some((received, descriptors))) => {
            assert!(bytes.len() <= MAX_MESSAGE && fds <= 4);
            assert_eq!(descriptors.len(), fds);
            assert_eq!(Some(received.encode_to_vec()), message.map(|message| message.encode_to_vec()));
        }
        // What an empty packet looks like.
        Ok(None) => assert!(bytes.is_empty()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            assert!(message.is_none() || bytes.len() > MAX_MESSAGE || fds > 4, "{error}");
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: usize) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let own: [BorrowedFd<'_>; 8] = [socket.as_fd(); 8];
    if fds > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&own[..fds])));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert!(sent.is_ok(), "{sent:?} of {} bytes", bytes.len());
}

fn lowest_free() -> i32 {
    let root = std::fs::File::open("/");
    root.map_or_else(|error| panic!("{error}"), |root| root.as_raw_fd())
}

/// The requests of a reader, with and without descriptors, and a packet that is too long.
pub fn seeds() -> Vec<Vec<u8>> {
    let request = |kind: u8, call: Call| [vec![kind], Request { id: 1, call: Some(call) }.encode_to_vec()].concat();
    vec![
        request(0, Call::Open(Open { dataset_uid: "u".to_owned(), object_id: vec![7; 16], ..Open::default() })),
        request(4, Call::Ensure(Ensure { lease: 1, offset: 2, length: 3 })),
        request(20, Call::Close(Close { lease: 1 })),
        request(0, Call::Served(Served { dataset_uid: "u".to_owned(), bytes: 5 })),
        vec![0x0a; MAX_MESSAGE + 2],
        vec![1],
    ]
}
