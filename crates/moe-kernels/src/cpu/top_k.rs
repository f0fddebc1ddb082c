//! Top-K of each row by insertion into a sorted list of at most `k`.

use rayon::prelude::*;

/// Rows that a thread takes at a time.
const BLOCK_ROWS: usize = 256;

/// Columns of the `k` largest scores of each row of `scores` `[T, E]`, best first, in `chosen` `[T, K]`.
///
/// The lower column wins a tie; a NaN ranks below every number.
pub(crate) fn top_k(scores: &[f32], num_experts: usize, k: usize, chosen: &mut [i32]) {
    let blocks = chosen.par_chunks_mut(BLOCK_ROWS * k).zip(scores.par_chunks(BLOCK_ROWS * num_experts));
    blocks.for_each(|(chosen, scores)| {
        let mut best = vec![0; k];
        for (chosen, row) in chosen.chunks_exact_mut(k).zip(scores.chunks_exact(num_experts)) {
            best_of_row(row, &mut best, chosen);
        }
    });
}

/// `best` is room for the ranks of `chosen`.
fn best_of_row(row: &[f32], best: &mut [i32], chosen: &mut [i32]) {
    let k = best.len();
    let mut found = 0;
    for (candidate, &score) in row.iter().enumerate() {
        let rank = rank(score);
        if found == k && rank <= best[k - 1] {
            continue;
        }
        let mut place = found.min(k - 1);
        found = (found + 1).min(k);
        while place > 0 && best[place - 1] < rank {
            best[place] = best[place - 1];
            chosen[place] = chosen[place - 1];
            place -= 1;
        }
        best[place] = rank;
        chosen[place] = candidate as i32;
    }
}

/// An integer that orders as the numbers do: both zeros equal, a NaN below all.
fn rank(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits() as i32;
    let ordered = bits ^ ((bits >> 31) & i32::MAX); // the magnitude of a negative number counts down
    if score.is_nan() { i32::MIN } else { ordered }
}

/// Gradient of the chosen scores: `grad` and `chosen` `[T, K]` to `grad_scores` `[T, E]`, which must be zero.
pub(crate) fn top_k_backward(grad: &[f32], chosen: &[i64], k: usize, num_experts: usize, grad_scores: &mut [f32]) {
    let rows = grad_scores.chunks_exact_mut(num_experts).zip(grad.chunks_exact(k)).zip(chosen.chunks_exact(k));
    for ((row, grad), chosen) in rows {
        for (&grad, &column) in grad.iter().zip(chosen) {
            row[column as usize] += grad;
        }
    }
}

/// Zeros at the columns `chosen` `[T, K]` of `scores` `[T, E]`.
pub(crate) fn clear_chosen(chosen: &[i64], num_experts: usize, scores: &mut [f32]) {
    let k = chosen.len() / (scores.len() / num_experts).max(1);
    for (row, chosen) in scores.chunks_exact_mut(num_experts).zip(chosen.chunks_exact(k.max(1))) {
        for &column in chosen {
            row[column as usize] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_as_the_numbers_do_with_nan_below_all() {
        let ascending = [f32::NEG_INFINITY, f32::MIN, -1.5, -1e-45, 0.0, 1e-45, f32::MIN_POSITIVE, 2.0, f32::INFINITY];
        assert!(ascending.windows(2).all(|pair| rank(pair[0]) < rank(pair[1])));
        assert_eq!(rank(-0.0), rank(0.0));
        assert!([f32::NAN, -f32::NAN].iter().all(|&nan| rank(nan) < rank(f32::NEG_INFINITY)));
    }
}
