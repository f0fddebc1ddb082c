//! One line for every logged step.

use std::io::Write;

use super::Progress;
use crate::run::{StepRecord, Subject};

/// Writes a line for every logged step and another for every validation.
///
/// A reader that goes away does not end a training run, so errors of the writer are ignored.
#[derive(Debug)]
pub struct Plain<W> {
    output: W,
    subject: Subject,
}

impl<W: Write> Plain<W> {
    /// Writes to `output`, flushing after every record.
    pub fn new(output: W, subject: Subject) -> Self {
        Self { output, subject }
    }

    fn print(&mut self, text: &str) {
        let _ = writeln!(self.output, "{text}").and_then(|()| self.output.flush());
    }
}

impl<W: Write> Progress for Plain<W> {
    fn start(&mut self, done: usize, total: usize) {
        if done > 0 {
            self.print(&format!("going on after step {done} of {total}"));
        }
    }

    fn step(&mut self, record: &StepRecord, total: usize) {
        self.print(&lines(record, total, self.subject));
    }

    fn finish(&mut self) {}

    fn interrupted(&self) -> bool {
        false
    }
}

/// The record as one line, or two if it holds a validation.
pub(super) fn lines(record: &StepRecord, total: usize, subject: Subject) -> String {
    let mut text = step_line(record, total, subject);
    if let Some(loss) = record.valid_loss {
        text += &format!("\n{}  valid loss {loss:.4}", position(record.step, total));
        if let Some(score) = record.valid_bpb.or(record.valid_accuracy) {
            text += &format!("  {}", subject.score(score));
        }
    }
    text
}

fn step_line(record: &StepRecord, total: usize, subject: Subject) -> String {
    let mut text = format!("{}  loss {:.4}", position(record.step, total), record.loss);
    if !record.layers.is_empty() {
        text += &format!("  balance {:.3}", record.balance_loss);
    }
    text += &format!("  lr {:.1e}  grad {:.2}", record.lr, record.grad_norm);
    if let Some(ratio) = record.load_ratio() {
        text += &format!("  load {ratio:.1}x");
    }
    if let Some(dead) = record.dead_experts().filter(|&dead| dead > 0) {
        text += &format!("  dead {dead}");
    }
    text + &format!("  {} {}/s", thousands(subject.of_tokens(record.tokens_per_s)), subject.unit())
}

/// `step   100/2000`, as wide for every step.
fn position(step: usize, total: usize) -> String {
    let width = total.to_string().len();
    format!("step {step:>width$}/{total}")
}

/// Rounds and groups by thousands: 6512.4 -> `6,512`.
pub(crate) fn thousands(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_record;

    fn printed(records: &[StepRecord]) -> String {
        let mut plain = Plain::new(Vec::new(), Subject::Text);
        records.iter().for_each(|record| plain.step(record, 2000));
        String::from_utf8(plain.output).unwrap()
    }

    #[test]
    fn a_step_is_one_line() {
        assert_eq!(
            printed(&[test_record(100)]),
            "step  100/2000  loss 0.0500  balance 1.020  lr 1.0e-3  grad 0.53  load 2.1x  dead 2  6,512 tokens/s\n"
        );
    }

    #[test]
    fn a_model_without_moe_layers_shows_no_routing() {
        let mut record = test_record(5);
        record.layers.clear();
        let text = printed(&[record]);
        assert_eq!(text, "step    5/2000  loss 1.0000  lr 1.0e-3  grad 0.53  6,512 tokens/s\n");
    }

    #[test]
    fn a_validation_has_its_own_line() {
        let mut record = test_record(100);
        (record.valid_loss, record.valid_bpb) = (Some(1.5), Some(2.164));
        let text = printed(&[record]);
        assert_eq!(text.lines().nth(1).unwrap(), "step  100/2000  valid loss 1.5000  2.1640 bits/byte");
    }

    #[test]
    fn of_a_vision_model_images_are_shown() {
        let mut record = test_record(100);
        (record.valid_loss, record.valid_accuracy) = (Some(1.5), Some(0.4567));
        let mut plain = Plain::new(Vec::new(), Subject::Images { tokens: 64 });
        plain.step(&record, 2000);
        let text = String::from_utf8(plain.output).unwrap();
        assert!(text.lines().next().unwrap().ends_with("  102 images/s"), "{text}");
        assert_eq!(text.lines().nth(1).unwrap(), "step  100/2000  valid loss 1.5000  45.67 % right");
    }

    #[test]
    fn thousands_are_grouped() {
        let cases = [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1,000"),
            (1234567.0, "1,234,567"),
            (-0.2, "0"),
            (-4321.0, "-4,321"),
            (f64::NAN, "NaN"),
        ];
        for (value, text) in cases {
            assert_eq!(thousands(value), text);
        }
    }
}
