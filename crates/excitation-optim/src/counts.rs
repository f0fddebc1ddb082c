//! How counts travel from a forward pass to the step: as the gradient of a parameter that has no elements.
//!
//! A forward pass cannot write into its module, and state shared behind its back goes wrong under gradient
//! accumulation, several threads and several devices. Gradients, however, are summed by
//! [`GradientsAccumulator`](burn::optim::GradientsAccumulator), by
//! [`MultiGradientsParams`](burn::optim::MultiGradientsParams) and by an all-reduce, and counts are to be summed \[D\].

use burn::module::{
    AutodiffModule, Content, Devices, EmptyRecord, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param, ParamId,
};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};

/// The place in a module that the counts of one expert layer are registered for.
///
/// A field of this type adds no parameter to the module and nothing to its record: records of the module without the
/// field and with it are the same.
#[derive(Clone, Debug)]
pub struct ExpertCounts<B: Backend> {
    /// `[0]`. burn's accumulators sum the gradients of what they find when they walk the module.
    carrier: Param<Tensor<B, 1>>,
}

impl<B: Backend> ExpertCounts<B> {
    /// A new place, on the device of the layer it stands for.
    pub fn new(device: &B::Device) -> Self {
        let nothing = Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0]), device);
        Self { carrier: Param::initialized(ParamId::new(), nothing) }
    }

    /// The id under which counts are registered.
    pub fn id(&self) -> ParamId {
        self.carrier.id
    }

    /// Adds counts to `grads`, to those that are there already for this place.
    ///
    /// `counts` are those of the batch that `grads` are the gradients of: how many of its `num_tokens` tokens chose each
    /// expert in the hard top-K. Several micro-batches may be registered one after the other or accumulated with
    /// burn's accumulator. f32 holds counts exactly up to `2^24` per expert and step.
    ///
    /// Only [`Excitation`](crate::Excitation) takes counts out. Another optimizer would take them for a gradient of the
    /// place and panic because of their shape; to compare with the bare optimizer, set `gamma` to 0.
    ///
    /// Without this type the same is `grads.register(id, counts)` with counts `[E]`, or `[E + 1]` with the number of
    /// tokens last, which [`ExpDiff`](crate::Variant::ExpDiff) needs.
    ///
    /// # Shapes
    ///
    /// - counts: `[E]`
    pub fn register<I: Backend>(&self, grads: &mut GradientsParams, counts: Tensor<I, 1>, num_tokens: usize) {
        register_counts(grads, self.id(), counts, num_tokens);
    }
}

/// [`ExpertCounts::register`] for any id, be it of a parameter of the module or not. Only ids of parameters survive
/// burn's gradient accumulation.
///
/// # Shapes
///
/// - counts: `[E]`
pub fn register_counts<I: Backend>(grads: &mut GradientsParams, id: ParamId, counts: Tensor<I, 1>, num_tokens: usize) {
    let tokens = TensorData::from([num_tokens as f32]);
    let tokens = Tensor::<I, 1>::from_data(tokens, (&counts.device(), DType::F32));
    let new = Tensor::cat(vec![counts.cast(DType::F32), tokens], 0);
    let sum = match grads.remove::<I, 1>(id) {
        Some(earlier) => earlier + new,
        None => new,
    };
    grads.register(id, sum);
}

impl<B: Backend> From<&ExpertCounts<B>> for ParamId {
    fn from(counts: &ExpertCounts<B>) -> Self {
        counts.id()
    }
}

impl<B: Backend> Module<B> for ExpertCounts<B> {
    type Record = EmptyRecord;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.carrier.collect_devices(devices)
    }

    fn fork(self, device: &B::Device) -> Self {
        Self { carrier: self.carrier.fork(device) }
    }

    fn to_device(self, device: &B::Device) -> Self {
        Self { carrier: self.carrier.to_device(device) }
    }

    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        visitor.visit_float(&self.carrier);
    }

    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        Self { carrier: mapper.map_float(self.carrier) }
    }

    fn load_record(self, _record: Self::Record) -> Self {
        self
    }

    fn into_record(self) -> Self::Record {
        EmptyRecord::new()
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for ExpertCounts<B> {
    type InnerModule = ExpertCounts<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        ExpertCounts { carrier: self.carrier.valid() }
    }

    fn from_inner(module: Self::InnerModule) -> Self {
        Self { carrier: Param::from_inner(module.carrier) }
    }
}

impl<B: Backend> ModuleDisplayDefault for ExpertCounts<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"counts").optional()
    }
}

impl<B: Backend> ModuleDisplay for ExpertCounts<B> {}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::GradientsAccumulator;
    use burn::record::{FullPrecisionSettings, NamedMpkBytesRecorder, Recorder};

    use super::*;

    type AD = Autodiff<Flex>;
    type Bytes = NamedMpkBytesRecorder<FullPrecisionSettings>;

    #[derive(Module, Debug)]
    struct Plain<B: Backend> {
        linear: Linear<B>,
    }

    #[derive(Module, Debug)]
    struct Counted<B: Backend> {
        linear: Linear<B>,
        counts: ExpertCounts<B>,
    }

    fn counted() -> Counted<AD> {
        let device = Default::default();
        Counted { linear: LinearConfig::new(2, 3).init(&device), counts: ExpertCounts::new(&device) }
    }

    fn batch(module: &Counted<AD>, counts: [f32; 2], tokens: usize) -> GradientsParams {
        let mut grads = GradientsParams::new();
        module.counts.register(&mut grads, Tensor::<Flex, 1>::from(counts), tokens);
        grads
    }

    #[test]
    fn the_accumulator_of_burn_sums_counts_and_tokens() {
        let module = counted();
        let mut accumulator = GradientsAccumulator::new();
        accumulator.accumulate(&module, batch(&module, [1.0, 3.0], 4));
        accumulator.accumulate(&module, batch(&module, [2.0, 0.0], 2));
        let sum = accumulator.grads().remove::<Flex, 1>(module.counts.id()).expect("counts were registered");
        assert_eq!(sum.into_data(), TensorData::from([3.0f32, 3.0, 6.0]));
    }

    #[test]
    fn counts_registered_twice_are_summed() {
        let module = counted();
        let mut grads = batch(&module, [1.0, 3.0], 4);
        module.counts.register(&mut grads, Tensor::<Flex, 1>::from([2.0, 0.0]), 2);
        let sum = grads.remove::<Flex, 1>(module.counts.id()).expect("counts were registered");
        assert_eq!(sum.into_data(), TensorData::from([3.0f32, 3.0, 6.0]));
    }

    #[test]
    fn the_field_adds_no_parameters_and_keeps_its_id_everywhere() {
        let module = counted();
        assert_eq!(Module::<AD>::num_params(&module), 9);
        let id = module.counts.id();
        assert_eq!(module.clone().fork(&Default::default()).counts.id(), id);
        assert_eq!(module.valid().counts.id(), id);
        assert_eq!(Counted::<AD>::from_inner(module.valid()).counts.id(), id);
    }

    #[test]
    fn a_record_without_the_field_loads_into_a_module_with_it_and_back() {
        let device = Default::default();
        let plain = Plain::<Flex> { linear: LinearConfig::new(2, 3).init(&device) };
        let weight = plain.linear.weight.val().into_data();
        let save = |record| Recorder::<Flex>::record(&Bytes::default(), record, ()).expect("bytes can be written");
        let bytes = save(plain.clone().into_record());

        let record = Recorder::<Flex>::load(&Bytes::default(), bytes, &device).expect("the record fits");
        let loaded = counted().valid().load_record(record);
        assert_eq!(loaded.linear.weight.val().into_data(), weight);

        let bytes =
            Recorder::<Flex>::record(&Bytes::default(), loaded.into_record(), ()).expect("bytes can be written");
        let record = Recorder::<Flex>::load(&Bytes::default(), bytes, &device).expect("the record fits");
        let other = Plain::<Flex> { linear: LinearConfig::new(2, 3).init(&device) };
        assert_eq!(other.load_record(record).linear.weight.val().into_data(), weight);
    }
}
