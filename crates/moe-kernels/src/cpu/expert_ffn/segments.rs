//! How the rows of all experts are divided over threads.

use std::ops::Range;

use crate::host_plan::HostPlan;

/// A run of rows of one expert whose tokens are in one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) expert: usize,
    pub(super) rows: Range<usize>,
}

/// A range of tokens, and the rows that serve them: one run for each expert that does.
#[derive(Clone, Debug)]
pub(super) struct TokenPart {
    pub(super) tokens: Range<usize>,
    pub(super) segments: Vec<Segment>,
}

/// Rows that a segment should have at least: below, reading the weights of an expert once more costs more than another
/// thread gains.
const MIN_ROWS: usize = 16;

/// The tokens in as many equal parts as there are threads, fewer when the segments would become too short.
pub(super) fn split_by_tokens(plan: &HostPlan, num_tokens: usize, threads: usize) -> Vec<TokenPart> {
    let parts = threads.min(typical_load(plan) / MIN_ROWS).clamp(1, num_tokens.max(1));
    let boundary = |i: usize| i * num_tokens / parts;
    (0..parts).map(|i| token_part(plan, boundary(i)..boundary(i + 1))).collect()
}

/// Rows of the expert of the average row: `R / E` when the load is even, `R` when one expert has all.
fn typical_load(plan: &HostPlan) -> usize {
    let squares = (0..plan.num_experts()).map(|expert| plan.rows_of(expert).len().pow(2));
    squares.sum::<usize>() / plan.num_rows().max(1)
}

fn token_part(plan: &HostPlan, tokens: Range<usize>) -> TokenPart {
    let segments = (0..plan.num_experts()).map(|expert| Segment { expert, rows: rows_within(plan, expert, &tokens) });
    TokenPart { segments: segments.filter(|segment| !segment.rows.is_empty()).collect(), tokens }
}

/// The rows of an expert that serve `tokens`; rows are sorted by token within an expert.
fn rows_within(plan: &HostPlan, expert: usize, tokens: &Range<usize>) -> Range<usize> {
    let rows = plan.rows_of(expert);
    let served = &plan.token_of_row[rows.clone()];
    let before = |end: usize| rows.start + served.partition_point(|&token| (token as usize) < end);
    before(tokens.start)..before(tokens.end)
}

/// Cuts `buffer`, rows of `width` numbers, along the segments of all parts: the result has the parts' shape.
pub(super) fn cut<'a, T>(mut buffer: &'a mut [T], width: usize, parts: &[TokenPart]) -> Vec<Vec<&'a mut [T]>> {
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
    fn every_row_is_in_one_segment_of_the_part_of_its_token() {
        let plan = plan();
        for threads in [1, 2, 3, 7] {
            let parts = split_by_tokens(&plan, 200, threads);
            let mut rows = Vec::new();
            for part in &parts {
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
        let parts = split_by_tokens(&plan, 200, 3);
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
    fn few_rows_per_expert_stay_together() {
        let experts: Vec<usize> = (0..64).collect();
        assert_eq!(split_by_tokens(&HostPlan::new(&experts, 1, 64), 64, 8).len(), 1);
    }

    #[test]
    fn an_expert_that_owns_all_is_shared_by_all_threads_however_many_are_idle() {
        let plan = HostPlan::new(&[5; 1024], 1, 64);
        let parts = split_by_tokens(&plan, 1024, 8);
        assert!(parts.len() == 8 && parts.iter().all(|part| part.tokens.len() == 128));
    }

    #[test]
    fn no_tokens_are_one_empty_part() {
        let parts = split_by_tokens(&HostPlan::new(&[], 2, 4), 0, 8);
        assert!(parts.len() == 1 && parts[0].segments.is_empty());
    }
}
