//! Being told to end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process gets SIGTERM or SIGINT. From the call on they no longer kill it.
pub fn signalled() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
