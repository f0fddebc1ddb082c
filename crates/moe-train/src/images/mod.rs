//! Images in classes, in batches, for a vision model.
//!
//! Images come from a directory ([`ImageSource`]), in one of three layouts, or are drawn ([`draw_shapes`]); all of one size and in
//! memory, a byte per number ([`ImageSet`], a `Dataset` of burn). Batches ([`ImageBatch`]) are pure functions of images, settings
//! and step, augmentation included, so a resumed run sees what an unbroken one would have seen. Files are not read by burn's
//! `ImageFolderDataset`, which panics at a damaged one and whose feature brings an HTTP client.

mod batch;
mod cifar;
mod config;
mod evaluate;
mod folder;
mod idx;
mod linear;
mod set;
mod shapes;
mod source;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use batch::{ImageBatch, ImageOrder};
pub use config::{ImageConfig, ImageLoopConfig, VitTrainConfig};
pub use evaluate::{ClassLoad, ImageEval, evaluate_images};
pub use linear::linear_accuracy;
pub use set::{Image, ImageSet, Standard};
pub use shapes::draw_shapes;
pub use source::{ImageSource, Part};

/// Images with a part held out.
#[derive(Clone, Debug)]
pub struct ImageData {
    /// The part to train on.
    pub train: ImageSet,
    /// The part that is held out.
    pub valid: ImageSet,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Of the training part.
    pub standard: Standard,
    /// Where the images come from, in words.
    pub description: String,
}

impl ImageData {
    /// CRC-32 of both parts: whether the images are still the same.
    pub fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.train.hash(&mut hasher);
        self.valid.hash(&mut hasher);
        hasher.finalize()
    }
}

/// Why images cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The path does not exist.
    #[error("`{0}` does not exist: pass an existing directory of images")]
    Missing(PathBuf),
    /// The path exists and cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or a folder of a class that is elsewhere.
    #[error(
        "`{0}` is a link that leads out of its data set, or to nothing: copy what it names, or pass the folder that has it"
    )]
    LinkOut(PathBuf),
    /// None of the layouts.
    #[error(
        "`{0}` holds no images as the program knows them: pass a directory with CIFAR-10's data_batch_1.bin to 5 and test_batch.bin, \
         with IDX files such as train-images-idx3-ubyte, or with one folder of PNG, JPEG or BMP files for each class"
    )]
    UnknownLayout(PathBuf),
    /// A file that belongs to the layout is not there.
    #[error("`{0}` is missing: the directory holds only a part of the data set")]
    Incomplete(PathBuf),
    /// A file is not what its name says.
    #[error("`{path}` is damaged: {reason}; fetch or write it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A part without images.
    #[error("there are no images in {part}: {advice}")]
    Empty {
        /// Which part, in words.
        part: String,
        /// How to go on.
        advice: &'static str,
    },
    /// A held-out class that was not trained.
    #[error(
        "the held-out images have a class `{0}` that the training images do not have: remove it, or add images of it"
    )]
    UnknownClass(String),
    /// A second part where the layout has its own.
    #[error("`{0}` comes with a held-out part: leave --valid (data.valid_path) out")]
    TwoHeldOutParts(PathBuf),
    /// The images are not of the model's shape.
    #[error(
        "model.{field} is {model}, and the images have {images}: leave model.{field} out, it follows from the images"
    )]
    Shape {
        /// The setting.
        field: &'static str,
        /// What it says.
        model: usize,
        /// What is true of the images.
        images: usize,
    },
    /// Images that are not square.
    #[error("`{path}` has images of {height} x {width}: they must be square")]
    NotSquare {
        /// The file.
        path: PathBuf,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}
