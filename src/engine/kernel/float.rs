//! The matrix product in 32 bits: weights packed in panels, activations in rows, one thread.
//!
//! A panel holds [`PANEL`] columns of the weights for all rows of the input: the inner loop reads one of them, or two side
//! by side, as streams and keeps a tile of the result in registers.
//!
//! Unsafe is one thing here: [`tile`] reads activations and weights without a bounds check, after assertions that
//! cover every index it can form.

use super::{After, Linear, PANEL, Row, ZERO, mul_add, prefetch};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::ops::Range;

/// Rows of the largest tile. Six rows of four registers leave room for the panels' row and one broadcast among the 32
/// registers of AVX-512 and NEON, six of two among the 16 of AVX2; and where each row begins stays in a general register.
const TILE_ROWS: usize = 6;

/// Numbers of the weights that a tile goes through at once, 32 KiB: what a first-level cache holds.
const PART: usize = 8192;

impl WithSimd for Linear<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let part = Part {
            panels: 0..self.weights.width.div_ceil(PANEL),
            depth: 0..self.weights.depth,
        };
        Product { linear: self, part }.with_simd(simd);
    }
}

/// Which part of a product is computed: some of the panels, whose columns the output begins with, on some of the depth,
/// which the input begins with. Parts of the depth follow one another from the first to the last.
pub struct Part {
    /// Panels of the weights.
    pub panels: Range<usize>,
    /// Rows of the weights.
    pub depth: Range<usize>,
}

/// A part of a product.
pub struct Product<'a> {
    /// All of it.
    pub linear: Linear<'a>,
    /// The part.
    pub part: Part,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match PANEL / S::F32_LANES {
            // Two panels side by side, two registers of each.
            2 => self.panels::<S, 2, 2>(simd),
            // Sixteen registers, half a panel at a time.
            4 => self.panels::<S, 2, 1>(simd),
            // Thirty-two registers of four numbers, half a panel likewise.
            8 if S::REGISTER_COUNT >= 32 => self.panels::<S, 4, 1>(simd),
            8 => self.panels::<S, 2, 1>(simd),
            _ => self.panels::<S, 32, 1>(simd),
        }
    }
}

impl Product<'_> {
    /// Tiles of `V` registers of each of `P` panels; a panel that is left over is worked off alone.
    #[inline(always)]
    fn panels<S: Simd, const V: usize, const P: usize>(mut self, simd: S) {
        let Range { start, end } = self.part.panels;
        let together = start + (end - start) / P * P;
        self.some::<S, V, P>(simd, start..together);
        self.some::<S, V, 1>(simd, together..end);
    }

    #[inline(always)]
    fn some<S: Simd, const V: usize, const P: usize>(&mut self, simd: S, panels: Range<usize>) {
        let Linear {
            input,
            input_stride,
            rows,
            weights,
            output,
            output_stride,
            after,
        } = &mut self.linear;
        let (rows, input_stride, output_stride) = (*rows, *input_stride, *output_stride);
        let Part {
            panels: Range { start: begin, .. },
            depth: Range { start, end },
        } = self.part;
        assert!(start < end, "a product has some depth");
        let depth = weights.depth;
        let blocks = rows.div_ceil(TILE_ROWS);
        let pieces = (end - start).div_ceil(PART / (P * V * S::F32_LANES));
        let step = (end - start).div_ceil(pieces);
        for panel in panels.step_by(P) {
            for first in (start..end).step_by(step) {
                let length = step.min(end - first);
                let now = &weights.rows[panel * depth + first..];
                let last = first + step >= depth;
                for part in (0..PANEL / S::F32_LANES).step_by(V) {
                    let column = panel * PANEL + part * S::F32_LANES;
                    if column >= weights.width {
                        break;
                    }
                    let columns = if P == 1 { V * S::F32_LANES } else { PANEL * P };
                    let width = columns.min(weights.width - column);
                    let column = column - begin * PANEL;
                    let mut row = 0;
                    for block in 0..blocks {
                        // Rows are dealt evenly, so that no tile is left with a single one.
                        let count = (rows - row).div_ceil(blocks - block);
                        // The weights of a model do not fit into the cache of one core: while this piece is used,
                        // the next one comes, a share of it with each tile. The first part brings it for all.
                        if part == 0 {
                            for p in 0..P {
                                let at = if first + step < end {
                                    (panel + p) * depth + first + step
                                } else {
                                    (panel + P + p) * depth + start
                                };
                                let later = weights.rows.get(at..).unwrap_or_default();
                                let later = &later[..step.min(later.len())];
                                prefetch(
                                    &later[later.len() * block / blocks..later.len() * (block + 1) / blocks],
                                );
                            }
                        }
                        let a = &input[row * input_stride + first - start..];
                        let c = &mut output[row * output_stride + column..];
                        let bias = (first == 0).then_some(&weights.bias[panel..panel + P]);
                        macro_rules! tiles {
                            ($($n:literal),*) => {
                                match count {
                                    $($n => tile::<S, $n, V, P>(simd, a, input_stride, now, length, depth, part, bias, c, output_stride, width),)*
                                    _ => unreachable!("tiles have one to {TILE_ROWS} rows"),
                                }
                            };
                        }
                        tiles!(1, 2, 3, 4, 5, 6);
                        if last && *after == After::Gelu {
                            for i in 0..count {
                                crate::engine::math::gelu(simd, &mut c[i * output_stride..][..width]);
                            }
                        }
                        row += count;
                    }
                }
            }
        }
    }
}

/// One tile of the product, `M` rows by the `V` registers of each panel's rows from `at` on, added to `bias` or to
/// what is there.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel: all of it is needed, nothing of it is kept"
)]
#[expect(
    clippy::needless_range_loop,
    reason = "indices of four arrays, of which one is read without a check"
)]
fn tile<S: Simd, const M: usize, const V: usize, const P: usize>(
    simd: S,
    a: &[f32],
    a_stride: usize,
    panels: &[Row],
    length: usize,
    apart: usize,
    at: usize,
    bias: Option<&[Row]>,
    c: &mut [f32],
    c_stride: usize,
    width: usize,
) {
    let columns = V * P * S::F32_LANES;
    let mut sums = [[[simd.splat_f32s(0.0); V]; P]; M];
    if let Some(bias) = bias {
        for sum in &mut sums {
            for p in 0..P {
                sum[p].copy_from_slice(&S::as_simd_f32s(&bias[p].0).0[at..at + V]);
            }
        }
    } else {
        for (i, sum) in sums.iter_mut().enumerate() {
            let out = &c[i * c_stride..][..width];
            if width == columns {
                let all = S::as_simd_f32s(out).0;
                for p in 0..P {
                    sum[p].copy_from_slice(&all[p * V..p * V + V]);
                }
            } else {
                let mut row = [ZERO; P];
                for (o, p) in out.chunks(PANEL).zip(&mut row) {
                    p.0[..o.len()].copy_from_slice(o);
                }
                for p in 0..P {
                    sum[p].copy_from_slice(&S::as_simd_f32s(&row[p].0).0[..V]);
                }
            }
        }
    }
    // The largest index formed below is (M - 1) * a_stride + length - 1. That there is a first turn lets the compiler keep
    // the sums in their registers: without that they wander from one to another in each.
    assert!(
        length > 0 && a.len() >= (M - 1) * a_stride + length,
        "activations end before the tile does"
    );
    assert!((at + V) * S::F32_LANES <= PANEL, "a panel has no such part");
    assert!(
        panels.len() >= (P - 1) * apart + length,
        "the panels end before the tile does"
    );
    // Opaque, so that they stay in registers: worked out anew for each row of a panel they take the products' ports.
    let starts: [usize; M] = black_box(std::array::from_fn(|i| i * a_stride));
    for (k, row) in panels[..length].iter().enumerate() {
        let mut weights = [[simd.splat_f32s(0.0); V]; P];
        for p in 0..P {
            // SAFETY: k < length and so within the bound asserted above; at + V lies within a row.
            unsafe {
                let row = if p == 0 {
                    row
                } else {
                    panels.get_unchecked(p * apart + k)
                };
                let b = S::as_simd_f32s(&row.0).0;
                for j in 0..V {
                    weights[p][j] = *b.get_unchecked(at + j);
                }
            }
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: i < M and k < length, so the index lies within the bound asserted above.
            let x = simd.splat_f32s(unsafe { *a.get_unchecked(starts[i] + k) });
            for p in 0..P {
                for j in 0..V {
                    sum[p][j] = mul_add(simd, x, weights[p][j], sum[p][j]);
                }
            }
        }
    }
    for (i, sum) in sums.iter().enumerate() {
        let out = &mut c[i * c_stride..][..width];
        if width == columns {
            let all = S::as_mut_simd_f32s(out).0;
            for p in 0..P {
                all[p * V..p * V + V].copy_from_slice(&sum[p]);
            }
        } else {
            let mut row = [ZERO; P];
            for p in 0..P {
                S::as_mut_simd_f32s(&mut row[p].0).0[..V].copy_from_slice(&sum[p]);
            }
            for (o, p) in out.chunks_mut(PANEL).zip(&row) {
                o.copy_from_slice(&p.0[..o.len()]);
            }
        }
    }
}
