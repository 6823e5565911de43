//! How far a preload is, for the user of a mount in the foreground: a bar on a terminal, elsewhere a line every few seconds.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use forebay_crds::format_bytes;
use forebay_protocol::node::PreloadProgress;
use indicatif::{ProgressBar, ProgressStyle};

/// Least time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// Shows one preload until it is complete.
#[derive(Debug)]
pub struct PreloadView {
    bar: Option<ProgressBar>,
    started: Instant,
    loaded_before: Option<u64>,
    last_line: Option<Instant>,
    complete: bool,
}

impl PreloadView {
    /// Nothing shown yet.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("preload [{bar:40}] {percent:>3}% {msg}");
            let bar = ProgressBar::new(0);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar
        });
        Self { bar, started: Instant::now(), loaded_before: None, last_line: None, complete: false }
    }

    /// Shows how far it is now. After the end, nothing more.
    pub fn show(&mut self, progress: &PreloadProgress) {
        if self.complete {
            return;
        }
        let before = *self.loaded_before.get_or_insert(progress.loaded_bytes);
        let text = line(progress, progress.loaded_bytes.saturating_sub(before), self.started.elapsed());
        self.complete = progress.loaded_bytes >= progress.total_bytes && progress.loaded_files >= progress.total_files;
        if self.complete {
            self.clear();
            eprintln!("preload complete: {text}");
            return;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.loaded_bytes);
                bar.set_message(text);
            }
            None if self.last_line.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) => {
                eprintln!("preload {text}");
                self.last_line = Some(Instant::now());
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(progress: &PreloadProgress, loaded: u64, elapsed: Duration) -> String {
    let mut text = format!(
        "{} of {} files, {} of {}",
        progress.loaded_files,
        progress.total_files,
        format_bytes(progress.loaded_bytes),
        format_bytes(progress.total_bytes)
    );
    if loaded > 0 && elapsed >= Duration::from_millis(100) {
        let rate = (loaded as f64 / elapsed.as_secs_f64()) as u64;
        let _ = write!(text, ", {}/s", format_bytes(rate));
    }
    if let Some(failure) = progress.failures.first() {
        let _ = write!(text, ", {} failed ({}: {})", progress.failed_files, failure.path, failure.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use forebay_protocol::node::PreloadFailure;

    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_what_failed() {
        let failure = PreloadFailure { path: "a/b".into(), reason: "gone".into() };
        let progress = PreloadProgress {
            total_files: 3,
            loaded_files: 1,
            total_bytes: 4 << 20,
            loaded_bytes: 2 << 20,
            failed_files: 1,
            failures: vec![failure],
            running: true,
            ..PreloadProgress::default()
        };
        let text = line(&progress, 1 << 20, Duration::from_secs(2));
        assert_eq!(text, "1 of 3 files, 2Mi of 4Mi, 512Ki/s, 1 failed (a/b: gone)");
    }
}
