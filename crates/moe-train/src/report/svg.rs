//! Line charts as inline SVG, coloured by the page's style sheet so that they follow light and dark.

use std::fmt::Write;

use super::{
    axis::{Axis, Scale},
    html::escape,
    labels,
};

/// Points beyond which a curve is thinned out: about one for every pixel.
const MAX_POINTS: usize = 800;
/// Points beyond which single points are not marked.
const MAX_MARKS: usize = 80;
/// Distance of the plot from the edges of the picture.
const MARGIN_LEFT: f64 = 56.0;
const MARGIN_RIGHT: f64 = 16.0;
const MARGIN_TOP: f64 = 12.0;
const MARGIN_BOTTOM: f64 = 30.0;
/// Additional width for a second scale.
const RIGHT_SCALE: f64 = 38.0;
/// Wider pictures than this scroll on a narrow screen instead of becoming illegible.
const WIDE: f64 = 640.0;
/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stroke {
    /// A line.
    Solid,
    /// A pale line behind the others; its extremes survive thinning out.
    Faint,
    /// A line with a mark on every point, if they are few.
    Marked,
}

/// One curve of `(x, y)` points, x ascending. Points that are not finite leave a gap.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Shown in the legend, unless empty.
    pub(super) name: String,
    /// Number of the colour in the style sheet, from 1.
    pub(super) color: usize,
    pub(super) stroke: Stroke,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart over training steps.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What the scale on the left counts.
    pub(super) unit: String,
    pub(super) series: Vec<Series>,
    /// Named horizontal lines.
    pub(super) references: Vec<(String, f64)>,
    /// Factor of a second scale, on the right, to the first.
    pub(super) right: Option<f64>,
    pub(super) scale: Scale,
    /// Width and height in pixels.
    pub(super) size: (f64, f64),
    /// Last step of the run, the end of the horizontal axis.
    pub(super) last_step: f64,
}

impl Chart {
    /// The picture with title and legend, as a `<figure>`.
    pub(super) fn render(&self) -> String {
        let (width, height) = self.size;
        let right = width - MARGIN_RIGHT - if self.right.is_some() { RIGHT_SCALE } else { 0.0 };
        let x = Axis::counts(self.last_step, (MARGIN_LEFT, right));
        let y = self.y_axis((height - MARGIN_BOTTOM, MARGIN_TOP));
        let mut svg = open_svg(self.size, &self.title);
        draw_grid(&mut svg, &x, &y, (MARGIN_LEFT, right), height - MARGIN_BOTTOM);
        self.draw_right_scale(&mut svg, &y, right);
        for series in &self.series {
            draw_series(&mut svg, series, &x, &y);
        }
        self.draw_references(&mut svg, (&x, &y), (MARGIN_LEFT, right));
        svg += "</svg>";
        let class = if width > WIDE { "wide" } else { "half" };
        figure(class, &self.title, &self.caption(), &svg)
    }

    fn y_axis(&self, pixels: (f64, f64)) -> Axis {
        let curves = self.series.iter().flat_map(|series| series.points.iter().map(|(_, y)| *y));
        let values = curves.chain(self.references.iter().map(|(_, value)| *value));
        Axis::around(values, self.scale, pixels)
    }

    fn caption(&self) -> String {
        let mut caption = format!("<span class=\"unit\">{}</span>", escape(&self.unit));
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let (color, name) = (series.color, escape(&series.name));
            let _ = write!(caption, "<span class=\"key\"><i class=\"b{color}\"></i>{name}</span>");
        }
        caption
    }

    fn draw_right_scale(&self, svg: &mut String, y: &Axis, right: f64) {
        let Some(factor) = self.right else { return };
        let scale = y.scaled(factor);
        for (value, label) in scale.ticks(5) {
            text(svg, right + 6.0, scale.pixel(value) + 4.0, "start", &label);
        }
    }

    fn draw_references(&self, svg: &mut String, (x, y): (&Axis, &Axis), (left, right): (f64, f64)) {
        let lines: Vec<(&str, f64)> =
            self.references.iter().map(|(name, value)| (name.as_str(), y.pixel(*value))).collect();
        let curves: Vec<_> = self.series.iter().map(|series| series.points.as_slice()).collect();
        for ((name, at), place) in lines.iter().zip(labels::place(&lines, &curves, (x, y), (left, right))) {
            let _ = write!(
                svg,
                "<line class=\"reference\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
            );
            text(svg, place.x, place.y, "end", name);
        }
    }
}

/// A pale curve of `points` and a smoothed one over it, or one curve if they are few.
pub(super) fn smoothed(name: &str, color: usize, points: Vec<(f64, f64)>) -> Vec<Series> {
    /// Below this many points every one is worth seeing.
    const FEW: usize = 60;
    let series = |name: &str, stroke, points| Series { name: name.into(), color, stroke, points };
    if points.len() < FEW {
        return vec![series(name, Stroke::Solid, points)];
    }
    let mean = moving_average(&points);
    vec![series("", Stroke::Faint, points), series(name, Stroke::Solid, mean)]
}

/// Mean over a fiftieth of the points around each, fewer at the ends: follows the curve without lagging behind.
fn moving_average(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().filter(|(_, y)| y.is_finite()).copied().collect();
    let reach = (finite.len() / 100).max(1);
    let around = |index: usize| {
        let reach = reach.min(index).min(finite.len() - 1 - index);
        let window = &finite[index - reach..=index + reach];
        (finite[index].0, mean(window).1)
    };
    (0..finite.len()).map(around).collect()
}

/// Opens a picture of `size` pixels that shrinks with the page.
pub(super) fn open_svg((width, height): (f64, f64), title: &str) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

/// A titled picture of the `class` wide or half.
pub(super) fn figure(class: &str, title: &str, caption: &str, svg: &str) -> String {
    let title = escape(title);
    format!("<figure class=\"{class}\"><figcaption><b>{title}</b>{caption}</figcaption>{svg}</figure>\n")
}

/// Steps along the bottom edge at `bottom`.
pub(super) fn draw_steps(svg: &mut String, x: &Axis, right: f64, bottom: f64) {
    let ticks = x.ticks(6);
    for (value, label) in &ticks {
        // The last label gives way to the name of the axis.
        if x.pixel(*value) < right - 40.0 {
            text(svg, x.pixel(*value), bottom + 17.0, "middle", label);
        }
    }
    text(svg, right, bottom + 17.0, "end", "step");
}

/// A label whose `anchor` (start, middle or end) is at `(x, y)`.
pub(super) fn text(svg: &mut String, x: f64, y: f64, anchor: &str, label: &str) {
    let label = escape(label);
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>");
}

fn draw_grid(svg: &mut String, x: &Axis, y: &Axis, (left, right): (f64, f64), bottom: f64) {
    for (value, label) in y.ticks(5) {
        let at = y.pixel(value);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
        text(svg, left - 8.0, at + 4.0, "end", &label);
    }
    let _ =
        write!(svg, "<line class=\"axis\" x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>");
    draw_steps(svg, x, right, bottom);
}

fn draw_series(svg: &mut String, series: &Series, x: &Axis, y: &Axis) {
    let color = series.color;
    let faint = if series.stroke == Stroke::Faint { " faint" } else { "" };
    for run in series.points.split(|(_, y)| !y.is_finite()).filter(|run| !run.is_empty()) {
        let path: Vec<String> = thin_out(run, series.stroke == Stroke::Faint)
            .into_iter()
            .map(|(px, py)| format!("{:.1},{:.1}", x.pixel(px), y.pixel(py)))
            .collect();
        let _ = write!(svg, "<polyline class=\"c{color}{faint}\" points=\"{}\"/>", path.join(" "));
    }
    let finite: Vec<_> = series.points.iter().filter(|(_, y)| y.is_finite()).collect();
    let marked = series.stroke == Stroke::Marked && finite.len() <= MAX_MARKS;
    if marked || finite.len() == 1 {
        for (px, py) in finite {
            let (cx, cy) = (x.pixel(*px), y.pixel(*py));
            let _ = write!(
                svg,
                "<circle class=\"f{color}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"><title>step {px}: {py:.4}</title></circle>"
            );
        }
    }
}

/// At most about [`MAX_POINTS`] points: the means of equal portions, or their extremes.
fn thin_out(points: &[(f64, f64)], extremes: bool) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let portion = (points.len() * if extremes { 2 } else { 1 }).div_ceil(MAX_POINTS);
    let chunks = points.chunks(portion);
    if !extremes {
        return chunks.map(mean).collect();
    }
    chunks
        .flat_map(|chunk| {
            let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = *chunk.iter().min_by(by_y).expect("chunks are not empty");
            let high = *chunk.iter().max_by(by_y).expect("chunks are not empty");
            if low.0 <= high.0 { [low, high] } else { [high, low] }
        })
        .collect()
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (x / points.len() as f64, y / points.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "Loss <raw>".into(),
            unit: "nats".into(),
            series: vec![Series { name: "train".into(), color: 1, stroke: Stroke::Marked, points }],
            references: vec![("gzip".into(), 2.0), ("unigrams".into(), 2.01)],
            right: Some(1.44),
            scale: Scale::Linear,
            size: (500.0, 250.0),
            last_step: 100.0,
        }
    }

    #[test]
    fn gaps_split_a_curve() {
        let points = vec![(1.0, 1.0), (2.0, f64::NAN), (3.0, 2.0), (4.0, 3.0)];
        let svg = chart(points).render();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn names_are_escaped_and_references_labelled() {
        let svg = chart(vec![(1.0, 1.0)]).render();
        assert!(svg.contains("Loss &lt;raw&gt;") && !svg.contains("<raw>"));
        assert!(svg.contains(">gzip</text>") && svg.contains(">unigrams</text>"));
    }

    #[test]
    fn thinning_out_keeps_the_extremes_of_a_faint_curve() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (x as f64, 1.0)).collect();
        points[7777].1 = 50.0;
        let thin = thin_out(&points, true);
        assert!(thin.len() <= MAX_POINTS + 2 && thin.contains(&(7777.0, 50.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
        assert!(thin_out(&points, false).len() <= MAX_POINTS);
    }

    #[test]
    fn a_straight_line_stays_where_it_is_when_smoothed() {
        let points: Vec<(f64, f64)> = (0..500).map(|x| (x as f64, 3.0 - 0.01 * x as f64)).collect();
        let smooth = moving_average(&points);
        assert_eq!(smooth.len(), points.len());
        assert!(smooth.iter().zip(&points).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12));
    }
}
