//! A worker that can't start: the parent gives up after some tries, with the worker's status. Without the test harness, whose threads would get
//! the signals.

use std::process::Command;

fn main() -> std::io::Result<()> {
    let mut started = 0;
    let code = forebay_fuse::supervise::run(|| {
        started += 1;
        let mut worker = Command::new("sh");
        worker.args(["-c", "exit 7"]);
        worker
    })?;
    assert_eq!((code, started), (7, 10));
    println!("test result: ok. 1 passed; 0 failed; 0 ignored");
    Ok(())
}
