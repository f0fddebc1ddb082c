//! Which parameters belong to which expert, and whose counts decide about them.
//!
//! Found anew in every step, because the ids of parameters change when a record is loaded.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// A module that says where its experts are. Modules made of such modules pass the question on:
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::{Tensor, backend::Backend};
/// use excitation_optim::{ExpertCounts, ExpertLayers, ExpertModule};
///
/// #[derive(Module, Debug)]
/// struct Layer<B: Backend> {
///     w_in: Param<Tensor<B, 3>>,  // [E, D, F]
///     w_out: Param<Tensor<B, 3>>, // [E, F, D]
///     counts: ExpertCounts<B>,
/// }
///
/// #[derive(Module, Debug)]
/// struct Model<B: Backend> {
///     layers: Vec<Layer<B>>,
/// }
///
/// impl<B: Backend> ExpertModule for Model<B> {
///     fn expert_layers(&self, found: &mut ExpertLayers) {
///         for (i, layer) in self.layers.iter().enumerate() {
///             found.layer(format!("layers.{i}"), &layer.counts).stacked(&layer.w_in).stacked(&layer.w_out);
///         }
///     }
/// }
/// ```
pub trait ExpertModule {
    /// Adds every expert layer of this module to `found`.
    fn expert_layers(&self, found: &mut ExpertLayers);
}

impl<M: ExpertModule> ExpertModule for Vec<M> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        self.iter().for_each(|module| module.expert_layers(found));
    }
}

impl<M: ExpertModule> ExpertModule for Option<M> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        self.iter().for_each(|module| module.expert_layers(found));
    }
}

/// Says where the experts of a module of type `M` are, for modules that cannot implement [`ExpertModule`] because type
/// and trait are both from other crates. A closure `Fn(&M, &mut ExpertLayers)` is one.
pub trait FindExperts<M> {
    /// Adds every expert layer of `module` to `found`.
    fn find(&self, module: &M, found: &mut ExpertLayers);
}

/// Asks the module itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByModule;

impl<M: ExpertModule> FindExperts<M> for ByModule {
    fn find(&self, module: &M, found: &mut ExpertLayers) {
        module.expert_layers(found);
    }
}

impl<M, F: Fn(&M, &mut ExpertLayers)> FindExperts<M> for F {
    fn find(&self, module: &M, found: &mut ExpertLayers) {
        self(module, found);
    }
}

/// The expert layers of a module.
#[derive(Clone, Debug, Default)]
pub struct ExpertLayers {
    layers: Vec<ExpertLayer>,
}

/// One set of experts with the counts that decide about their factors.
#[derive(Clone, Debug)]
pub struct ExpertLayer {
    name: String,
    counts: ParamId,
    num_experts: Option<usize>,
    members: Vec<(ParamId, Part)>,
}

/// What of a parameter belongs to which expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Slice `i` along this axis belongs to expert `i`.
    Axis(usize),
    /// All of it belongs to this expert.
    Whole(usize),
}

/// A parameter's layer, by position, and its part there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) layer: usize,
    pub(crate) part: Part,
}

impl ExpertLayers {
    /// Adds a layer; its name appears in messages and beside its factors. `counts` is an
    /// [`ExpertCounts`](crate::ExpertCounts), or the id of any parameter without a gradient of its own.
    pub fn layer(&mut self, name: impl Into<String>, counts: impl Into<ParamId>) -> &mut ExpertLayer {
        self.layers.push(ExpertLayer {
            name: name.into(),
            counts: counts.into(),
            num_experts: None,
            members: Vec::new(),
        });
        self.layers.last_mut().expect("a layer was just added")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ExpertLayer> {
        self.layers.iter()
    }

    /// Every parameter of every expert.
    ///
    /// # Panics
    ///
    /// Panics when there is no layer, a layer has no parameter, or a parameter is named twice.
    pub(crate) fn members(&self) -> HashMap<ParamId, Member> {
        assert!(!self.layers.is_empty(), "no expert layer was found in the module: its ExpertModule names none");
        let mut members = HashMap::new();
        for (layer, found) in self.layers.iter().enumerate() {
            assert!(!found.members.is_empty(), "expert layer `{}` names no parameter", found.name);
            for &(id, part) in &found.members {
                let earlier = members.insert(id, Member { layer, part });
                assert!(earlier.is_none(), "a parameter of expert layer `{}` is named twice", found.name);
            }
        }
        members
    }
}

impl ExpertLayer {
    /// A stack of experts: slice `i` along the first axis, `[E, ..]`, is expert `i`'s.
    ///
    /// # Panics
    ///
    /// As [`along`](Self::along).
    pub fn stacked<B: Backend, const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> &mut Self {
        self.along(0, param)
    }

    /// Slice `i` along `axis` is expert `i`'s.
    ///
    /// # Panics
    ///
    /// Panics when there is no such axis or the layer has another number of experts.
    pub fn along<B: Backend, const D: usize>(&mut self, axis: usize, param: &Param<Tensor<B, D>>) -> &mut Self {
        assert!(axis < D, "expert layer `{}`: a parameter of rank {D} has no axis {axis}", self.name);
        self.check_experts(param.dims()[axis]);
        self.members.push((param.id, Part::Axis(axis)));
        self
    }

    /// Every output unit is an expert with its incoming weights and its bias \[D\]: column `i` of the weight
    /// `[d_input, d_output]` and element `i` of the bias.
    ///
    /// # Panics
    ///
    /// Panics when the layer has another number of experts than `d_output`.
    pub fn neurons<B: Backend>(&mut self, linear: &Linear<B>) -> &mut Self {
        self.along(1, &linear.weight);
        if let Some(bias) = &linear.bias {
            self.along(0, bias);
        }
        self
    }

    /// Separate modules: all float parameters of the `i`-th belong to expert `i`.
    ///
    /// # Panics
    ///
    /// Panics when the layer has another number of experts.
    pub fn each<B: Backend, M: Module<B>>(&mut self, experts: &[M]) -> &mut Self {
        self.check_experts(experts.len());
        for (expert, module) in experts.iter().enumerate() {
            module.visit(&mut Whole { expert, members: &mut self.members });
        }
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn counts(&self) -> ParamId {
        self.counts
    }

    pub(crate) fn num_experts(&self) -> usize {
        self.num_experts.expect("a layer with a parameter knows its number of experts")
    }

    fn check_experts(&mut self, found: usize) {
        let expected = *self.num_experts.get_or_insert(found);
        let name = &self.name;
        assert!(found == expected, "expert layer `{name}` has {expected} experts, a parameter of it has {found}");
    }
}

struct Whole<'a> {
    expert: usize,
    members: &'a mut Vec<(ParamId, Part)>,
}

impl<B: Backend> ModuleVisitor<B> for Whole<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.members.push((param.id, Part::Whole(self.expert)));
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::nn::LinearConfig;

    use super::*;

    fn param<const D: usize>(shape: [usize; D]) -> Param<Tensor<Flex, D>> {
        Param::from_tensor(Tensor::ones(shape, &Default::default()))
    }

    #[test]
    fn every_way_to_name_experts_says_which_part_is_whose() {
        let linear = LinearConfig::new(5, 3).init::<Flex>(&Default::default());
        let stack = param([3, 2, 2]);
        let separate = [0, 1, 2].map(|_| LinearConfig::new(2, 2).with_bias(false).init::<Flex>(&Default::default()));
        let mut found = ExpertLayers::default();
        found.layer("one", ParamId::new()).neurons(&linear).stacked(&stack).each(&separate);
        let members = found.members();
        let part = |id| members[&id].part;
        assert_eq!(part(linear.weight.id), Part::Axis(1));
        assert_eq!(part(linear.bias.as_ref().expect("it has a bias").id), Part::Axis(0));
        assert_eq!(part(stack.id), Part::Axis(0));
        assert_eq!(separate.map(|expert| part(expert.weight.id)), [0, 1, 2].map(Part::Whole));
        assert_eq!(found.iter().next().map(ExpertLayer::num_experts), Some(3));
    }

    #[test]
    #[should_panic(expected = "expert layer `moe` has 3 experts, a parameter of it has 4")]
    fn parameters_of_different_numbers_of_experts_panic() {
        ExpertLayers::default().layer("moe", ParamId::new()).stacked(&param([3, 2])).stacked(&param([4, 2]));
    }

    #[test]
    #[should_panic(expected = "a parameter of rank 2 has no axis 2")]
    fn an_axis_that_is_not_there_panics() {
        ExpertLayers::default().layer("moe", ParamId::new()).along(2, &param([3, 2]));
    }

    #[test]
    #[should_panic(expected = "a parameter of expert layer `moe` is named twice")]
    fn a_parameter_named_twice_panics() {
        let stack = param([3, 2]);
        let mut found = ExpertLayers::default();
        found.layer("moe", ParamId::new()).stacked(&stack).stacked(&stack);
        found.members();
    }

    #[test]
    #[should_panic(expected = "expert layer `moe` names no parameter")]
    fn a_layer_without_parameters_panics() {
        let mut found = ExpertLayers::default();
        found.layer("moe", ParamId::new());
        found.members();
    }

    #[test]
    #[should_panic(expected = "expert layer `moe` has 4 experts, a parameter of it has 3")]
    fn neurons_of_another_number_of_experts_panic() {
        let linear = LinearConfig::new(5, 3).init::<Flex>(&Default::default());
        ExpertLayers::default().layer("moe", ParamId::new()).stacked(&param([4, 2])).neurons(&linear);
    }

    #[test]
    #[should_panic(expected = "expert layer `moe` has 3 experts, a parameter of it has 2")]
    fn modules_of_another_number_of_experts_panic() {
        let separate = [0, 1].map(|_| LinearConfig::new(2, 2).init::<Flex>(&Default::default()));
        ExpertLayers::default().layer("moe", ParamId::new()).stacked(&param([3, 2])).each(&separate);
    }
}
