//! Text from files, in a part to train on and a part held out.
//!
//! | `--data` | held out |
//! |---|---|
//! | a file | the last `valid_fraction`, cut between two characters |
//! | a directory with `train/` and `valid/` | `valid/` |
//! | a directory of 10 files or more | every tenth file, in the order of their paths |
//! | a directory of fewer files | the last `valid_fraction` of all files in a row |
//! | anything, with `--valid` | all of the latter |
//!
//! A directory is read with all below it; hidden files, links to directories and files that are not text (UTF-8 without NUL) are
//! skipped. A link to a file outside of it is an error.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{DataError, corpus};
use crate::config::DataConfig;
use crate::links::leads_out;

/// From this many files on, whole files are held out: every `HELD_OUT_FILE`th.
const HELD_OUT_FILE: usize = 10;

/// A text in bytes, with a part held out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The part to train on.
    pub train: Vec<u8>,
    /// The part that is held out.
    pub valid: Vec<u8>,
    /// Where the text comes from and what is held out, in words.
    pub description: String,
}

impl Split {
    /// Reads the text of a run.
    ///
    /// # Errors
    ///
    /// [`DataError`] if a path is missing, unreadable or without text, or if the default text cannot be found.
    pub fn load(config: &DataConfig) -> Result<Self, DataError> {
        match (&config.path, &config.valid_path) {
            (None, _) => corpus::load(),
            (Some(path), Some(valid)) => Ok(Self::of_two(Texts::read(path, path)?, Texts::read(valid, valid)?)),
            (Some(path), None) if path.join("train").is_dir() && path.join("valid").is_dir() => {
                let part = |name: &str| Texts::read(&path.join(name), path);
                Ok(Self::of_two(part("train")?, part("valid")?))
            }
            (Some(path), None) => Self::of_one(path, config.valid_fraction),
        }
    }

    /// CRC-32 of both parts: whether a text is still the same.
    pub fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.train);
        hasher.update(&self.valid);
        hasher.finalize()
    }

    fn of_two(train: Texts, valid: Texts) -> Self {
        let description = format!("{}; held out: {}", train.description, valid.description);
        Self { train: train.concat(), valid: valid.concat(), description }
    }

    fn of_one(path: &Path, valid_fraction: f64) -> Result<Self, DataError> {
        let texts = Texts::read(path, path)?;
        if texts.files.len() >= HELD_OUT_FILE {
            return Ok(texts.hold_out_files());
        }
        let description = format!("{}; held out: the last {:.0} %", texts.description, 100.0 * valid_fraction);
        let mut train = texts.concat();
        let valid = train.split_off(cut(&train, valid_fraction));
        Ok(Self { train, valid, description })
    }
}

/// All of a text: a file, or of a directory its `valid/` if it has one, else everything in it. With a description.
///
/// # Errors
///
/// [`DataError`] if the path is missing, unreadable or without text.
pub fn load_whole(path: &Path) -> Result<(Vec<u8>, String), DataError> {
    let valid = path.join("valid");
    let texts = Texts::read(if valid.is_dir() { &valid } else { path }, path)?;
    let description = texts.description.clone();
    Ok((texts.concat(), description))
}

/// The files below a path.
struct Texts {
    files: Vec<Vec<u8>>,
    description: String,
}

impl Texts {
    /// Those of a directory must not be links out of `root`, which is `path` or around it.
    fn read(path: &Path, root: &Path) -> Result<Self, DataError> {
        let texts = if path.is_dir() { Self::of_directory(path, root)? } else { Self::of_file(path)? };
        if texts.files.iter().all(Vec::is_empty) { Err(DataError::Empty(path.into())) } else { Ok(texts) }
    }

    fn of_file(path: &Path) -> Result<Self, DataError> {
        let text = read_file(path)?;
        Ok(Self { description: format!("{} ({} bytes)", path.display(), text.len()), files: vec![text] })
    }

    fn of_directory(path: &Path, root: &Path) -> Result<Self, DataError> {
        let mut paths = Vec::new();
        let mut skipped = collect_files(path, &mut paths)?;
        let mut files = Vec::new();
        for file in &paths {
            if leads_out(root, file) {
                return Err(DataError::LinkOut(file.clone()));
            }
            let text = read_file(file)?;
            if is_text(&text) { files.push(text) } else { skipped += 1 }
        }
        let bytes: usize = files.iter().map(Vec::len).sum();
        let skipped =
            if skipped == 0 { String::new() } else { format!(", {skipped} hidden, binary or no files skipped") };
        let description = format!("{} ({} files, {bytes} bytes{skipped})", path.display(), files.len());
        Ok(Self { files, description })
    }

    fn concat(self) -> Vec<u8> {
        self.files.concat()
    }

    fn hold_out_files(self) -> Split {
        let mut split = Split { train: Vec::new(), valid: Vec::new(), description: self.description };
        for (index, file) in self.files.iter().enumerate() {
            let held_out = index % HELD_OUT_FILE == HELD_OUT_FILE - 1;
            if held_out { &mut split.valid } else { &mut split.train }.extend_from_slice(file);
        }
        split.description.push_str("; held out: every tenth file");
        split
    }
}

/// The files below a directory in the order of their paths; returns how many hidden entries were left out.
fn collect_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<usize, DataError> {
    let fault = |source| unreadable(directory, source);
    let entries = fs::read_dir(directory).map_err(fault)?.collect::<Result<Vec<_>, _>>().map_err(fault)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let mut hidden = 0;
    for path in paths {
        let is_link_to_directory = path.is_symlink() && path.is_dir();
        if is_hidden(&path) || is_link_to_directory {
            hidden += 1;
        } else if path.is_dir() {
            hidden += collect_files(&path, files)?;
        } else if path.exists() && !path.is_file() {
            // A pipe or a device would be waited for.
            hidden += 1;
        } else {
            files.push(path);
        }
    }
    Ok(hidden)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

fn read_file(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> DataError {
    match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing(path.into()),
        _ => DataError::Unreadable { path: path.into(), source },
    }
}

/// Where the held-out end of a text begins, moved back to the start of a UTF-8 character.
fn cut(text: &[u8], valid_fraction: f64) -> usize {
    let mut place = (text.len() as f64 * (1.0 - valid_fraction)) as usize;
    while place > 0 && text.get(place).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {
        place -= 1;
    }
    place
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn directory(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn load(path: &Path) -> Result<Split, DataError> {
        Split::load(&DataConfig { path: Some(path.into()), ..Default::default() })
    }

    #[test]
    fn a_file_holds_out_its_last_tenth() {
        let dir = directory(&[("a.txt", b"0123456789abcdefghij")]);
        let split = load(&dir.path().join("a.txt")).unwrap();
        assert_eq!((split.train.as_slice(), split.valid.as_slice()), (&b"0123456789abcdefgh"[..], &b"ij"[..]));
    }

    #[test]
    fn a_character_is_never_cut() {
        let text = "ääääääääää€€€€€€€€€€".as_bytes();
        for percent in 1..100 {
            let (train, valid) = text.split_at(cut(text, f64::from(percent) / 100.0));
            assert!(std::str::from_utf8(train).is_ok() && std::str::from_utf8(valid).is_ok(), "{percent}");
        }
    }

    #[test]
    fn a_single_file_need_not_be_utf8() {
        let dir = directory(&[("a.bin", &[0x80; 40])]);
        let split = load(&dir.path().join("a.bin")).unwrap();
        assert_eq!(split.train.len() + split.valid.len(), 40);
    }

    #[test]
    fn train_and_valid_directories_are_used_as_such() {
        let dir = directory(&[("train/b.txt", b"B"), ("train/a.txt", b"A"), ("valid/c.txt", b"C"), ("d.txt", b"D")]);
        let split = load(dir.path()).unwrap();
        assert_eq!((split.train.as_slice(), split.valid.as_slice()), (&b"AB"[..], &b"C"[..]));
        assert_eq!(load_whole(dir.path()).unwrap().0, b"C");
    }

    #[test]
    fn every_tenth_of_many_files_is_held_out() {
        let names: Vec<String> = (0..20).map(|i| format!("{:02}.txt", i)).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &name.as_bytes()[..2])).collect();
        let split = load(directory(&files).path()).unwrap();
        assert_eq!(split.valid, b"0919");
        assert_eq!(split.train, b"000102030405060708101112131415161718");
    }

    #[test]
    fn few_files_hold_out_the_end_of_the_last() {
        let split = load(directory(&[("a/x", b"01234"), ("b", b"56789")]).path()).unwrap();
        assert_eq!((split.train.as_slice(), split.valid.as_slice()), (&b"012345678"[..], &b"9"[..]));
    }

    #[test]
    fn hidden_and_binary_files_are_skipped_and_counted() {
        let dir = directory(&[("a", b"0123456789"), (".git/x", b"no"), ("b", b"n\0"), ("c", b"\xff")]);
        let split = load(dir.path()).unwrap();
        assert_eq!(split.train.len() + split.valid.len(), 10);
        assert!(
            split.description.contains("1 files, 10 bytes, 3 hidden, binary or no files skipped"),
            "{}",
            split.description
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_a_directory_is_refused_and_one_within_is_read() {
        use std::os::unix::fs::symlink;
        let dir = directory(&[("data/train/a", b"0123456789"), ("data/valid/v", b"V"), ("secret", b"S")]);
        let at = |name: &str| dir.path().join(name);
        symlink("../valid/v", at("data/train/within")).unwrap();
        assert_eq!(load(&at("data")).unwrap().train, b"0123456789V");
        symlink("../../secret", at("data/train/out")).unwrap();
        let refused = load(&at("data")).unwrap_err();
        assert!(matches!(&refused, DataError::LinkOut(path) if path.ends_with("train/out")), "{refused}");
        // Named by itself it is what was asked for.
        assert_eq!(load_whole(&at("data/train/out")).unwrap().0, b"S");
    }

    #[test]
    fn a_valid_path_takes_the_place_of_the_split() {
        let dir = directory(&[("a", b"0123456789"), ("v", b"V")]);
        let config = DataConfig {
            path: Some(dir.path().join("a")),
            valid_path: Some(dir.path().join("v")),
            ..Default::default()
        };
        let split = Split::load(&config).unwrap();
        assert_eq!((split.train.as_slice(), split.valid.as_slice()), (&b"0123456789"[..], &b"V"[..]));
    }

    #[test]
    fn missing_and_empty_texts_are_refused() {
        let dir = directory(&[("empty.txt", b""), ("sub/.hidden", b"x")]);
        assert!(matches!(load(&dir.path().join("no")), Err(DataError::Missing(_))));
        assert!(matches!(load(&dir.path().join("empty.txt")), Err(DataError::Empty(_))));
        assert!(matches!(load(&dir.path().join("sub")), Err(DataError::Empty(_))));
    }

    #[test]
    fn the_checksum_tells_texts_apart() {
        let split = Split { train: b"ab".to_vec(), valid: b"c".to_vec(), description: String::new() };
        let other = Split { train: b"ad".to_vec(), ..split.clone() };
        assert_ne!(split.checksum(), other.checksum());
        assert_eq!(split.checksum(), Split { description: "x".into(), ..split }.checksum());
    }
}
