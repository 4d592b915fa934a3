//! The matrix product in 32 bits: weights packed in panels, activations in rows, one thread.
//!
//! A panel holds [`PANEL`] columns of the weights for all rows of the input: the inner loop reads it as one
//! stream and keeps a tile of the result in registers.
//!
//! Unsafe is one thing here: [`tile`] reads activations and weights without a bounds check, after assertions that
//! cover every index it can form.

use super::{After, Linear, PANEL, Row, ZERO, prefetch};
use pulp::{Simd, WithSimd};

/// Rows of the largest tile. Twelve rows of two registers leave room for the panel's row and one broadcast
/// among the 32 registers of AVX-512, and for the row addresses among the 15 general ones.
const TILE_ROWS: usize = 12;

/// Depth that is worked off at once: a panel of 384 rows is 48 KiB, what a first-level cache holds.
const DEPTH: usize = 384;

impl WithSimd for Linear<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match PANEL / S::F32_LANES {
            2 => self.panels::<S, 2>(simd, TILE_ROWS),
            // Sixteen registers, half a panel at a time: six rows of two, the panel's row and a broadcast.
            4 => self.panels::<S, 2>(simd, 6),
            // Thirty-two registers of four numbers, likewise: six rows of four.
            8 if S::REGISTER_COUNT >= 32 => self.panels::<S, 4>(simd, 6),
            8 => self.panels::<S, 2>(simd, 6),
            _ => self.panels::<S, 32>(simd, 1),
        }
    }
}

impl Linear<'_> {
    /// Tiles of up to `tile_rows` rows and `V` registers, which are a panel's width or a part of it.
    #[inline(always)]
    fn panels<S: Simd, const V: usize>(self, simd: S, tile_rows: usize) {
        let Linear {
            input,
            input_stride,
            rows,
            weights,
            output,
            output_stride,
            after,
        } = self;
        let blocks = rows.div_ceil(tile_rows);
        let columns = V * S::F32_LANES;
        for column in (0..weights.width).step_by(columns) {
            let (index, part) = (column / PANEL, column % PANEL / columns);
            let bias = &weights.bias[index];
            let begin = index * weights.depth;
            let width = columns.min(weights.width - column);
            for first in (0..weights.depth.max(1)).step_by(DEPTH) {
                let (now, later) = weights.rows[begin + first..].split_at(DEPTH.min(weights.depth - first));
                // The first part of a panel brings the next piece for all of them.
                let later = &later[..if part == 0 { DEPTH.min(later.len()) } else { 0 }];
                let last = first + DEPTH >= weights.depth;
                let mut row = 0;
                for block in 0..blocks {
                    // Rows are dealt evenly, so that no tile is left with a single one.
                    let count = (rows - row).div_ceil(blocks - block);
                    // The weights of a model do not fit into the cache of one core: while this piece is used,
                    // the next one comes, a share of it with each tile.
                    prefetch(&later[later.len() * block / blocks..later.len() * (block + 1) / blocks]);
                    let a = &input[row * input_stride + first..];
                    let c = &mut output[row * output_stride + column..];
                    let bias = (first == 0).then_some(bias);
                    macro_rules! tiles {
                        ($($n:literal),*) => {
                            match count {
                                $($n if $n <= tile_rows => tile::<S, $n, V>(simd, a, input_stride, now, part * V, bias, c, output_stride, width),)*
                                _ => unreachable!("tiles have one to {tile_rows} rows"),
                            }
                        };
                    }
                    tiles!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
                    if last && after == After::Gelu {
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

/// One tile of the product, `M` rows by the `V` registers of a panel's rows from `at` on, added to `bias` or to
/// what is there.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel: all of it is needed, nothing of it is kept"
)]
fn tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    a: &[f32],
    a_stride: usize,
    panel: &[Row],
    at: usize,
    bias: Option<&Row>,
    c: &mut [f32],
    c_stride: usize,
    width: usize,
) {
    let columns = V * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    if let Some(bias) = bias {
        let bias = S::as_simd_f32s(&bias.0).0;
        for sum in &mut sums {
            sum.copy_from_slice(&bias[at..at + V]);
        }
    } else {
        for (i, sum) in sums.iter_mut().enumerate() {
            let mut row = ZERO;
            row.0[..width].copy_from_slice(&c[i * c_stride..][..width]);
            sum.copy_from_slice(&S::as_simd_f32s(&row.0).0[..V]);
        }
    }
    // The largest index formed below is (M - 1) * a_stride + panel.len() - 1.
    assert!(
        a.len() >= (M - 1) * a_stride + panel.len(),
        "activations end before the tile does"
    );
    assert!((at + V) * S::F32_LANES <= PANEL, "a panel has no such part");
    for (k, row) in panel.iter().enumerate() {
        let b = S::as_simd_f32s(&row.0).0;
        let mut weights = [simd.splat_f32s(0.0); V];
        for (j, weight) in weights.iter_mut().enumerate() {
            // SAFETY: at + j is below at + V, which lies within a row as asserted above.
            *weight = unsafe { *b.get_unchecked(at + j) };
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: i < M and k < panel.len(), so the index lies within the bound asserted above, and the
            // product cannot have wrapped, since the slice is longer than it.
            let x = simd.splat_f32s(unsafe { *a.get_unchecked(i * a_stride + k) });
            for j in 0..V {
                sum[j] = simd.mul_add_f32s(x, weights[j], sum[j]);
            }
        }
    }
    for (i, sum) in sums.iter().enumerate() {
        let out = &mut c[i * c_stride..][..width];
        if width == columns {
            S::as_mut_simd_f32s(out).0[..V].copy_from_slice(sum);
        } else {
            let mut row = ZERO;
            S::as_mut_simd_f32s(&mut row.0).0[..V].copy_from_slice(sum);
            out.copy_from_slice(&row.0[..width]);
        }
    }
}
