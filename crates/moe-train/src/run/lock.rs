//! One program at a time works on a run directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    path::Path,
};

use super::files::FileError;

/// The name of the lock file inside the run directory.
pub(crate) const LOCK_FILE: &str = ".lock";

/// An advisory lock on a run directory. It ends with the value and with the process, also on
/// SIGKILL; the file itself stays and means nothing.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

/// Why a run directory could not be locked.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another program holds it; what that program wrote into the file (its process id).
    Held(String),
    /// The lock file could not be created or locked.
    File(FileError),
}

impl RunLock {
    /// Locks `dir`, which must exist, without waiting.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(FileError::at("open", &path))
            .map_err(LockError::File)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(&mut file))),
            Err(TryLockError::Error(error)) => {
                return Err(LockError::File(FileError::at("lock", &path)(error)));
            }
        }
        note_holder(&mut file).map_err(FileError::at("write", &path)).map_err(LockError::File)?;
        Ok(Self { _file: file })
    }
}

fn note_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.write_all(std::process::id().to_string().as_bytes())
}

/// The text for a message only, so an unreadable file reads as unknown.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.is_empty() => text,
        _ => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(dir.path()).unwrap();
        match RunLock::acquire(dir.path()) {
            Err(LockError::Held(holder)) => assert_eq!(holder, std::process::id().to_string()),
            other => panic!("expected the lock to be held, got {other:?}"),
        }
        drop(first);
        RunLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_dead_process_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK_FILE), "123456").unwrap();
        RunLock::acquire(dir.path()).unwrap();
    }
}
