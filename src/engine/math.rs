//! What lies between the matrix products: GELU, softmax, layer normalisation; one pass over each row.
//!
//! The polynomials are good to the last places of a 32-bit number; the tests below compare them with
//! 64-bit arithmetic.

use crate::engine::kernel::{Arch, mul_add};
use pulp::{Simd, WithSimd};

/// `erf(x/√2)` is `x` times this polynomial in `x²/ERF_HALF − 1`, lowest power first. A Chebyshev fit of
/// degree 15 over |x| ≤ [`ERF_END`], weighted by |x|: the error is below 2·10⁻⁷.
pub(super) const ERF: [f32; 16] = [
    0.261_856_23,
    -0.130_655_93,
    0.097_000_06,
    -0.078_421_146,
    0.064_217_37,
    -0.051_405_296,
    0.039_395_934,
    -0.028_374_268,
    0.018_969_843,
    -0.012_261_993,
    0.007_850_692,
    -0.004_000_457,
    0.001_329_474_7,
    -9.063_611_5e-4,
    9.152_376e-4,
    -3.242_118e-4,
];
/// Where `erf(x/√2)` differs from one by less than the last place of a 32-bit number.
pub(super) const ERF_END: f32 = 5.4;
/// Half of `ERF_END²`, which maps the fitted range to −1…1.
pub(super) const ERF_HALF: f32 = 14.58;

/// `eˣ = 2ⁿ·(1 + r + r²·p(r))` with |r| ≤ ln 2 / 2, highest power first: the coefficients of `expf` in the
/// Cephes library, good to one unit in the last place.
const EXP: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    5e-1,
];
/// Below this `eˣ` is no normal 32-bit number.
const EXP_LEAST: f32 = -87.3;
/// Adding and subtracting it rounds to a whole number, which then stands in the low bits: 1.5·2²³.
const ROUND: f32 = 12_582_912.0;
/// ln 2: 355/512, which is exact in few bits, and the rest.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

#[inline(always)]
fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let end = simd.splat_f32s(ERF_END);
    let x = simd.min_f32s(simd.max_f32s(x, simd.neg_f32s(end)), end);
    let t = simd.mul_f32s(x, x);
    let s = mul_add(simd, t, simd.splat_f32s(1.0 / ERF_HALF), simd.splat_f32s(-1.0));
    // Two chains, of the even and the odd powers, so that one need not wait for the other.
    let s2 = simd.mul_f32s(s, s);
    let mut even = simd.splat_f32s(ERF[14]);
    let mut odd = simd.splat_f32s(ERF[15]);
    for i in (0..7).rev() {
        even = mul_add(simd, even, s2, simd.splat_f32s(ERF[2 * i]));
        odd = mul_add(simd, odd, s2, simd.splat_f32s(ERF[2 * i + 1]));
    }
    simd.mul_f32s(x, mul_add(simd, odd, s, even))
}

#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.max_f32s(x, simd.splat_f32s(EXP_LEAST));
    let shifted = mul_add(
        simd,
        x,
        simd.splat_f32s(std::f32::consts::LOG2_E),
        simd.splat_f32s(ROUND),
    );
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = mul_add(simd, n, simd.splat_f32s(-LN2_HIGH), x);
    let r = mul_add(simd, n, simd.splat_f32s(-LN2_LOW), r);
    let mut p = simd.splat_f32s(EXP[0]);
    for c in &EXP[1..] {
        p = mul_add(simd, p, r, simd.splat_f32s(*c));
    }
    let y = mul_add(
        simd,
        p,
        simd.mul_f32s(r, r),
        simd.add_f32s(r, simd.splat_f32s(1.0)),
    );
    // The low bits of `shifted` are n; with the bias of 127 they become the exponent.
    let exponent = simd.add_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(127));
    let scale = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
    simd.mul_f32s(y, simd.transmute_f32s_u32s(scale))
}

/// The exact GELU in place: `x·Φ(x) = x/2·(1 + erf(x/√2))`.
///
/// Loops like this one are written out: what is in a closure is compiled without the instruction set of the
/// function around it.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, row: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(row);
    for v in head {
        *v = gelu_of(simd, *v);
    }
    if !tail.is_empty() {
        let v = gelu_of(simd, simd.partial_load_f32s(tail));
        simd.partial_store_f32s(tail, v);
    }
}

#[inline(always)]
fn gelu_of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
    mul_add(simd, half, erf(simd, x), half)
}

/// The GELU by the hyperbolic tangent in place: `x·sigmoid(2·√(2/π)·(x + 0.044715·x³))`.
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(simd: S, row: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(row);
    for v in head {
        *v = gelu_tanh_of(simd, *v);
    }
    if !tail.is_empty() {
        let v = gelu_tanh_of(simd, simd.partial_load_f32s(tail));
        simd.partial_store_f32s(tail, v);
    }
}

#[inline(always)]
fn gelu_tanh_of<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let cube = simd.mul_f32s(simd.mul_f32s(x, x), simd.splat_f32s(0.044_715));
    let inner = mul_add(simd, cube, x, x);
    // (1 + tanh z)/2 is the sigmoid of 2z.
    let twice = simd.splat_f32s(2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2);
    simd.mul_f32s(x, sigmoid(simd, simd.mul_f32s(inner, twice)))
}

/// The SiLU in place: `x·sigmoid(x)`.
#[inline(always)]
pub(super) fn silu<S: Simd>(simd: S, row: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(row);
    for v in head {
        *v = simd.mul_f32s(*v, sigmoid(simd, *v));
    }
    if !tail.is_empty() {
        let x = simd.partial_load_f32s(tail);
        simd.partial_store_f32s(tail, simd.mul_f32s(x, sigmoid(simd, x)));
    }
}

/// `max(x, 0)` in place.
#[inline(always)]
pub(super) fn relu<S: Simd>(simd: S, row: &mut [f32]) {
    let (head, tail) = S::as_mut_simd_f32s(row);
    for v in head {
        *v = simd.max_f32s(*v, simd.splat_f32s(0.0));
    }
    for v in tail {
        *v = v.max(0.0);
    }
}

/// `1/(1 + e⁻ˣ)`. Where `e⁻ˣ` would leave the range of [`exp`], the result is as near to 0 as makes no difference.
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let most = simd.splat_f32s(-EXP_LEAST);
    let one = simd.splat_f32s(1.0);
    let power = exp(simd, simd.min_f32s(simd.neg_f32s(x), most));
    simd.div_f32s(one, simd.add_f32s(one, power))
}

/// Turns rows of scores into `e^(score − largest)` and their sums; the division is left to the caller, who
/// has fewer numbers to divide afterwards.
pub struct Softmax<'a> {
    /// `len` scores to a row, in place.
    pub scores: &'a mut [f32],
    /// From one row to the next.
    pub stride: usize,
    /// Scores in a row.
    pub len: usize,
    /// One sum for each row.
    pub sums: &'a mut [f32],
}

impl Softmax<'_> {
    /// Computes on the calling thread.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, sum) in self.scores.chunks_mut(self.stride).zip(self.sums) {
            let row = &mut row[..self.len];
            let largest = largest(simd, row);
            let shift = simd.splat_f32s(largest);
            let (head, tail) = S::as_mut_simd_f32s(row);
            let mut total = simd.splat_f32s(0.0);
            for v in head {
                *v = exp(simd, simd.sub_f32s(*v, shift));
                total = simd.add_f32s(total, *v);
            }
            let mut last = 0.0;
            if !tail.is_empty() {
                let v = exp(simd, simd.sub_f32s(simd.partial_load_f32s(tail), shift));
                simd.partial_store_f32s(tail, v);
                last = tail.iter().sum();
            }
            *sum = simd.reduce_sum_f32s(total) + last;
        }
    }
}

#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(row);
    let mut most = simd.splat_f32s(f32::NEG_INFINITY);
    for v in head {
        most = simd.max_f32s(most, *v);
    }
    tail.iter().copied().fold(simd.reduce_max_f32s(most), f32::max)
}

/// `rows = layer_norm(rows + added)`, row by row, in place.
pub struct LayerNorm<'a> {
    /// `weight.len()` numbers to a row.
    pub rows: &'a mut [f32],
    /// What is added first (the residual), or nothing.
    pub added: Option<&'a [f32]>,
    /// The scale γ.
    pub weight: &'a [f32],
    /// The shift β.
    pub bias: &'a [f32],
    /// What is added to the variance.
    pub epsilon: f32,
}

impl LayerNorm<'_> {
    /// Computes on the calling thread.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let (weight, weight_tail) = S::as_simd_f32s(self.weight);
        let (bias, bias_tail) = S::as_simd_f32s(self.bias);
        for (index, row) in self.rows.chunks_exact_mut(width).enumerate() {
            let (head, tail) = S::as_mut_simd_f32s(row);
            let mut total = simd.splat_f32s(0.0);
            let mut rest = 0.0;
            if let Some(added) = self.added {
                let (added, added_tail) = S::as_simd_f32s(&added[index * width..][..width]);
                for (v, a) in head.iter_mut().zip(added) {
                    *v = simd.add_f32s(*v, *a);
                }
                for (v, a) in tail.iter_mut().zip(added_tail) {
                    *v += a;
                }
            }
            for v in head.iter() {
                total = simd.add_f32s(total, *v);
            }
            rest += tail.iter().sum::<f32>();
            let mean = (simd.reduce_sum_f32s(total) + rest) / width as f32;
            let centre = simd.splat_f32s(mean);
            let mut squares = simd.splat_f32s(0.0);
            for v in head.iter() {
                let d = simd.sub_f32s(*v, centre);
                squares = mul_add(simd, d, d, squares);
            }
            let rest: f32 = tail.iter().map(|v| (v - mean) * (v - mean)).sum();
            let variance = (simd.reduce_sum_f32s(squares) + rest) / width as f32;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            let factor = simd.splat_f32s(scale);
            for ((v, w), b) in head.iter_mut().zip(weight).zip(bias) {
                let d = simd.mul_f32s(simd.sub_f32s(*v, centre), factor);
                *v = mul_add(simd, d, *w, *b);
            }
            for ((v, w), b) in tail.iter_mut().zip(weight_tail).zip(bias_tail) {
                *v = (*v - mean) * scale * w + b;
            }
        }
    }
}

/// `erf(x/√2)` in 64 bits: the Taylor series, summed until it no longer changes. Beyond 4 the rest is below
/// 2e-8, while the series loses digits by cancelling terms as large as e to the power of z².
#[cfg(test)]
pub(super) fn erf_exact(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    if z.abs() > 4.0 {
        return z.signum();
    }
    let (mut sum, mut term, mut n) = (z, z, 0.0);
    while term.abs() > 1e-18 {
        n += 1.0;
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs one of the functions above on every instruction set's lanes.
    struct Each<'a>(&'a mut [f32], bool);
    impl WithSimd for Each<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (head, tail) = S::as_mut_simd_f32s(self.0);
            for v in head {
                *v = if self.1 { exp(simd, *v) } else { erf(simd, *v) };
            }
            if !tail.is_empty() {
                let v = simd.partial_load_f32s(tail);
                simd.partial_store_f32s(tail, if self.1 { exp(simd, v) } else { erf(simd, v) });
            }
        }
    }

    // Goal: the polynomials are as good as 32 bits allow. Method: every lane position, against 64 bits.
    proptest! {
        #[test]
        fn erf_is_good_to_4e_7(xs in prop::collection::vec(-9.0f32..9.0, 1..50)) {
            let mut got = xs.clone();
            Arch::new().dispatch(Each(&mut got, false));
            for (x, y) in xs.iter().zip(got) {
                prop_assert!((f64::from(y) - erf_exact(f64::from(*x))).abs() < 4e-7, "erf({x}/√2) = {y}");
            }
        }

        #[test]
        fn exp_is_good_to_two_parts_in_ten_million(xs in prop::collection::vec(-87.0f32..10.0, 1..50)) {
            let mut got = xs.clone();
            Arch::new().dispatch(Each(&mut got, true));
            for (x, y) in xs.iter().zip(got) {
                let exact = f64::from(*x).exp();
                prop_assert!(((f64::from(y) - exact) / exact).abs() < 2e-7, "exp({x}) = {y}");
            }
        }
    }

    #[test]
    fn exp_of_what_is_masked_is_nothing() {
        let mut row = [f32::NEG_INFINITY, -200.0, -88.0, 0.0];
        Arch::new().dispatch(Each(&mut row, true));
        assert!(row[..3].iter().all(|y| *y < 2e-38), "{row:?}");
        assert_eq!(row[3], 1.0);
    }
}
