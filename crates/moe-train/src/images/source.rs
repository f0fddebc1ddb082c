//! Where images come from.
//!
//! | `--data` | held out |
//! |---|---|
//! | nothing: shapes are drawn ([`draw_shapes`]) | others of them |
//! | CIFAR-10's `data_batch_1.bin` to 5 and `test_batch.bin` | the latter |
//! | IDX files: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-..`, also `.gz` | `t10k-..` |
//! | `train/` and `valid/`, `val/` or `test/`, each with a folder for every class | the second |
//! | a folder for every class | `data.valid_fraction` of the images of every class |
//! | folders, with `--valid` | all of the latter |

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::folder::Files;
use super::{ImageConfig, ImageData, ImageError, ImageSet, cifar, draw_shapes, folder, idx, shapes};

/// A data set that was found, not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// Nothing to read: images are drawn.
    Shapes,
    /// CIFAR-10.
    Cifar(PathBuf),
    /// MNIST or another set in its layout.
    Idx(PathBuf),
    /// A folder for every class.
    Folders {
        /// The images to train on.
        train: PathBuf,
        /// Those held out, if they are elsewhere.
        valid: Option<PathBuf>,
    },
}

/// Which images of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// To train on.
    Train,
    /// Held out.
    HeldOut,
}

impl ImageSource {
    /// Looks which layout the paths of `config` have.
    ///
    /// # Errors
    ///
    /// A path that is missing or has none of the layouts, a held-out part where the layout has its own.
    pub fn find(config: &ImageConfig) -> Result<Self, ImageError> {
        let source = match &config.path {
            Some(path) => Self::at(path)?,
            None => Self::Shapes,
        };
        let Some(valid) = &config.valid_path else { return Ok(source) };
        match (source, Self::at(valid)?) {
            (Self::Folders { train, valid: None }, Self::Folders { train: valid, .. }) => {
                Ok(Self::Folders { train, valid: Some(valid) })
            }
            (Self::Folders { valid: None, .. }, _) => Err(ImageError::UnknownLayout(valid.clone())),
            _ => Err(ImageError::TwoHeldOutParts(config.path.clone().unwrap_or_default())),
        }
    }

    fn at(path: &Path) -> Result<Self, ImageError> {
        if !path.exists() {
            return Err(ImageError::Missing(path.into()));
        }
        if path.join(cifar::FIRST_FILE).is_file() {
            return Ok(Self::Cifar(path.into()));
        }
        if idx::is_in(path) {
            return Ok(Self::Idx(path.into()));
        }
        let held_out =
            ["valid", "val", "test"].map(|name| path.join(name)).into_iter().find(|path| folder::is_in(path));
        match held_out {
            Some(valid) if folder::is_in(&path.join("train")) => {
                Ok(Self::Folders { train: path.join("train"), valid: Some(valid) })
            }
            _ if folder::is_in(path) => Ok(Self::Folders { train: path.into(), valid: None }),
            _ => Err(ImageError::UnknownLayout(path.into())),
        }
    }

    /// Whether a mirrored image is taken to be of the same class: not in IDX files, most of which hold digits or letters.
    pub fn can_be_mirrored(&self) -> bool {
        !matches!(self, Self::Idx(_))
    }

    /// Reads both parts, those of folders as images `[channels, size, size]`.
    ///
    /// # Errors
    ///
    /// A file that is missing, unreadable or damaged; a part without images.
    pub fn load(&self, valid_fraction: f64, channels: usize, size: usize) -> Result<ImageData, ImageError> {
        let description = self.to_string();
        let (train, valid, classes) = match self {
            Self::Shapes => {
                let classes = shapes::CLASSES.map(String::from).to_vec();
                (draw_shapes(Part::Train), draw_shapes(Part::HeldOut), classes)
            }
            Self::Cifar(dir) => (cifar::train(dir)?, cifar::test(dir)?, cifar::classes(dir)),
            Self::Idx(dir) => {
                let (train, valid) = (idx::train(dir)?, idx::test(dir)?);
                if train.size() != valid.size() {
                    let (field, model, images) = ("image_size", train.size(), valid.size());
                    return Err(ImageError::Shape { field, model, images });
                }
                let classes = number_of_classes(&train).max(number_of_classes(&valid));
                (train, valid, (0..classes).map(|class| class.to_string()).collect())
            }
            Self::Folders { train, valid } => {
                let root = around(train, valid.as_deref());
                let files = Files::list(train, root)?;
                let classes = files.classes.clone();
                let (train, valid) = match valid {
                    Some(valid) => (files, Files::list(valid, around(valid, Some(train)))?.relabelled(&classes)?),
                    None => files.hold_out(valid_fraction),
                };
                (train.decode(channels, size)?, valid.decode(channels, size)?, classes)
            }
        };
        not_empty(&train, "the training part", "add some, or lower data.valid_fraction")?;
        not_empty(&valid, "the held-out part", "add some, or raise data.valid_fraction")?;
        Ok(ImageData { standard: train.standard(), train, valid, classes, description })
    }

    /// Reads the images of `path` to measure on: the held-out part where there is one, else all of them, with the labels that their
    /// classes have among `classes`.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and a class that is not among `classes`.
    pub fn load_whole(path: &Path, classes: &[String], channels: usize, size: usize) -> Result<ImageSet, ImageError> {
        let set = match Self::at(path)? {
            Self::Shapes => unreachable!("a path is never drawn"),
            Self::Cifar(dir) => cifar::test(&dir)?,
            Self::Idx(dir) => idx::test(&dir)?,
            Self::Folders { train, valid } => {
                Files::list(&valid.unwrap_or(train), path)?.relabelled(classes)?.decode(channels, size)?
            }
        };
        not_empty(&set, &format!("`{}`", path.display()), "pass a directory with some")?;
        if let Some(label) = (0..set.len()).map(|index| set.label(index)).find(|&label| label as usize >= classes.len())
        {
            return Err(ImageError::UnknownClass(label.to_string()));
        }
        for (field, model, images) in [("image_size", size, set.size()), ("channels", channels, set.channels())] {
            if model != images {
                return Err(ImageError::Shape { field, model, images });
            }
        }
        Ok(set)
    }
}

impl std::fmt::Display for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shapes => f.write_str("shapes drawn by the program; held out: others"),
            Self::Cifar(dir) => write!(f, "CIFAR-10 in {}; held out: test_batch.bin", dir.display()),
            Self::Idx(dir) => write!(f, "IDX files in {}; held out: t10k", dir.display()),
            Self::Folders { train, valid: Some(valid) } => {
                write!(f, "folders in {}; held out: {}", train.display(), valid.display())
            }
            Self::Folders { train, valid: None } => {
                write!(f, "folders in {}; held out: a part of each", train.display())
            }
        }
    }
}

/// The folder that links in `part` must not lead out of: the one with both parts, if there is one, else its own.
fn around<'a>(part: &'a Path, other: Option<&Path>) -> &'a Path {
    let parent = part.parent().filter(|parent| other.is_some_and(|other| other.parent() == Some(parent)));
    parent.unwrap_or(part)
}

fn number_of_classes(set: &ImageSet) -> usize {
    (0..set.len()).map(|index| set.label(index) as usize + 1).max().unwrap_or(0)
}

fn not_empty(set: &ImageSet, part: &str, advice: &'static str) -> Result<(), ImageError> {
    if set.is_empty() { Err(ImageError::Empty { part: part.into(), advice }) } else { Ok(()) }
}

/// Reads a file that its data set cannot do without.
pub(super) fn read_part(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::Incomplete(path.into()),
        _ => unreadable(path)(source),
    })
}

pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Unreadable { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path, valid: Option<&Path>) -> ImageConfig {
        ImageConfig { path: Some(path.into()), valid_path: valid.map(PathBuf::from), ..ImageConfig::default() }
    }

    fn load(path: &Path, valid: Option<&Path>) -> Result<ImageData, ImageError> {
        ImageSource::find(&config(path, valid))?.load(0.25, 3, 4)
    }

    #[test]
    fn every_layout_is_found_and_split() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("writable");
            path
        };
        cifar::tests::write(&at("cifar"), 2);
        idx::tests::write(&at("idx"));
        folder::tests::write(&at("plain"), &["a", "b"], &[4, 8]);
        folder::tests::write(&at("split/train"), &["a", "b"], &[2, 2]);
        folder::tests::write(&at("split/test"), &["b"], &[3]);
        for (name, train, valid, classes) in
            [("cifar", 10, 2, 10), ("idx", 4, 2, 3), ("plain", 9, 3, 2), ("split", 4, 3, 2)]
        {
            let data = load(&dir.path().join(name), None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((data.train.len(), data.valid.len(), data.classes.len()), (train, valid, classes), "{name}");
            assert!(data.description.contains("held out"), "{name}");
        }
        assert_eq!(load(&at("split"), None).expect("whole").valid.label(0), 1);
        let both = load(&at("plain"), Some(&at("split/test"))).expect("two folders");
        assert_eq!((both.train.len(), both.valid.len()), (12, 3));
    }

    #[test]
    fn what_is_no_data_set_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(load(&dir.path().join("nowhere"), None), Err(ImageError::Missing(_))));
        assert!(matches!(load(dir.path(), None), Err(ImageError::UnknownLayout(_))));
        cifar::tests::write(dir.path(), 1);
        assert!(matches!(load(dir.path(), Some(dir.path())), Err(ImageError::TwoHeldOutParts(_))));
        let tiny = tempfile::tempdir().expect("a directory");
        folder::tests::write(tiny.path(), &["a"], &[1]);
        assert!(load(tiny.path(), None).expect_err("nothing is held out").to_string().contains("valid_fraction"));
    }

    #[test]
    fn a_path_to_measure_on_is_its_held_out_part_in_the_classes_of_the_run() {
        let dir = tempfile::tempdir().expect("a directory");
        folder::tests::write(&dir.path().join("train"), &["a"], &[2]);
        folder::tests::write(&dir.path().join("valid"), &["b"], &[3]);
        let whole = |classes: &[&str]| {
            let classes: Vec<_> = classes.iter().map(|name| name.to_string()).collect();
            ImageSource::load_whole(dir.path(), &classes, 3, 4)
        };
        let set = whole(&["a", "b"]).expect("whole");
        assert_eq!((set.len(), set.label(0)), (3, 1));
        assert!(matches!(whole(&["a"]), Err(ImageError::UnknownClass(_))));
        let digits = tempfile::tempdir().expect("a directory");
        idx::tests::write(digits.path());
        let names = ["0", "1", "2"].map(String::from);
        assert!(matches!(
            ImageSource::load_whole(digits.path(), &names, 3, 3),
            Err(ImageError::Shape { field: "channels", .. })
        ));
        assert!(matches!(ImageSource::load_whole(digits.path(), &names[..2], 1, 3), Err(ImageError::UnknownClass(_))));
    }

    #[test]
    fn the_checksum_tells_another_image_or_label() {
        let data = ImageSource::Shapes.load(0.1, 3, 24).expect("drawn");
        let same = ImageSource::Shapes.load(0.1, 3, 24).expect("drawn");
        assert_eq!(data.checksum(), same.checksum());
        let mut other = data.clone();
        other.valid.push(vec![0; 3 * 24 * 24], 0);
        assert_ne!(other.checksum(), data.checksum());
    }
}
