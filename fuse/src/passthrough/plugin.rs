//! Registering by way of the CSI plugin, for a daemon without privilege: a connection of its own to the broker, on which the session's threads
//! wait for the answer themselves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_protocol::blocking::BlockingSocket;
use forebay_protocol::broker::{
    FromDaemon, Register, Registered, Registrar as Hello, Registration, Unregister, from_daemon::Message,
    registration::Call,
};

use super::{Away, BackingId, Registrar};
use crate::registry::Found;

/// How long the plugin may take for an answer. All opens wait meanwhile; after that the plugin counts as away.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long a plugin that is away is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The CSI plugin as registrar.
#[derive(Debug)]
pub struct RegistrarByPlugin {
    broker: PathBuf,
    session: String,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
enum Connection {
    Connected(BlockingSocket),
    AwayUntil(Instant),
}

impl RegistrarByPlugin {
    /// For a session of the plugin at the socket `broker`. Connects when it is needed first.
    pub fn new(broker: &Path, session: &str) -> Self {
        let connection = Mutex::new(Connection::AwayUntil(Instant::now()));
        Self { broker: broker.to_owned(), session: session.to_owned(), connection }
    }

    fn connect(&self) -> io::Result<BlockingSocket> {
        let socket = BlockingSocket::connect(&self.broker, PATIENCE)?;
        let hello = Hello { session: self.session.clone() };
        socket.send(&FromDaemon { message: Some(Message::Registrar(hello)) })?;
        Ok(socket)
    }

    /// Talks to the plugin. Whatever goes wrong, the connection is given up: an answer that comes late must not be taken for the next one.
    fn talk<T>(&self, talk: impl FnOnce(&BlockingSocket) -> io::Result<T>) -> Result<T, Away> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Connection::AwayUntil(time) = &*connection {
            if Instant::now() < *time {
                return Err(Away);
            }
            match self.connect() {
                Ok(socket) => *connection = Connection::Connected(socket),
                Err(_) => *connection = Connection::AwayUntil(Instant::now() + PAUSE),
            }
        }
        let Connection::Connected(socket) = &*connection else { return Err(Away) };
        talk(socket).map_err(|error| {
            tracing::warn!(%error, "the CSI plugin does not register files now; they are read by way of this daemon");
            *connection = Connection::AwayUntil(Instant::now() + PAUSE);
            Away
        })
    }
}

impl Registrar for RegistrarByPlugin {
    fn register(&self, object: &Found) -> Result<Option<BackingId>, Away> {
        let question = Register {
            dataset_uid: object.catalog.dataset_uid.clone(),
            catalog_id: object.catalog.catalog_id.clone(),
            object_id: object.id.as_bytes().to_vec(),
            size: object.size,
        };
        self.talk(|socket| {
            socket.send(&Registration { call: Some(Call::Register(question)) })?;
            let answer = socket.receive::<Registered>()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok(BackingId::new(answer.backing_id))
        })
    }

    fn waits(&self) -> bool {
        true
    }

    fn unregister(&self, id: BackingId) -> Result<(), Away> {
        let call = Call::Unregister(Unregister { backing_id: id.get() });
        self.talk(|socket| socket.send(&Registration { call: Some(call) }))
    }
}
