//! Stops single threads of another process, as a tracer does, while its other threads run.

#![allow(unsafe_code)]

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Threads that are stopped; they go on when it is dropped.
pub struct Frozen {
    go_on: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

/// Stops the threads of a process whose names begin with `name`.
pub fn threads(pid: u32, name: &str) -> Frozen {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).unwrap().starts_with(name));
    let threads: Vec<i32> = named.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect();
    assert!(!threads.is_empty(), "process {pid} has no thread {name}");
    let (go_on, goes_on) = channel();
    let (stopped, all_stopped) = channel();
    // They stay stopped as long as the thread lives that traces them.
    let tracer = std::thread::spawn(move || {
        for thread in &threads {
            for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
                // SAFETY: neither request reads or writes memory of this process.
                let result = unsafe { libc::ptrace(request, *thread, 0, 0) };
                assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            }
            // SAFETY: a null pointer says that the status is not wanted.
            let waited = unsafe { libc::waitpid(*thread, std::ptr::null_mut(), libc::__WALL) };
            assert_eq!(waited, *thread);
        }
        stopped.send(()).unwrap();
        // An error is the end too.
        let _ = goes_on.recv();
    });
    all_stopped.recv().unwrap();
    Frozen { go_on: Some(go_on), tracer: Some(tracer) }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.go_on.take());
        let _ = self.tracer.take().map(JoinHandle::join);
    }
}
