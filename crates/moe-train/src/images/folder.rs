//! One folder for each class, with PNG, JPEG or BMP files in it.
//!
//! A file that cannot be decoded is an error that names it. (burn's `ImageFolderDataset` reads the same layout; decision 0007 says why
//! it is not used.)

use std::fs;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use image::imageops::FilterType;
use rayon::prelude::*;

use super::source::unreadable;
use super::{ImageError, ImageSet};
use crate::links::leads_out;

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "bmp"];

/// Files with their labels, in the order of classes and names.
pub(super) struct Files {
    /// Names of the classes, by label.
    pub(super) classes: Vec<String>,
    files: Vec<(PathBuf, u32)>,
}

/// Whether `dir` holds a folder with an image.
pub(super) fn is_in(dir: &Path) -> bool {
    folders(dir).is_ok_and(|folders| folders.iter().any(|folder| images_in(folder).is_ok_and(|all| !all.is_empty())))
}

impl Files {
    /// The files below `dir`, whose folders are the classes. A link must not lead out of `root`, which is `dir` or around it.
    pub(super) fn list(dir: &Path, root: &Path) -> Result<Self, ImageError> {
        let (mut classes, mut files) = (Vec::new(), Vec::new());
        for folder in folders(dir)? {
            refuse_link_out(root, &folder)?;
            let images = images_in(&folder)?;
            images.iter().try_for_each(|path| refuse_link_out(root, path))?;
            if images.is_empty() {
                let advice = "remove the folder, or put PNG, JPEG or BMP files into it";
                return Err(ImageError::Empty { part: format!("`{}`", folder.display()), advice });
            }
            files.extend(images.into_iter().map(|path| (path, classes.len() as u32)));
            classes.push(name(&folder));
        }
        Ok(Self { classes, files })
    }

    /// The same files with the labels that their classes have among `classes`.
    pub(super) fn relabelled(mut self, classes: &[String]) -> Result<Self, ImageError> {
        let label = |class: &String| {
            let found = classes.iter().position(|known| known == class);
            found.map(|label| label as u32).ok_or_else(|| ImageError::UnknownClass(class.clone()))
        };
        let labels = self.classes.iter().map(label).collect::<Result<Vec<_>, _>>()?;
        self.files.iter_mut().for_each(|(_, label)| *label = labels[*label as usize]);
        Ok(Self { classes: classes.to_vec(), files: self.files })
    }

    /// Splits off the part `fraction` of every class, spread evenly over its files: (the rest, the part).
    pub(super) fn hold_out(self, fraction: f64) -> (Self, Self) {
        let mut places = vec![0; self.classes.len()];
        let is_held_out = |(_, label): &(PathBuf, u32)| {
            let place = &mut places[*label as usize];
            *place += 1;
            let part = |count: usize| (count as f64 * fraction).floor();
            part(*place) > part(*place - 1)
        };
        let (held_out, rest) = self.files.into_iter().partition(is_held_out);
        (Self { classes: self.classes.clone(), files: rest }, Self { classes: self.classes, files: held_out })
    }

    /// Decodes all of them, scaled and cropped to `size`, with 1 channel (grey) or 3 (red, green, blue).
    pub(super) fn decode(&self, channels: usize, size: usize) -> Result<ImageSet, ImageError> {
        let decoded: Result<Vec<_>, _> = self.files.par_iter().map(|(path, _)| decode(path, channels, size)).collect();
        let mut set = ImageSet::new(channels, size);
        decoded?.into_iter().zip(&self.files).for_each(|(pixels, (_, label))| set.push(pixels, *label));
        Ok(set)
    }
}

/// `[C, size, size]`: the square in the middle, scaled.
fn decode(path: &Path, channels: usize, size: usize) -> Result<Vec<u8>, ImageError> {
    let damaged = |reason: String| ImageError::Damaged { path: path.into(), reason };
    let image = image::open(path).map_err(|error| match error {
        image::ImageError::IoError(source) => ImageError::Unreadable { path: path.into(), source },
        error => damaged(error.to_string()),
    })?;
    if image.width() == 0 || image.height() == 0 {
        return Err(damaged("it has no pixels".into()));
    }
    let image = square(&image, size as u32);
    let interleaved = if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
    Ok((0..channels).flat_map(|channel| interleaved.iter().skip(channel).step_by(channels)).copied().collect())
}

/// Cropped before it is scaled: a strip of a few pixels by a million, scaled as a whole, would take any memory there is.
fn square(image: &DynamicImage, size: u32) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    let side = width.min(height);
    let middle = image.crop_imm((width - side) / 2, (height - side) / 2, side, side);
    if side == size { middle } else { middle.resize_exact(size, size, FilterType::Triangle) }
}

fn refuse_link_out(root: &Path, path: &Path) -> Result<(), ImageError> {
    if leads_out(root, path) { Err(ImageError::LinkOut(path.into())) } else { Ok(()) }
}

/// The folders in `dir` that are not hidden, in the order of their names.
fn folders(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    Ok(entries(dir)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let is_image = |path: &PathBuf| {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) && path.is_file()
    };
    Ok(entries(folder)?.into_iter().filter(is_image).collect())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = fs::read_dir(dir).map_err(unreadable(dir))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    if let Ok(paths) = &mut paths {
        paths.retain(|path| !name(path).starts_with('.'));
        paths.sort();
    }
    paths.map_err(unreadable(dir))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};

    use super::*;

    /// `counts[i]` images of one colour, 6 x 4, in folder `names[i]`.
    pub(crate) fn write(dir: &Path, names: &[&str], counts: &[usize]) {
        for (class, (name, count)) in names.iter().zip(counts).enumerate() {
            fs::create_dir_all(dir.join(name)).expect("writable");
            for place in 0..*count {
                let image = RgbImage::from_pixel(6, 4, Rgb([10 * class as u8, place as u8, 200]));
                image.save(dir.join(name).join(format!("{place:02}.png"))).expect("writable");
            }
        }
    }

    #[test]
    fn folders_are_classes_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!is_in(dir.path()));
        write(dir.path(), &["cat", "ant", ".hidden"], &[2, 3, 1]);
        fs::write(dir.path().join("ant/notes.txt"), "not an image").expect("writable");
        assert!(is_in(dir.path()));
        let files = Files::list(dir.path(), dir.path()).expect("readable");
        assert_eq!(files.classes, ["ant", "cat"]);
        let set = files.decode(3, 4).expect("whole");
        assert_eq!((set.len(), set.label(2), set.label(3)), (5, 0, 1));
        // The second image of `ant`, which was written second: red 10, green its place.
        assert_eq!([set.pixels(1)[0], set.pixels(1)[16], set.pixels(1)[47]], [10, 1, 200]);
    }

    #[test]
    fn images_are_scaled_and_cropped_to_the_middle() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("only")).expect("writable");
        // Black, then white in the middle third, twice as large as asked for.
        let image = GrayImage::from_fn(12, 4, |x, _| Luma([if (4..8).contains(&x) { 255 } else { 0 }]));
        image.save(dir.path().join("only/stripe.png")).expect("writable");
        let set = Files::list(dir.path(), dir.path()).expect("readable").decode(1, 2).expect("whole");
        assert_eq!(set.numbers(), 4);
        assert!(set.pixels(0).iter().all(|&pixel| pixel > 200), "{:?}", set.pixels(0));
    }

    /// Of a strip, all of which would have to be as wide as the middle: 4 GB for one image.
    #[test]
    fn a_long_strip_takes_the_memory_of_its_middle() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("only")).expect("writable");
        let strip = GrayImage::from_fn(100_000, 1, |x, _| Luma([if x == 49_999 { 255 } else { 0 }]));
        strip.save(dir.path().join("only/strip.png")).expect("writable");
        let set = Files::list(dir.path(), dir.path()).expect("readable").decode(1, 200).expect("whole");
        assert_eq!(set.pixels(0), vec![255; 200 * 200]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_data_set_is_refused_and_one_within_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        write(&dir.path().join("data"), &["a", "b"], &[1, 2]);
        write(dir.path(), &["outside"], &[1]);
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join("data").join(name)).expect("writable");
        };
        let list = || {
            let data = dir.path().join("data");
            Files::list(&data, &data)
        };
        link("../b/01.png", "a/within.png");
        assert_eq!(list().expect("it is inside").files.len(), 4);
        for (target, name) in [("../../outside/00.png", "a/out.png"), ("../outside", "c")] {
            link(target, name);
            let refused = list().err().expect("it leads out");
            assert!(matches!(&refused, ImageError::LinkOut(path) if path.ends_with(name)), "{refused}");
            fs::remove_file(dir.path().join("data").join(name)).expect("writable");
        }
    }

    #[test]
    fn a_part_of_every_class_is_held_out() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &["a", "b"], &[20, 10]);
        let (train, valid) = Files::list(dir.path(), dir.path()).expect("readable").hold_out(0.1);
        let labels = |files: &Files| files.files.iter().map(|(_, label)| *label).collect::<Vec<_>>();
        assert_eq!((train.files.len(), labels(&valid)), (27, vec![0, 0, 1]));
        assert!(valid.files.iter().all(|file| !train.files.contains(file)));
    }

    #[test]
    fn labels_are_those_of_the_training_classes() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &["b", "c"], &[1, 1]);
        let files = || Files::list(dir.path(), dir.path()).expect("readable");
        let known = ["a", "b", "c"].map(String::from);
        let set = files().relabelled(&known).expect("both are known").decode(3, 4).expect("whole");
        assert_eq!((set.label(0), set.label(1)), (1, 2));
        assert!(matches!(files().relabelled(&known[..2]), Err(ImageError::UnknownClass(class)) if class == "c"));
    }

    #[test]
    fn a_file_that_is_no_image_and_a_folder_without_one_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &["a"], &[1]);
        fs::write(dir.path().join("a/99.png"), "not a PNG").expect("writable");
        let refused =
            Files::list(dir.path(), dir.path()).expect("readable").decode(3, 4).expect_err("a broken file").to_string();
        assert!(refused.contains("99.png` is damaged"), "{refused}");
        fs::create_dir(dir.path().join("b")).expect("writable");
        let refused = Files::list(dir.path(), dir.path()).err().expect("an empty folder").to_string();
        assert!(refused.contains("no images in `") && refused.contains("/b`"), "{refused}");
    }
}
