#![allow(unsafe_code)]
//! Waking a thread that is blocked in a read: a signal whose handler does nothing, so that the read returns EINTR.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

const SIGNAL: Signal = Signal::SIGUSR2;

extern "C" fn do_nothing(_: libc::c_int) {}

/// Installs the handler for this process. May be called again.
pub fn install() -> io::Result<()> {
    // Without SA_RESTART, which would go on reading.
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches nothing, so it is safe wherever it interrupts.
    unsafe { sigaction(SIGNAL, &action) }?;
    Ok(())
}

/// Interrupts the system call in which the thread is, if it is in one.
pub fn wake(thread: &JoinHandle<()>) {
    // SAFETY: a thread's id stays valid, also after its end, until its handle is joined or dropped; `thread` borrows the handle.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL as libc::c_int) };
}
