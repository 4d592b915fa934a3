//! Rotary positions: each pair of a head's numbers is turned by an angle that grows with the token's place.
//!
//! Su and others, *RoFormer*, 2021; the halves of a head are paired, as in all the families here, not neighbours.

use crate::engine::kernel::Arch;
use pulp::{Simd, WithSimd};

/// Cosines and sines for every place and pair.
#[derive(Debug)]
pub struct Rotary {
    /// Pairs of a head: half of its width.
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// The table for heads of `width` numbers and `places` tokens with the base `theta`.
    ///
    /// Angles are rounded to 32 bits where the reference rounds them, so that far places agree with it.
    pub fn new(width: usize, places: usize, theta: f32) -> Rotary {
        let half = width / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|pair| 1.0 / theta.powf((2 * pair) as f32 / width as f32))
            .collect();
        let angles = || {
            let place = |place| frequencies.iter().map(move |f| f64::from(place as f32 * f));
            (0..places).flat_map(place)
        };
        Rotary {
            half,
            cosines: angles().map(|angle| angle.cos() as f32).collect(),
            sines: angles().map(|angle| angle.sin() as f32).collect(),
        }
    }

    /// Cosines and sines, a row of so many numbers for each place.
    pub fn tables(&self) -> (&[f32], &[f32], usize) {
        (&self.cosines, &self.sines, self.half)
    }

    /// Turns the first `heads` heads of each row of one sequence. Rows begin every `stride` numbers; the first
    /// is that of place 0.
    pub fn turn(&self, arch: Arch, rows: &mut [f32], stride: usize, heads: usize) {
        arch.dispatch(Turn {
            rotary: self,
            rows,
            stride,
            heads,
        });
    }
}

struct Turn<'a> {
    rotary: &'a Rotary,
    rows: &'a mut [f32],
    stride: usize,
    heads: usize,
}

impl WithSimd for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let half = self.rotary.half;
        for (place, row) in self.rows.chunks_mut(self.stride).enumerate() {
            let (cosines, cosines_tail) = S::as_simd_f32s(&self.rotary.cosines[place * half..][..half]);
            let (sines, sines_tail) = S::as_simd_f32s(&self.rotary.sines[place * half..][..half]);
            for head in row[..self.heads * 2 * half].chunks_exact_mut(2 * half) {
                let (first, second) = head.split_at_mut(half);
                let (first, first_tail) = S::as_mut_simd_f32s(first);
                let (second, second_tail) = S::as_mut_simd_f32s(second);
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    let (x, y) = (*a, *b);
                    *a = simd.sub_f32s(simd.mul_f32s(x, *c), simd.mul_f32s(y, *s));
                    *b = simd.add_f32s(simd.mul_f32s(y, *c), simd.mul_f32s(x, *s));
                }
                let tails = first_tail.iter_mut().zip(second_tail);
                for (((a, b), c), s) in tails.zip(cosines_tail).zip(sines_tail) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: pairs are turned by place times frequency, whatever the width. Method: against 64 bits, at widths
    // with and without a rest behind the registers, and numbers behind the heads stay.
    #[test]
    fn pairs_are_turned_by_their_angle() {
        for width in [2, 6, 16, 32, 64, 68] {
            let (heads, places, stride) = (2, 5, 2 * width + 3);
            let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let before: Vec<f32> = (0..places * stride).map(number).collect();
            let mut after = before.clone();
            Rotary::new(width, places, 100.0).turn(Arch::new(), &mut after, stride, heads);
            for place in 0..places {
                let row = |of: &[f32]| of[place * stride..][..stride].to_vec();
                let (before, after) = (row(&before), row(&after));
                for head in 0..heads {
                    for pair in 0..width / 2 {
                        let angle = place as f64 / 100f64.powf((2 * pair) as f64 / width as f64);
                        let (x, y) = (head * width + pair, head * width + pair + width / 2);
                        let (a, b) = (f64::from(before[x]), f64::from(before[y]));
                        let want = (
                            a * angle.cos() - b * angle.sin(),
                            b * angle.cos() + a * angle.sin(),
                        );
                        assert!(
                            (f64::from(after[x]) - want.0).abs() < 2e-6,
                            "{width} {place} {pair}"
                        );
                        assert!(
                            (f64::from(after[y]) - want.1).abs() < 2e-6,
                            "{width} {place} {pair}"
                        );
                    }
                }
                assert_eq!(before[2 * width..], after[2 * width..]);
            }
        }
    }
}
