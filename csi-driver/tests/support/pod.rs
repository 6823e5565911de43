//! A pod's container, as far as mounts go: a shell in a mount namespace of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Ended when it is dropped.
pub struct Pod {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Pod {
    /// `propagation` is `slave` for `mountPropagation: HostToContainer` and `private` for none.
    pub fn start(propagation: &str) -> Self {
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", propagation, "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut pod = Self { shell, input, output };
        // It has its namespace when it answers.
        assert_eq!(pod.run("echo ready"), "ready\n");
        pod
    }

    /// Runs a command; what it prints.
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command} 2>&1; echo END").unwrap();
        let mut said = String::new();
        while !said.ends_with("END\n") {
            assert!(self.output.read_line(&mut said).unwrap() > 0, "the shell ended after: {said}");
        }
        said.truncate(said.len() - "END\n".len());
        said
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
