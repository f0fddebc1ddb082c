//! From a directory to a model, one tensor at a time.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use moe_kernels::MoeBackend;
use serde_json::{Map, Value};

use super::layout::{Parameter, Piece, parameters};
use super::shards::Shards;
use super::{CheckpointError, Family, HfConfig, TokenIds, WeightDtype, config};
use crate::lm::{Lm, LmConfig};

/// Name of the configuration in a checkpoint.
pub(super) const CONFIG_FILE: &str = "config.json";

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
        check_count(&config.model, &shards)?;
        let parameters = parameters(config.family, &config.model);
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

    /// The dtype of its weights; the widest where they differ.
    pub fn dtype(&self) -> WeightDtype {
        let dtypes = self.shards.names().filter_map(|name| WeightDtype::of(self.shards.info(name)?.dtype));
        dtypes.max_by_key(|dtype| (dtype.size(), *dtype == WeightDtype::F16)).unwrap_or_default()
    }

    /// The same weights for `model`: with other losses, for instance, or a longer `max_seq_len`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoEquivalent`] or an error of a tensor when such a model has other parameters.
    pub fn with_config(self, model: LmConfig) -> Result<Self, CheckpointError> {
        config::refuse_inexpressible(&model, self.config.family)?;
        check_count(&model, &self.shards)?;
        let parameters = parameters(self.config.family, &model);
        let checkpoint = Self { parameters, config: HfConfig { model, ..self.config }, ..self };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The model with its weights on `device`, in f32.
    ///
    /// Beside the model itself, no more is in memory than one parameter and one tensor of the checkpoint.
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
        let name = || piece.name.clone();
        let info = self.shards.info(&piece.name).ok_or_else(|| CheckpointError::MissingTensor { name: name() })?;
        if info.shape != piece.shape {
            let (found, expected) = (info.shape.clone(), piece.shape.clone());
            return Err(CheckpointError::Shape { name: name(), found, expected });
        }
        match WeightDtype::of(info.dtype) {
            Some(_) => Ok(()),
            None => Err(CheckpointError::Dtype { name: name(), found: format!("{:?}", info.dtype) }),
        }
    }
}

/// Finds out before every tensor has a name in memory whether there can be enough of them.
fn check_count(model: &LmConfig, shards: &Shards) -> Result<(), CheckpointError> {
    let (found, least) = (shards.names().count(), model.num_layers + model.num_moe_layers() * model.moe.num_experts);
    if found < least { Err(CheckpointError::TooFewTensors { found, least }) } else { Ok(()) }
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
            let dtype = self.shards.info(&piece.name).and_then(|info| WeightDtype::of(info.dtype));
            let dtype = dtype.expect("the checkpoint was checked when it was opened");
            piece.scatter(&dtype.decode(&self.shards.read(&piece.name)?), &mut values[piece.block()]);
        }
        Ok(values)
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
