//! Rotary positions in `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` with both in it.

use serde_json::{Value, json};

use super::CheckpointError;
use super::fields::Fields;
use crate::lm::RopeScaling;

/// Base of the wavelengths, and the scaling.
type Rope = (f64, Option<RopeScaling>);

/// Reads either spelling. A missing base is `default_theta`, a missing original length `max_seq_len`.
///
/// # Errors
///
/// Both spellings at once, an unknown method, a field that the method does not have.
pub(super) fn read(fields: &mut Fields, default_theta: f64, max_seq_len: usize) -> Result<Rope, CheckpointError> {
    let outer = fields.nullable::<f64>("rope_theta")?;
    whole_head(fields)?;
    let (scaling, parameters) = (fields.table("rope_scaling")?, fields.table("rope_parameters")?);
    if scaling.is_some() && parameters.is_some() {
        let advice = "`rope_parameters` is there too; remove one of them";
        return Err(CheckpointError::value("rope_scaling", "a table", advice));
    }
    let Some(mut table) = scaling.or(parameters) else { return Ok((outer.unwrap_or(default_theta), None)) };
    let inner = table.nullable::<f64>("rope_theta")?;
    if let (Some(outer), Some(inner)) = (outer, inner)
        && outer != inner
    {
        let advice = format!("`{}` is {inner}; make them equal", table.full("rope_theta"));
        return Err(CheckpointError::value("rope_theta", outer, advice));
    }
    whole_head(&mut table)?;
    let method = read_method(&mut table, max_seq_len)?;
    table.finish()?;
    Ok((inner.or(outer).unwrap_or(default_theta), method))
}

/// Every channel of a head turns.
fn whole_head(fields: &mut Fields) -> Result<(), CheckpointError> {
    fields.only("partial_rotary_factor", &[Value::Null, json!(1), json!(1.0)], "only 1 is: all channels of a head turn")
}

fn read_method(table: &mut Fields, max_seq_len: usize) -> Result<Option<RopeScaling>, CheckpointError> {
    let old = table.nullable::<String>("type")?;
    let name = table.nullable::<String>("rope_type")?.or(old).unwrap_or_else(|| "default".into());
    match name.as_str() {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: required(table, "factor")? })),
        "llama3" => read_llama3(table, max_seq_len).map(Some),
        "yarn" => read_yarn(table, max_seq_len).map(Some),
        other => {
            let advice = "there are default, linear, llama3 and yarn";
            Err(CheckpointError::value(&table.full("rope_type"), format!("{other:?}"), advice))
        }
    }
}

fn read_llama3(table: &mut Fields, max_seq_len: usize) -> Result<RopeScaling, CheckpointError> {
    Ok(RopeScaling::Llama3 {
        factor: required(table, "factor")?,
        low_freq_factor: required(table, "low_freq_factor")?,
        high_freq_factor: required(table, "high_freq_factor")?,
        original_max_seq_len: table.get("original_max_position_embeddings", max_seq_len)?,
    })
}

/// As in `transformers`, a factor of `null` is the ratio of the lengths, and a bound of 0 the default one.
fn read_yarn(table: &mut Fields, max_seq_len: usize) -> Result<RopeScaling, CheckpointError> {
    let original_max_seq_len = table.get("original_max_position_embeddings", max_seq_len)?;
    let ratio = max_seq_len as f64 / original_max_seq_len as f64;
    let factor = required::<Option<f64>>(table, "factor")?.unwrap_or(ratio);
    let bound = |value: Option<f64>, default| value.filter(|value| *value != 0.0).unwrap_or(default);
    let given = table.nullable::<f64>("attention_factor")?;
    let scales = [table.nullable::<f64>("mscale")?, table.nullable::<f64>("mscale_all_dim")?];
    Ok(RopeScaling::Yarn {
        factor,
        original_max_seq_len,
        attention_factor: given.or_else(|| inferred_factor(factor, scales)),
        beta_fast: bound(table.nullable("beta_fast")?, 32.0),
        beta_slow: bound(table.nullable("beta_slow")?, 1.0),
        truncate: table.get("truncate", true)?,
    })
}

/// What DeepSeek's two scales make of the attention factor; `None` leaves it to `factor` alone.
fn inferred_factor(factor: f64, [scale, scale_all]: [Option<f64>; 2]) -> Option<f64> {
    let lengthening = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    match (scale.filter(|scale| *scale != 0.0), scale_all.filter(|scale| *scale != 0.0)) {
        (Some(scale), Some(scale_all)) => Some(lengthening(scale) / lengthening(scale_all)),
        _ => None,
    }
}

fn required<T: serde::de::DeserializeOwned>(table: &mut Fields, name: &str) -> Result<T, CheckpointError> {
    let missing = CheckpointError::value(&table.full(name), "missing", "this rope_type needs it");
    table.take(name)?.ok_or(missing)
}

/// The value of `rope_scaling`, in the spelling that every version of `transformers` reads.
pub(super) fn write(scaling: Option<RopeScaling>) -> Value {
    match scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
        Some(RopeScaling::Yarn { factor, original_max_seq_len, attention_factor, beta_fast, beta_slow, truncate }) => {
            let mut table = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_seq_len,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "truncate": truncate,
            });
            if let Some(attention_factor) = attention_factor {
                table["attention_factor"] = json!(attention_factor);
            }
            table
        }
    }
}
