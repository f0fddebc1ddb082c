//! Changes to a preset: a file of settings, `--set key=value`, and the short options of the command line.
//!
//! The preset is written out as a tree of settings; a change must name one that is there. `moe.` at the front is short
//! for `model.moe.`. Values are read as TOML; a bare word is a string, and `null` clears an optional setting.

use std::{fs, path::Path};

use serde_json::{Map, Number, Value};

use serde::{Serialize, de::DeserializeOwned};

use crate::config::ConfigError;
use crate::run::{SEAL, Settings, TASK};

/// Edits that turn one key into another at most this far apart make a suggestion.
const SIMILAR: usize = 3;

/// Changes to the settings of a run; of two changes to one setting the later one counts.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    changes: Vec<(String, Value)>,
    /// The kind of model that a file of settings is for, if it says so.
    task: Option<String>,
}

impl Overrides {
    /// Reads a file of settings, TOML or (if named `*.json`) JSON, and adds its changes.
    ///
    /// # Errors
    ///
    /// [`ConfigError::File`] if it cannot be read as such.
    pub fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let fault = |reason: String| ConfigError::File { path: path.into(), reason };
        let text = fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let tree = if path.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?
        } else {
            let table = text.parse::<toml::Table>().map_err(|error| fault(toml_reason(&text, &error)))?;
            to_json(toml::Value::Table(table))
        };
        let Value::Object(mut tree) = tree else { return Err(fault("expected a table of settings".into())) };
        // Of a run's own file: here it is where somebody begins, and may change what they like.
        tree.remove(SEAL);
        if let Some(task) = tree.remove(TASK) {
            self.task = Some(task.as_str().map_or_else(|| task.to_string(), str::to_string));
        }
        self.add_tree("", tree);
        Ok(())
    }

    /// Adds one `key=value`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NoValue`] without a `=`.
    pub fn add_assignment(&mut self, text: &str) -> Result<(), ConfigError> {
        let (key, value) = text.split_once('=').ok_or_else(|| ConfigError::NoValue(text.into()))?;
        self.add(key.trim(), parse_value(value.trim()));
        Ok(())
    }

    /// Adds the change of one setting; a table changes only what it names.
    pub fn add(&mut self, key: &str, value: impl Into<Value>) {
        match value.into() {
            Value::Object(tree) if !is_one_value(&tree) => self.add_tree(key, tree),
            value => self.changes.push((full_key(key), value)),
        }
    }

    /// Whether a change names this setting.
    pub fn names(&self, key: &str) -> bool {
        self.changes.iter().any(|(changed, _)| changed == key)
    }

    /// The config with all changes made, not yet checked for contradictions.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownKey`] or [`ConfigError::BadValue`], naming the setting; [`ConfigError::OtherTask`] for a file of
    /// another kind of run.
    pub fn apply<C: Settings + Serialize + DeserializeOwned + Clone>(&self, base: &C) -> Result<C, ConfigError> {
        if let Some(found) = self.task.clone().filter(|task| task != C::TASK) {
            return Err(ConfigError::OtherTask { found });
        }
        let mut tree = serde_json::to_value(base).expect("a config is plain data");
        let known = keys(&tree);
        let mut config = base.clone();
        for (key, value) in &self.changes {
            let place = tree.pointer_mut(&format!("/{}", key.replace('.', "/")));
            let place = place.ok_or_else(|| unknown(key, &known))?;
            if place.as_object().is_some_and(|tree| !is_one_value(tree)) {
                return Err(bad_value(key, value, "it is a group of settings; name one of them"));
            }
            *place = value.clone();
            config = serde_json::from_value(tree.clone()).map_err(|error| bad_value(key, value, error))?;
        }
        Ok(config)
    }

    fn add_tree(&mut self, prefix: &str, tree: Map<String, Value>) {
        for (name, value) in tree {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            self.add(&key, value);
        }
    }
}

/// Whether a table is the value of one setting, such as `model.rope_scaling`: its `kind` says which others it has.
fn is_one_value(tree: &Map<String, Value>) -> bool {
    tree.contains_key("kind")
}

fn full_key(key: &str) -> String {
    if key == "moe" || key.starts_with("moe.") { format!("model.{key}") } else { key.to_string() }
}

fn bad_value(key: &str, value: &Value, reason: impl ToString) -> ConfigError {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    ConfigError::BadValue { key: key.into(), value, reason: reason.to_string() }
}

fn unknown(key: &str, known: &[String]) -> ConfigError {
    ConfigError::UnknownKey { key: key.into(), suggestion: closest(key, known).map(str::to_string) }
}

/// The setting with the fewest edits from `key`, compared in full or, for a key without a dot, by its last part.
fn closest<'a>(key: &str, known: &'a [String]) -> Option<&'a str> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let typed = key.rsplit('.').next().unwrap_or(key);
    let distance = |name: &'a str| edits(key, name).min(edits(typed, last(name)));
    let nearest = known.iter().min_by_key(|name| (distance(name), edits(key, name)))?;
    let allowed = SIMILAR.min(typed.chars().count() / 2);
    (distance(nearest) <= allowed).then_some(nearest.as_str())
}

/// Levenshtein distance: insertions, deletions and replacements of one letter.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

/// Every setting of the tree that is not a group, as a dotted key.
fn keys(tree: &Value) -> Vec<String> {
    let Value::Object(entries) = tree else { return Vec::new() };
    let below = |(name, value): (&String, &Value)| match value {
        Value::Object(tree) if !is_one_value(tree) => {
            keys(value).into_iter().map(|key| format!("{name}.{key}")).collect()
        }
        _ => vec![name.clone()],
    };
    entries.iter().flat_map(below).collect()
}

fn parse_value(text: &str) -> Value {
    if text == "null" {
        return Value::Null;
    }
    let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.map_or_else(|| Value::String(text.to_string()), to_json)
}

fn to_json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::Number(number.into()),
        toml::Value::Float(number) => Number::from_f64(number).map_or(Value::String(number.to_string()), Value::Number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(to_json).collect()),
        toml::Value::Table(table) => Value::Object(table.into_iter().map(|(key, item)| (key, to_json(item))).collect()),
    }
}

/// The parser's message with the line it is about, without the picture it draws.
fn toml_reason(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
    format!("line {line}: {}", error.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::TrainConfig, run::RunConfig};

    fn tiny() -> TrainConfig {
        TrainConfig::preset("tiny").unwrap()
    }

    fn set(assignments: &[&str]) -> Result<TrainConfig, ConfigError> {
        let mut overrides = Overrides::default();
        assignments.iter().try_for_each(|text| overrides.add_assignment(text))?;
        overrides.apply(&tiny())
    }

    fn file(name: &str, text: &str) -> Result<TrainConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let mut overrides = Overrides::default();
        overrides.add_file(&path)?;
        overrides.apply(&tiny())
    }

    #[test]
    fn numbers_words_and_quoted_strings_are_understood() {
        let config = set(&["optim.lr=5e-4", "train.steps = 1_000", "train.dtype=bf16", "data.path='a b.txt'"]).unwrap();
        assert_eq!((config.optim.lr, config.train.steps), (5e-4, 1000));
        assert_eq!(config.train.dtype, crate::config::Dtype::Bf16);
        assert_eq!(config.data.path, Some("a b.txt".into()));
    }

    #[test]
    fn the_later_of_two_changes_counts() {
        assert_eq!(set(&["train.steps=5", "train.steps=6"]).unwrap().train.steps, 6);
    }

    #[test]
    fn moe_is_short_for_model_moe() {
        let config = set(&["moe.top_k=1", "model.moe.num_experts=5"]).unwrap();
        assert_eq!((config.model.moe.top_k, config.model.moe.num_experts), (1, 5));
        assert_eq!(file("c.toml", "[moe]\ntop_k = 1\n").unwrap().model.moe.top_k, 1);
    }

    #[test]
    fn options_of_default_vectors_arrive() {
        use default_moe::{DefaultOptions, Evaluation, Form, UpdateRule};
        let options = ["beta=0.75", "rule=weighted-by-count", "form=backward-only", "evaluation=top-k"];
        let options = options.map(|option| format!("moe.default.{option}"));
        let config = set(&options.each_ref().map(String::as_str)).unwrap();
        let expected = DefaultOptions {
            beta: 0.75,
            rule: UpdateRule::WeightedByCount,
            form: Form::BackwardOnly,
            evaluation: Evaluation::TopK,
        };
        assert_eq!(config.model.moe.default, expected);
    }

    #[test]
    fn a_whole_number_serves_where_a_real_one_is_asked_for() {
        assert_eq!(set(&["optim.clip_norm=2"]).unwrap().optim.clip_norm, 2.0);
    }

    #[test]
    fn null_clears_an_optional_setting() {
        assert_eq!(set(&["data.path=x", "data.path=null"]).unwrap().data.path, None);
    }

    #[test]
    fn a_table_with_a_kind_is_one_value() {
        let yarn = r#"model.rope_scaling={kind = "yarn", factor = 4, original_max_seq_len = 64}"#;
        let config = set(&[yarn]).unwrap();
        assert_eq!(config.model.rope_scaling, Some(moe_models::lm::RopeScaling::yarn(4.0, 64)));
        assert_eq!(set(&[yarn, "model.rope_scaling=null"]).unwrap(), tiny());
        assert_eq!(file("config.json", &serde_json::to_string(&config).unwrap()).unwrap(), config);
        assert!(set(&[r#"model.rope_scaling={kind = "none"}"#]).unwrap_err().to_string().contains("rope_scaling"));
    }

    #[test]
    fn a_list_is_one_value() {
        let config = set(&[r#"optim.freeze=["embedding", "*router*"]"#]).unwrap();
        assert_eq!(config.optim.freeze, ["embedding", "*router*"]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let message = |text| set(&[text]).unwrap_err().to_string();
        assert_eq!(message("train.stepps=1"), "unknown key `train.stepps`; did you mean `train.steps`?");
        assert_eq!(message("steps=1"), "unknown key `steps`; did you mean `train.steps`?");
        assert_eq!(message("moe.topk=1"), "unknown key `model.moe.topk`; did you mean `model.moe.top_k`?");
        assert_eq!(message("qqqqqqqq=1"), "unknown key `qqqqqqqq`");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_key_and_value() {
        let message = set(&["train.steps=many"]).unwrap_err().to_string();
        assert!(message.starts_with("`train.steps` cannot be `many`: "), "{message}");
        assert!(set(&["train.steps=1.5"]).is_err());
        assert!(set(&["train.steps=-1"]).is_err());
        assert!(set(&["optim.lr=nan"]).is_err());
        assert!(set(&["train=3"]).unwrap_err().to_string().contains("group of settings"));
    }

    #[test]
    fn an_assignment_needs_an_equals_sign() {
        assert!(matches!(set(&["train.steps"]), Err(ConfigError::NoValue(_))));
    }

    #[test]
    fn toml_and_json_files_change_only_what_they_name() {
        let from_toml = file("c.toml", "[train]\nsteps = 7\n[optim]\nlr = 1\n").unwrap();
        let from_json = file("c.json", r#"{"train": {"steps": 7}, "optim": {"lr": 1.0}}"#).unwrap();
        assert_eq!((from_toml.train.steps, from_toml.optim.lr), (7, 1.0));
        assert_eq!((&from_toml.train, &from_toml.optim), (&from_json.train, &from_json.optim));
        assert_eq!(from_toml.train.batch_size, tiny().train.batch_size);
    }

    #[test]
    fn a_file_with_an_unknown_key_or_a_fault_is_refused() {
        let unknown = file("c.toml", "[train]\nstep = 7\n").unwrap_err().to_string();
        assert!(unknown.contains("did you mean `train.steps`"), "{unknown}");
        let fault = file("c.toml", "[train]\nsteps = \n").unwrap_err().to_string();
        assert!(fault.contains("line 2"), "{fault}");
        assert!(matches!(file("c.json", "[1]"), Err(ConfigError::File { .. })));
    }

    #[test]
    fn a_stored_config_read_as_a_file_gives_the_same_config() {
        let config = TrainConfig::preset("nanogpt-moe").unwrap();
        for stored in
            [serde_json::to_string(&config).unwrap(), serde_json::to_string(&RunConfig::from(&config)).unwrap()]
        {
            assert_eq!(file("config.json", &stored).unwrap(), config);
        }
    }

    #[test]
    fn a_stored_config_of_another_kind_of_run_is_refused() {
        let message = file("c.toml", "task = \"vit\"\n").unwrap_err().to_string();
        assert!(message.contains("pass it to train vit"), "{message}");
    }
}
