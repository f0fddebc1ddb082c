//! The load of every expert of a layer over time, as a small picture inside the page.

use std::fmt::Write;

use super::{
    axis::Axis,
    png,
    svg::{draw_steps, figure, open_svg, text},
};
use crate::run::{LayerRecord, StepRecord};

/// Columns of a picture: more than a page shows would only make it larger.
const MAX_COLUMNS: usize = 200;
/// Loads of one such factor below and above the mean have the first and the last colour.
const RANGE: f64 = 4.0;
/// Levels of load between them.
const LEVELS: u8 = 128;
/// The colour of an expert without a token.
pub(super) const DEAD: u8 = LEVELS;
/// The colour for steps that were not recorded.
pub(super) const UNKNOWN: u8 = LEVELS + 1;
/// Viridis (Smith and van der Walt, 2015): even in brightness, readable without colour vision.
const VIRIDIS: [[u8; 3]; 9] = [
    [0x44, 0x01, 0x54],
    [0x47, 0x2d, 0x7b],
    [0x3b, 0x52, 0x8b],
    [0x2c, 0x72, 0x8e],
    [0x21, 0x91, 0x8c],
    [0x28, 0xae, 0x80],
    [0x5e, 0xc9, 0x62],
    [0xad, 0xdc, 0x30],
    [0xfd, 0xe7, 0x25],
];
const DEAD_COLOR: [u8; 3] = [0xd9, 0x2f, 0x2f];
const UNKNOWN_COLOR: [u8; 3] = [0x88, 0x88, 0x88];

const WIDTH: f64 = 512.0;
const LEFT: f64 = 34.0;
const RIGHT: f64 = WIDTH - 10.0;
const TOP: f64 = 6.0;
const BOTTOM: f64 = 28.0;

/// The load of one layer's experts: `columns x experts` levels, in the order of the pixels.
struct Load {
    experts: usize,
    columns: usize,
    levels: Vec<u8>,
}

/// One picture for every MoE layer, in the order of the model.
pub(super) fn render_all(records: &[StepRecord]) -> Vec<String> {
    let last_step = records.last().map_or(1, |record| record.step);
    let layers = records.last().map(|record| record.layers.as_slice()).unwrap_or_default();
    layers.iter().map(|last| render(records, last, last_step)).collect()
}

fn render(records: &[StepRecord], last: &LayerRecord, last_step: usize) -> String {
    let load = Load::gather(records, last, last_step);
    let height = (load.experts as f64 * 16.0).clamp(48.0, 256.0);
    let title = format!("Layer {}", last.layer);
    let mut svg = open_svg((WIDTH, TOP + height + BOTTOM), &title);
    let _ = write!(
        svg,
        "<image x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{height}\" preserveAspectRatio=\"none\" href=\"{}\"/>",
        RIGHT - LEFT,
        png::data_uri(load.columns, &palette(), &load.levels)
    );
    draw_experts(&mut svg, load.experts, height);
    let x = Axis::counts(last_step as f64, (LEFT, RIGHT));
    draw_steps(&mut svg, &x, RIGHT, TOP + height);
    svg += "</svg>";
    let (ratio, dead) = (last.stats.load_ratio, last.stats.dead_experts);
    let caption = format!("<span class=\"unit\">at the end: load ratio {ratio:.2}, {dead} dead</span>");
    figure("half", &title, &caption, &svg)
}

pub(super) fn draw_experts(svg: &mut String, experts: usize, height: f64) {
    let row = height / experts.max(1) as f64;
    // Expert i is the row from i to i + 1; its label stands at the middle.
    let every = [1, 2, 4, 8, 16, 32, 64, 128].into_iter().find(|&n| row * n as f64 >= 14.0);
    for expert in (0..experts).step_by(every.unwrap_or(experts.max(1))) {
        text(svg, LEFT - 6.0, TOP + (expert as f64 + 0.5) * row + 4.0, "end", &expert.to_string());
    }
}

impl Load {
    /// Sums the counts of all records that fall into a column; a column without one repeats the
    /// column before.
    fn gather(records: &[StepRecord], last: &LayerRecord, last_step: usize) -> Self {
        let experts = last.stats.expert_counts.len();
        let columns = records.len().clamp(1, MAX_COLUMNS);
        let mut counts = vec![vec![0u64; experts]; columns];
        for record in records {
            let column = (record.step * columns).div_ceil(last_step.max(1)).clamp(1, columns) - 1;
            for layer in record.layers.iter().filter(|layer| layer.layer == last.layer) {
                let sums = counts[column].iter_mut().zip(&layer.stats.expert_counts);
                sums.for_each(|(sum, count)| *sum = sum.saturating_add(*count));
            }
        }
        for column in 1..columns {
            if counts[column].iter().all(|count| *count == 0) {
                counts[column] = counts[column - 1].clone();
            }
        }
        let pixel = |at: usize| level(&counts[at % columns], at / columns);
        Self { experts, columns, levels: (0..columns * experts).map(pixel).collect() }
    }
}

/// The colour of one expert: its share of the tokens times the number of experts.
fn level(counts: &[u64], expert: usize) -> u8 {
    let total: f64 = counts.iter().map(|&count| count as f64).sum();
    match counts[expert] {
        _ if total == 0.0 => UNKNOWN,
        0 => DEAD,
        count => shade(count as f64 * counts.len() as f64 / total),
    }
}

/// The colour of a share that is so many times what is fair, on a logarithmic scale.
pub(super) fn shade(ratio: f64) -> u8 {
    let part = 0.5 + 0.5 * ratio.ln() / RANGE.ln();
    (part.clamp(0.0, 1.0) * f64::from(LEVELS - 1)).round() as u8
}

pub(super) fn palette() -> Vec<[u8; 3]> {
    let level = |level| viridis(f64::from(level) / f64::from(LEVELS - 1));
    (0..LEVELS).map(level).chain([DEAD_COLOR, UNKNOWN_COLOR]).collect()
}

fn viridis(part: f64) -> [u8; 3] {
    let at = part.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let index = (at as usize).min(VIRIDIS.len() - 2);
    let mix = |channel: usize| {
        let [low, high] = [index, index + 1].map(|i| f64::from(VIRIDIS[i][channel]));
        (low + (high - low) * (at - index as f64)).round() as u8
    };
    [mix(0), mix(1), mix(2)]
}

/// The colour bar that explains all pictures, with numbers.
pub(super) fn legend() -> String {
    let hex = |[r, g, b]: [u8; 3]| format!("#{r:02x}{g:02x}{b:02x}");
    let stops = VIRIDIS.map(hex).join(", ");
    let marks = ["1/4", "1/2", "1", "2", "4"].map(|mark| format!("<span>{mark}</span>")).concat();
    format!(
        "<div class=\"scale\"><div class=\"bar\"><div style=\"background: linear-gradient(to right, {stops})\"></div>\
         <div class=\"marks\">{marks}</div></div>\
         <span class=\"key\"><i style=\"background: {}\"></i>no token</span></div>\n",
        hex(DEAD_COLOR)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_record;

    fn record(step: usize, counts: &[u64]) -> StepRecord {
        let mut record = test_record(step);
        record.layers.truncate(1);
        record.layers[0].stats.expert_counts = counts.to_vec();
        record
    }

    fn gather(records: &[StepRecord]) -> Load {
        let last = records.last().unwrap();
        Load::gather(records, &last.layers[0], last.step)
    }

    #[test]
    fn levels_are_centred_on_the_mean_load() {
        let middle = (LEVELS - 1) as f64 / 2.0;
        assert!((f64::from(level(&[5, 5], 0)) - middle).abs() <= 0.5);
        assert_eq!(level(&[1, 0, 0, 0], 0), LEVELS - 1);
        assert_eq!(level(&[1, 0, 0, 0], 3), DEAD);
        assert_eq!(level(&[1, 399], 0), 0);
        assert_eq!(level(&[0, 0], 0), UNKNOWN);
    }

    #[test]
    fn rows_are_experts_and_columns_are_steps() {
        let load = gather(&[record(10, &[4, 0]), record(20, &[0, 4])]);
        assert_eq!((load.columns, load.experts), (2, 2));
        assert_eq!(load.levels[1], DEAD, "expert 0 is dead at the end");
        assert_eq!(load.levels[2], DEAD, "expert 1 is dead at the start");
        assert_eq!(load.levels[0], load.levels[3]);
    }

    #[test]
    fn long_runs_are_summed_up_in_columns() {
        let records: Vec<_> = (1..=1000).map(|step| record(step, &[3, 1])).collect();
        let load = gather(&records);
        assert_eq!(load.columns, MAX_COLUMNS);
        assert!(load.levels[..MAX_COLUMNS].iter().all(|pixel| *pixel == level(&[3, 1], 0)));
    }

    #[test]
    fn steps_between_records_repeat_the_record_before() {
        let load = gather(&[record(1, &[3, 1]), record(2, &[3, 1]), record(100, &[1, 3])]);
        let [early, late] = [level(&[3, 1], 0), level(&[1, 3], 0)];
        assert_eq!(load.levels[..3], [early, early, late]);
    }

    #[test]
    fn every_number_of_experts_has_labelled_rows() {
        for experts in [1, 2, 8, 60, 256] {
            let record = record(1, &vec![1; experts]);
            let figures = render_all(&[record]);
            assert_eq!(figures.len(), 1);
            assert!(figures[0].contains(">0</text>"), "{experts}");
            assert!(figures[0].matches("</text>").count() < 30, "{experts}");
        }
    }

    #[test]
    fn the_scale_ends_in_the_colours_of_its_ends() {
        assert_eq!(viridis(0.0), VIRIDIS[0]);
        assert_eq!(viridis(1.0), VIRIDIS[8]);
        assert_eq!(viridis(0.5), VIRIDIS[4]);
        assert!(legend().contains("#440154") && legend().contains("#fde725"));
    }
}
