//! The page around the pictures.

use std::fmt::Write;

use super::{Data, Report, charts, classes, heatmap};
use crate::{
    progress::thousands,
    run::{LayerRecord, RunConfig, StepRecord},
};

/// The page, complete.
pub(super) fn page(report: &Report) -> String {
    let name = escape(&report.name);
    let mut body = header(report);
    body += &tiles(report);
    body += &charts::loss(report);
    body += &charts::accuracy(report);
    body += &grid("Training", "", &charts::training(report));
    body += &grid("Routing", "", &charts::routing(report));
    body += &grid("Default vectors", "", &charts::default_vectors(report));
    body += &grid("Excitation", "", &charts::excitation(report));
    body += &grid("Expert load", &load_intro(), &heatmap::render_all(&report.records));
    if let Data::Images(context, loads) = &report.data {
        let classes = context.as_ref().map(|context| context.classes.as_slice()).unwrap_or_default();
        body += &grid("Experts and classes", &classes_intro(), &classes::render_all(loads, classes));
    }
    body += &layer_table(&report.last().layers);
    body += &config(report);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{name}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// Makes text safe inside elements and quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

fn header(report: &Report) -> String {
    let (mut facts, moe) = match &report.config {
        RunConfig::Lm(config) => {
            let model = &config.model;
            let facts = vec![
                format!("{} layers of width {}", model.num_layers, model.d_model),
                format!("{} parameters", thousands(model.num_params() as f64)),
                format!("{} active per token", thousands(model.num_active_params() as f64)),
            ];
            (facts, &model.moe)
        }
        RunConfig::Vit(config) => {
            let model = &config.model;
            let facts = vec![
                format!("{} layers of width {}", model.num_layers, model.d_model),
                format!("{} tokens an image, patches of {}", model.num_tokens(), model.patch_size),
            ];
            (facts, &model.moe)
        }
    };
    if !report.last().layers.is_empty() {
        let layers = report.last().layers.len();
        let plural = if layers == 1 { "" } else { "s" };
        facts.push(format!("{layers} MoE layer{plural}, top {} of {} experts", moe.top_k, moe.num_experts));
    }
    let data = match &report.data {
        Data::Text(context) => context.as_ref().map(|context| escape(&context.data)),
        Data::Images(context, _) => context.as_ref().map(|context| escape(&context.data)),
    };
    let data = data.unwrap_or_default();
    format!(
        "<header><h1>{}</h1><p>{}</p><p class=\"dim\">{data}</p></header>\n",
        escape(&report.name),
        facts.join(" · ")
    )
}

/// The numbers that a reader looks for first.
fn tiles(report: &Report) -> String {
    let last = report.last();
    let subject = report.subject();
    let steps = match &report.config {
        RunConfig::Lm(config) => config.train.steps,
        RunConfig::Vit(config) => config.train.steps,
    };
    let mut tiles = vec![
        ("steps", thousands(last.step as f64), format!("of {}", thousands(steps as f64))),
        (subject.unit(), thousands(subject.of_tokens(last.tokens as f64)), "trained on".into()),
        ("training loss", number(last.loss, 4), format!("nats per {}", subject.one())),
    ];
    if let Some(validated) = report.last_validated() {
        tiles.extend(validation_tiles(report, validated));
    }
    let speed = median(report.records.iter().map(|record| record.tokens_per_s));
    tiles.push((subject.per_second(), thousands(subject.of_tokens(speed)), "median".into()));
    let tile = |(name, value, note): &(&str, String, String)| {
        format!("<div><dt>{name}</dt><dd>{value}</dd><dd class=\"dim\">{note}</dd></div>")
    };
    format!("<dl class=\"tiles\">{}</dl>\n", tiles.iter().map(tile).collect::<String>())
}

fn validation_tiles(report: &Report, validated: &StepRecord) -> impl Iterator<Item = (&'static str, String, String)> {
    let step = format!("at step {}", thousands(validated.step as f64));
    let loss = validated.valid_loss.map(|loss| ("validation loss", number(loss, 4), step));
    let all = report.records.iter().filter_map(|record| record.valid_bpb);
    let best = all.fold(f64::INFINITY, f64::min);
    let best = format!("best {}", number(best, 4));
    let bpb = validated.valid_bpb.map(|bpb| ("bits per byte", number(bpb, 4), best));
    let all = report.records.iter().filter_map(|record| record.valid_accuracy);
    let best = format!("best {}", number(100.0 * all.fold(0.0, f64::max), 2));
    let accuracy = validated.valid_accuracy.map(|part| ("accuracy, per cent", number(100.0 * part, 2), best));
    loss.into_iter().chain(bpb).chain(accuracy)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A section of figures in two columns; nothing if there are none.
fn grid(title: &str, intro: &str, figures: &[String]) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let figures = figures.concat();
    format!("<h2>{title}</h2>\n{intro}<div class=\"figures\">\n{figures}</div>\n")
}

fn load_intro() -> String {
    format!(
        "<p>Every row is an expert, every column a moment of the run. The colour is the expert's share of the \
         tokens times the number of experts: 1 is a fair share.</p>\n{}",
        heatmap::legend()
    )
}

fn classes_intro() -> String {
    format!(
        "<p>Measured at the end on all held-out images. Every row is an expert, every column a class. The colour is the share of the \
         class among the tokens of the expert, over its share among all tokens: 1 is no preference.</p>\n{}",
        heatmap::legend()
    )
}

fn layer_table(layers: &[LayerRecord]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let heads = ["layer", "experts", "load ratio", "dead", "load entropy", "router entropy", "gate mass", "dropped"];
    let heads: String = heads.iter().map(|head| format!("<th>{head}</th>")).collect();
    let mut rows = String::new();
    for LayerRecord { layer, stats, .. } in layers {
        let _ = writeln!(
            rows,
            "<tr><td>{layer}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            stats.expert_counts.len(),
            number(stats.load_ratio, 2),
            stats.dead_experts,
            number(stats.load_entropy, 3),
            number(stats.router_entropy, 3),
            number(stats.gate_mass, 3),
            number(stats.drop_rate, 3),
        );
    }
    format!(
        "<h2>Routing at the end</h2>\n<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead>\n\
         <tbody>{rows}</tbody></table></div>\n\
         <p class=\"dim\">Load ratio: most loaded expert over the mean. Load entropy: 1 when all experts \
         have the same load. Router entropy in nats. Gate mass: probability of the chosen experts. Dropped: share of the \
         slots beyond the capacity of their expert.</p>\n"
    )
}

fn config(report: &Report) -> String {
    let text = serde_json::to_string_pretty(&report.config).expect("string keys only");
    format!("<h2>Configuration</h2>\n<pre>{}</pre>\n", escape(&text))
}

fn number(value: f64, decimals: usize) -> String {
    match value.is_finite() {
        true => format!("{value:.decimals$}"),
        false => "-".into(),
    }
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }

    #[test]
    fn the_median_ignores_what_is_no_number() {
        assert_eq!(median([3.0, f64::NAN, 1.0, 2.0].into_iter()), 2.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
