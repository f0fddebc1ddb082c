//! Writing files so that a kill or a power cut leaves either the old state or the new one.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// A file of the run directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The disk or the quota is full.
    #[error(
        "no space left while writing {}; earlier checkpoints are intact: free some space and go on with --resume",
        path.display()
    )]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// Anything else the operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: read, write, create, ..
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The answer of the operating system.
        source: io::Error,
    },
}

impl FileError {
    /// The mapping for `map_err`: sorts a full disk out from everything else.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_path_buf();
            match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::NoSpace { path },
                _ => Self::Io { action, path, source },
            }
        }
    }

    /// The same failure under the name of the file that it was about.
    fn of(self, path: &Path) -> Self {
        let path = path.to_path_buf();
        match self {
            Self::NoSpace { .. } => Self::NoSpace { path },
            Self::Io { source, .. } => Self::Io { action: "write", path, source },
        }
    }

    /// Whether the file does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::at("read", path))
}

/// Creates a directory and its parents.
pub(crate) fn create_dirs(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::at("create the directory", path))
}

/// [`create_dirs`], and makes the names of what it created durable.
pub(crate) fn create_dirs_synced(path: &Path) -> Result<(), FileError> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    create_dirs(path)?;
    missing.iter().try_for_each(|dir| sync_dir(parent(dir)))
}

/// Removes a directory with everything in it; one that does not exist is fine.
pub(crate) fn remove_dir(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(FileError::at("remove", path)),
    }
}

/// Renames within one directory.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(FileError::at("rename", from))
}

/// Writes a new file and waits until it is on the disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = File::create(path).map_err(FileError::at("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::at("write", path))
}

/// Replaces a file as a whole: a reader, a kill or a power cut sees the old content or the new.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let temporary = hidden_sibling(path, "tmp");
    write_synced(&temporary, bytes)
        .and_then(|()| rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .map_err(|error| error.of(path))?;
    sync_dir(parent(path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FileError> {
    // Only Unix opens directories as files; elsewhere the file system orders renames itself.
    if cfg!(unix) {
        File::open(path).and_then(|dir| dir.sync_all()).map_err(FileError::at("sync", path))?;
    }
    Ok(())
}

/// `dir/name` -> `dir/.name.suffix`
pub(crate) fn hidden_sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{suffix}"))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        write_atomic(&path, b"a long first value").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_atomic_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        write_atomic(&path, b"old").unwrap();
        // A directory in the place of the temporary file makes the write fail for every user.
        fs::create_dir(hidden_sibling(&path, "tmp")).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot write {}: ", path.display())), "{error}");
        assert_eq!(read(&path).unwrap(), b"old");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named_as_such() {
        let error = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .and_then(|mut file| file.write_all(b"x"))
            .map_err(FileError::at("write", Path::new("metrics.jsonl")))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no space left while writing metrics.jsonl"), "{text}");
        assert!(text.contains("earlier checkpoints are intact"), "{text}");
    }

    #[test]
    fn directories_are_created_with_their_parents_and_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dirs_synced(&path).unwrap();
        create_dirs_synced(&path).unwrap();
        assert!(path.is_dir());
    }

    #[test]
    fn other_failures_name_the_file_and_the_cause() {
        let error = read(Path::new("nowhere/at/all")).unwrap_err();
        assert!(error.is_not_found());
        assert!(error.to_string().starts_with("cannot read nowhere/at/all: "), "{error}");
    }
}
