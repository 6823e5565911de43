//! Who uses a mounted tree: processes whose working folder, root, program, open or mapped files are below it. Reads links in /proc only, so
//! it can't hang on the tree itself.

use std::fmt;
use std::path::Path;

/// How many are named in a message.
const NAMED: usize = 5;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.pid)
    }
}

/// Processes that use the tree at `directory`, except this one.
pub fn find(directory: &Path) -> Vec<User> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut users: Vec<User> = ids
        .filter(|pid| *pid != std::process::id() && uses(Path::new(&format!("/proc/{pid}")), directory))
        .map(|pid| User { pid, name: name(pid) })
        .collect();
    users.sort_by_key(|user| user.pid);
    users
}

/// `python3 (12), bash (34) and 2 more`.
pub fn list(users: &[User]) -> String {
    let named: Vec<String> = users.iter().take(NAMED).map(ToString::to_string).collect();
    match users.len() {
        0 => "a process that can't be seen from here (in another PID namespace?), or a mount below it".to_owned(),
        count if count > NAMED => format!("{} and {} more", named.join(", "), count - NAMED),
        _ => named.join(", "),
    }
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

/// Whether a process does; one that has ended meanwhile does not.
fn uses(process: &Path, directory: &Path) -> bool {
    let below = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(directory));
    if ["cwd", "root", "exe"].iter().any(|link| below(&process.join(link))) {
        return true;
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.map(|entry| entry.path()).any(|link| below(&link)) || maps(process, directory)
}

fn maps(process: &Path, directory: &Path) -> bool {
    // Not UTF-8 where a name is not.
    let text = std::fs::read(process.join("maps")).unwrap_or_default();
    // address perms offset device inode   path
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.find('/').and_then(|start| line.get(start..)))
        .any(|path| Path::new(path).starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_its_working_folder_below_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a");
        std::fs::create_dir(&below).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&below).spawn().unwrap();
        let users = find(folder.path());
        let elsewhere = find(Path::new("/nowhere"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(users.iter().any(|user| user.pid == child.id()), "{users:?}");
        assert!(list(&users).contains(&format!("({})", child.id())));
        assert_eq!(elsewhere, []);
    }

    #[test]
    fn many_are_counted() {
        let users: Vec<User> = (1..=7).map(|pid| User { pid, name: "reader".into() }).collect();
        assert!(list(&users).ends_with("reader (5) and 2 more"), "{}", list(&users));
    }
}
