//! The matrix product: weights packed in panels, activations in rows, one thread.
//!
//! A panel holds [`PANEL`] columns of the weights for all rows of the input: the inner loop reads it as one
//! stream and keeps a tile of the result in registers. Panels are made once, at load.
//!
//! This file is the only one with `unsafe` in it. There are three uses. [`Floats`] views whole aligned rows
//! as plain numbers, which `repr(C)` allows. [`tile`] reads activations without a bounds check, after one
//! assertion that covers every index it can form. [`prefetch`] asks for memory that is read later.

use pulp::{Arch, Simd, WithSimd};

/// Columns of a panel: two registers of AVX-512, four of AVX2, eight of NEON.
pub const PANEL: usize = 32;

/// Rows of the largest tile. Twelve rows of two registers leave room for the panel's row and one broadcast
/// among the 32 registers of AVX-512, and for the row addresses among the 15 general ones.
const TILE_ROWS: usize = 12;

/// Depth that is worked off at once: a panel of 384 rows is 48 KiB, what a first-level cache holds.
const DEPTH: usize = 384;

/// One row of a panel, on a cache-line boundary.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Row(pub [f32; PANEL]);

const ZERO: Row = Row([0.0; PANEL]);

/// A reusable buffer of numbers that starts on a cache line. It grows and never shrinks.
#[derive(Debug, Default)]
pub struct Floats(Vec<Row>);

impl Floats {
    /// At least `len` numbers; what they hold is left over from earlier use.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let rows = len.div_ceil(PANEL);
        if self.0.len() < rows {
            self.0.resize(rows, ZERO);
        }
        // SAFETY: `Row` is `repr(C)` around an array of `PANEL` numbers whose size is a multiple of its
        // alignment, so rows lie without gaps; the slice covers whole initialised rows and borrows `self`.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), self.0.len() * PANEL)
        };
        &mut all[..len]
    }
}

/// A matrix of `depth` rows and `width` columns cut into panels, and what is added to each row of a product.
#[derive(Debug, Default)]
pub struct Panels {
    depth: usize,
    width: usize,
    rows: Vec<Row>,
    bias: Vec<Row>,
}

impl Panels {
    /// A matrix of zeros with a bias of zeros.
    pub fn zeros(depth: usize, width: usize) -> Panels {
        let mut panels = Panels::default();
        panels.reset(depth, width);
        panels
    }

    /// Takes another shape, keeping the memory. Columns beyond `width` are zero; the others are to be set.
    pub fn reset(&mut self, depth: usize, width: usize) {
        let count = width.div_ceil(PANEL);
        (self.depth, self.width) = (depth, width);
        self.rows.resize(count * depth, ZERO);
        self.bias.resize(count, ZERO);
        if !width.is_multiple_of(PANEL) {
            self.rows[(count - 1) * depth..].fill(ZERO);
        }
    }

    /// Columns of the matrix, which are those of a product with it.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows of the matrix, which are the columns of what is multiplied with it.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Sets column `column` from `values`, one for each row, each times `scale`.
    pub fn set_column(&mut self, column: usize, values: impl Iterator<Item = f32>, scale: f32) {
        assert!(column < self.width, "column {column} of {}", self.width);
        let (panel, lane) = (column / PANEL, column % PANEL);
        let rows = &mut self.rows[panel * self.depth..][..self.depth];
        for (row, value) in rows.iter_mut().zip(values) {
            row.0[lane] = value * scale;
        }
    }

    /// Sets row `row` from `values`, one for each column.
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        assert!(
            row < self.depth && values.len() == self.width,
            "row {row} of {}",
            self.depth
        );
        for (panel, part) in values.chunks(PANEL).enumerate() {
            self.rows[panel * self.depth + row].0[..part.len()].copy_from_slice(part);
        }
    }

    /// Sets what is added to column `column` of every product.
    pub fn set_bias(&mut self, column: usize, value: f32) {
        self.bias[column / PANEL].0[column % PANEL] = value;
    }
}

/// What is done to a product before it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The exact GELU, `x·Φ(x)`.
    Gelu,
}

/// `output[i] = after(bias + input[i] × weights)` for `rows` rows. Row `i` of the input begins at
/// `i × input_stride`, that of the output at `i × output_stride`; both in numbers.
pub struct Linear<'a> {
    /// Activations, `weights.depth()` to a row.
    pub input: &'a [f32],
    /// From one row of the input to the next.
    pub input_stride: usize,
    /// Rows to compute.
    pub rows: usize,
    /// The matrix and its bias.
    pub weights: &'a Panels,
    /// Where the product goes, `weights.width()` to a row.
    pub output: &'a mut [f32],
    /// From one row of the output to the next.
    pub output_stride: usize,
    /// What is done to it.
    pub after: After,
}

impl Linear<'_> {
    /// Computes on the calling thread with the best instructions that `arch` knows.
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Linear<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match PANEL / S::F32_LANES {
            2 => self.panels::<S, 2>(simd, TILE_ROWS),
            // Sixteen registers: three rows of four, and the panel's row from memory.
            4 => self.panels::<S, 4>(simd, 3),
            // Thirty-two registers of four numbers.
            8 if S::REGISTER_COUNT >= 32 => self.panels::<S, 8>(simd, 3),
            8 => self.panels::<S, 8>(simd, 1),
            _ => self.panels::<S, 32>(simd, 1),
        }
    }
}

impl Linear<'_> {
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
        for (index, bias) in weights.bias.iter().enumerate() {
            let column = index * PANEL;
            let begin = index * weights.depth;
            let width = PANEL.min(weights.width - column);
            for first in (0..weights.depth.max(1)).step_by(DEPTH) {
                let (now, later) = weights.rows[begin + first..].split_at(DEPTH.min(weights.depth - first));
                let later = &later[..DEPTH.min(later.len())];
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
                                $($n if $n <= tile_rows => tile::<S, $n, V>(simd, a, input_stride, now, bias, c, output_stride, width),)*
                                _ => unreachable!("tiles have one to {tile_rows} rows"),
                            }
                        };
                    }
                    tiles!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
                    if last && after == After::Gelu {
                        for i in 0..count {
                            super::math::gelu(simd, &mut c[i * output_stride..][..width]);
                        }
                    }
                    row += count;
                }
            }
        }
    }
}

/// Asks for these rows to be brought into the second-level cache.
#[inline(always)]
fn prefetch(rows: &[Row]) {
    #[cfg(target_arch = "x86_64")]
    for line in rows
        .iter()
        .flat_map(|row| [&raw const row.0[0], &raw const row.0[PANEL / 2]])
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, and the address is that of a live row.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = rows;
}

/// One tile of the product, `M` rows by one panel, added to `bias` or to what is there.
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
    bias: Option<&Row>,
    c: &mut [f32],
    c_stride: usize,
    width: usize,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    if let Some(bias) = bias {
        let bias = S::as_simd_f32s(&bias.0).0;
        for sum in &mut sums {
            sum.copy_from_slice(&bias[..V]);
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
    for (k, row) in panel.iter().enumerate() {
        let b = S::as_simd_f32s(&row.0).0;
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: i < M and k < panel.len(), so the index lies within the bound asserted above, and the
            // product cannot have wrapped, since the slice is longer than it.
            let x = simd.splat_f32s(unsafe { *a.get_unchecked(i * a_stride + k) });
            for j in 0..V {
                sum[j] = simd.mul_add_f32s(x, b[j], sum[j]);
            }
        }
    }
    for (i, sum) in sums.iter().enumerate() {
        let out = &mut c[i * c_stride..][..width];
        if width == PANEL {
            S::as_mut_simd_f32s(out).0[..V].copy_from_slice(sum);
        } else {
            let mut row = ZERO;
            S::as_mut_simd_f32s(&mut row.0).0[..V].copy_from_slice(sum);
            out.copy_from_slice(&row.0[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set that this machine has, and plain numbers.
    fn each(mut f: impl FnMut(&str, &dyn Fn(Linear<'_>))) {
        f("scalar", &|op| op.with_simd(pulp::Scalar));
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            f("AVX2", &|op| Simd::vectorize(simd, op));
        }
        f("best", &|op| op.run(Arch::new()));
    }

    // Goal: any shape is right on any instruction set. Method: shapes around the sizes of tiles, panels and
    // depths, against sums in 64 bits.
    #[test]
    fn products_are_right_at_every_edge() {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
        for (rows, depth, width) in [
            (1, 1, 1),
            (2, 3, 5),
            (11, 32, 32),
            (12, 33, 31),
            (13, 16, 33),
            (25, 64, 96),
            (37, 513, 65),
            (3, 1030, 40),
        ] {
            let (input_stride, output_stride) = (depth + 3, width + 2);
            let input: Vec<f32> = (0..rows * input_stride).map(number).collect();
            let mut weights = Panels::zeros(depth, width);
            for column in 0..width {
                weights.set_column(column, (0..depth).map(|k| number(k * width + column + 5)), 0.5);
                weights.set_bias(column, number(column));
            }
            each(|name, run| {
                for after in [After::Nothing, After::Gelu] {
                    let mut output = vec![7.0; rows * output_stride];
                    run(Linear {
                        input: &input,
                        input_stride,
                        rows,
                        weights: &weights,
                        output: &mut output,
                        output_stride,
                        after,
                    });
                    for (i, row) in output.chunks(output_stride).enumerate() {
                        for (j, got) in row.iter().enumerate() {
                            let mut want = 7.0;
                            if j < width {
                                want = f64::from(number(j));
                                for k in 0..depth {
                                    let (a, b) = (input[i * input_stride + k], number(k * width + j + 5));
                                    want += f64::from(a) * f64::from(b) * 0.5;
                                }
                                if after == After::Gelu {
                                    want = want / 2.0 * (1.0 + crate::engine::math::erf_exact(want));
                                }
                            }
                            let near = 1e-5 * (1.0 + want.abs()) * (depth as f64).sqrt();
                            assert!(
                                (f64::from(*got) - want).abs() < near,
                                "{name} {rows}x{depth}x{width} {after:?}"
                            );
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn rows_and_columns_set_the_same_places() {
        let mut by_row = Panels::zeros(3, 40);
        let mut by_column = Panels::zeros(3, 40);
        for row in 0..3 {
            by_row.set_row(
                row,
                &(0..40)
                    .map(|column| (row * 40 + column) as f32)
                    .collect::<Vec<_>>(),
            );
        }
        for column in 0..40 {
            by_column.set_column(column, (0..3).map(|row| (row * 40 + column) as f32), 1.0);
        }
        for (a, b) in by_row.rows.iter().zip(&by_column.rows) {
            assert_eq!(a.0, b.0);
        }
    }
}
