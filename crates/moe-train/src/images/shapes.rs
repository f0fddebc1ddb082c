//! Images to learn from that need no download: one shape on a plain ground.
//!
//! Place, size, turn and both colours are random, and which of them is the brighter, so no pixel says anything by itself: a linear
//! model on the pixels does little better than chance (the program measures that and prints it). What tells the classes apart is
//! where edges are relative to each other.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{ImageSet, Part};

/// Height and width.
pub(super) const SIZE: usize = 24;
pub(super) const CHANNELS: usize = 3;
/// Names of the classes, by label.
pub(super) const CLASSES: [&str; 10] =
    ["disc", "ring", "square", "frame", "triangle", "plus", "cross", "crescent", "bars", "corner"];

const TRAIN: usize = 10_000;
const HELD_OUT: usize = 2_000;
/// Points of a pixel along a side.
const SAMPLES: usize = 3;
/// Bytes of the channels of the darker colour, and of the brighter one.
const DARK: std::ops::Range<f64> = 0.0..110.0;
const BRIGHT: std::ops::Range<f64> = 140.0..255.0;
/// Standard deviation of the noise, in bytes.
const NOISE: f64 = 12.0;
/// Largest turn, in radians: less than what makes a plus a cross.
const TURN: f64 = 0.2;

/// Draws 10,000 images to train on or 2,000 that are held out, the same ones every time.
pub fn draw_shapes(part: Part) -> ImageSet {
    let (count, seed) = match part {
        Part::Train => (TRAIN, 1),
        Part::HeldOut => (HELD_OUT, 2),
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut set = ImageSet::new(CHANNELS, SIZE);
    for index in 0..count {
        let class = index % CLASSES.len();
        set.push(draw(class, &mut random), class as u32);
    }
    set
}

/// `[3, SIZE, SIZE]`.
fn draw(class: usize, random: &mut impl Rng) -> Vec<u8> {
    let radius = random.random_range(0.25..0.42) * SIZE as f64;
    let mut place = || random.random_range(radius..SIZE as f64 - radius);
    let (x, y) = (place(), place());
    let (sin, cos) = random.random_range(-TURN..TURN).sin_cos();
    let [ground, colour] = colours(random);
    let cover = |row: usize, column: usize| {
        let inside = |sample: &usize| {
            let at = |pixel: usize, sample: usize| pixel as f64 + (sample as f64 + 0.5) / SAMPLES as f64;
            let dx = (at(column, sample % SAMPLES) - x) / radius;
            let dy = (at(row, sample / SAMPLES) - y) / radius;
            is_inside(class, cos * dx + sin * dy, cos * dy - sin * dx)
        };
        (0..SAMPLES * SAMPLES).filter(inside).count() as f64 / (SAMPLES * SAMPLES) as f64
    };
    let covers: Vec<f64> = (0..SIZE * SIZE).map(|pixel| cover(pixel / SIZE, pixel % SIZE)).collect();
    let mut pixels = Vec::with_capacity(CHANNELS * SIZE * SIZE);
    for channel in 0..CHANNELS {
        let (ground, colour) = (ground[channel], colour[channel]);
        let noisy = |cover: &f64| (ground + cover * (colour - ground) + NOISE * normal(random)).clamp(0.0, 255.0) as u8;
        pixels.extend(covers.iter().map(noisy));
    }
    pixels
}

/// Colours of the ground and of the shape: one dark and one bright in every channel, either way round.
fn colours(random: &mut impl Rng) -> [[f64; CHANNELS]; 2] {
    let [dark, bright] = [DARK, BRIGHT].map(|range| std::array::from_fn(|_| random.random_range(range.clone())));
    if random.random() { [dark, bright] } else { [bright, dark] }
}

/// A number of mean 0 and deviation 1, by Box and Muller.
fn normal(random: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Whether a shape of radius 1 around the origin covers a point.
fn is_inside(class: usize, u: f64, v: f64) -> bool {
    let radius = u.hypot(v);
    let (wide, high) = (u.abs(), v.abs());
    let larger = wide.max(high);
    let is_plus = |u: f64, v: f64| u.abs().min(v.abs()) <= 0.25 && u.abs().max(v.abs()) <= 0.95;
    match CLASSES[class] {
        "disc" => radius <= 0.9,
        "ring" => (0.55..=0.95).contains(&radius),
        "square" => larger <= 0.75,
        "frame" => (0.45..=0.8).contains(&larger),
        "triangle" => (-0.9..=0.7).contains(&v) && wide <= 0.55 * (v + 0.9),
        "plus" => is_plus(u, v),
        "cross" => is_plus((u + v) / std::f64::consts::SQRT_2, (u - v) / std::f64::consts::SQRT_2),
        "crescent" => radius <= 0.95 && (u - 0.4).hypot(v) > 0.7,
        "bars" => wide <= 0.85 && (0.25..=0.7).contains(&high),
        "corner" => larger <= 0.85 && (u <= -0.35 || v >= 0.35),
        other => unreachable!("there is no shape {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_always_the_same_and_none_is_in_both_parts() {
        let (train, held_out) = (draw_shapes(Part::Train), draw_shapes(Part::HeldOut));
        assert_eq!(train, draw_shapes(Part::Train));
        assert_eq!((train.len(), held_out.len()), (10_000, 2_000));
        let seen: std::collections::HashSet<&[u8]> = (0..train.len()).map(|index| train.pixels(index)).collect();
        assert!((0..held_out.len()).all(|index| !seen.contains(held_out.pixels(index))));
    }

    #[test]
    fn classes_are_equally_many() {
        let set = draw_shapes(Part::HeldOut);
        let of = |class: u32| (0..set.len()).filter(|&index| set.label(index) == class).count();
        assert!((0..10).all(|class| of(class) == 200));
    }

    #[test]
    fn shapes_are_what_they_are_called() {
        let class = |name: &str| CLASSES.iter().position(|class| *class == name).expect("a class");
        let covers = |name: &str, u: f64, v: f64| is_inside(class(name), u, v);
        assert!(covers("disc", 0.0, 0.0) && !covers("ring", 0.0, 0.0) && covers("ring", 0.0, 0.7));
        assert!(covers("square", 0.7, 0.7) && !covers("disc", 0.7, 0.7) && !covers("frame", 0.0, 0.0));
        assert!(covers("plus", 0.8, 0.0) && !covers("plus", 0.6, 0.6));
        assert!(covers("cross", 0.6, 0.6) && !covers("cross", 0.8, 0.0));
        assert!(covers("triangle", 0.0, -0.5) && !covers("triangle", 0.7, -0.5) && covers("triangle", 0.7, 0.6));
        assert!(covers("crescent", -0.7, 0.0) && !covers("crescent", 0.5, 0.0));
        assert!(covers("bars", 0.0, 0.5) && !covers("bars", 0.0, 0.0));
        assert!(covers("corner", -0.6, -0.6) && covers("corner", 0.6, 0.6) && !covers("corner", 0.6, -0.6));
    }
}
