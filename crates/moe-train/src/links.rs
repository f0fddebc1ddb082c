//! Links among the files of a data set: what a folder shows is in it.

use std::path::Path;

/// Whether `path` is a link to something that is not in the folder `root`, or to nothing.
pub(crate) fn leads_out(root: &Path, path: &Path) -> bool {
    let inside = || Some(path.canonicalize().ok()?.starts_with(root.canonicalize().ok()?));
    path.is_symlink() && inside() != Some(true)
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_link_to_the_outside_or_to_nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/a")).unwrap();
        for file in ["outside", "data/a/file", "data-too"] {
            fs::write(at(file), "x").unwrap();
        }
        for (target, link) in [
            ("../outside", "data/out"),
            ("../data-too", "data/sibling"),
            ("..", "data/up"),
            ("nothing", "data/broken"),
            ("loop", "data/loop"),
        ] {
            symlink(target, at(link)).unwrap();
            assert!(leads_out(&at("data"), &at(link)), "{link}");
        }
        symlink("a/file", at("data/within")).unwrap();
        symlink("data", at("name")).unwrap();
        for inside in ["data/within", "data/a/file", "name/within"] {
            assert!(!leads_out(&at("name"), &at(inside)), "{inside}");
        }
    }
}
