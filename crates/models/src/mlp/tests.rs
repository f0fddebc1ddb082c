use burn::backend::{Autodiff, Flex};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Distribution, Tensor, TensorData};

use super::*;

type AD = Autodiff<Flex>;

/// Relative and absolute, f32.
const RELATIVE: f32 = 1e-5;
const ABSOLUTE: f32 = 1e-6;

fn random(shape: [usize; 2]) -> Tensor<AD, 2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn rows(tensor: &Tensor<AD, 2>) -> Vec<Vec<f32>> {
    let width = tensor.dims()[1];
    let values: Vec<f32> = tensor.to_data().to_vec().expect("f32");
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// One sample at a time, on slices.
fn keep_top_of_row(row: &[f32], top_k: usize) -> Vec<f32> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let mut kept = vec![0.0; row.len()];
    order[..top_k].iter().for_each(|&i| kept[i] = row[i]);
    kept
}

fn network(config: &TopKMlpConfig) -> TopKMlp<AD> {
    config.init(&Default::default())
}

fn small() -> TopKMlpConfig {
    TopKMlpConfig::new(5, 3).with_num_hidden(2).with_d_hidden(6).with_top_k(2)
}

#[test]
fn exactly_the_largest_elements_of_a_row_are_kept() {
    for (rows_, width, top_k) in [(7, 9, 3), (1, 4, 1), (5, 5, 5)] {
        let hidden = random([rows_, width]);
        let expected: Vec<Vec<f32>> = rows(&hidden).iter().map(|row| keep_top_of_row(row, top_k)).collect();
        assert_eq!(rows(&keep_top(hidden, top_k)), expected);
    }
}

#[test]
fn the_lower_index_wins_a_tie_and_no_rows_are_no_error() {
    let tied = Tensor::<AD, 2>::from([[1.0, 2.0, 2.0, 2.0]]);
    assert_eq!(keep_top(tied, 2).into_data(), TensorData::from([[0.0f32, 2.0, 2.0, 0.0]]));
    let none = Tensor::<AD, 2>::zeros([0, 4], &Default::default());
    assert_eq!(keep_top(none, 2).dims(), [0, 4]);
}

#[test]
fn the_gradient_passes_where_an_element_is_kept_and_nowhere_else() {
    let hidden = random([6, 8]).require_grad();
    let kept = keep_top(hidden.clone(), 3);
    let grads = kept.clone().sum().backward();
    let grad = hidden.grad(&grads).expect("it was asked for");
    assert_eq!(grad.into_data(), kept.inner().not_equal_elem(0.0).float().into_data());
}

/// The forward pass on slices: layer by layer, sample by sample.
fn by_hand(network: &TopKMlp<AD>, sample: &[f32], skips: bool) -> (Vec<f32>, Vec<Vec<bool>>) {
    let linear = |layer: &burn::nn::Linear<AD>, x: &[f32]| -> Vec<f32> {
        let bias: Vec<f32> = layer.bias.as_ref().expect("it has one").val().into_data().to_vec().expect("f32");
        let weight = rows(&layer.weight.val());
        (0..bias.len()).map(|o| bias[o] + (0..x.len()).map(|i| x[i] * weight[i][o]).sum::<f32>()).collect()
    };
    let (mut x, mut survived) = (sample.to_vec(), Vec::new());
    for (index, layer) in network.hidden.iter().enumerate() {
        let active: Vec<f32> = linear(layer, &x).into_iter().map(|z| z.max(0.0)).collect();
        let kept = keep_top_of_row(&active, network.top_k);
        survived.push(kept.iter().map(|&a| a > 0.0).collect());
        let add = |(a, b): (&f32, &f32)| a + b;
        x = if skips && index > 0 { x.iter().zip(&kept).map(add).collect() } else { kept };
    }
    (linear(&network.output, &x), survived)
}

#[test]
fn logits_and_survivors_match_the_network_on_slices() {
    for skips in [false, true] {
        let network = network(&small().with_num_hidden(3).with_skips(skips));
        let samples = random([7, 5]);
        let output = network.forward(samples.clone());
        for (t, sample) in rows(&samples).iter().enumerate() {
            let (logits, survived) = by_hand(&network, sample, skips);
            for (found, expected) in rows(&output.logits)[t].iter().zip(logits) {
                assert!((found - expected).abs() <= RELATIVE * expected.abs() + ABSOLUTE);
            }
            for (layer, survived) in output.survived.iter().zip(survived) {
                let found: Vec<bool> = layer.clone().slice([t..t + 1, 0..6]).into_data().iter::<bool>().collect();
                assert_eq!(found, survived);
            }
        }
    }
}

#[test]
fn counts_are_survivors_per_unit_and_at_most_k_per_sample() {
    let network = network(&small());
    let output = network.forward(random([11, 5]));
    for (counts, survived) in output.counts().iter().zip(&output.survived) {
        let total: f32 = counts.clone().into_data().iter::<f32>().sum();
        assert_eq!(counts.dims(), [6]);
        assert!(total <= 22.0 && total > 0.0);
        assert_eq!(total, survived.clone().float().sum().into_scalar());
    }
}

#[test]
fn a_unit_that_is_zero_after_relu_did_not_survive() {
    let mut network = network(&small().with_num_hidden(1).with_top_k(6));
    let bias = Tensor::<AD, 1>::from([1.0, -1.0, 0.0, 2.0, -3.0, 1.0]);
    network.hidden[0].bias = Some(burn::module::Param::from_tensor(bias));
    let counts = network.forward(Tensor::zeros([4, 5], &Default::default())).counts();
    assert_eq!(counts[0].to_data(), TensorData::from([4.0f32, 0.0, 0.0, 4.0, 0.0, 4.0]));
}

#[test]
fn a_unit_that_never_survives_gets_no_gradient() {
    let network = network(&small());
    let output = network.forward(random([2, 5]));
    let counts: Vec<f32> = output.counts()[0].to_data().to_vec().expect("f32");
    let mut grads = GradientsParams::from_grads(output.logits.square().sum().backward(), &network);
    let grad = grads.remove::<Flex, 1>(network.hidden[0].bias.as_ref().expect("it has one").id).expect("a gradient");
    let grad: Vec<f32> = grad.into_data().to_vec().expect("f32");
    assert!(counts.contains(&0.0), "two samples of six units, two each, leave some out");
    assert!(counts.iter().zip(&grad).all(|(&count, &grad)| count > 0.0 || grad == 0.0));
}

#[test]
fn the_defaults_are_the_network_of_the_study() {
    let config = TopKMlpConfig::new(3072, 10);
    let network = network(&config);
    assert_eq!((network.hidden.len(), network.top_k), (4, 13));
    assert_eq!(Module::<AD>::num_params(&network), 3072 * 128 + 3 * 128 * 128 + 4 * 128 + 128 * 10 + 10);
    let top_k = |sparsity| config.clone().with_sparsity(sparsity).top_k;
    assert_eq!([0.9, 0.5, 0.1, 0.0, 1.0].map(top_k), [13, 64, 115, 128, 1]);
}

#[test]
fn he_starts_with_variance_two_over_fan_in_and_no_bias() {
    let config = TopKMlpConfig::new(400, 10).with_initializer(HiddenInit::He);
    let layer = &network(&config).hidden[0];
    let weight = layer.weight.val();
    let variance = weight.clone().square().mean().into_scalar() - weight.mean().into_scalar().powi(2);
    // 51,200 draws: the relative standard error of a variance is sqrt(2 / n), 0.6 %; this is 5 of them.
    assert!((variance * 200.0 - 1.0).abs() < 0.031, "{variance}");
    let bias: Vec<f32> = layer.bias.as_ref().expect("it has one").val().into_data().to_vec().expect("f32");
    assert!(bias.iter().all(|&b| b == 0.0));
}

#[test]
#[should_panic(expected = "top_k = 7 must be in 1..=6")]
fn more_survivors_than_units_panic() {
    network(&small().with_top_k(7));
}

#[test]
#[should_panic(expected = "no size may be zero")]
fn a_network_without_hidden_layers_panics() {
    network(&small().with_num_hidden(0));
}

#[test]
#[should_panic(expected = "keep_top: top_k = 5 must be in 1..=4")]
fn keeping_more_elements_than_there_are_panics() {
    keep_top(random([3, 4]), 5);
}

#[test]
#[should_panic(expected = "keep_top: top_k = 9 must be in 1..=4")]
fn keeping_more_elements_than_there_are_panics_without_rows_too() {
    keep_top(random([0, 4]), 9);
}

#[test]
#[should_panic(expected = "TopKMlp: samples must be [T, d_input]")]
fn samples_of_another_width_panic() {
    network(&small()).forward(random([3, 4]));
}

#[test]
#[should_panic(expected = "top_k = 0 must be in 1..=6")]
fn no_survivor_panics() {
    network(&small().with_top_k(0));
}

#[test]
#[should_panic(expected = "no size may be zero, got d_input = 0")]
fn a_network_without_inputs_panics() {
    network(&TopKMlpConfig::new(0, 3));
}

#[test]
#[should_panic(expected = "no size may be zero, got d_input = 5, num_classes = 0")]
fn a_network_without_classes_panics() {
    network(&TopKMlpConfig::new(5, 0));
}
