//! Sums and maxima of rows with one partial result per vector lane, so that the compiler can vectorise them.

/// Partial results: one 512-bit vector of f32.
pub(super) const LANES: usize = 16;

const ZEROS: [f32; LANES] = [0.0; LANES];

/// `sum_i term(rows[0][i], rows[1][i], ..)`; rows at least as long as the first.
///
/// Plain loops throughout: a `map` over an array is a call that nothing guarantees to be inlined, and what is not inlined
/// is not vectorised.
#[inline(always)]
pub(super) fn sum<const N: usize>(rows: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let len = rows[0].len();
    let whole = len - len % LANES;
    let mut lanes = [0.0; LANES];
    let mut start = 0;
    while start < whole {
        let mut parts = [&ZEROS; N];
        for (part, row) in parts.iter_mut().zip(rows) {
            *part = row[start..start + LANES].try_into().expect("it has this length");
        }
        for (i, lane) in lanes.iter_mut().enumerate() {
            let mut numbers = [0.0; N];
            for (number, part) in numbers.iter_mut().zip(parts) {
                *number = part[i];
            }
            *lane += term(numbers);
        }
        start += LANES;
    }
    for i in whole..len {
        let mut numbers = [0.0; N];
        for (number, row) in numbers.iter_mut().zip(rows) {
            *number = row[i];
        }
        lanes[i - whole] += term(numbers);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest number, minus infinity without any; a NaN does not count.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let parts = row.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    fold(lanes, larger)
}

/// Replaces every number by `map(number)`; returns the sum of the results.
#[inline(always)]
pub(super) fn map_sum(row: &mut [f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut parts = row.chunks_exact_mut(LANES);
    for part in &mut parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *x = map(*x);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(parts.into_remainder()) {
        *x = map(*x);
        *lane += *x;
    }
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Halves the lanes until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7) % 11) as f32 - 4.0).collect()
    }

    #[test]
    fn every_length_is_summed_in_full() {
        for len in 0..70 {
            let (row, mut halves) = (row(len), row(len));
            let expected: f32 = row.iter().sum();
            assert_eq!(sum([&row], |[x]| x), expected);
            assert_eq!(map_sum(&mut halves, |x| x / 2.0), expected / 2.0);
            assert!(halves.iter().zip(&row).all(|(half, x)| half * 2.0 == *x));
        }
    }

    #[test]
    fn the_maximum_is_found_at_every_place_and_skips_nan() {
        for len in 1..40 {
            for place in 0..len {
                let mut row = vec![-3.0; len];
                row[(place + 1) % len] = f32::NAN;
                row[place] = 2.0;
                assert_eq!(max(&row), 2.0);
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
