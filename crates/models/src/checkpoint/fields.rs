//! The fields of a `config.json`, each of which must be accounted for.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;

/// Fields that were not looked at yet. One that is left at the end is an error.
pub(super) struct Fields {
    left: BTreeMap<String, Value>,
    /// Where the fields are: empty, or the name of a table with a dot.
    prefix: String,
}

impl Fields {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self { left: fields.into_iter().collect(), prefix: String::new() }
    }

    /// The fields of the table called `name`, which are no longer those of `self`; none for `null`.
    pub(super) fn table(&mut self, name: &str) -> Result<Option<Self>, CheckpointError> {
        let table: Option<Map<String, Value>> = self.take(name)?.flatten();
        Ok(table.map(|fields| Self { left: fields.into_iter().collect(), prefix: format!("{}{name}.", self.prefix) }))
    }

    /// Takes a field out; `None` when it is missing.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Value`] when it is of another type.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.left.remove(name) else { return Ok(None) };
        let text = value.to_string();
        let parsed = serde_json::from_value(value).map(Some);
        parsed.map_err(|error| CheckpointError::value(&self.full(name), text, error.to_string()))
    }

    /// Whether a field is there, not taken out yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Takes a field out that has a default.
    pub(super) fn get<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T, CheckpointError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// Takes a field out that may be `null`; `None` also when it is missing.
    pub(super) fn nullable<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, CheckpointError> {
        Ok(self.take::<Option<T>>(name)?.flatten())
    }

    /// Takes a field out that must be missing, or one of `allowed`.
    pub(super) fn only(&mut self, name: &str, allowed: &[Value], advice: &str) -> Result<(), CheckpointError> {
        match self.left.remove(name) {
            Some(value) if !allowed.contains(&value) => Err(CheckpointError::value(&self.full(name), value, advice)),
            _ => Ok(()),
        }
    }

    /// Takes fields out that do not matter.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        self.left.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// # Errors
    ///
    /// [`CheckpointError::UnknownField`] naming the first field nobody asked for.
    pub(super) fn finish(self) -> Result<(), CheckpointError> {
        match self.left.keys().next() {
            Some(name) => Err(CheckpointError::UnknownField { field: self.full(name) }),
            None => Ok(()),
        }
    }

    /// Name of a field with the tables around it.
    pub(super) fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}
