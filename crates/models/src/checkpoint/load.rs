//! From a directory to a model, a part of one tensor at a time.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use moe_kernels::MoeBackend;
use serde_json::{Map, Value};

use super::layout::{ExpertTensors, Parameter, Piece, num_tensors, parameters};
use super::shards::Shards;
use super::{CheckpointError, Family, HfConfig, TokenIds, WeightDtype, config};
use crate::lm::{Lm, LmConfig};

/// Name of the configuration in a checkpoint.
pub(super) const CONFIG_FILE: &str = "config.json";

/// What is read from a file at once, but one row of a tensor at least.
const CHUNK_BYTES: usize = 1 << 20;

/// What `dir/config.json` describes, without a look at weights.
///
/// # Errors
///
/// A file that cannot be read, an unknown field, an unsupported value, a model that contradicts itself.
pub fn read_config(dir: impl AsRef<Path>) -> Result<HfConfig, CheckpointError> {
    let path = dir.as_ref().join(CONFIG_FILE);
    let text = fs::read(&path).map_err(CheckpointError::io("read", &path))?;
    let fields: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| CheckpointError::Json {
        path,
        expected: "a table of JSON",
        reason: error.to_string(),
    })?;
    config::read(fields)
}

/// A checkpoint whose tensors are those that its configuration asks for. Holds its files open, and no weights.
#[derive(Debug)]
pub struct HfCheckpoint {
    config: HfConfig,
    parameters: Vec<Parameter>,
    shards: Shards,
}

impl HfCheckpoint {
    /// Reads `config.json` and the headers of all shards in `dir`, and compares them.
    ///
    /// # Errors
    ///
    /// As [`read_config`]; files that are missing or damaged, an index that contradicts its shards; a tensor that is
    /// missing, is not known, has another shape, or a dtype other than f32, bf16 and f16.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref();
        let (config, shards) = (read_config(dir)?, Shards::open(dir)?);
        let parameters = layout(&config, &shards)?;
        let checkpoint = Self { parameters, config, shards };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The family it is of.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// The model it is of.
    pub fn config(&self) -> &LmConfig {
        &self.config.model
    }

    /// Its special tokens.
    pub fn token_ids(&self) -> &TokenIds {
        &self.config.token_ids
    }

    /// The dtype of its weights; where they differ, f32, which holds the numbers of all.
    pub fn dtype(&self) -> WeightDtype {
        let mut dtypes = self.shards.names().filter_map(|name| WeightDtype::of(self.shards.info(name)?.dtype));
        let first = dtypes.next().unwrap_or_default();
        if dtypes.all(|dtype| dtype == first) { first } else { WeightDtype::F32 }
    }

    /// The same weights for `model`: with other losses, for instance, or a longer `max_seq_len`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoEquivalent`] or an error of a tensor when such a model has other parameters.
    pub fn with_config(self, model: LmConfig) -> Result<Self, CheckpointError> {
        config::refuse_inexpressible(&model, self.config.family)?;
        let config = HfConfig { model, ..self.config };
        let parameters = layout(&config, &self.shards)?;
        let checkpoint = Self { parameters, config, ..self };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The model with its weights on `device`, in f32.
    ///
    /// Beside the model itself, no more is in memory than the numbers of one parameter (all experts of a layer are one) and
    /// what is read at once, 1 MiB of a file or one row of a tensor, with its numbers in f32.
    ///
    /// # Errors
    ///
    /// A file that can no longer be read.
    pub fn load<B: MoeBackend>(&self, device: &B::Device) -> Result<Lm<B>, CheckpointError> {
        let places = self.parameters.iter().map(|parameter| (parameter.path.as_str(), parameter)).collect();
        let mut fill = Fill { shards: &self.shards, places, path: Vec::new(), device, error: None };
        let model = self.config.model.undrawn::<B>(device).map(&mut fill);
        match fill.error {
            Some(error) => Err(error),
            None => Ok(model),
        }
    }

    fn check(&self) -> Result<(), CheckpointError> {
        let pieces: HashMap<&str, &Piece> =
            self.parameters.iter().flat_map(|p| &p.pieces).map(|piece| (piece.name.as_str(), piece)).collect();
        if let Some(name) = self.shards.names().find(|name| !pieces.contains_key(name)) {
            return Err(CheckpointError::UnknownTensor { name: name.into() });
        }
        self.parameters.iter().flat_map(|p| &p.pieces).try_for_each(|piece| self.check_piece(piece))
    }

    fn check_piece(&self, piece: &Piece) -> Result<(), CheckpointError> {
        let name = piece.name.clone();
        let info = self.shards.info(&name).expect("there are as many tensors as the model has, and none is unknown");
        if info.shape != piece.shape {
            return Err(CheckpointError::Shape { name, found: info.shape.clone(), expected: piece.shape.clone() });
        }
        match WeightDtype::of(info.dtype) {
            Some(_) => Ok(()),
            None => Err(CheckpointError::Dtype { name, found: format!("{:?}", info.dtype) }),
        }
    }
}

/// The parameters of a model that `shards` may have the tensors of. Their number is looked at before every expert has a
/// name in memory.
fn layout(config: &HfConfig, shards: &Shards) -> Result<Vec<Parameter>, CheckpointError> {
    let tensors = ExpertTensors::of(shards.names())?;
    check_count(config, tensors, shards)?;
    Ok(parameters(config.family, &config.model, tensors).collect())
}

/// # Errors
///
/// [`CheckpointError::MissingTensor`] when there are fewer tensors than the model has.
fn check_count(config: &HfConfig, tensors: ExpertTensors, shards: &Shards) -> Result<(), CheckpointError> {
    let (found, needed) = (shards.names().count(), num_tensors(&config.model, tensors));
    if found >= needed {
        return Ok(());
    }
    let mut few = config.model.clone();
    // So many experts have more tensors than there are.
    few.moe.num_experts = few.moe.num_experts.min(found + 1);
    let mut pieces = parameters(config.family, &few, tensors).flat_map(|parameter| parameter.pieces);
    let first = pieces.find(|piece| shards.info(&piece.name).is_none());
    let name = first.expect("the model has more tensors than there are").name;
    Err(CheckpointError::MissingTensor { name, more: needed - found - 1 })
}

/// Puts the numbers of a checkpoint into the parameters of a model.
struct Fill<'a, B: Backend> {
    shards: &'a Shards,
    /// Parameters by their paths.
    places: HashMap<&'a str, &'a Parameter>,
    path: Vec<String>,
    device: &'a B::Device,
    /// The first thing that went wrong; nothing is read after it.
    error: Option<CheckpointError>,
}

impl<B: Backend> Fill<'_, B> {
    /// The numbers of a parameter.
    fn values(&self, parameter: &Parameter) -> Result<Vec<f32>, CheckpointError> {
        let mut values = vec![0.0; parameter.len];
        for piece in &parameter.pieces {
            self.read(piece, &mut values[piece.block()])?;
        }
        Ok(values)
    }

    /// Reads a tensor into its block, some rows at a time.
    fn read(&self, piece: &Piece, block: &mut [f32]) -> Result<(), CheckpointError> {
        let dtype = self.shards.info(&piece.name).and_then(|info| WeightDtype::of(info.dtype));
        let dtype = dtype.expect("the checkpoint was checked when it was opened");
        let row_bytes = piece.len() / piece.rows() * dtype.size();
        let at_once = (CHUNK_BYTES / row_bytes).max(1);
        for start in (0..piece.rows()).step_by(at_once) {
            let rows = start..piece.rows().min(start + at_once);
            let bytes = self.shards.read(&piece.name, start * row_bytes, rows.len() * row_bytes)?;
            piece.scatter(rows, &dtype.decode(&bytes), block);
        }
        Ok(())
    }
}

impl<B: Backend> ModuleMapper<B> for Fill<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.error.is_some() {
            return param;
        }
        let parameter = self.places.get(self.path.join(".").as_str());
        let parameter = parameter.expect("the layout has every parameter of a model that the families describe");
        match self.values(parameter) {
            Ok(values) => {
                let data = TensorData::new(values, param.lazy_shape());
                let tensor = Tensor::from_data(data, (self.device, DType::F32));
                Param::initialized(param.id, tensor.require_grad())
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
