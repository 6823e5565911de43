//! What was found, a line each.

use std::fmt::Write as _;

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, with less.
    Note,
    /// It keeps Datasets from being mounted or read.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// What was looked at.
    pub about: &'static str,
    /// What was found.
    pub says: String,
    /// What to do about it.
    pub next: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Ok, about, says: says.into(), next: None }
    }

    /// It works, with less.
    pub fn note(about: &'static str, says: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Note, about, says: says.into(), next: Some(next.into()) }
    }

    /// It keeps Datasets from being mounted or read.
    pub fn missing(about: &'static str, says: impl Into<String>, next: impl Into<String>) -> Self {
        Self { level: Level::Missing, about, says: says.into(), next: Some(next.into()) }
    }
}

/// A line each, and for those that need something done, what.
pub fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.about.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { level, about, says, next } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Missing => "missing",
        };
        let _ = write!(text, "{level:7}  {about:width$}  {says}");
        if let Some(next) = next {
            let _ = write!(text, "; next: {next}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_one_line_with_its_next_step() {
        let findings = [
            Finding::ok("kernel", "Linux 6.18"),
            Finding::note("passthrough", "not there", "use Linux 6.9"),
            Finding::missing("/dev/fuse", "can't be opened", "modprobe fuse"),
        ];
        assert_eq!(
            render(&findings),
            "ok       kernel       Linux 6.18
note     passthrough  not there; next: use Linux 6.9
missing  /dev/fuse    can't be opened; next: modprobe fuse
"
        );
    }
}
