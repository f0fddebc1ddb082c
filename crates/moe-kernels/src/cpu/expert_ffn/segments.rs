//! How the rows of all experts are divided over threads: by tokens, and the rows of a range of tokens by experts.
//!
//! Every thread that works on an expert brings its weights into the products' order for itself, so a range of tokens is
//! worth sharing by experts. The threads that share it all add to the same tokens, each in numbers of its own, so not
//! more of them do than `K` or [`MAX_SHARING`]: the experts' outputs would take `K` numbers for each of the tokens'.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::host_plan::HostPlan;

/// A run of rows of one expert that belongs to one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) expert: usize,
    pub(super) rows: Range<usize>,
}

/// What one thread does: rows that serve a range of tokens, at most one run of each expert.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) tokens: Range<usize>,
    pub(super) segments: Vec<Segment>,
}

/// The parts of all threads.
#[derive(Clone, Debug)]
pub(super) struct Split {
    /// Ordered by their tokens; the ones that share a range are neighbours.
    pub(super) parts: Vec<Part>,
    /// How many parts share each range of tokens.
    sharing: usize,
}

/// Rows that a segment should have at least: below, reading the weights of an expert once more costs more than another
/// thread gains.
const MIN_ROWS: usize = 16;

/// Threads that share a range of tokens at most, when a token has fewer rows than that.
const MAX_SHARING: usize = 4;

impl Split {
    /// Parts of equal work, as many as there are threads; fewer when the segments would become too short.
    pub(super) fn new(plan: &HostPlan, num_tokens: usize, threads: usize) -> Self {
        let most = (plan.num_served() / num_tokens.max(1)).max(MAX_SHARING);
        let longest = (typical_load(plan) / MIN_ROWS).min(num_tokens).max(1);
        let ranges = |sharing: usize| (threads / sharing).clamp(1, longest);
        // As many parts as can be, and of those the fewest ranges.
        let sharing = (1..=most.min(threads)).max_by_key(|&count| ranges(count) * count).unwrap_or(1);
        let ranges = ranges(sharing);
        let boundary = |i: usize| i * num_tokens / ranges;
        let range = |i: usize| part(plan, boundary(i)..boundary(i + 1));
        Self { parts: (0..ranges).flat_map(|i| range(i).share(sharing)).collect(), sharing }
    }

    /// Numbers beside an output `[T, width]` of this length that [`accumulators`](Self::accumulators) needs.
    pub(super) fn extra_len(&self, output_len: usize) -> usize {
        output_len * (self.sharing - 1)
    }

    /// Numbers of its own for each part to add to: those of its tokens in `output` `[T, width]` for the first part of a
    /// range, and in `extra` for the others.
    pub(super) fn accumulators<'a, T>(
        &self,
        mut output: &'a mut [T],
        mut extra: &'a mut [T],
        width: usize,
    ) -> Vec<&'a mut [T]> {
        let take = |buffer: &mut &'a mut [T], part: &Part| {
            let (piece, rest) = std::mem::take(buffer).split_at_mut(part.tokens.len() * width);
            *buffer = rest;
            piece
        };
        let parts = self.parts.iter().enumerate();
        parts.map(|(i, part)| take(if i % self.sharing == 0 { &mut output } else { &mut extra }, part)).collect()
    }

    /// Adds to each token in `output` what the parts have added in `extra`, in their order.
    pub(super) fn add_extra(&self, mut output: &mut [f32], mut extra: &[f32], width: usize) {
        for range in self.parts.chunks(self.sharing) {
            let len = range[0].tokens.len() * width;
            let (piece, rest) = std::mem::take(&mut output).split_at_mut(len);
            let (others, other_rest) = extra.split_at(len * (self.sharing - 1));
            (output, extra) = (rest, other_rest);
            others.chunks_exact(len.max(1)).for_each(|other| add_numbers(piece, other));
        }
    }

    /// Whether the parts divide the rows by experts only: none of them by tokens.
    pub(super) fn has_one_range(&self) -> bool {
        self.parts.len() == self.sharing
    }
}

impl Segment {
    /// Whether it holds the first row of its expert.
    pub(super) fn is_first_of_expert(&self, plan: &HostPlan) -> bool {
        self.rows.start == plan.rows_of(self.expert).start
    }
}

/// Numbers that are added at a time: a few pages.
const ADD_LEN: usize = 1 << 14;

/// `sum += other`, on all threads.
pub(super) fn add_numbers(sum: &mut [f32], other: &[f32]) {
    sum.par_chunks_mut(ADD_LEN).zip(other.par_chunks(ADD_LEN)).for_each(|(sum, other)| add(sum, other));
}

#[multiversion(targets = "simd")]
fn add(sum: &mut [f32], other: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(other) {
        *sum += x;
    }
}

/// Rows of the expert of the average row: `R / E` when the load is even, `R` when one expert has all.
fn typical_load(plan: &HostPlan) -> usize {
    let squares = (0..plan.num_experts()).map(|expert| plan.rows_of(expert).len().pow(2));
    squares.sum::<usize>() / plan.num_served().max(1)
}

/// All rows that serve `tokens`.
fn part(plan: &HostPlan, tokens: Range<usize>) -> Part {
    let segments = (0..plan.num_experts()).map(|expert| Segment { expert, rows: rows_within(plan, expert, &tokens) });
    Part { segments: segments.filter(|segment| !segment.rows.is_empty()).collect(), tokens }
}

impl Part {
    /// Its rows in `count` equal shares, experts in order.
    fn share(self, count: usize) -> Vec<Part> {
        let num_rows = self.segments.iter().map(|segment| segment.rows.len()).sum::<usize>();
        let boundary = |i: usize| i * num_rows / count;
        (0..count).map(|i| self.among(boundary(i)..boundary(i + 1))).collect()
    }

    /// Those of its rows that come at `positions` when they are counted through.
    fn among(&self, positions: Range<usize>) -> Part {
        let mut before = 0;
        let within = |segment: &Segment| {
            let cut = |position: usize| segment.rows.start + position.saturating_sub(before).min(segment.rows.len());
            let rows = cut(positions.start)..cut(positions.end);
            before += segment.rows.len();
            (!rows.is_empty()).then_some(Segment { expert: segment.expert, rows })
        };
        Part { tokens: self.tokens.clone(), segments: self.segments.iter().filter_map(within).collect() }
    }
}

/// The rows of an expert that serve `tokens`; rows are sorted by token within an expert.
fn rows_within(plan: &HostPlan, expert: usize, tokens: &Range<usize>) -> Range<usize> {
    let rows = plan.rows_of(expert);
    let served = &plan.token_of_row[rows.clone()];
    let before = |end: usize| rows.start + served.partition_point(|&token| (token as usize) < end);
    before(tokens.start)..before(tokens.end)
}

/// Cuts `buffer`, rows of `width` numbers, along the segments of all parts: the result has the parts' shape.
pub(super) fn cut<'a, T>(mut buffer: &'a mut [T], width: usize, parts: &[Part]) -> Vec<Vec<&'a mut [T]>> {
    let mut order: Vec<(usize, &Segment)> = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        order.extend(part.segments.iter().map(|segment| (i, segment)));
    }
    order.sort_by_key(|(_, segment)| segment.rows.start);

    let mut pieces: Vec<Vec<&mut [T]>> = parts.iter().map(|part| Vec::with_capacity(part.segments.len())).collect();
    for (i, segment) in order {
        let (piece, rest) = buffer.split_at_mut(segment.rows.len() * width);
        pieces[i].push(piece);
        buffer = rest;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token `t` goes to expert `t % 3` and to expert 3.
    fn plan() -> HostPlan {
        let experts: Vec<usize> = (0..200).flat_map(|t| [t % 3, 3]).collect();
        HostPlan::new(&experts, 2, 5)
    }

    #[test]
    fn every_row_is_in_one_segment_of_a_part_with_its_token() {
        let plan = plan();
        for threads in [1, 2, 3, 7, 8] {
            let split = Split::new(&plan, 200, threads);
            assert_eq!(split.parts.len(), threads);
            let mut rows = Vec::new();
            for part in &split.parts {
                let load: usize = part.segments.iter().map(|segment| segment.rows.len()).sum();
                assert!(load.abs_diff(400 / threads) <= 2, "{load} rows, {threads} threads");
                for segment in &part.segments {
                    let served = &plan.token_of_row[segment.rows.clone()];
                    assert!(served.iter().all(|&token| part.tokens.contains(&(token as usize))));
                    assert!(plan.rows_of(segment.expert).contains(&segment.rows.start));
                    rows.extend(segment.rows.clone());
                }
            }
            rows.sort_unstable();
            assert_eq!(rows, (0..plan.num_rows()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn pieces_of_a_buffer_follow_the_segments() {
        let plan = plan();
        let parts = Split::new(&plan, 200, 3).parts;
        assert_eq!(parts.len(), 3);
        let mut buffer: Vec<f32> = (0..plan.num_rows() * 2).map(|i| i as f32).collect();
        for (part, pieces) in parts.iter().zip(cut(&mut buffer, 2, &parts)) {
            for (segment, piece) in part.segments.iter().zip(pieces) {
                assert_eq!(piece.len(), segment.rows.len() * 2);
                assert_eq!(piece[0], (segment.rows.start * 2) as f32);
            }
        }
    }

    #[test]
    fn few_rows_per_expert_are_divided_by_experts_only() {
        let experts: Vec<usize> = (0..64).collect();
        let split = Split::new(&HostPlan::new(&experts, 1, 64), 64, 8);
        assert!(split.parts.iter().all(|part| part.tokens == (0..64) && part.segments.len() == 16));
    }

    #[test]
    fn an_expert_that_owns_all_is_shared_by_all_threads_however_many_are_idle() {
        let plan = HostPlan::new(&[5; 1024], 1, 64);
        let parts = Split::new(&plan, 1024, 8).parts;
        assert!(parts.len() == 8 && parts.iter().all(|part| part.segments[0].rows.len() == 128));
    }

    #[test]
    fn no_tokens_are_empty_parts() {
        let split = Split::new(&HostPlan::new(&[], 2, 4), 0, 8);
        assert!(split.parts.iter().all(|part| part.segments.is_empty()));
        assert_eq!(split.extra_len(0), 0);
        split.add_extra(&mut [], &[], 3);
    }

    #[test]
    fn what_the_parts_of_a_range_add_comes_together_in_its_tokens() {
        let split = Split::new(&plan(), 200, 8);
        assert_eq!((split.parts.len(), split.sharing), (8, 4));
        let mut output = vec![1.0; 200 * 2];
        let mut extra = vec![0.0; split.extra_len(output.len())];
        for (i, numbers) in split.accumulators(&mut output, &mut extra, 2).into_iter().enumerate() {
            assert_eq!(numbers.len(), split.parts[i].tokens.len() * 2);
            numbers.iter_mut().for_each(|x| *x += 10f32.powi(i as i32));
        }
        split.add_extra(&mut output, &extra, 2);
        assert_eq!((output[0], output[399]), (1112.0, 11_110_001.0));
    }
}
