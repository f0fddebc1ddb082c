//! burn records to bytes and back: the only place that touches them.
//!
//! Records are named MessagePack with f32 floats, so f32 values keep every bit. burn panics when a record contradicts itself or does
//! not fit a module, so what the bytes say is compared with the module first.

mod tree;

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleVisitor, Param},
    record::{FullPrecisionSettings, NamedMpkBytesRecorder, Record, Recorder, RecorderError},
    tensor::{Bool, Int, Tensor, backend::Backend},
};

use tree::RecordTree;

type BytesRecorder = NamedMpkBytesRecorder<FullPrecisionSettings>;

/// Shapes of all parameters by path, e.g. `layers.0.norm.gamma`.
type Shapes = BTreeMap<String, Vec<usize>>;

/// Why bytes are no record for what they are loaded into.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RecordError(String);

/// Encodes any record. Fails only when burn's recorder does.
pub(crate) fn encode<B: Backend, R: Record<B>>(record: R) -> Result<Vec<u8>, RecordError> {
    Recorder::<B>::record(&BytesRecorder::default(), record, ()).map_err(RecordError::from)
}

/// Encodes a module as it is.
///
/// burn draws a parameter's first values when it is first read, and a clone that was taken before draws others. So all
/// parameters are read before the module is cloned into its record.
pub(crate) fn encode_module<B: Backend, M: Module<B>>(module: &M) -> Result<Vec<u8>, RecordError> {
    module.visit(&mut Initialize);
    encode::<B, _>(module.clone().into_record())
}

/// Decodes the record of an optimizer of `module`, which must keep tensors of its parameters' shapes, as AdamW does.
pub(crate) fn decode_state<B: Backend, R: Record<B>>(
    bytes: Vec<u8>,
    module: &impl Module<B>,
    device: &B::Device,
) -> Result<R, RecordError> {
    let bytes = checked::<B>(bytes, |tree| tree.check_state(&shapes_by_id(module)))?;
    decode(bytes, device)
}

/// Loads the record of a module of the same type and shape into `module`, on `device`.
pub(crate) fn load_module<B: Backend, M: Module<B>>(
    module: M,
    bytes: Vec<u8>,
    device: &B::Device,
) -> Result<M, RecordError> {
    let bytes = checked::<B>(bytes, |tree| compare(&tree.module_shapes()?, &module_shapes(&module)))?;
    Ok(module.load_record(decode::<B, M::Record>(bytes, device)?))
}

fn decode<B: Backend, R: Record<B>>(bytes: Vec<u8>, device: &B::Device) -> Result<R, RecordError> {
    Recorder::<B>::load(&BytesRecorder::default(), bytes, device).map_err(RecordError::from)
}

/// The bytes, if what they say of themselves passes.
fn checked<B: Backend>(
    mut bytes: Vec<u8>,
    check: impl FnOnce(&RecordTree) -> Result<(), RecordError>,
) -> Result<Vec<u8>, RecordError> {
    check(&Recorder::<B>::load_item(&BytesRecorder::default(), &mut bytes)?)?;
    Ok(bytes)
}

impl From<RecorderError> for RecordError {
    fn from(error: RecorderError) -> Self {
        match error {
            RecorderError::FileNotFound(text)
            | RecorderError::DeserializeError(text)
            | RecorderError::Unknown(text) => Self(text.replace('\n', " ")),
        }
    }
}

fn compare(found: &Shapes, expected: &Shapes) -> Result<(), RecordError> {
    for (path, expected) in expected {
        match found.get(path) {
            None => return Err(RecordError(format!("parameter {path} is missing"))),
            Some(found) if found != expected => {
                let text = format!("parameter {path} has shape {found:?}, expected {expected:?}");
                return Err(RecordError(text));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|path| !expected.contains_key(*path)) {
        Some(path) => Err(RecordError(format!("parameter {path} is not part of it"))),
        None => Ok(()),
    }
}

fn module_shapes<B: Backend, M: Module<B>>(module: &M) -> Shapes {
    let mut shapes = ModuleShapes::default();
    module.visit(&mut shapes);
    shapes.shapes
}

fn shapes_by_id<B: Backend>(module: &impl Module<B>) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = ShapesById::default();
    module.visit(&mut shapes);
    shapes.0
}

/// Of the parameters that an optimizer steps.
#[derive(Default)]
struct ShapesById(BTreeMap<String, Vec<usize>>);

impl<B: Backend> ModuleVisitor<B> for ShapesById {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.insert(param.id.serialize(), param.lazy_shape().as_slice().to_vec());
    }
}

/// Reads every parameter once.
struct Initialize;

impl<B: Backend> ModuleVisitor<B> for Initialize {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        param.val();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        param.val();
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<B, D, Bool>>) {
        param.val();
    }
}

#[derive(Default)]
struct ModuleShapes {
    path: Vec<String>,
    shapes: Shapes,
}

impl ModuleShapes {
    fn add(&mut self, shape: &[usize]) {
        self.shapes.insert(self.path.join("."), shape.to_vec());
    }
}

impl<B: Backend> ModuleVisitor<B> for ModuleShapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.add(param.lazy_shape().as_slice());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.add(param.lazy_shape().as_slice());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<B, D, Bool>>) {
        self.add(param.lazy_shape().as_slice());
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

#[cfg(test)]
#[cfg(feature = "flex")]
#[path = "../../tests/common/mutation.rs"]
mod mutation;

#[cfg(test)]
#[cfg(feature = "flex")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::{
        backend::{Autodiff, Flex},
        nn::{Linear, LinearConfig},
        optim::{AdamW, AdamWConfig, GradientsParams, Optimizer, adaptor::OptimizerAdaptor},
        tensor::TensorData,
    };
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::mutation::{Reader, mutated};
    use super::*;

    type Ad = Autodiff<Flex>;

    #[derive(Module, Debug)]
    struct Pair<B: Backend> {
        layers: Vec<Linear<B>>,
        scale: Option<Param<Tensor<B, 1>>>,
    }

    fn pair<B: Backend>(width: usize, layers: usize, scale: bool) -> Pair<B> {
        let device = B::Device::default();
        let layer = |_| LinearConfig::new(width, 3).init(&device);
        let scale = scale.then(|| Param::from_tensor(Tensor::ones([2], &device)));
        Pair { layers: (0..layers).map(layer).collect(), scale }
    }

    fn bits<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<u32> {
        let values = tensor.into_data().to_vec::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    fn load_error(stored: Pair<Flex>, model: Pair<Flex>) -> String {
        let bytes = encode_module::<Flex, _>(&stored).unwrap();
        load_module(model, bytes, &Default::default()).unwrap_err().to_string()
    }

    #[test]
    fn f32_values_keep_every_bit() {
        let special = [
            f32::MIN_POSITIVE / 3.0,
            f32::from_bits(1),
            -f32::from_bits(0x007f_ffff),
            -0.0,
            0.1,
            f32::MAX,
            f32::EPSILON,
            1.0 / 3.0,
        ];
        let device = Default::default();
        let tensor = Tensor::<Flex, 1>::from_data(TensorData::from(special), &device);
        let mut model = pair::<Flex>(2, 1, true);
        model.scale = Some(Param::from_tensor(tensor));
        let mut blank = pair::<Flex>(2, 1, true);
        blank.scale = Some(Param::from_tensor(Tensor::zeros([8], &device)));
        let bytes = encode_module::<Flex, _>(&model).unwrap();
        let loaded = load_module(blank, bytes, &device).unwrap();
        assert_eq!(bits(loaded.scale.unwrap().val()), special.map(f32::to_bits));
        assert_eq!(bits(loaded.layers[0].weight.val()), bits(model.layers[0].weight.val()));
    }

    #[test]
    fn a_trained_model_loads_into_its_backend_without_gradients() {
        let model = pair::<Ad>(4, 2, true);
        let bytes = encode_module::<Ad, _>(&model).unwrap();
        let loaded = load_module(pair::<Flex>(4, 2, true), bytes, &Default::default()).unwrap();
        let weight = model.layers[1].weight.val().inner();
        assert_eq!(bits(loaded.layers[1].weight.val()), bits(weight));
    }

    fn step(model: Pair<Ad>, optim: &mut OptimizerAdaptor<AdamW, Pair<Ad>, Ad>, round: u64) -> Pair<Ad> {
        let device = Default::default();
        let values: Vec<f32> = (0..8).map(|i| ((i + round) as f32 * 0.7).sin()).collect();
        let x = Tensor::<Ad, 2>::from_data(TensorData::new(values, [2, 4]), &device);
        let y = model.layers[0].forward(x).powi_scalar(2).mean();
        let grads = GradientsParams::from_grads(y.backward(), &model);
        optim.step(1e-2, model, grads)
    }

    #[test]
    fn training_goes_on_bit_for_bit_from_a_model_and_an_adamw_record() {
        let device = Default::default();
        let (mut model, mut optim) = (pair::<Ad>(4, 1, false), AdamWConfig::new().init());
        for round in 0..3 {
            model = step(model, &mut optim, round);
        }
        let model_bytes = encode_module::<Ad, _>(&model).unwrap();
        let optim_bytes = encode::<Ad, _>(optim.to_record()).unwrap();

        let mut resumed = load_module(pair::<Ad>(4, 1, false), model_bytes, &device).unwrap();
        let record = decode_state::<Ad, _>(optim_bytes, &resumed, &device).unwrap();
        let mut resumed_optim = AdamWConfig::new().init().load_record(record);
        for round in 3..6 {
            model = step(model, &mut optim, round);
            resumed = step(resumed, &mut resumed_optim, round);
            let weights = [&model, &resumed].map(|model| bits(model.layers[0].weight.val()));
            assert_eq!(weights[0], weights[1]);
        }
    }

    #[test]
    fn a_wrong_shape_names_the_parameter_and_both_shapes() {
        assert_eq!(
            load_error(pair(4, 2, false), pair(5, 2, false)),
            "parameter layers.0.weight has shape [4, 3], expected [5, 3]",
        );
    }

    #[test]
    fn missing_and_surplus_parameters_are_named() {
        let missing = load_error(pair(4, 1, false), pair(4, 2, false));
        assert_eq!(missing, "parameter layers.1.bias is missing");
        let missing = load_error(pair(4, 1, false), pair(4, 1, true));
        assert_eq!(missing, "parameter scale is missing");
        let surplus = load_error(pair(4, 2, false), pair(4, 1, false));
        assert_eq!(surplus, "parameter layers.1.bias is not part of it");
    }

    /// Reads `original` again and again, changed.
    fn survives<T>(what: &str, original: &[u8], read: impl Fn(Vec<u8>) -> Result<T, RecordError>) {
        let mut reader = Reader::new(what);
        for seed in reader.seeds() {
            let bytes = mutated(original, &mut ChaCha8Rng::seed_from_u64(seed));
            let result = catch_unwind(AssertUnwindSafe(|| read(bytes)));
            reader.add(&result.unwrap_or_else(|_| panic!("a record panics at seed {seed}")));
        }
        reader.end();
        assert!(read(original.to_vec()).is_ok());
    }

    /// What a checksum keeps away from a user, but not from somebody who writes the checksum too.
    #[test]
    fn changed_bytes_are_an_error_or_a_record_and_never_a_panic() {
        let device = Default::default();
        let mut optim = AdamWConfig::new().init();
        let model = step(pair::<Ad>(4, 1, false), &mut optim, 0);
        survives("records of models", &encode_module::<Ad, _>(&model).unwrap(), |bytes| {
            load_module(pair::<Flex>(4, 1, false), bytes, &device)
        });
        survives("records of optimizers", &encode::<Ad, _>(optim.to_record()).unwrap(), |bytes| {
            let record = decode_state::<Ad, _>(bytes, &model, &device)?;
            Ok(AdamWConfig::new().init::<Ad, Pair<Ad>>().load_record(record))
        });
    }

    #[test]
    fn bytes_that_are_no_record_are_an_error() {
        for bytes in [Vec::new(), b"hello".to_vec(), vec![0xc1; 64]] {
            load_module(pair::<Flex>(4, 1, false), bytes, &Default::default()).unwrap_err();
        }
    }
}
