//! Runs other programs: every failure names the program, its arguments, its exit status and the end of what it said.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// A command from a program and its arguments.
pub fn command<I, S>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command to its end with its output captured; any status but 0 is an error.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(output);
    }
    bail!("{}", failure(command, &output))
}

/// Runs a command to its end with its output captured, whatever its status.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", describe(command)))
}

/// Like [`run`], with `input` on the command's standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", describe(command)))?;
    let Some(mut stdin) = child.stdin.take() else {
        bail!("{} has no standard input", describe(command));
    };
    // A thread of its own: a command that answers before it has read everything must not block us.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command that ends early closes its input; its status says why.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    })
    .with_context(|| format!("waiting for {}", describe(command)))?;
    if output.status.success() {
        return Ok(output);
    }
    bail!("{}", failure(command, &output))
}

/// Runs a command to its end on our own terminal; any status but 0 is an error.
pub fn run_shown(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("can't start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// The standard output of a command that must succeed, without the last newline.
pub fn text(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// The command line as one would type it.
pub fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    if line.len() > 400 {
        let end = line.floor_char_boundary(400);
        line.truncate(end);
        line.push_str("...");
    }
    line
}

fn failure(command: &Command, output: &Output) -> String {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let said = last_lines(&String::from_utf8_lossy(said), 20);
    format!("{} ended with {}: {said}", describe(command), output.status)
}

/// The last lines of a log file for an error message; a placeholder if there is none.
pub fn log_tail(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(log) => last_lines(&String::from_utf8_lossy(&log), 15),
        Err(error) => format!("(no log: {error})"),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_reported_with_its_arguments_status_and_last_words() {
        let error = run(&mut command("sh", ["-c", "echo before; echo broken pipe dream >&2; exit 3"])).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("sh -c"), "{message}");
        assert!(message.contains("exit status: 3: broken pipe dream"), "{message}");
    }

    #[test]
    fn input_larger_than_a_pipe_reaches_a_command_that_answers_at_once() {
        let input = vec![b'x'; 1 << 20];
        let output = run_with_input(&mut command("cat", [""; 0]), &input).unwrap();
        assert_eq!(output.stdout.len(), input.len());
    }
}
