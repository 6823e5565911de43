//! The threads on which large answers are received. They may wait for the disk, so that what comes is checked and written by the thread that has
//! just received it, while it is in the processor's cache: handed on to another thread, or gathered first, each byte would cross memory once more.
//! While all of them wait for the disk nothing more is received, as it should be, and nobody else waits for them.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// At least so many: while one waits for the disk another receives.
const LEAST: usize = 2;
/// At most so many: by estimate enough for what a node of 100 Gbit/s receives encrypted.
const MOST: usize = 16;

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    let threads = std::thread::available_parallelism().map_or(LEAST, |cores| cores.get().clamp(LEAST, MOST));
    let marked = || RECEIVING.set(true);
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("receiving")
        .on_thread_start(marked)
        .enable_all()
        .build()
});

thread_local! {
    static RECEIVING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is one of these threads. Connections that are made here are served here; who waits for a few bytes should not have one of them, and
/// wait for those who receive many.
pub fn is_here() -> bool {
    RECEIVING.get()
}

/// Runs a future on these threads. It ends when what is returned is dropped.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(match &*RUNTIME {
        Ok(runtime) => runtime.spawn(future),
        Err(error) => {
            tracing::warn!(%error, "no threads to receive with; others do it");
            tokio::spawn(future)
        }
    })
}
