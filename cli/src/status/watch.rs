//! Follows one Dataset until its preload is complete: a bar on a terminal, elsewhere a line whenever something changed and at least
//! one every few seconds, so that `kubectl logs -f` and CI show progress too.

use std::io::IsTerminal as _;
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use forebay_crds::{Dataset, DatasetPhase, LoadPhase};
use futures::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};

use super::render;

/// Least time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// Exit status when the time is up.
const TIMED_OUT: u8 = 2;

/// How long a Dataset may be failed before that is its end: what was applied together with it (a Secret, the CacheRuntime) may still be on its
/// way.
const FAILURE_PATIENCE: Duration = Duration::from_secs(15);

/// Whether to go on following.
enum Step {
    Continue,
    /// The Dataset has failed, with this message, unless it heals soon.
    Failing(String),
    End(ExitCode),
}

/// Follows until the preload (or, without one, the catalog) is complete, the Dataset fails, or the time is up.
pub async fn follow(
    datasets: &Api<Dataset>,
    namespace: &str,
    name: &str,
    timeout: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let full_name = format!("{namespace}/{name}");
    // The watch alone would wait for ever for a Dataset that was misspelt.
    datasets.get(name).await.with_context(|| format!("reading Dataset {full_name}"))?;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(datasets.clone(), config).default_backoff().applied_objects());
    let mut view = View::new(&full_name);
    let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
    let mut failing: Option<(tokio::time::Instant, String)> = None;
    loop {
        let until = [deadline, failing.as_ref().map(|(until, _)| *until)].into_iter().flatten().min();
        let next = match until {
            Some(until) => tokio::time::timeout_at(until, events.try_next()).await.ok(),
            None => Some(events.try_next().await),
        };
        let Some(event) = next else {
            let Some((_, message)) = failing.filter(|(until, _)| deadline.is_none_or(|deadline| *until <= deadline))
            else {
                view.finish(&format!("{full_name}: not complete after {:?}", timeout.unwrap_or_default()));
                return Ok(ExitCode::from(TIMED_OUT));
            };
            view.finish(&message);
            return Ok(ExitCode::FAILURE);
        };
        let Some(dataset) = event.with_context(|| format!("watching Dataset {full_name}"))? else {
            anyhow::bail!("the watch of Dataset {full_name} ended");
        };
        match view.show(&dataset) {
            Step::Continue => failing = None,
            Step::Failing(message) => {
                let until = failing.map_or_else(|| tokio::time::Instant::now() + FAILURE_PATIENCE, |(until, _)| until);
                failing = Some((until, message));
            }
            Step::End(code) => return Ok(code),
        }
    }
}

/// What the user sees.
struct View {
    name: String,
    bar: Option<ProgressBar>,
    last_line: Option<(Instant, String)>,
}

impl View {
    fn new(name: &str) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix} [{bar:40}] {percent:>3}% {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            bar.set_style(style);
            bar.set_prefix(name.to_owned());
            bar
        });
        Self { name: name.to_owned(), bar, last_line: None }
    }

    fn show(&mut self, dataset: &Dataset) -> Step {
        let status = dataset.status.clone().unwrap_or_default();
        if dataset.metadata.deletion_timestamp.is_some() {
            self.finish(&format!("{}: is being deleted", self.name));
            return Step::End(ExitCode::FAILURE);
        }
        if status.phase == Some(DatasetPhase::Failed) {
            let text = render::phase(&status);
            self.line(&text);
            return Step::Failing(format!("{}: {text}", self.name));
        }
        match (&status.preload, &status.version) {
            (Some(preload), _) => {
                let text = render::progress(preload);
                if let Some(bar) = &self.bar {
                    bar.set_length(u64::try_from(preload.total_bytes).unwrap_or(0));
                    bar.set_position(u64::try_from(preload.loaded_bytes).unwrap_or(0));
                    bar.set_message(format!(
                        "{} of {} files, {} of {}, {}",
                        preload.loaded_files,
                        preload.total_files,
                        preload.loaded_size,
                        preload.total_size,
                        preload.throughput.as_deref().unwrap_or("-")
                    ));
                }
                if preload.phase == LoadPhase::Complete {
                    self.finish(&format!("{}: {text}", self.name));
                    return Step::End(ExitCode::SUCCESS);
                }
                self.line(&text);
                if preload.phase == LoadPhase::Failed {
                    let first =
                        preload.failures.first().map(|failure| format!("; {}: {}", failure.path, failure.reason));
                    return Step::Failing(format!("{}: {text}{}", self.name, first.unwrap_or_default()));
                }
            }
            (None, Some(version)) if dataset.spec.preload.is_none() => {
                self.finish(&format!(
                    "{}: {} files, {}; no preload is asked for",
                    self.name, version.files, version.size
                ));
                return Step::End(ExitCode::SUCCESS);
            }
            _ => {
                let text = render::phase(&status);
                if let Some(bar) = &self.bar {
                    bar.set_message(text.clone());
                }
                self.line(&text);
            }
        }
        Step::Continue
    }

    /// A line, unless there is a bar, or the last one is too young.
    fn line(&mut self, text: &str) {
        if self.bar.is_some() {
            return;
        }
        let due = match &self.last_line {
            Some((at, last)) => last != text && at.elapsed() >= LINE_INTERVAL,
            None => true,
        };
        if due {
            println!("{}: {text}", self.name);
            self.last_line = Some((Instant::now(), text.to_owned()));
        }
    }

    fn finish(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        println!("{text}");
    }
}
