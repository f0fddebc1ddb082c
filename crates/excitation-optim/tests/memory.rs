//! How much memory a step takes beyond that of the inner optimizer. A program of its own: it counts every allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::{Autodiff, Flex};
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use excitation_optim::{ExcitationConfig, ExpertCounts, ExpertLayers, ExpertModule, Variant};

type AD = Autodiff<Flex>;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const EXPERTS: usize = 8;
const PARAMETERS: usize = 5;
const SHAPE: [usize; 3] = [EXPERTS, 64, 256];
/// Of one parameter.
const BYTES: usize = EXPERTS * 64 * 256 * 4;
/// Ids, shapes, factors, boxes: whatever does not grow with the parameters.
const SLACK: usize = BYTES / 8;

#[derive(Module, Debug)]
struct Stacks<B: Backend> {
    stacks: Vec<Param<Tensor<B, 3>>>,
    counts: ExpertCounts<B>,
}

impl<B: Backend> ExpertModule for Stacks<B> {
    fn expert_layers(&self, found: &mut ExpertLayers) {
        let layer = found.layer("stacks", &self.counts);
        self.stacks.iter().for_each(|stack| {
            layer.stacked(stack);
        });
    }
}

fn random<B: Backend>() -> Tensor<B, 3> {
    Tensor::random(SHAPE, Distribution::Default, &Default::default())
}

/// Bytes at the peak of one step above those before it.
fn peak_of_a_step(mut optim: impl Optimizer<Stacks<AD>, AD>, with_counts: bool) -> usize {
    let stacks = (0..PARAMETERS).map(|_| Param::from_tensor(random())).collect();
    let module = Stacks::<AD> { stacks, counts: ExpertCounts::new(&Default::default()) };
    let mut grads = GradientsParams::new();
    // Held, so that no buffer of a gradient can be used again: a step then needs all it needs anew.
    let held: Vec<Tensor<Flex, 3>> = (0..PARAMETERS).map(|_| random()).collect();
    module.stacks.iter().zip(&held).for_each(|(stack, grad)| grads.register(stack.id, grad.clone()));
    if with_counts {
        let counts = Tensor::<Flex, 1>::from([9.0, 3.0, 0.0, 4.0, 1.0, 1.0, 2.0, 2.0]);
        module.counts.register(&mut grads, counts, 22);
    }
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let module = optim.step(0.1, module, grads);
    let peak = PEAK.load(Ordering::Relaxed) - before;
    drop((module, held));
    peak
}

#[test]
fn a_step_holds_one_copy_of_the_experts_and_in_low_memory_one_of_the_largest_parameter() {
    let sgd = || SgdConfig::new().init();
    let zero_sum = ExcitationConfig::new().with_variant(Variant::ZeroSum);
    let bare = peak_of_a_step(sgd(), false);
    let usual = peak_of_a_step(zero_sum.init(sgd()), true);
    let sparing = peak_of_a_step(zero_sum.with_low_memory(true).init(sgd()), true);
    println!("bytes at the peak: {bare} plain, {usual} usual, {sparing} in low memory; a parameter has {BYTES}");
    assert!(usual <= bare + PARAMETERS * BYTES + SLACK, "{usual} beside {bare}");
    assert!(sparing <= bare + BYTES + SLACK, "{sparing} beside {bare}");
}
