//! The programs that are measured: built beside this one, by `cargo xtask bench`.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::wait::wait_for;

/// Where they are.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

/// `key=value` pairs of one line.
pub type Line = BTreeMap<String, String>;

impl Programs {
    /// Those beside this program, or beside the test that runs.
    pub fn beside_this() -> Result<Self> {
        let this = std::env::current_exe().context("asking where this program is")?;
        let mut folder = this.parent().context("this program is in no folder")?;
        if folder.ends_with("deps") {
            folder = folder.parent().unwrap_or(folder);
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// `forebay-node`.
    pub fn node(&self) -> Result<PathBuf> {
        let path = self.folder.join("forebay-node");
        if !path.exists() {
            bail!("{} is not there; build it: cargo build -p forebay-cache-node", path.display());
        }
        Ok(path)
    }

    /// `forebay`.
    pub fn forebay(&self) -> Result<PathBuf> {
        let path = self.folder.join("forebay");
        if !path.exists() {
            bail!("{} is not there; build it: cargo build -p forebay-cli", path.display());
        }
        Ok(path)
    }

    /// An example of the cache node's crate; none when it is not built.
    pub fn example(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join("examples").join(name)).filter(|path| path.exists())
    }

    /// Whether these are built with optimisation: figures of others say nothing.
    pub fn optimised(&self) -> bool {
        self.folder.ends_with("release")
    }
}

/// A process that ends with this value. (tokio's needs a feature that nothing else in the workspace wants.)
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts it, without input.
    pub fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {program}"))?))
    }

    /// Starts one that runs as long as its input is open: until this value is gone.
    pub fn serving(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        Ok(Self(command.stdin(Stdio::piped()).spawn().with_context(|| format!("starting {program}"))?))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended; none while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.0.try_wait().context("looking after a process")
    }

    /// kill -9, until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill().context("killing a process")?;
        self.0.wait().context("waiting for a killed process")?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already, or going.
        let _ = self.kill();
    }
}

/// How long a program may take to give figures: ten million objects take minutes to make.
const PATIENCE: Duration = Duration::from_mins(30);

/// Runs a program that prints figures, with its scratch files in `folder`; gives its lines that have some.
pub async fn figures(program: &Path, arguments: &[&str], folder: &Path) -> Result<Vec<Line>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let what = || format!("{name} {}", arguments.join(" "));
    let mut errors = tempfile::tempfile_in(folder)?;
    let mut output = tempfile::tempfile_in(folder)?;
    let mut command = Command::new(program);
    command.args(arguments).env("TMPDIR", folder).current_dir(folder);
    let mut running = Running::start(command.stdout(output.try_clone()?).stderr(errors.try_clone()?))?;
    let status = wait_for(&what(), PATIENCE, async || running.ended()).await?;
    let read = |file: &mut std::fs::File| {
        let mut text = String::new();
        std::io::Seek::rewind(file).and_then(|()| file.read_to_string(&mut text)).map(|_| text)
    };
    if !status.success() {
        let said = read(&mut errors)?;
        let last: Vec<_> = said.trim_end().lines().rev().take(10).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!("{} ended with {status}: {}", what(), last.join("\n"));
    }
    let lines: Vec<_> = read(&mut output)?.lines().filter_map(parse).collect();
    if lines.is_empty() {
        bail!("{} printed no figures", what());
    }
    Ok(lines)
}

/// Starts a program that serves, and waits until it has printed `last=`; gives it with all it has printed.
pub async fn serve(program: &Path, arguments: &[&str], folder: &Path, last: &str) -> Result<(Running, Line)> {
    let path = folder.join("served");
    let log = std::fs::File::create(&path)?;
    let mut command = Command::new(program);
    command.args(arguments).env("TMPDIR", folder).current_dir(folder);
    let mut running = Running::serving(command.stdout(log))?;
    let what = format!("{} {} to print {last}=", program.display(), arguments.join(" "));
    let printed = wait_for(&what, PATIENCE, async || {
        if let Some(status) = running.ended()? {
            bail!("{} {} ended with {status}", program.display(), arguments.join(" "));
        }
        let text = std::fs::read_to_string(&path)?;
        // Whole lines only: the last one may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let printed: Line = whole.lines().filter_map(parse).flatten().collect();
        Ok(printed.contains_key(last).then_some(printed))
    });
    let printed = printed.await?;
    Ok((running, printed))
}

/// The `key=value` words of a line; none when it has none.
pub fn parse(line: &str) -> Option<Line> {
    let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
    let line: Line = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    (!line.is_empty()).then_some(line)
}

/// A figure, from whichever line has it.
pub fn figure(lines: &[Line], key: &str) -> Result<f64> {
    let text = lines.iter().find_map(|line| line.get(key));
    let text = text.with_context(|| format!("no {key}= was printed"))?;
    text.parse().with_context(|| format!("{key}={text} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_other_words() {
        let lines: Vec<_> =
            ["opening", "open_seconds=1.5 done rss_bytes=7", ""].into_iter().filter_map(parse).collect();
        assert_eq!(lines.len(), 1);
        assert!((figure(&lines, "open_seconds").unwrap() - 1.5).abs() < 1e-9);
        assert!((figure(&lines, "rss_bytes").unwrap() - 7.0).abs() < 1e-9);
        assert_eq!(figure(&lines, "x").unwrap_err().to_string(), "no x= was printed");
    }

    #[tokio::test]
    async fn a_program_that_fails_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new("/bin/sh");
        let failed = figures(program, &["-c", "echo no room >&2; exit 3"], folder.path()).await.unwrap_err();
        assert!(failed.to_string().contains("exit status: 3: no room"), "{failed}");
        let silent = figures(program, &["-c", "echo hello"], folder.path()).await.unwrap_err();
        assert!(silent.to_string().ends_with("printed no figures"), "{silent}");
    }
}
