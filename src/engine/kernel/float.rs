//! The matrix product in 32 bits: weights packed in strips, activations in rows, one thread.
//!
//! A strip holds [`STRIP`] columns of the weights for all rows of the input: the inner loop reads one of them, or up to four
//! side by side, as streams and keeps a tile of the result in registers.
//!
//! Unsafe is one thing here: a [`Tile`] reads activations and weights without a bounds check, and on AVX2 and AVX-512 writes
//! the sums, after assertions that cover every index it can form.

#[cfg(target_arch = "x86_64")]
use super::fused;
use super::{After, Arch, Linear, Next, PANEL, STRIP, Strip, ZERO, mul_add, prefetch, strips};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
#[cfg(target_arch = "x86_64")]
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of the largest tile. Six rows of four registers leave room for the strips' row and one broadcast among the 32
/// registers of AVX-512 and NEON, six of two among the 16 of AVX2; and where each row begins stays in a general register.
const TILE_ROWS: usize = 6;

/// Rows of a strip that a tile goes through at once: 24 KiB, which stay in the first-level cache beside the activations.
const PART: usize = 384;

/// The panels that `next` hands out, on the whole depth.
pub fn some(linear: Linear<'_>, arch: Arch, next: Next<'_>) {
    while let Some(panels) = next() {
        let depth = 0..linear.weights.depth;
        let output = &mut linear.output[panels.start * PANEL..];
        arch.dispatch(Product {
            linear: Linear { output, ..linear },
            part: Part { panels, depth },
        });
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
        match S::F32_LANES {
            // A register holds the row of a strip: four strips side by side.
            STRIP => self.strips::<S, 1, 4>(simd),
            8 => self.strips::<S, 2, 1>(simd),
            4 if S::REGISTER_COUNT >= 32 => self.strips::<S, 4, 1>(simd),
            // Sixteen registers of four numbers: half a strip at a time.
            4 => self.strips::<S, 2, 1>(simd),
            _ => self.strips::<S, STRIP, 1>(simd),
        }
    }
}

impl Product<'_> {
    /// Tiles of `V` registers of a strip, or of `P` strips; strips that are left over go by two and by one.
    #[inline(always)]
    fn strips<S: Simd, const V: usize, const P: usize>(mut self, simd: S) {
        const EACH: usize = PANEL / STRIP;
        let Range { start, end } = self.part.panels;
        let end = (end * EACH).min(self.linear.weights.width.div_ceil(STRIP));
        let (mut first, mut by) = (start * EACH, P);
        while first < end {
            let next = first + (end.saturating_sub(first)) / by * by;
            match by {
                4 => self.some::<S, V, 4>(simd, first..next),
                2 => self.some::<S, V, 2>(simd, first..next),
                _ => self.some::<S, V, 1>(simd, first..next),
            }
            (first, by) = (next, by / 2);
        }
    }

    #[inline(always)]
    fn some<S: Simd, const V: usize, const P: usize>(&mut self, simd: S, chosen: Range<usize>) {
        let Linear {
            input,
            input_stride,
            rows,
            weights,
            output,
            output_stride,
            after,
        } = &mut self.linear;
        let (rows, a_stride, c_stride) = (*rows, *input_stride, *output_stride);
        let Part {
            panels: Range { start: begin, .. },
            depth: Range { start, end },
        } = self.part;
        assert!(start < end, "a product has some depth");
        let (all, biases) = (strips(&weights.rows), strips(&weights.bias));
        let depth = weights.depth;
        let blocks = rows.div_ceil(TILE_ROWS);
        let step = (end - start).div_ceil((end - start).div_ceil(PART));
        for strip in chosen.step_by(P) {
            for first in (start..end).step_by(step) {
                let length = step.min(end - first);
                let last = first + step >= depth;
                for at in (0..STRIP / S::F32_LANES).step_by(V) {
                    let column = strip * STRIP + at * S::F32_LANES;
                    if column >= weights.width {
                        break;
                    }
                    let width = (P * V * S::F32_LANES).min(weights.width - column);
                    let column = column - begin * PANEL;
                    let mut row = 0;
                    for block in 0..blocks {
                        // Rows are dealt evenly, so that no tile is left with a single one.
                        let count = (rows - row).div_ceil(blocks - block);
                        // The weights of a model do not fit into the cache of one core: while this piece is used,
                        // the next one comes, a share of it with each tile. The first part brings it for all. Tiles of
                        // four strips bring two of them, the first tile one half and the second the other.
                        let next = if first + step < end {
                            strip * depth + first + step
                        } else {
                            (strip + P) * depth + start
                        };
                        let woven = if P < 4 { 0 } else { 2 * blocks.min(2) };
                        let here = &all[strip * depth + first..];
                        let later = if 2 * block < woven {
                            all.get(next + 2 * block * depth..)
                        } else {
                            None
                        };
                        if at == 0 {
                            for p in woven..P {
                                let later = all.get(next + p * depth..).unwrap_or_default();
                                let later = &later[..step.min(later.len())];
                                prefetch(
                                    &later[later.len() * block / blocks..later.len() * (block + 1) / blocks],
                                );
                            }
                        }
                        let c = &mut output[row * c_stride + column..];
                        Tile {
                            a: &input[row * a_stride + first - start..],
                            a_stride,
                            strips: here,
                            later: later.unwrap_or(here),
                            apart: depth,
                            length,
                            at,
                            bias: (first == 0).then_some(&biases[strip..strip + P]),
                            c: &mut *c,
                            c_stride,
                            width,
                        }
                        .run::<S, V, P>(simd, count);
                        if last && *after == After::Gelu {
                            for i in 0..count {
                                crate::engine::math::gelu(simd, &mut c[i * c_stride..][..width]);
                            }
                        }
                        row += count;
                    }
                }
            }
        }
    }
}

/// One tile of the product.
struct Tile<'a> {
    a: &'a [f32],
    a_stride: usize,
    /// From the first row that is used of the first strip on.
    strips: &'a [Strip],
    /// Likewise of the first of two strips that are used later; see [`fused::Tile::later`].
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only AVX-512 takes several strips at once")
    )]
    later: &'a [Strip],
    /// Rows from one strip to the next.
    apart: usize,
    length: usize,
    /// The first register of the strip that is used.
    at: usize,
    /// What the product is added to: this, one for each strip, or else what is there.
    bias: Option<&'a [Strip]>,
    c: &'a mut [f32],
    c_stride: usize,
    /// Columns that there are; the tile may be wider.
    width: usize,
}

impl Tile<'_> {
    /// `count` rows by `V` registers of each of `P` strips.
    #[inline(always)]
    fn run<S: Simd, const V: usize, const P: usize>(self, simd: S, count: usize) {
        #[cfg(target_arch = "x86_64")]
        if S::F32_LANES >= 8 {
            return self.fused::<S, P>(count);
        }
        assert!(P == 1, "only AVX-512 takes several strips at once");
        macro_rules! rows {
            ($($n:literal),*) => {
                match count {
                    $($n => self.sums::<S, $n, V>(simd),)*
                    _ => unreachable!("tiles have one to {TILE_ROWS} rows"),
                }
            };
        }
        rows!(1, 2, 3, 4, 5, 6);
    }

    /// By the loop that is written in assembly. Where the tile is wider than the output it leaves its sums beside, and what
    /// there are columns for is copied.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn fused<S: Simd, const P: usize>(self, count: usize) {
        let columns = P * STRIP;
        let (a, a_stride, length, width) = (self.a, self.a_stride, self.length, self.width);
        // What the loop reads and writes.
        assert!((1..=TILE_ROWS).contains(&count) && self.at == 0);
        assert!(
            a.len() >= (count - 1) * a_stride + length,
            "activations end before the tile does"
        );
        assert!(
            self.strips.len() >= (P - 1) * self.apart + length,
            "the strips end before the tile does"
        );
        assert!(self.bias.is_none_or(|bias| bias.len() >= P));
        assert!(width <= columns && self.c.len() >= (count - 1) * self.c_stride + width);
        // Not set to anything: few tiles need it.
        let mut beside = MaybeUninit::<[[Strip; P]; TILE_ROWS]>::uninit();
        let narrow = width < columns;
        let (to, to_stride) = if narrow {
            (beside.as_mut_ptr().cast::<f32>(), columns)
        } else {
            (self.c.as_mut_ptr(), self.c_stride)
        };
        if narrow && self.bias.is_none() {
            for (i, c) in self.c.chunks(self.c_stride).take(count).enumerate() {
                // SAFETY: `beside` has six rows of so many columns, and `count` is not more.
                unsafe {
                    let row = to.add(i * columns);
                    row.write_bytes(0, columns);
                    row.copy_from_nonoverlapping(c.as_ptr(), c[..width].len());
                }
            }
        }
        let (from, from_stride) = match self.bias {
            Some(bias) => (bias.as_ptr().cast::<f32>(), 0),
            None => (to.cast_const(), to_stride),
        };
        let tile = fused::Tile {
            a: a.as_ptr(),
            a_stride: a_stride * size_of::<f32>(),
            strips: self.strips.as_ptr(),
            apart: self.apart * size_of::<Strip>(),
            length,
            from,
            from_stride: from_stride * size_of::<f32>(),
            to,
            to_stride: to_stride * size_of::<f32>(),
            later: self.later.as_ptr(),
        };
        // SAFETY: on x86-64 vectors of 8 are those of AVX2 with FMA and vectors of 16 those of AVX-512, and a `Simd` exists
        // only where the machine has its instructions; the assertions above cover what a tile reads and writes.
        unsafe {
            if S::F32_LANES == STRIP {
                fused::avx512::<P>(count, &tile);
            } else {
                fused::avx2(count, &tile);
            }
        }
        if narrow {
            for (i, c) in self.c.chunks_mut(self.c_stride).take(count).enumerate() {
                // SAFETY: the tile has left its sums in as many rows of `beside`.
                let row = unsafe { std::slice::from_raw_parts(to.add(i * columns), columns) };
                c[..width].copy_from_slice(&row[..width]);
            }
        }
    }

    /// `M` rows by `V` registers of one strip.
    #[inline(always)]
    fn sums<S: Simd, const M: usize, const V: usize>(self, simd: S) {
        let Tile {
            a,
            a_stride,
            strips,
            length,
            at,
            c,
            c_stride,
            width,
            ..
        } = self;
        let columns = V * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        if let Some(bias) = self.bias {
            for sum in &mut sums {
                sum.copy_from_slice(&S::as_simd_f32s(&bias[0].0).0[at..at + V]);
            }
        } else {
            for (i, sum) in sums.iter_mut().enumerate() {
                let out = &c[i * c_stride..][..width];
                if width == columns {
                    sum.copy_from_slice(&S::as_simd_f32s(out).0[..V]);
                } else {
                    let mut row = ZERO;
                    row.0[..width].copy_from_slice(out);
                    sum.copy_from_slice(&S::as_simd_f32s(&row.0).0[..V]);
                }
            }
        }
        // The largest index formed below is (M - 1) * a_stride + length - 1. That there is a first turn lets the compiler
        // keep the sums in their registers: without that they wander from one to another in each.
        assert!(
            length > 0 && a.len() >= (M - 1) * a_stride + length,
            "activations end before the tile does"
        );
        assert!((at + V) * S::F32_LANES <= STRIP, "a strip has no such part");
        // Opaque, so that they stay in registers: worked out anew for each row of a strip they take the products' ports.
        let starts: [usize; M] = black_box(std::array::from_fn(|i| i * a_stride));
        for (k, row) in strips[..length].iter().enumerate() {
            let b = S::as_simd_f32s(&row.0).0;
            let mut weights = [simd.splat_f32s(0.0); V];
            for (j, weight) in weights.iter_mut().enumerate() {
                // SAFETY: at + V lies within a row, as asserted above.
                *weight = unsafe { *b.get_unchecked(at + j) };
            }
            for (sum, start) in sums.iter_mut().zip(&starts) {
                // SAFETY: there are M starts and k < length, so the index lies within the bound asserted above.
                let x = simd.splat_f32s(unsafe { *a.get_unchecked(start + k) });
                for j in 0..V {
                    sum[j] = mul_add(simd, x, weights[j], sum[j]);
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
}
