//! CIFAR-10 in its binary layout ([Krizhevsky, 2009](https://www.cs.toronto.edu/~kriz/cifar.html)): records of a label and 3072
//! pixels, the red plane first.

use std::fs;
use std::path::Path;

use super::{ImageError, ImageSet};

pub(super) const FIRST_FILE: &str = "data_batch_1.bin";
const TEST_FILE: &str = "test_batch.bin";
const NAMES_FILE: &str = "batches.meta.txt";

const CLASSES: usize = 10;
const CHANNELS: usize = 3;
const SIZE: usize = 32;
const RECORD: usize = 1 + CHANNELS * SIZE * SIZE;

/// `data_batch_1.bin` to `data_batch_5.bin`.
pub(super) fn train(dir: &Path) -> Result<ImageSet, ImageError> {
    let mut set = ImageSet::new(CHANNELS, SIZE);
    (1..=5).try_for_each(|part| read(&dir.join(format!("data_batch_{part}.bin")), &mut set))?;
    Ok(set)
}

/// `test_batch.bin`.
pub(super) fn test(dir: &Path) -> Result<ImageSet, ImageError> {
    let mut set = ImageSet::new(CHANNELS, SIZE);
    read(&dir.join(TEST_FILE), &mut set)?;
    Ok(set)
}

/// The names in `batches.meta.txt`, or numbers where that is not there.
pub(super) fn classes(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(NAMES_FILE)).unwrap_or_default();
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.len() == CLASSES { names } else { (0..CLASSES).map(|class| class.to_string()).collect() }
}

fn read(path: &Path, set: &mut ImageSet) -> Result<(), ImageError> {
    let bytes = super::source::read_part(path)?;
    let damaged = |reason: String| ImageError::Damaged { path: path.into(), reason };
    if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD) {
        return Err(damaged(format!("{} bytes are not a number of records of {RECORD}", bytes.len())));
    }
    for record in bytes.chunks_exact(RECORD) {
        if usize::from(record[0]) >= CLASSES {
            return Err(damaged(format!("it has a label {}, and there are {CLASSES} classes", record[0])));
        }
        set.push(record[1..].iter().copied(), record[0].into());
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A data set of `per_file` images a file, whose first pixel is its place in the file.
    pub(crate) fn write(dir: &Path, per_file: usize) {
        let record = |file: usize, place: usize| {
            let label = ((file + place) % CLASSES) as u8;
            [label, place as u8].into_iter().chain(std::iter::repeat_n(file as u8, RECORD - 2))
        };
        let records = |file| (0..per_file).flat_map(|place| record(file, place)).collect::<Vec<u8>>();
        for part in 1..=5 {
            fs::write(dir.join(format!("data_batch_{part}.bin")), records(part)).expect("writable");
        }
        fs::write(dir.join(TEST_FILE), records(6)).expect("writable");
    }

    #[test]
    fn records_are_labels_and_planes() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), 3);
        let (train, test) = (train(dir.path()).expect("whole"), test(dir.path()).expect("whole"));
        assert_eq!((train.len(), test.len(), test.label(1)), (15, 3, 7));
        assert_eq!((train.pixels(4)[0], train.pixels(4)[1], train.label(4)), (1, 2, 3));
        assert_eq!((train.channels(), train.size()), (3, 32));
    }

    #[test]
    fn names_are_read_where_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(classes(dir.path())[9], "9");
        let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
        fs::write(dir.path().join(NAMES_FILE), names).expect("writable");
        assert_eq!(classes(dir.path())[3], "cat");
    }

    #[test]
    fn a_missing_torn_or_foreign_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), 2);
        let path = dir.path().join("data_batch_4.bin");
        let refused = || train(dir.path()).expect_err("a broken file").to_string();
        let whole = fs::read(&path).expect("readable");
        fs::write(&path, &whole[1..]).expect("writable");
        assert!(refused().contains("data_batch_4.bin` is damaged"), "{}", refused());
        fs::write(&path, vec![10; RECORD]).expect("writable");
        assert!(refused().contains("label 10"), "{}", refused());
        fs::remove_file(&path).expect("removable");
        assert!(matches!(train(dir.path()), Err(ImageError::Incomplete(missing)) if missing == path));
    }
}
