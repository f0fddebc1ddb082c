//! Excitation on two parameters, as a picture: the paths of one optimizer with each variant of the factor.
//!
//! Two experts of one parameter each; three quarters of the batch go to the first, so `u = (0.75, 0.25)`. Both see the
//! same long valley. The idea is that of Figure 1 in Excitation ([Shaier, 2026](https://arxiv.org/abs/2602.21798)), whose
//! utilization fits `(0.75, 0.25)` at `gamma = 1`; its loss and settings are not public, so those here are ours.
//!
//! `cargo run -p moe-examples --bin excitation-toy -- toy.svg` writes the picture; it needs no GPU.

#![forbid(unsafe_code)]

use std::fmt::Write;

use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use excitation_optim::{ExcitationConfig, ExpertCounts, ExpertLayers, ExpertModule, Variant};
use moe_examples::Chosen;

type Training = Autodiff<Chosen>;

const STEPS: usize = 25;
const LEARNING_RATE: f64 = 0.08;
const START: [f32; 2] = [-2.6, 1.7];
/// Tokens of a batch that go to each of the two experts.
const COUNTS: [f32; 2] = [3.0, 1.0];

/// One parameter per expert, `[2, 1]`.
#[derive(Module, Debug)]
struct Pair<B: Backend> {
    experts: Param<Tensor<B, 2>>,
    counts: ExpertCounts<B>,
}

impl<B: Backend> ExpertModule for Pair<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        found.layer("pair", &self.counts).stacked(&self.experts);
    }
}

/// Half the squared distance from the origin, the second direction three times as steep as the first.
fn loss<B: Backend>(experts: Tensor<B, 2>) -> Tensor<B, 1> {
    (experts.square() * Tensor::from([[0.5], [1.5]])).sum()
}

/// The parameters before and after every step.
fn path(config: &ExcitationConfig) -> Vec<[f32; 2]> {
    let device = Default::default();
    let start = Tensor::<Training, 1>::from(START).reshape([2, 1]);
    let mut pair = Pair { experts: Param::from_tensor(start), counts: ExpertCounts::new(&device) };
    let mut optimizer = config.init(SgdConfig::new().init());
    let mut path = vec![START];
    for _ in 0..STEPS {
        let mut grads = GradientsParams::from_grads(loss(pair.experts.val()).backward(), &pair);
        pair.counts.register(&mut grads, Tensor::<Chosen, 1>::from(COUNTS), 4);
        pair = optimizer.step(LEARNING_RATE, pair, grads);
        let place: Vec<f32> = pair.experts.val().into_data().iter::<f32>().collect();
        path.push([place[0], place[1]]);
    }
    path
}

struct Path {
    name: &'static str,
    color: &'static str,
    places: Vec<[f32; 2]>,
}

fn paths() -> Vec<Path> {
    let excited = |variant| ExcitationConfig::new().with_variant(variant);
    let path = |name, color, config: ExcitationConfig| Path { name, color, places: path(&config) };
    vec![
        path("plain SGD", "#555", excited(Variant::ZeroSum).with_gamma(0.0)),
        path("ZeroSum: factors 1.5 and 0.5", "#c33", excited(Variant::ZeroSum)),
        path("PositiveSum: factors 1.5 and 1", "#27c", excited(Variant::PositiveSum)),
        path("ExpDiff: factors e^0.25 and e^-0.25", "#393", excited(Variant::ExpDiff)),
    ]
}

const WIDTH: f32 = 640.0;
const HEIGHT: f32 = 440.0;
/// Pixels per unit, and where the origin is.
const SCALE: f32 = 180.0;
const ORIGIN: [f32; 2] = [540.0, 360.0];

fn pixel([x, y]: [f32; 2]) -> (f32, f32) {
    (ORIGIN[0] + SCALE * x, ORIGIN[1] - SCALE * y)
}

fn picture(paths: &[Path]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    contours(&mut svg);
    for (row, path) in paths.iter().enumerate() {
        curve(&mut svg, path);
        let y = 24 + 20 * row;
        let _ = writeln!(svg, "<text x=\"330\" y=\"{y}\" fill=\"{}\">{}</text>", path.color, path.name);
    }
    svg + "<text x=\"20\" y=\"425\">horizontal: expert 1, u = 0.75; vertical: expert 2, u = 0.25; 25 steps each</text>\n</svg>\n"
}

/// Lines of equal loss.
fn contours(svg: &mut String) {
    let (x, y) = pixel([0.0, 0.0]);
    for level in [0.05f32, 0.4, 1.2, 2.4, 4.0, 6.0, 8.0] {
        let (rx, ry) = (SCALE * (level / 0.5).sqrt(), SCALE * (level / 1.5).sqrt());
        let _ = writeln!(
            svg,
            "<ellipse cx=\"{x}\" cy=\"{y}\" rx=\"{rx:.1}\" ry=\"{ry:.1}\" fill=\"none\" stroke=\"#ddd\"/>"
        );
    }
}

fn curve(svg: &mut String, path: &Path) {
    let points: Vec<(f32, f32)> = path.places.iter().map(|&place| pixel(place)).collect();
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let color = path.color;
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>", line.join(" "));
    for (x, y) in points {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{color}\"/>");
    }
}

fn main() -> std::io::Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "excitation-toy.svg".into());
    let paths = paths();
    for Path { name, places, .. } in &paths {
        let last = places[STEPS];
        println!("{name}: {:.3}, {:.3}", last[0], last[1]);
    }
    std::fs::write(&file, picture(&paths))?;
    println!("{file}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: f32 = 1e-5;

    /// Gradient descent on a parabola shrinks a parameter by the same factor in every step.
    #[test]
    fn every_path_is_that_of_gradient_descent_with_the_learning_rate_of_the_variant() {
        let root = 0.25f32.exp();
        for (path, phi) in paths().iter().zip([[1.0, 1.0], [1.5, 0.5], [1.5, 1.0], [root, 1.0 / root]]) {
            for (step, place) in path.places.iter().enumerate() {
                let shrink = |rate: f32, phi: f32| (1.0 - LEARNING_RATE as f32 * rate * phi).powi(step as i32);
                let expected = [START[0] * shrink(1.0, phi[0]), START[1] * shrink(3.0, phi[1])];
                for (found, expected) in place.iter().zip(expected) {
                    assert!((found - expected).abs() <= TOLERANCE, "{}: {found} != {expected}", path.name);
                }
            }
        }
    }

    #[test]
    fn the_picture_shows_every_place_of_every_path() {
        assert_eq!(picture(&paths()).matches("<circle").count(), 4 * (STEPS + 1));
    }
}
