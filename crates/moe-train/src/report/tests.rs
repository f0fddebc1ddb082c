//! What is on the page, for runs of every kind.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::TrainConfig;
use crate::images::{Standard, VitTrainConfig};
use crate::run::{LayerRecord, Reference, Run, test_record};

/// A run directory with these records.
fn run(records: &[StepRecord], context: Option<Context>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig::preset("tiny").unwrap();
    config.data.path = Some("corpus <b>&\"new\"</b>".into());
    let mut run = Run::create(dir.path(), &config).unwrap();
    records.iter().for_each(|record| run.log(record).unwrap());
    if let Some(context) = context {
        run.write_context(&context).unwrap();
    }
    dir
}

fn page(records: &[StepRecord], context: Option<Context>) -> String {
    let dir = run(records, context);
    let text = fs::read_to_string(write_report(dir.path()).unwrap()).unwrap();
    assert_well_formed(&text);
    text
}

fn context() -> Context {
    Context {
        data: "crates <held> out".into(),
        bytes_per_token: 1.0,
        references: vec![Reference { name: "gzip -9".into(), bits_per_byte: 2.25 }],
        text_crc32: None,
    }
}

/// Records of a whole run, with a validation every tenth.
fn long_run(steps: usize, layers: usize, experts: usize) -> Vec<StepRecord> {
    let record = |step: usize| {
        let mut record = test_record(step);
        let layer = record.layers[0].clone();
        record.layers = (0..layers).map(|index| LayerRecord { layer: index + 1, ..layer.clone() }).collect();
        for layer in &mut record.layers {
            layer.stats.expert_counts = (0..experts as u64).map(|e| (e * step as u64) % 7).collect();
        }
        if step.is_multiple_of(10) {
            (record.valid_loss, record.valid_bpb) = (Some(2.0), Some(2.885));
        }
        record
    };
    (1..=steps).map(record).collect()
}

/// Every tag is closed by its own kind, in order: the page is written as XHTML for this.
fn assert_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    for piece in text.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag that ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        match tag {
            _ if tag.starts_with('!') || tag.ends_with('/') => {}
            _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name)),
            _ => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_report_shows_losses_routing_and_configuration() {
    let text = page(&long_run(300, 2, 8), Some(context()));
    for part in [
        "Loss",
        "validation",
        "Learning rate",
        "Gradient norm",
        "tokens per second",
        "Load ratio",
        "Dead experts",
        "Layer 1",
        "Layer 2",
        "gzip -9 2.25 bits per byte",
        "2.8850",
        "&quot;steps&quot;",
        "data:image/png;base64,",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
}

#[test]
fn factors_have_curves_only_where_there_was_excitation() {
    let mut records = long_run(30, 2, 4);
    assert!(!page(&records, None).contains("Largest factor"));
    records.iter_mut().flat_map(|record| &mut record.layers).for_each(|layer| layer.factors = vec![1.0, 2.0, 1.0, 1.5]);
    assert!(page(&records, None).contains("Largest factor"));
}

#[test]
fn a_report_needs_nothing_from_elsewhere() {
    let text = page(&long_run(30, 1, 4), Some(context()));
    for part in ["<script", "http:", "https:", "<link", "@import", "url("] {
        assert!(!text.contains(part), "{part} is there");
    }
}

#[test]
fn foreign_text_cannot_become_markup() {
    let text = page(&long_run(3, 1, 4), Some(context()));
    assert!(text.contains("crates &lt;held&gt; out") && !text.contains("<held>"));
    assert!(text.contains("&lt;b&gt;&amp;") && !text.contains("<b>&"));
}

#[test]
fn runs_of_every_kind_have_a_report() {
    let without_layers = |mut records: Vec<StepRecord>| {
        records.iter_mut().for_each(|record| record.layers.clear());
        records
    };
    for records in [
        long_run(1, 1, 4),
        long_run(9, 1, 1),
        long_run(12, 9, 256),
        without_layers(long_run(1, 0, 0)),
        without_layers(long_run(50, 0, 0)),
    ] {
        let moe = !records[0].layers.is_empty();
        let text = page(&records, None);
        assert_eq!(text.contains("Expert load"), moe);
        assert!(!text.contains("NaN") && !text.contains("inf,"), "a number that is none");
    }
}

#[test]
fn losses_that_are_no_numbers_leave_gaps() {
    let mut records = long_run(20, 1, 4);
    records[4].loss = f64::NAN;
    records[19].loss = f64::INFINITY;
    records[9].layers[0].stats.load_ratio = f64::NAN;
    let text = page(&records, Some(context()));
    assert!(!text.contains("NaN") && !text.contains("inf,"));
}

#[test]
fn the_same_run_gives_the_same_page() {
    let dir = run(&long_run(40, 2, 8), Some(context()));
    let write = || fs::read(write_report(dir.path()).unwrap()).unwrap();
    assert_eq!(write(), write());
}

#[test]
fn a_long_run_with_many_experts_stays_a_small_page() {
    let text = page(&long_run(3000, 16, 64), None);
    assert!(text.len() < 1_500_000, "{} bytes", text.len());
}

#[test]
fn a_run_without_a_logged_step_has_no_report() {
    let dir = run(&[], None);
    let text = write_report(dir.path()).unwrap_err().to_string();
    assert!(text.contains("has no logged step yet"), "{text}");
    let nowhere = tempfile::tempdir().unwrap();
    assert!(write_report(nowhere.path()).unwrap_err().to_string().contains("holds no run"));
}

/// A run of a vision model with two classes, one of which is called like markup.
fn vision_run(records: &[StepRecord]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::create(dir.path(), &VitTrainConfig::preset("tiny").unwrap()).unwrap();
    records.iter().for_each(|record| run.log(record).unwrap());
    let standard = Standard { mean: vec![0.5], std: vec![0.2] };
    let context = ImageContext {
        data: "drawn".into(),
        classes: vec!["cat".into(), "<dog>".into()],
        standard,
        linear_accuracy: 0.125,
        images_crc32: 0,
    };
    run.write_context(&context).unwrap();
    run.write_class_loads(&[ClassLoad { layer: 1, counts: vec![vec![3, 0, 5, 1], vec![1, 0, 5, 9]] }]).unwrap();
    dir
}

#[test]
fn a_vision_run_shows_accuracy_images_and_which_classes_experts_serve() {
    let mut records = long_run(30, 1, 4);
    records.iter_mut().for_each(|record| record.valid_bpb = None);
    records
        .iter_mut()
        .filter(|record| record.valid_loss.is_some())
        .for_each(|record| record.valid_accuracy = Some(0.4375));
    let dir = vision_run(&records);
    let text = fs::read_to_string(write_report(dir.path()).unwrap()).unwrap();
    assert_well_formed(&text);
    for part in [
        "Accuracy",
        "43.75",
        "linear model on the pixels 12.5 %",
        "images per second",
        "Experts and classes",
        "&lt;dog&gt;",
        "nats per image",
        "&quot;task&quot;: &quot;vit&quot;",
    ] {
        assert!(text.contains(part), "{part} is missing");
    }
    assert!(!text.contains("bits per byte") && !text.contains("NaN"));
}
