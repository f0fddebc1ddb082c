//! What `cargo metadata` says of the workspace, cut down to what the checks ask for.

use serde_json::Value;

use crate::Result;
use crate::cargo;

/// A package of the workspace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Whether it goes to the package registry.
    pub(crate) published: bool,
    pub(crate) dependencies: Vec<Dependency>,
    /// Names of its integration tests.
    pub(crate) tests: Vec<String>,
}

/// A dependency as a manifest declares it: normal, for tests or for a build script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `normal`, `dev` or `build`.
    pub(crate) kind: String,
    /// Whether it is a package of this workspace.
    pub(crate) local: bool,
}

/// The packages of this workspace.
pub(crate) fn packages() -> Result<Vec<Package>> {
    parse(&cargo::output(cargo::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?)
}

/// Reads the JSON of `cargo metadata --no-deps`.
fn parse(json: &str) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(json).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    Ok(packages.iter().map(package).collect())
}

fn package(value: &Value) -> Package {
    Package {
        name: text(&value["name"]),
        published: value["publish"].is_null(),
        dependencies: value["dependencies"].as_array().into_iter().flatten().map(dependency).collect(),
        tests: value["targets"].as_array().into_iter().flatten().filter_map(test).collect(),
    }
}

fn test(target: &Value) -> Option<String> {
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    is_test.then(|| text(&target["name"]))
}

fn dependency(value: &Value) -> Dependency {
    Dependency {
        name: text(&value["name"]),
        kind: value["kind"].as_str().unwrap_or("normal").into(),
        local: value["path"].is_string(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"packages": [
        {"name": "a", "publish": null, "dependencies": [
            {"name": "b", "kind": null, "path": "/x/b"},
            {"name": "rand", "kind": "dev"}]},
        {"name": "b", "publish": [], "dependencies": [], "targets": [
            {"name": "b", "kind": ["lib"]},
            {"name": "losses", "kind": ["test"]}]}]}"#;

    #[test]
    fn packages_are_read_with_kind_and_origin_of_their_dependencies() {
        let packages = parse(JSON).unwrap();
        let dependency = |name: &str, kind: &str, local| Dependency { name: name.into(), kind: kind.into(), local };
        let a = vec![dependency("b", "normal", true), dependency("rand", "dev", false)];
        assert_eq!(packages[0], Package { name: "a".into(), published: true, dependencies: a, tests: vec![] });
        assert_eq!(
            packages[1],
            Package { name: "b".into(), published: false, dependencies: vec![], tests: vec!["losses".into()] }
        );
    }

    #[test]
    fn output_that_is_not_metadata_is_an_error() {
        assert!(parse("{}").unwrap_err().contains("names no packages"));
        assert!(parse("error").unwrap_err().contains("cargo metadata"));
    }
}
