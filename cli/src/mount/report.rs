//! What a mount tells its user while it is made and loads: on a terminal a line that changes, elsewhere a line every few seconds. A mount in
//! the background tells it to the command that started it, as JSON lines on its standard output, until it is mounted.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

/// Least time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// How often the changing line's sign of life moves.
const TICK: Duration = Duration::from_millis(100);

/// One piece of news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum News {
    /// What is going on; the next one replaces it.
    Progress(String),
    /// Something to keep in view.
    Note(String),
    /// The tree can be read; this is what there is to say about it.
    Mounted(String),
    /// It can't be mounted, for this reason.
    Failed(String),
}

/// Whoever wanted to know is gone.
#[derive(Debug, thiserror::Error)]
#[error("the command that started this mount is gone")]
pub struct NobodyListens;

/// Tells news.
#[derive(Debug)]
pub struct Reporter {
    to: To,
}

#[derive(Debug)]
enum To {
    Terminal(ProgressBar),
    Lines { last: Option<(Instant, String)> },
    Starter,
}

impl Reporter {
    /// To the user, on stderr.
    pub fn to_user() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { to: To::Lines { last: None } };
        }
        let line = ProgressBar::new_spinner();
        line.set_style(
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        line.enable_steady_tick(TICK);
        Self { to: To::Terminal(line) }
    }

    /// To the command that started this process in the background, on stdout.
    pub fn to_starter() -> Self {
        Self { to: To::Starter }
    }

    /// Tells a piece of news.
    pub fn tell(&mut self, news: News) -> Result<(), NobodyListens> {
        match &mut self.to {
            To::Starter => return send(&news),
            To::Terminal(line) => match news {
                News::Progress(text) => line.set_message(text),
                News::Note(text) => line.suspend(|| eprintln!("{text}")),
                News::Mounted(text) => {
                    line.finish_and_clear();
                    eprintln!("{text}");
                }
                // The caller ends with this error and prints it.
                News::Failed(_) => line.finish_and_clear(),
            },
            To::Lines { last } => match news {
                News::Progress(text) => {
                    let due = last.as_ref().is_none_or(|(at, before)| *before != text && at.elapsed() >= LINE_INTERVAL);
                    if due {
                        eprintln!("{text}");
                        *last = Some((Instant::now(), text));
                    }
                }
                News::Note(text) | News::Mounted(text) => eprintln!("{text}"),
                News::Failed(_) => {}
            },
        }
        Ok(())
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let To::Terminal(line) = &self.to {
            line.finish_and_clear();
        }
    }
}

fn send(news: &News) -> Result<(), NobodyListens> {
    let mut line = serde_json::to_vec(news).map_err(|_| NobodyListens)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).map_err(|_| NobodyListens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_one_line_however_many_it_has() {
        let news = News::Failed("first\nsecond".to_owned());
        let line = serde_json::to_string(&news).unwrap();
        assert_eq!(line.lines().count(), 1);
        assert_eq!(serde_json::from_str::<News>(&line).unwrap(), news);
    }
}
