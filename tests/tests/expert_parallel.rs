//! Ranks that share nothing but channels, each a thread with a graph and a backward pass of its own: what an exchange between processes
//! needs of `moe_layers::parallel`. Rows cross as bytes, which are counted.

#![cfg(feature = "flex")]

use std::cell::RefCell;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use burn::backend::{Autodiff, Flex};
use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bytes, DType, Distribution, Tensor, TensorData, TensorPrimitive};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::NoCheckpointing;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, unary};
use moe_layers::parallel::{AllToAll, ExpertPlacement, Pairs, ShardedExperts};
use moe_layers::{Experts, ExpertsConfig, TopKRouter, TopKRouterConfig, dispatch};
use moe_plan::{Dtype, exchange_bytes};
use moe_tests::{assert_close, host};

type AD = Autodiff<Flex>;

const D: usize = 6;
const F: usize = 5;
const E: usize = 7;
const K: usize = 3;
/// Tokens of each rank, and its experts.
const TOKENS: [usize; 3] = [9, 1, 14];
const EXPERTS: [usize; 3] = [2, 4, 1];

/// A rank that waits longer than this waits for one that has ended or makes other calls.
const PATIENCE: Duration = Duration::from_secs(60);

/// The channels between one rank and each rank, itself included, and the bytes that it put into those of others.
#[derive(Debug)]
struct Channels {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    sent: RefCell<Vec<usize>>,
}

impl Channels {
    /// Ends of the channels between `ranks` ranks, for each of them.
    fn between(ranks: usize) -> Vec<Self> {
        let mut ends: Vec<_> = (0..ranks).map(|_| (Vec::new(), Vec::new())).collect();
        for source in 0..ranks {
            for destination in 0..ranks {
                let (to, from) = channel();
                ends[source].0.push(to);
                ends[destination].1.push(from);
            }
        }
        let channels = |(rank, (to, from))| Self { rank, to, from, sent: RefCell::default() };
        ends.into_iter().enumerate().map(channels).collect()
    }

    fn exchange(&self, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let others = messages.iter().enumerate().filter(|(rank, _)| *rank != self.rank);
        self.sent.borrow_mut().push(others.map(|(_, message)| message.len()).sum());
        self.to.iter().zip(messages).for_each(|(to, message)| to.send(message).expect("the rank is there"));
        self.from.iter().map(|from| from.recv_timeout(PATIENCE).expect("the rank sends")).collect()
    }

    /// `rows` are those for each rank, one after the other, as many as `sent` says; returned are those from each.
    fn exchange_rows(&self, rows: FloatTensor<Flex>, sent: &[usize], received: &[usize]) -> FloatTensor<Flex> {
        let rows = Tensor::<Flex, 2>::from_primitive(TensorPrimitive::Float(rows));
        let (width, device) = (rows.dims()[1], rows.device());
        let row_bytes = width * DType::F32.size();
        let mut bytes = rows.into_data().bytes.to_vec();
        let messages = sent.iter().map(|&rows| bytes.drain(..rows * row_bytes).collect()).collect();
        let arrived = self.exchange(messages);
        assert_eq!(
            arrived.iter().map(Vec::len).collect::<Vec<_>>(),
            received.iter().map(|n| n * row_bytes).collect::<Vec<_>>()
        );
        let (bytes, rows) = (Bytes::from_bytes_vec(arrived.concat()), received.iter().sum::<usize>());
        let data = TensorData::from_bytes(bytes, [rows, width], DType::F32);
        Tensor::<Flex, 2>::from_data(data, &device).into_primitive().tensor()
    }
}

/// The exchange as an op: its gradient is the exchange the other way.
#[derive(Debug)]
struct Exchange;

#[derive(Clone, Debug)]
struct Sizes {
    channels: Arc<Mutex<Channels>>,
    sent: Vec<usize>,
    received: Vec<usize>,
}

impl Backward<Flex, 1> for Exchange {
    type State = Sizes;

    fn backward(self, ops: Ops<Sizes, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Sizes { channels, sent, received } = ops.state;
        let channels = channels.lock().expect("a rank is one thread");
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| channels.exchange_rows(grad, &received, &sent));
    }
}

/// One rank of several.
struct Rank(Arc<Mutex<Channels>>);

impl Rank {
    fn channels(&self) -> std::sync::MutexGuard<'_, Channels> {
        self.0.lock().expect("a rank is one thread")
    }
}

impl AllToAll<AD> for Rank {
    fn num_ranks(&self) -> usize {
        self.channels().to.len()
    }

    fn local_ranks(&self) -> Range<usize> {
        let rank = self.channels().rank;
        rank..rank + 1
    }

    fn exchange_counts(&self, mut counts: Pairs<Vec<usize>>) -> Pairs<Vec<usize>> {
        let message = |counts: Vec<usize>| counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        let arrived = self.channels().exchange(counts.remove(0).into_iter().map(message).collect());
        let count = |bytes: &[u8]| usize::from_le_bytes(bytes.try_into().expect("whole numbers were sent"));
        vec![arrived.iter().map(|bytes| bytes.chunks(size_of::<usize>()).map(count).collect()).collect()]
    }

    fn exchange_rows(&self, mut rows: Pairs<Tensor<AD, 2>>, expected: &Pairs<usize>) -> Pairs<Tensor<AD, 2>> {
        let (rows, received) = (rows.remove(0), expected[0].clone());
        let sent = rows.iter().map(|part| part.dims()[0]).collect();
        let rows = Tensor::cat(rows, 0);
        let sizes = Sizes { channels: self.0.clone(), sent, received: received.clone() };
        let rows = exchange(rows, sizes);
        let mut end = 0;
        let part = |&count: &usize| {
            end += count;
            rows.clone().slice(end - count..end)
        };
        vec![received.iter().map(part).collect()]
    }
}

fn exchange(rows: Tensor<AD, 2>, sizes: Sizes) -> Tensor<AD, 2> {
    let rows = rows.into_primitive().tensor();
    // Others wait for this rank's part of the backward pass, whether or not it has something to learn there.
    let rows = if rows.is_tracked() { rows } else { rows.require_grad() };
    let prep = match Exchange.prepare::<NoCheckpointing>([rows.node.clone()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep,
        OpsKind::UnTracked(_) => unreachable!("the rows are tracked"),
    };
    let Sizes { channels, sent, received } = sizes.clone();
    let arrived = channels.lock().expect("a rank is one thread").exchange_rows(rows.primitive, &sent, &received);
    Tensor::from_primitive(TensorPrimitive::Float(prep.finish(sizes, arrived)))
}

/// What every rank starts from.
#[derive(Clone)]
struct Layer {
    router: TopKRouter<AD>,
    experts: Experts<AD>,
}

/// Output and gradients of one rank: of its tokens, of its copy of the router, of its experts.
struct Learned {
    output: Vec<f64>,
    tokens: Vec<f64>,
    router: Vec<f64>,
    w_in: Vec<f64>,
    w_out: Vec<f64>,
    /// Bytes that left the rank: numbers of rows, rows, gates and outputs, then their gradients in the order of the backward pass.
    sent: Vec<usize>,
    /// Rows for each rank.
    rows: Vec<usize>,
}

fn loss(output: &Tensor<AD, 2>) -> Tensor<AD, 1> {
    (output.clone() * output.clone()).sum()
}

fn learn(layer: &Layer, placement: &ExpertPlacement, tokens: Tensor<Flex, 2>, channels: Channels) -> Learned {
    let rank = channels.rank;
    let exchange = Rank(Arc::new(Mutex::new(channels)));
    let experts = ShardedExperts::shard(&layer.experts, placement, rank, &Default::default());
    let tokens = Tensor::<AD, 2>::from_inner(tokens).require_grad();
    let routing = layer.router.forward(tokens.clone());
    let counts: Vec<i64> = routing.counts().into_data().iter::<i64>().collect();
    let output = experts.forward(vec![(tokens.clone(), &routing)], &exchange).remove(0);
    let grads = loss(&output).backward();
    let gradient = |stack: &Param<Tensor<AD, 3>>| host(stack.grad(&grads).expect("tracked"));
    let rows = |rank| placement.experts_of(rank).map(|expert| counts[expert] as usize).sum();
    let sent = exchange.channels().sent.take();
    Learned {
        output: host(output),
        tokens: host(tokens.grad(&grads).expect("tracked")),
        router: host(layer.router.weight.grad(&grads).expect("tracked")),
        w_in: gradient(&experts.shards[0].w_in),
        w_out: gradient(&experts.shards[0].w_out),
        sent,
        rows: (0..placement.num_ranks()).map(rows).collect(),
    }
}

/// Everything on one device, all tokens in one batch.
fn learn_alone(layer: &Layer, tokens: Tensor<Flex, 2>) -> Learned {
    let tokens = Tensor::<AD, 2>::from_inner(tokens).require_grad();
    let routing = layer.router.forward(tokens.clone());
    let output = dispatch::grouped(tokens.clone(), &layer.experts, &routing);
    let grads = loss(&output).backward();
    let gradient = |stack: &Param<Tensor<AD, 3>>| host(stack.grad(&grads).expect("tracked"));
    Learned {
        output: host(output),
        tokens: host(tokens.grad(&grads).expect("tracked")),
        router: host(layer.router.weight.grad(&grads).expect("tracked")),
        w_in: gradient(&layer.experts.w_in),
        w_out: gradient(&layer.experts.w_out),
        sent: Vec::new(),
        rows: Vec::new(),
    }
}

/// A layer in which each rank has experts, and tokens for it.
fn layer() -> (Layer, Vec<Tensor<Flex, 2>>) {
    let device = Default::default();
    Flex::seed(&device, 7);
    let router = TopKRouterConfig::new(D, E, K).init::<AD>(&device);
    let experts = ExpertsConfig::new(E, D, F).init::<AD>(&device);
    let tokens = TOKENS.map(|tokens| Tensor::random([tokens, D], Distribution::Normal(0.0, 1.0), &device));
    (Layer { router, experts }, tokens.to_vec())
}

fn learn_together(layer: &Layer, tokens: &[Tensor<Flex, 2>]) -> Vec<Learned> {
    let placement = ExpertPlacement::from_sizes(&EXPERTS).expect("no rank is idle");
    let placement = &placement;
    thread::scope(|scope| {
        let start = |(channels, tokens): (Channels, &Tensor<Flex, 2>)| {
            let (layer, tokens) = (layer.clone(), tokens.clone());
            scope.spawn(move || learn(&layer, placement, tokens, channels))
        };
        let threads: Vec<_> = Channels::between(TOKENS.len()).into_iter().zip(tokens).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("the rank ends well")).collect()
    })
}

#[test]
fn ranks_that_share_nothing_learn_what_one_device_learns() {
    let (layer, tokens) = layer();
    let alone = learn_alone(&layer, Tensor::cat(tokens.clone(), 0));
    let ranks = learn_together(&layer, &tokens);
    let joined = |of: fn(&Learned) -> &Vec<f64>| ranks.iter().flat_map(of).copied().collect::<Vec<f64>>();
    assert_close("output", &joined(|rank| &rank.output), &alone.output);
    assert_close("tokens", &joined(|rank| &rank.tokens), &alone.tokens);
    assert_close("w_in", &joined(|rank| &rank.w_in), &alone.w_in);
    assert_close("w_out", &joined(|rank| &rank.w_out), &alone.w_out);
    // Copies of the router, whose gradients are summed over the ranks, as data parallel does.
    let sum = |i: usize| ranks.iter().map(|rank| rank.router[i]).sum();
    assert_close("router", &(0..alone.router.len()).map(sum).collect::<Vec<_>>(), &alone.router);
}

/// Numbers of rows, then three exchanges forward and their three gradients.
#[test]
fn bytes_between_ranks_are_those_that_are_planned() {
    let (layer, tokens) = layer();
    let ranks = learn_together(&layer, &tokens);
    for (i, rank) in ranks.iter().enumerate() {
        let others = || (0..ranks.len()).filter(|&other| other != i);
        let leaving = others().map(|other| rank.rows[other]).sum::<usize>() as f64;
        let arriving = others().map(|other| ranks[other].rows[i]).sum::<usize>() as f64;
        let counts: usize = others().map(|other| EXPERTS[other] * size_of::<usize>()).sum();
        assert_eq!((rank.sent.len(), rank.sent[0]), (7, counts));
        let sent = |range: Range<usize>| rank.sent[range].iter().sum::<usize>() as f64;
        assert_eq!(sent(1..4), exchange_bytes(leaving, arriving, D as u64, Dtype::F32), "forward, rank {i}");
        assert_eq!(sent(4..7), exchange_bytes(arriving, leaving, D as u64, Dtype::F32), "backward, rank {i}");
    }
}
