//! IDX, the layout of MNIST and its successors ([LeCun et al.](http://yann.lecun.com/exdb/mnist/)): a magic number, the sizes, and
//! bytes; whole or compressed by gzip.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{ImageError, ImageSet};

const IMAGES: [u8; 4] = [0, 0, 8, 3];
const LABELS: [u8; 4] = [0, 0, 8, 1];
const TRAIN: &str = "train";
const TEST: &str = "t10k";

/// Whether there are training images in `dir`.
pub(super) fn is_in(dir: &Path) -> bool {
    find(dir, TRAIN, "images", 3).is_some()
}

/// `train-images-idx3-ubyte` and its labels.
pub(super) fn train(dir: &Path) -> Result<ImageSet, ImageError> {
    read(dir, TRAIN)
}

/// `t10k-images-idx3-ubyte` and its labels.
pub(super) fn test(dir: &Path) -> Result<ImageSet, ImageError> {
    read(dir, TEST)
}

/// A file under one of the names it goes by.
fn find(dir: &Path, part: &str, what: &str, rank: usize) -> Option<PathBuf> {
    let names = ["-", "."].map(|separator| format!("{part}-{what}{separator}idx{rank}-ubyte"));
    let files = names.iter().flat_map(|name| [name.clone(), format!("{name}.gz")]);
    files.map(|name| dir.join(name)).find(|path| path.is_file())
}

fn read(dir: &Path, part: &str) -> Result<ImageSet, ImageError> {
    let file = |what: &str, rank: usize| {
        let usual = || dir.join(format!("{part}-{what}-idx{rank}-ubyte"));
        find(dir, part, what, rank).ok_or_else(|| ImageError::Incomplete(usual()))
    };
    let (images, labels) = (file("images", 3)?, file("labels", 1)?);
    let ([count, height, width], pixels) = tensor::<3>(&images, IMAGES)?;
    let ([labelled], classes) = tensor::<1>(&labels, LABELS)?;
    if count != labelled {
        let reason = format!("it has {labelled} labels, and {} has {count} images", images.display());
        return Err(ImageError::Damaged { path: labels, reason });
    }
    if height != width {
        return Err(ImageError::NotSquare { path: images, height, width });
    }
    let mut set = ImageSet::new(1, height);
    for (image, label) in pixels.chunks_exact(height * width).zip(classes) {
        set.push(image.iter().copied(), label.into());
    }
    Ok(set)
}

/// Sizes and bytes of a file that begins with `magic`.
fn tensor<const D: usize>(path: &Path, magic: [u8; 4]) -> Result<([usize; D], Vec<u8>), ImageError> {
    let damaged = |reason: String| ImageError::Damaged { path: path.into(), reason };
    let file = super::source::read_part(path)?;
    let mut reader: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(GzDecoder::new(&file[..])),
        _ => Box::new(&file[..]),
    };
    let mut word = || {
        let mut word = [0; 4];
        reader.read_exact(&mut word).map(|()| word)
    };
    if word().ok() != Some(magic) {
        return Err(damaged(format!("it does not begin with {magic:02x?}, as IDX files of bytes with {D} sizes do")));
    }
    let mut sizes = [0; D];
    for size in &mut sizes {
        *size = u32::from_be_bytes(word().map_err(|error| damaged(error.to_string()))?) as usize;
    }
    let expected = sizes.iter().try_fold(1, |product: usize, &size| product.checked_mul(size)).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    // One more than there should be, and not all that a packed file could grow to.
    let limit = (expected as u64).saturating_add(1);
    reader.take(limit).read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
    if expected == 0 || bytes.len() != expected {
        return Err(damaged(format!("its sizes {sizes:?} do not make the numbers in it")));
    }
    Ok((sizes, bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn file(magic: [u8; 4], sizes: &[u32], bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
        let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
        magic.into_iter().chain(sizes).chain(bytes).collect()
    }

    /// Four training images of 3 x 3 and two test images, in three classes, half of the files compressed.
    pub(crate) fn write(dir: &Path) {
        let put = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("writable");
        put("train-images-idx3-ubyte", &file(IMAGES, &[4, 3, 3], 0..36));
        put("train-labels.idx1-ubyte", &file(LABELS, &[4], [0, 1, 2, 1]));
        put("t10k-images-idx3-ubyte", &file(IMAGES, &[2, 3, 3], 100..118));
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&file(LABELS, &[2], [2, 0])).expect("in memory");
        put("t10k-labels-idx1-ubyte.gz", &packed.finish().expect("in memory"));
    }

    #[test]
    fn files_are_read_under_each_name_and_unpacked() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!is_in(dir.path()));
        write(dir.path());
        assert!(is_in(dir.path()));
        let (train, test) = (train(dir.path()).expect("whole"), test(dir.path()).expect("whole"));
        assert_eq!((train.len(), train.size(), train.pixels(1)[0], train.label(2)), (4, 3, 9, 2));
        assert_eq!((test.len(), test.pixels(0)[8], test.label(0)), (2, 108, 2));
    }

    #[test]
    fn what_is_no_idx_file_or_is_cut_short_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path());
        let refused = || train(dir.path()).expect_err("a broken file").to_string();
        let path = dir.path().join("train-images-idx3-ubyte");
        for broken in
            [file(LABELS, &[4, 3, 3], 0..36), file(IMAGES, &[4, 3, 3], 0..35), vec![0, 0], file(IMAGES, &[0, 3, 3], [])]
        {
            fs::write(&path, broken).expect("writable");
            assert!(refused().contains("train-images-idx3-ubyte` is damaged"), "{}", refused());
        }
        fs::write(&path, file(IMAGES, &[3, 3, 3], 0..27)).expect("writable");
        assert!(refused().contains("4 labels"), "{}", refused());
        fs::write(&path, file(IMAGES, &[4, 3, 2], 0..24)).expect("writable");
        assert!(refused().contains("must be square"), "{}", refused());
        fs::remove_file(dir.path().join("train-labels.idx1-ubyte")).expect("removable");
        assert!(refused().contains("train-labels-idx1-ubyte` is missing"), "{}", refused());
    }
}
