//! The template by which a tokenizer puts special tokens around a text, checked before it is used.
//!
//! The `tokenizers` library checks a template that a program builds, and believes one that it reads from a file: it panics when it gets to a
//! token that the template does not define.

use serde_json::Value;

/// Why the library would panic at a text, given the `post_processor` of a `tokenizer.json`.
pub(super) fn fault(post_processor: &Value) -> Option<String> {
    match templates(post_processor)[..] {
        [] => None,
        [template] => {
            undefined(template).map(|piece| format!("the template of its post_processor does not define {piece}"))
        }
        _ => Some("its post_processor has more than one template".into()),
    }
}

/// By their fields: the library takes what has them for a template, whatever its `type`.
fn templates(processor: &Value) -> Vec<&Value> {
    match &processor["processors"] {
        _ if processor.get("single").is_some() => vec![processor],
        Value::Array(processors) => processors.iter().flat_map(templates).collect(),
        _ => Vec::new(),
    }
}

/// A piece that is neither the text nor one of the special tokens.
fn undefined(template: &Value) -> Option<&Value> {
    let is_token = |id: &Value| id.as_str().is_some_and(|id| template["special_tokens"].get(id).is_some());
    let is_defined = |piece: &&Value| piece["Sequence"]["id"] == "A" || is_token(&piece["SpecialToken"]["id"]);
    template["single"].as_array()?.iter().find(|piece| !is_defined(piece))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Before the text comes `first`.
    fn template(first: Value) -> Value {
        let token = json!({"id": "<s>", "ids": [1], "tokens": ["<s>"]});
        json!({"type": "TemplateProcessing", "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": token}})
    }

    fn token(id: &str) -> Value {
        json!({"SpecialToken": {"id": id, "type_id": 0}})
    }

    #[test]
    fn a_template_of_the_text_and_its_own_tokens_is_whole() {
        let whole = template(token("<s>"));
        assert_eq!(fault(&whole), None);
        assert_eq!(fault(&json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, whole]})), None);
        assert_eq!(fault(&json!({"type": "ByteLevel"})), None);
        assert_eq!(fault(&Value::Null), None);
    }

    #[test]
    fn what_the_library_panics_at_is_found() {
        let reason = |processor: Value| fault(&processor).expect("it is refused");
        assert!(reason(template(token("<t>"))).contains("<t>"));
        assert!(reason(template(json!({"Sequence": {"id": "B", "type_id": 0}}))).contains("\"B\""));
        let inner = template(token("<t>"));
        assert!(reason(json!({"processors": [{"type": "ByteLevel"}, {"processors": [inner]}]})).contains("<t>"));
        let whole = template(token("<s>"));
        assert!(reason(json!({"processors": [whole, whole]})).contains("more than one template"));
    }
}
