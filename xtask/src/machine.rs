//! Where, when and from what the numbers of a record come.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::built_from;

/// This machine, now, with the compiler and the commit that programs are built from. What is not known is `null`.
pub(crate) fn here() -> Value {
    json!({
        "date": built_from::output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
        "cpu": cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "os": std::env::consts::OS,
        "rustc": built_from::compiler(),
        "commit": built_from::checkout(),
    })
}

/// The processor by what Linux says of it.
fn cpu(info: &str) -> Option<&str> {
    let model = info.lines().find(|line| line.starts_with("model name"))?;
    model.split_once(':').map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_when_on_what_and_with_which_compiler() {
        let here = here();
        let text = |field: &str| here[field].as_str().unwrap_or_default().to_string();
        assert!(text("rustc").starts_with("rustc "), "{here}");
        assert!(text("date").starts_with("20") && text("date").ends_with('Z'), "{here}");
        assert!(here["cores"].as_u64().is_some_and(|cores| cores > 0), "{here}");
        assert!(here.as_object().is_some_and(|fields| fields.contains_key("commit")), "{here}");
    }

    #[test]
    fn the_processor_is_named_as_it_is_there() {
        assert_eq!(
            cpu("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other"),
            Some("Some CPU @ 2 GHz")
        );
        assert_eq!(cpu("Hardware : x"), None);
    }
}
