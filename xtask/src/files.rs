//! The files of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// Folders that builds, runs and git keep for themselves.
const SKIPPED: [&str; 3] = [".git", "runs", "target"];

/// Every file below `folder`, in the order of the paths.
pub(crate) fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in at(folder, fs::read_dir(folder))? {
        let path = at(folder, entry)?.path();
        let skipped = path.file_name().is_some_and(|name| SKIPPED.iter().any(|skipped| name == *skipped));
        if path.is_dir() && !path.is_symlink() {
            if !skipped {
                collect(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Names the file in the error.
pub(crate) fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn files_are_found_in_order_and_builds_are_skipped() {
        let files = below(&cargo::root()).unwrap();
        assert!(files.is_sorted());
        assert!(files.contains(&cargo::root().join("xtask/src/files.rs")));
        assert!(!files.iter().any(|file| file.starts_with(cargo::root().join("target"))));
    }

    #[test]
    fn a_missing_folder_is_named_in_the_error() {
        assert!(below(Path::new("no/such/folder")).unwrap_err().starts_with("no/such/folder: "));
    }
}
