//! The worst error of each tensor out of all that were noted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::catalogue::CATALOGUE;
use crate::Result;

/// What a test calls a backend, and how the table calls it. A test that names none is of flex alone.
const BACKENDS: [(&str, &str); 10] = [
    ("flex", "flex"),
    ("flex_checkpointed", "flex"),
    ("portable_in_f64", "flex"),
    ("ndarray", "ndarray"),
    ("wgpu", "wgpu"),
    ("wgpu_unfused", "wgpu"),
    ("cuda", "cuda"),
    ("cuda_unfused", "cuda"),
    ("rocm", "rocm"),
    ("metal", "metal"),
];

/// What the suite compares that is no gradient. It calls a gradient by its input or parameter, with or without `gradient of`.
const VALUES: [&str; 9] =
    ["output", "sums", "totals", "vectors", "parameter", "mean", "square", "each slice", "all of it"];

/// A column of the table: dtype and backend.
type Column = (String, &'static str);

/// Errors by row, the place of an op in the catalogue and one of its tensors, and column.
pub(super) struct Worst {
    rows: BTreeMap<(usize, String), BTreeMap<Column, f64>>,
}

impl Worst {
    /// # Errors
    ///
    /// A line that is none, or an op of the catalogue that nothing was noted of: its test has another name now.
    pub(super) fn read(notes: &str) -> Result<Self> {
        let mut worst = Self { rows: BTreeMap::new() };
        for (index, line) in notes.lines().enumerate() {
            let note =
                serde_json::from_str(line).map_err(|error| format!("line {} of the errors: {error}", index + 1))?;
            worst.add(&note);
        }
        let measured = |op: usize| worst.rows.keys().any(|(row, _)| *row == op);
        match (0..CATALOGUE.len()).find(|&op| !measured(op)) {
            Some(op) => Err(format!("nothing was measured of {}: {:?}", CATALOGUE[op].name, CATALOGUE[op].tests)),
            None => Ok(worst),
        }
    }

    fn add(&mut self, note: &Value) {
        let text = |field: &str| note[field].as_str().unwrap_or_default();
        let Some((module, backend, name)) = place(text("test")) else { return };
        let row = CATALOGUE.iter().position(|measured| measured.tests.contains(&(module, name)));
        let Some(row) = row else { return };
        let columns = self.rows.entry((row, tensor(text("tensor")))).or_default();
        let worst = columns.entry((text("dtype").into(), backend)).or_insert(0.0);
        // Not finite is `null`.
        *worst = worst.max(note["error"].as_f64().unwrap_or(f64::INFINITY));
    }

    fn columns(&self) -> Vec<&Column> {
        let mut columns: Vec<_> = self.rows.values().flat_map(BTreeMap::keys).collect();
        columns.sort_by_key(|(dtype, backend)| (!dtype.starts_with("f64"), !dtype.starts_with("f32"), dtype, *backend));
        columns.dedup();
        columns
    }

    /// In Markdown.
    pub(super) fn table(&self) -> String {
        let columns = self.columns();
        let titles: Vec<_> = columns.iter().map(|(dtype, backend)| format!("{dtype}, {backend}")).collect();
        let mut text =
            format!("| op or layer | tensor | {} |\n|---|---|{}\n", titles.join(" | "), "---|".repeat(columns.len()));
        let mut before = None;
        for ((op, tensor), errors) in &self.rows {
            let name = if before == Some(op) { "" } else { CATALOGUE[*op].name };
            before = Some(op);
            let cells =
                columns.iter().map(|column| errors.get(*column).map_or(String::new(), |error| format!("{error:.1e}")));
            text += &format!("| {name} | {tensor} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
        }
        text
    }

    /// One object for every cell of the table; an error that is not finite is `null`.
    pub(super) fn records(&self) -> Vec<Value> {
        let of_row = |((op, tensor), errors): (&(usize, String), &BTreeMap<Column, f64>)| {
            let record = |((dtype, backend), error): (&Column, &f64)| json!({"of": CATALOGUE[*op].name, "tensor": tensor, "dtype": dtype, "backend": backend, "error": error});
            errors.iter().map(record).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_row).collect()
    }
}

/// Module, backend and name of `module::backend::name`.
fn place(test: &str) -> Option<(&str, &'static str, &str)> {
    let (path, name) = test.rsplit_once("::")?;
    let found = path.rsplit_once("::").and_then(|(module, last)| {
        let (_, backend) = BACKENDS.iter().find(|(called, _)| *called == last)?;
        Some((module, *backend, name))
    });
    Some(found.unwrap_or((path, "flex", name)))
}

fn tensor(name: &str) -> String {
    let value = VALUES.iter().any(|value| name.starts_with(value));
    let gradient = !value && !name.starts_with("gradient of ");
    if gradient { format!("gradient of {name}") } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(test: &str, tensor: &str, dtype: &str, error: &str) -> String {
        format!(
            r#"{{"test": "{test}", "tensor": "{tensor}", "what": "x", "dtype": "{dtype}", "numbers": 3, "error": {error}}}"#
        )
    }

    /// A line for everything in the catalogue, and then `more`.
    fn notes(more: &[String]) -> String {
        let one = |(module, name): &(&str, &str)| line(&format!("{module}::flex::{name}"), "output", "f32", "1e-9");
        let all = CATALOGUE.iter().flat_map(|measured| measured.tests.iter().map(one));
        all.chain(more.iter().cloned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_worst_of_a_tensor_is_kept_for_each_dtype_and_backend() {
        let softmax = |backend: &str, tensor: &str, dtype: &str, error: &str| {
            line(&format!("fused::{backend}::softmax_matches_the_loop"), tensor, dtype, error)
        };
        let more = [
            softmax("flex", "gradient of x", "f32", "2e-7"),
            softmax("flex_checkpointed", "gradient of x", "f32", "3e-7"),
            softmax("ndarray", "gradient of x", "f32", "1e-7"),
            softmax("portable_in_f64", "gradient of x", "f64", "1e-12"),
            softmax("ndarray", "output", "f32", "null"),
            line("fused::flex::another_test", "gradient of x", "f32", "9.0"),
        ];
        let table = Worst::read(&notes(&more)).unwrap().table();
        assert!(table.starts_with("| op or layer | tensor | f64, flex | f32, flex | f32, ndarray |\n"), "{table}");
        assert!(
            table.contains(
                "\n| softmax_rows | gradient of x | 1.0e-12 | 3.0e-7 | 1.0e-7 |\n|  | output |  | 1.0e-9 | inf |\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn a_test_that_is_gone_is_an_error_that_names_what_it_measured() {
        let all = notes(&[]);
        let without: Vec<_> = all.lines().filter(|line| !line.contains("rotary")).collect();
        assert!(Worst::read(&without.join("\n")).err().unwrap().contains("nothing was measured of rotary"));
    }

    #[test]
    fn a_test_of_flex_alone_names_no_backend() {
        assert_eq!(place("a::b::c"), Some(("a::b", "flex", "c")));
        assert_eq!(place("a::b::ndarray::c"), Some(("a::b", "ndarray", "c")));
        assert_eq!(place("main"), None);
    }
}
