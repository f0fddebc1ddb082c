//! Which curves a report shows.

use default_moe::DefaultVectorStats;

use super::{
    Data, Report,
    axis::Scale,
    svg::{Chart, Series, Stroke, smoothed},
};
use crate::run::{LayerRecord, Reference, StepRecord};

/// A chart across the page, and one across half of it.
const WIDE: (f64, f64) = (1060.0, 360.0);
const HALF: (f64, f64) = (512.0, 236.0);
/// Layers that get a curve and a colour each; of more only the mean and the extremes are shown.
const MAX_LAYER_CURVES: usize = 6;

type Points = Vec<(f64, f64)>;

/// Training and validation loss with what gives them a scale.
pub(super) fn loss(report: &Report) -> String {
    let mut series = smoothed("training", 1, report.points(|record| Some(record.loss)));
    let valid = report.points(|record| record.valid_loss);
    if !valid.is_empty() {
        let name = "validation".into();
        series.push(Series { name, color: 2, stroke: Stroke::Marked, points: valid });
    }
    let right = report.bits_per_nat();
    let scale = if right.is_some() { " (left), bits per byte (right)" } else { "" };
    let mut chart = report.chart("Loss", &format!("nats per {}{scale}", report.subject().one()), series);
    chart.size = WIDE;
    chart.references = references(report);
    chart.right = right;
    chart.render()
}

/// Part of the held-out images whose class was found, beside that of a linear model; nothing for text.
pub(super) fn accuracy(report: &Report) -> String {
    let points = report.points(|record| record.valid_accuracy.map(|accuracy| 100.0 * accuracy));
    if points.is_empty() {
        return String::new();
    }
    let series = vec![Series { name: String::new(), color: 2, stroke: Stroke::Marked, points }];
    let mut chart = report.chart("Accuracy", "per cent of the held-out images", series);
    chart.size = WIDE;
    if let Data::Images(Some(context), _) = &report.data {
        let linear = 100.0 * context.linear_accuracy;
        chart.references = vec![(format!("linear model on the pixels {linear:.1} %"), linear)];
    }
    chart.render()
}

/// The optimizer and the machine.
pub(super) fn training(report: &Report) -> Vec<String> {
    let lr = Series {
        name: String::new(),
        color: 3,
        stroke: Stroke::Solid,
        points: report.points(|record| Some(record.lr)),
    };
    let grad_norm = smoothed("", 4, report.points(|record| Some(record.grad_norm)));
    let subject = report.subject();
    let speed = smoothed("", 5, report.points(|record| Some(subject.of_tokens(record.tokens_per_s))));
    let mut grad_norm = report.chart("Gradient norm", "before clipping", grad_norm);
    grad_norm.scale = Scale::Magnitudes;
    let speed = report.chart("Speed", subject.per_second(), speed);
    let charts = [report.chart("Learning rate", "", vec![lr]), grad_norm, speed];
    charts.iter().map(Chart::render).collect()
}

/// How the routers do; empty without MoE layers.
pub(super) fn routing(report: &Report) -> Vec<String> {
    if report.last().layers.is_empty() {
        return Vec::new();
    }
    let balance = smoothed("", 1, report.points(|record| Some(record.balance_loss)));
    let z_loss = smoothed("", 4, report.points(|record| Some(record.z_loss)));
    let charts = [
        report.chart("Balance loss", "before its weight, all layers", balance),
        report.chart("Router z-loss", "before its weight, all layers", z_loss),
        report.chart(
            "Load ratio",
            "most loaded expert over the mean",
            per_layer(report, |layer| layer.stats.load_ratio),
        ),
        dead_experts(report),
        report.chart("Router entropy", "nats per token", per_layer(report, |layer| layer.stats.router_entropy)),
        report.chart(
            "Gate mass",
            "probability of the chosen experts",
            per_layer(report, |layer| layer.stats.gate_mass),
        ),
    ];
    charts.iter().chain(&dropped(report)).map(Chart::render).collect()
}

/// Where a capacity has dropped something.
fn dropped(report: &Report) -> Option<Chart> {
    let any = report.records.iter().flat_map(|record| &record.layers).any(|layer| layer.stats.drop_rate > 0.0);
    let series = || per_layer(report, |layer| layer.stats.drop_rate);
    any.then(|| report.chart("Dropped", "share of the slots beyond the capacity of their expert", series()))
}

/// How the default vectors do; empty without them.
pub(super) fn default_vectors(report: &Report) -> Vec<String> {
    if report.last().layers.iter().all(|layer| layer.default.is_none()) {
        return Vec::new();
    }
    let charts = [
        report.chart(
            "Norm of the default vectors",
            "mean over the experts",
            per_layer(report, |layer| of_default(layer, DefaultVectorStats::norm)),
        ),
        report.chart(
            "Norm of what they follow",
            "length of an expert's mean output, over busy experts",
            per_layer(report, |layer| of_default(layer, |stats| stats.target_norm)),
        ),
        report.chart(
            "Moved in a step",
            "distance, mean over the experts",
            per_layer(report, |layer| of_default(layer, |stats| stats.moved)),
        ),
        report.chart(
            "Share of the output",
            "from default vectors, shared experts left out",
            per_layer(report, |layer| of_default(layer, |stats| stats.share)),
        ),
    ];
    charts.iter().map(Chart::render).collect()
}

/// What excitation did; empty without it.
pub(super) fn excitation(report: &Report) -> Vec<String> {
    if report.last().layers.iter().all(|layer| layer.factors.is_empty()) {
        return Vec::new();
    }
    let charts = [
        report.chart("Mean factor", "weighted by the experts' load", per_layer(report, LayerRecord::mean_factor)),
        report.chart("Largest factor", "", per_layer(report, |layer| extreme(layer, f64::max))),
        report.chart("Smallest factor", "", per_layer(report, |layer| extreme(layer, f64::min))),
    ];
    charts.iter().map(Chart::render).collect()
}

fn of_default(layer: &LayerRecord, value: fn(&DefaultVectorStats) -> f64) -> f64 {
    layer.default.as_ref().map_or(f64::NAN, value)
}

fn extreme(layer: &LayerRecord, pick: fn(f64, f64) -> f64) -> f64 {
    layer.factors.iter().copied().reduce(pick).unwrap_or(f64::NAN)
}

fn dead_experts(report: &Report) -> Chart {
    let points = report.points(|record| record.dead_experts().map(|dead| dead as f64));
    let series = Series { name: String::new(), color: 2, stroke: Stroke::Solid, points };
    Chart { scale: Scale::Counts, ..report.chart("Dead experts", "without a token, all layers", vec![series]) }
}

fn references(report: &Report) -> Vec<(String, f64)> {
    let Some(context) = report.context() else { return Vec::new() };
    let line = |reference: &Reference| {
        let bits = reference.bits_per_byte;
        (format!("{} {bits:.2} bits per byte", reference.name), context.nats_per_token(bits))
    };
    let lines = context.references.iter().map(line);
    lines.filter(|(_, nats)| nats.is_finite() && *nats > 0.0).collect()
}

/// One curve for every MoE layer, or mean and extremes if they are many.
fn per_layer(report: &Report, value: fn(&LayerRecord) -> f64) -> Vec<Series> {
    let layers = report.last().layers.len();
    let series = |name: &str, color, points| {
        let mut curves = smoothed(name, color, points);
        // Pale raw curves of several layers would hide each other.
        curves.retain(|curve| curve.stroke != Stroke::Faint);
        curves
    };
    if layers > MAX_LAYER_CURVES {
        let over = |combine: fn(&[f64]) -> f64| {
            report.points(move |record| {
                let values: Vec<f64> = record.layers.iter().map(value).collect();
                (!values.is_empty()).then(|| combine(&values))
            })
        };
        return [
            series("highest layer", 2, over(|all| all.iter().copied().fold(f64::MIN, f64::max))),
            series("mean", 1, over(|all| all.iter().sum::<f64>() / all.len() as f64)),
            series("lowest layer", 3, over(|all| all.iter().copied().fold(f64::MAX, f64::min))),
        ]
        .concat();
    }
    let curve = |index: usize| {
        let name = format!("layer {}", report.last().layers[index].layer);
        series(&name, index + 1, report.points(|record| record.layers.get(index).map(value)))
    };
    (0..layers).flat_map(curve).collect()
}

impl Report {
    fn points(&self, value: impl Fn(&StepRecord) -> Option<f64>) -> Points {
        let point = |record: &StepRecord| Some((record.step as f64, value(record)?));
        self.records.iter().filter_map(point).collect()
    }

    fn chart(&self, title: &str, unit: &str, series: Vec<Series>) -> Chart {
        Chart {
            title: title.into(),
            unit: unit.into(),
            series,
            references: Vec::new(),
            right: None,
            scale: Scale::Linear,
            size: HALF,
            last_step: self.last().step as f64,
        }
    }
}
