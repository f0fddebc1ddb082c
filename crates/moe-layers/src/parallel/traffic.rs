//! What crosses between ranks, counted.

use std::ops::Range;
use std::sync::Mutex;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{AllToAll, Pairs};

/// Another exchange, counting what goes through it in forward passes. A backward pass sends each row's gradient the other way.
#[derive(Debug)]
pub struct Counted<X> {
    exchange: X,
    traffic: Mutex<Vec<Sent>>,
}

/// One call of [`AllToAll::exchange_rows`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Rows, `[local rank][rank]`; what a rank has for itself is there too.
    pub rows: Pairs<usize>,
    /// Bytes of one row.
    pub row_bytes: usize,
}

impl Sent {
    /// Bytes that leave each local rank for another one; `first_rank` is the first local one.
    pub fn bytes_leaving(&self, first_rank: usize) -> Vec<usize> {
        let leaving = |(local, rows): (usize, &Vec<usize>)| {
            let others = rows.iter().enumerate().filter(|(rank, _)| *rank != first_rank + local);
            others.map(|(_, rows)| rows * self.row_bytes).sum()
        };
        self.rows.iter().enumerate().map(leaving).collect()
    }
}

impl<X> Counted<X> {
    /// Counts what goes through `exchange`.
    pub fn new(exchange: X) -> Self {
        Self { exchange, traffic: Mutex::default() }
    }

    /// What went through since the last call, in order: for each forward pass of a layer rows, gates, and rows on the way back.
    pub fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.traffic.lock().expect("nobody panics while counting"))
    }
}

impl<B: Backend, X: AllToAll<B>> AllToAll<B> for Counted<X> {
    fn num_ranks(&self) -> usize {
        self.exchange.num_ranks()
    }

    fn local_ranks(&self) -> Range<usize> {
        self.exchange.local_ranks()
    }

    fn exchange_counts(&self, counts: Pairs<Vec<usize>>) -> Pairs<Vec<usize>> {
        self.exchange.exchange_counts(counts)
    }

    fn exchange_rows(&self, rows: Pairs<Tensor<B, 2>>, expected: &Pairs<usize>) -> Pairs<Tensor<B, 2>> {
        let count = |parts: &Vec<Tensor<B, 2>>| parts.iter().map(|part| part.dims()[0]).collect();
        let row_bytes = rows.iter().flatten().next().map_or(0, |part| part.dims()[1] * part.dtype().size());
        let sent = Sent { rows: rows.iter().map(count).collect(), row_bytes };
        self.traffic.lock().expect("nobody panics while counting").push(sent);
        self.exchange.exchange_rows(rows, expected)
    }
}
