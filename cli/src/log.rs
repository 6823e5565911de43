//! The log of this program: only warnings, because what users are to see is printed; all of it where a log file keeps it. `RUST_LOG` sets
//! the level, and the format is that of all our programs.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Sends `tracing` events to stderr, at `level` unless `RUST_LOG` says otherwise. Call once.
pub fn init(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}
