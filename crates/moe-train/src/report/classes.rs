//! Which classes the experts of a vision model serve: experts down, classes across.

use std::fmt::Write;

use super::{
    heatmap::{DEAD, UNKNOWN, draw_experts, palette, shade},
    html::escape,
    png,
    svg::{figure, open_svg, text},
};
use crate::images::ClassLoad;

const WIDTH: f64 = 512.0;
const LEFT: f64 = 34.0;
const RIGHT: f64 = WIDTH - 10.0;
const TOP: f64 = 6.0;
/// Room for the names of the classes, which are turned.
const BOTTOM: f64 = 64.0;
/// Names that fit beside each other; of more only numbers are shown.
const MAX_NAMES: usize = 24;
/// Letters of a name that are shown.
const MAX_LETTERS: usize = 11;

/// One picture for every layer with routed experts.
pub(super) fn render_all(loads: &[ClassLoad], classes: &[String]) -> Vec<String> {
    loads
        .iter()
        .filter(|load| load.counts.first().is_some_and(|experts| !experts.is_empty()))
        .map(|load| render(load, classes))
        .collect()
}

fn render(load: &ClassLoad, classes: &[String]) -> String {
    let (columns, experts) = (load.counts.len(), load.counts[0].len());
    let height = (experts as f64 * 16.0).clamp(48.0, 256.0);
    let title = format!("Layer {}", load.layer);
    let mut svg = open_svg((WIDTH, TOP + height + BOTTOM), &title);
    let pixels: Vec<u8> =
        (0..experts).flat_map(|expert| (0..columns).map(move |class| level(load, class, expert))).collect();
    let _ = write!(
        svg,
        "<image class=\"cells\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{height}\" preserveAspectRatio=\"none\" href=\"{}\"/>",
        RIGHT - LEFT,
        png::data_uri(columns, &palette(), &pixels)
    );
    draw_experts(&mut svg, experts, height);
    draw_classes(&mut svg, columns, classes, TOP + height);
    svg += "</svg>";
    let strongest = escape(&strongest(load, classes).unwrap_or_default());
    figure("half", &title, &format!("<span class=\"unit\">{strongest}</span>"), &svg)
}

/// The share of class `class` among the tokens of `expert`, over its share among all tokens of the layer. 1 is no preference.
fn lift(load: &ClassLoad, class: usize, expert: usize) -> Option<f64> {
    let of_class: f64 = load.counts[class].iter().map(|&count| count as f64).sum();
    let of_expert: f64 = load.counts.iter().map(|class| class[expert] as f64).sum();
    let all: f64 = load.counts.iter().flatten().map(|&count| count as f64).sum();
    let expected = of_class * of_expert / all;
    (of_expert > 0.0 && of_class > 0.0).then(|| load.counts[class][expert] as f64 / expected)
}

fn level(load: &ClassLoad, class: usize, expert: usize) -> u8 {
    let is_dead = load.counts.iter().all(|class| class[expert] == 0);
    match lift(load, class, expert) {
        Some(lift) => shade(lift),
        None if is_dead => DEAD,
        None => UNKNOWN,
    }
}

/// The strongest preference in words.
fn strongest(load: &ClassLoad, classes: &[String]) -> Option<String> {
    let experts = load.counts[0].len();
    let cells = (0..load.counts.len()).flat_map(|class| (0..experts).map(move |expert| (class, expert)));
    let lifts = cells.filter_map(|(class, expert)| Some((lift(load, class, expert)?, class, expert)));
    let (lift, class, expert) = lifts.max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!("strongest: expert {expert}, {}, {lift:.1} times its share", name(classes, class)))
}

fn draw_classes(svg: &mut String, columns: usize, classes: &[String], bottom: f64) {
    let width = (RIGHT - LEFT) / columns as f64;
    let middle = |class: usize| LEFT + (class as f64 + 0.5) * width;
    if columns > MAX_NAMES {
        let every = columns.div_ceil(MAX_NAMES);
        (0..columns)
            .step_by(every)
            .for_each(|class| text(svg, middle(class), bottom + 17.0, "middle", &class.to_string()));
        return;
    }
    for class in 0..columns {
        let name = escape(&name(classes, class));
        let (x, y) = (middle(class) + 4.0, bottom + 12.0);
        let _ =
            write!(svg, "<text transform=\"translate({x:.1} {y:.1}) rotate(-40)\" text-anchor=\"end\">{name}</text>");
    }
}

/// A name that is not too long.
fn name(classes: &[String], class: usize) -> String {
    let full = classes.get(class).cloned().unwrap_or_else(|| class.to_string());
    if full.chars().count() <= MAX_LETTERS {
        return full;
    }
    full.chars().take(MAX_LETTERS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(counts: &[[u64; 2]]) -> ClassLoad {
        ClassLoad { layer: 3, counts: counts.iter().map(|class| class.to_vec()).collect() }
    }

    #[test]
    fn a_preference_is_relative_to_the_share_of_the_class() {
        // Class 1 has three quarters of the tokens; expert 0 serves both as they come, expert 1 class 1 alone.
        let load = load(&[[10, 0], [10, 20]]);
        assert_eq!(lift(&load, 0, 0), Some(2.0));
        assert_eq!(lift(&load, 1, 1), Some(4.0 / 3.0));
        assert_eq!(lift(&load, 0, 1), Some(0.0));
        assert_eq!(lift(&super::tests::load(&[[5, 5], [10, 10]]), 0, 1), Some(1.0));
    }

    #[test]
    fn dead_experts_and_absent_classes_have_their_own_colours() {
        assert_eq!(level(&load(&[[4, 0], [4, 0]]), 0, 1), DEAD);
        assert_eq!(level(&load(&[[4, 4], [0, 0]]), 1, 0), UNKNOWN);
        assert_ne!(level(&load(&[[4, 0], [4, 4]]), 0, 1), DEAD);
    }

    #[test]
    fn pictures_name_classes_and_stay_readable_with_many() {
        let names = ["cat <b>", "a very long name"].map(String::from);
        let figure = &render_all(&[load(&[[1, 2], [3, 4]])], &names)[0];
        assert!(
            figure.contains("Layer 3") && figure.contains("cat &lt;b&gt;") && figure.contains("a very lon…"),
            "{figure}"
        );
        assert!(figure.contains("strongest: expert"));
        let many: Vec<[u64; 2]> = vec![[1, 1]; 1000];
        let figure = &render_all(&[load(&many)], &[])[0];
        assert!(figure.matches("</text>").count() < 40);
        assert!(render_all(&[load(&[])], &[]).is_empty());
    }
}
