//! Which crate of the workspace may see which: the layering of `ARCHITECTURE.md`, as a table that is checked.
//!
//! Dependencies of tests count like all others: a crate whose tests need a higher layer is tested from the wrong place.

use crate::Result;
use crate::metadata::{self, Dependency, Package};

/// What one package may depend on.
struct Rule {
    package: &'static str,
    /// Packages of this workspace it may see.
    sees: &'static [&'static str],
    /// Packages from elsewhere it may see; `None` leaves them free.
    external: Option<&'static [&'static str]>,
}

const fn rule(package: &'static str, sees: &'static [&'static str]) -> Rule {
    Rule { package, sees, external: None }
}

const EVERYTHING: &[&str] =
    &["moe-kernels", "moe-layers", "default-moe", "excitation-optim", "moe-models", "moe-train", "moe-plan"];

const BENCHED: &[&str] =
    &["moe-kernels", "moe-layers", "default-moe", "excitation-optim", "moe-models", "moe-train", "moe-tests"];

/// The layers, lowest first. A package that is not here is a violation: a new crate takes its place in this table.
const RULES: &[Rule] = &[
    rule("moe-kernels", &[]),
    rule("moe-layers", &["moe-kernels"]),
    rule("default-moe", &["moe-kernels", "moe-layers"]),
    rule("moe-models", &["moe-kernels", "moe-layers", "default-moe"]),
    // The optimizer sees burn only; it meets the layers in the program, the examples and the tests.
    rule("excitation-optim", &[]),
    rule("moe-train", &["moe-kernels", "moe-layers", "default-moe", "excitation-optim", "moe-models"]),
    rule("moe-examples", EVERYTHING),
    rule("moe-tests", EVERYTHING),
    // The catalogue of cases is the suite's: what is timed is what is tested.
    rule("moe-bench", BENCHED),
    rule("moe-reproduce", EVERYTHING),
    // Nothing that takes longer than seconds to build.
    Rule { package: "moe-plan", sees: &[], external: Some(&["serde_json"]) },
    Rule { package: "xtask", sees: &["moe-plan"], external: Some(&["clap", "serde_json"]) },
];

/// Checks every package of the workspace against the table.
pub(crate) fn check() -> Result<()> {
    let violations = violations(&metadata::packages()?);
    if violations.is_empty() { Ok(()) } else { Err(format!("layering:\n  {}", violations.join("\n  "))) }
}

/// One line for each dependency that the table does not allow.
fn violations(packages: &[Package]) -> Vec<String> {
    packages.iter().flat_map(package_violations).collect()
}

fn package_violations(package: &Package) -> Vec<String> {
    let Some(rule) = RULES.iter().find(|rule| rule.package == package.name) else {
        return vec![format!("{} has no place yet: add it to RULES in xtask/src/layers.rs", package.name)];
    };
    let forbidden = package.dependencies.iter().filter(|dependency| !allows(rule, dependency));
    forbidden.map(|dependency| describe(rule, dependency)).collect()
}

fn allows(rule: &Rule, dependency: &Dependency) -> bool {
    let name = dependency.name.as_str();
    if dependency.local { rule.sees.contains(&name) } else { rule.external.is_none_or(|list| list.contains(&name)) }
}

fn describe(rule: &Rule, dependency: &Dependency) -> String {
    let allowed = if dependency.local { rule.sees } else { rule.external.unwrap_or_default() };
    let allowed = if allowed.is_empty() { "nothing of that kind".into() } else { allowed.join(", ") };
    format!("{} must not see {} ({} dependency): it may see {allowed}", rule.package, dependency.name, dependency.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, &str)]) -> Package {
        let local = |name: &str| RULES.iter().any(|rule| rule.package == name);
        let dependencies = dependencies
            .iter()
            .map(|&(name, kind)| Dependency { name: name.into(), kind: kind.into(), local: local(name) })
            .collect();
        Package { name: name.into(), published: true, dependencies, tests: Vec::new() }
    }

    fn violations_of(name: &str, dependencies: &[(&str, &str)]) -> Vec<String> {
        violations(&[package(name, dependencies)])
    }

    #[test]
    fn a_graph_in_the_order_of_the_layers_is_allowed() {
        let graph = [
            package("moe-kernels", &[("burn", "normal")]),
            package("moe-layers", &[("moe-kernels", "normal"), ("burn", "normal"), ("rand", "dev")]),
            package("default-moe", &[("moe-layers", "normal")]),
            package("moe-models", &[("moe-layers", "normal"), ("default-moe", "normal")]),
            package("excitation-optim", &[("burn", "normal")]),
            package("moe-train", &[("moe-models", "normal"), ("excitation-optim", "normal")]),
            package("moe-tests", &[("moe-train", "normal"), ("moe-kernels", "normal")]),
            package("moe-bench", &[("moe-tests", "normal"), ("moe-train", "normal")]),
            package("xtask", &[("clap", "normal"), ("serde_json", "normal")]),
        ];
        assert_eq!(violations(&graph), Vec::<String>::new());
    }

    #[test]
    fn a_lower_layer_that_sees_a_higher_one_is_found() {
        let found = violations_of("moe-layers", &[("moe-kernels", "normal"), ("moe-models", "normal")]);
        assert_eq!(found, ["moe-layers must not see moe-models (normal dependency): it may see moe-kernels"]);
    }

    #[test]
    fn a_dependency_of_tests_counts_too() {
        let found = violations_of("moe-kernels", &[("moe-layers", "dev")]);
        assert_eq!(found, ["moe-kernels must not see moe-layers (dev dependency): it may see nothing of that kind"]);
    }

    #[test]
    fn the_optimizer_sees_no_crate_of_the_workspace() {
        assert_eq!(violations_of("excitation-optim", &[("burn", "normal"), ("moe-kernels", "dev")]).len(), 1);
    }

    #[test]
    fn xtask_sees_nothing_heavy() {
        let found = violations_of("xtask", &[("clap", "normal"), ("burn", "normal"), ("moe-train", "normal")]);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("burn") && found[0].contains("clap, serde_json"));
    }

    #[test]
    fn a_package_without_a_place_is_found() {
        assert!(violations_of("moe-extras", &[])[0].contains("no place yet"));
    }

    #[test]
    fn the_table_refers_only_to_packages_it_has() {
        let known = |name: &&&str| RULES.iter().any(|rule| rule.package == **name);
        for rule in RULES {
            assert_eq!(rule.sees.iter().filter(known).count(), rule.sees.len(), "{}", rule.package);
        }
    }

    #[test]
    fn this_workspace_keeps_its_layers() {
        check().unwrap();
    }
}
