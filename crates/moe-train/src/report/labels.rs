//! Where the names of horizontal lines go: where no curve passes, if there is such a place.

use super::axis::Axis;

/// Width of a character of 12 pixels, on average and a little more.
const CHARACTER: f64 = 6.6;
/// Height of a line of text.
const HEIGHT: f64 = 15.0;
/// Distance of the text's base line from its line, above and below.
const ABOVE: f64 = -5.0;
const BELOW: f64 = 13.0;
/// Places along the line that are tried, from the right.
const PLACES: usize = 7;
/// Points of a label that are compared with a curve.
const SAMPLES: usize = 16;

/// The place of a label: its right end and its base line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    width: f64,
}

/// Places the names of `lines`, given with their pixel, between `left` and `right`, each clear of the `curves` and of
/// the names before it as far as possible.
pub(super) fn place(
    lines: &[(&str, f64)],
    curves: &[&[(f64, f64)]],
    (x, y): (&Axis, &Axis),
    (left, right): (f64, f64),
) -> Vec<Place> {
    let curves: Vec<Vec<(f64, f64)>> =
        curves.iter().map(|curve| curve.iter().map(|(px, py)| (x.pixel(*px), y.pixel(*py))).collect()).collect();
    let mut places: Vec<Place> = Vec::new();
    for (name, at) in lines {
        let candidates = candidates(name, *at, left + 6.0, right - 6.0);
        let hits = |place: &Place| -> usize {
            let curves: usize = curves.iter().map(|curve| place.hits(curve)).sum();
            // Two names over each other are worse than any curve.
            curves + places.iter().filter(|other| place.overlaps(other)).count() * SAMPLES * 10
        };
        places.push(candidates.min_by_key(hits).expect("there are candidates"));
    }
    places
}

fn candidates(name: &str, at: f64, left: f64, right: f64) -> impl Iterator<Item = Place> {
    let width = name.chars().count() as f64 * CHARACTER;
    let room = (right - left - width).max(0.0);
    let along = move |place: usize| right - room * place as f64 / (PLACES - 1) as f64;
    (0..PLACES).flat_map(move |place| [ABOVE, BELOW].map(|offset| Place { x: along(place), y: at + offset, width }))
}

impl Place {
    /// At how many of its points the label meets a curve, given in pixels.
    fn hits(&self, curve: &[(f64, f64)]) -> usize {
        let sample = |index: usize| self.x - self.width * index as f64 / (SAMPLES - 1) as f64;
        let (top, bottom) = (self.y - HEIGHT, self.y + HEIGHT / 2.0);
        (0..SAMPLES).filter(|index| height_at(curve, sample(*index)).is_some_and(|y| y > top && y < bottom)).count()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let beside = self.x < other.x - other.width || other.x < self.x - self.width;
        !beside && (self.y - other.y).abs() < HEIGHT
    }
}

/// The height of a curve at `x`, between its points in a straight line.
fn height_at(curve: &[(f64, f64)], x: f64) -> Option<f64> {
    let after = curve.partition_point(|point| point.0 < x);
    let (from, to) = (curve.get(after.checked_sub(1)?)?, curve.get(after)?);
    let part = (x - from.0) / (to.0 - from.0).max(f64::MIN_POSITIVE);
    Some(from.1 + part * (to.1 - from.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: (f64, f64) = (0.0, 600.0);

    fn places(lines: &[(&str, f64)], curves: &[&[(f64, f64)]]) -> Vec<Place> {
        // A pixel is a unit in both directions.
        let axis = Axis::linear(0.0, 600.0, X);
        place(lines, curves, (&axis, &axis), X)
    }

    #[test]
    fn a_free_line_is_named_at_its_right_end_above() {
        let place = places(&[("gzip", 100.0)], &[])[0];
        assert_eq!((place.x, place.y), (594.0, 95.0));
    }

    #[test]
    fn names_avoid_curves_also_between_their_points() {
        let curve = [(0.0, 400.0), (300.0, 95.0), (600.0, 95.0)];
        let place = places(&[("gzip", 100.0)], &[&curve])[0];
        assert_eq!(place.hits(&curve), 0);
    }

    #[test]
    fn names_of_neighbouring_lines_stay_apart() {
        let places = places(&[("gzip -9", 100.0), ("unigrams", 101.0), ("bigrams", 102.0)], &[]);
        for (index, place) in places.iter().enumerate() {
            assert!(places[..index].iter().all(|other| !place.overlaps(other)));
        }
    }
}
