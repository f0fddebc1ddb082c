//! No file of the repository may name a folder of one person's machine.

use std::fs;

use crate::{Result, cargo, files};

/// First folders of absolute paths that exist on one machine and not on the next.
const PRIVATE_ROOTS: [&str; 7] = ["home", "mnt", "root", "tmp", "Users", "work", "workspace"];

/// Looks through every text file of the workspace.
pub(crate) fn check() -> Result<()> {
    let root = cargo::root();
    let mut found = Vec::new();
    for file in files::below(&root)? {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let name = file.strip_prefix(&root).unwrap_or(&file).display();
        found.extend(machine_paths(&text).into_iter().map(|(line, path)| format!("{name}:{line}: {path}")));
    }
    if found.is_empty() { Ok(()) } else { Err(format!("paths of one machine:\n  {}", found.join("\n  "))) }
}

/// Line number (from 1) and text of each private absolute path.
fn machine_paths(text: &str) -> Vec<(usize, String)> {
    let words = text.lines().enumerate().flat_map(|(index, line)| words(line).map(move |word| (index + 1, word)));
    words.filter(|(_, word)| is_private(word)).map(|(line, word)| (line, word.into())).collect()
}

/// A path ends where quotes, brackets, blanks or a list's separators stand.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || "\"'`()[]{}<>=,;:|".contains(c))
}

fn is_private(word: &str) -> bool {
    let folders = word.strip_prefix('/').and_then(|path| path.split_once('/'));
    folders.is_some_and(|(first, rest)| PRIVATE_ROOTS.contains(&first) && !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/first/rest`, put together here so that this file passes its own check.
    fn path(first: &str) -> String {
        format!("/{first}/rest")
    }

    #[test]
    fn a_private_path_is_found_with_its_line() {
        let text = format!("fine\nread \"{}\" and {}\n", path("home"), path("root"));
        assert_eq!(machine_paths(&text), [(2, path("home")), (2, path("root"))]);
    }

    #[test]
    fn system_folders_web_addresses_and_relative_paths_are_fine() {
        let text = format!("/usr/local/cuda /opt/cuda https://example.org{} a{} / //", path("work"), path("home"));
        assert_eq!(machine_paths(&text), []);
    }
}
