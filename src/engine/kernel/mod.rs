//! The matrix product, one thread: rows of 32-bit numbers in, rows of 32-bit numbers out, and between them what
//! the processor is best at.
//!
//! | file | what |
//! |---|---|
//! | `choice` | which kernels this machine and a precision lead to |
//! | `buffer` | memory on cache lines |
//! | `panels` | weights, packed once at load |
//! | `float` | products in 32 bits, on any machine |
//! | `fused` | their innermost loop on AVX2 and AVX-512 |
//! | `narrow` | activations as pairs of bf16 or as bytes |
//! | `product` | products of those, and what is done to them at once |
//! | `tiles`, `dots` | what adds up: AMX, or AVX-512 with dot products |
//! | `heads` | attention in tiles |
//!
//! Files of this folder and of `gpu/cuda` are the only ones with `unsafe` in them. Here it has three reasons: instructions that the
//! compiler has no safe words for and that a machine may lack (behind one check, in `choice`), memory that
//! kernels walk by address (behind assertions that cover every address they form), and numbers that are seen
//! as bytes.

mod arch;
mod buffer;
mod choice;
#[cfg(target_arch = "x86_64")]
mod dots;
mod float;
#[cfg(target_arch = "x86_64")]
mod fused;
#[cfg(target_arch = "x86_64")]
mod heads;
#[cfg(target_arch = "x86_64")]
mod narrow;
mod panels;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use arch::{Arch, mul_add};
pub use buffer::{Floats, PANEL, Row};
use buffer::{STRIP, Strip, ZERO, prefetch, strips, strips_mut};
pub use choice::{Kernel, arch};
pub use panels::{GROUP, Panels};

use std::ops::Range;

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

/// Hands out panels of the weights, a few at a time, until none are left.
pub type Next<'a> = &'a mut dyn FnMut() -> Option<Range<usize>>;

impl Linear<'_> {
    /// Computes on the calling thread with the kernels that the weights were packed for.
    pub fn run(self, arch: Arch) {
        let mut all = Some(0..self.weights.panels());
        self.run_panels(arch, &mut || all.take());
    }

    /// As [`Linear::run`], only the columns of those panels that `next` hands out; no other number of the output is touched.
    /// A column is the same to the bit whichever panels are computed with it.
    pub fn run_panels(self, arch: Arch, next: Next<'_>) {
        match self.weights.kernel() {
            Kernel::Floats => float::some(self, arch, next),
            Kernel::Rounded(rounding) => choice::rounded(self, rounding, arch, next),
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(..) => choice::narrow(self, next),
        }
    }
}

/// Columns of `up` that [`feed_forward`] computes and uses at a time in 32 bits. So the weights pass once for all rows, and
/// what lies between the products stays in the second-level cache: 192 KiB for 256 rows.
pub const PART_COLUMNS: usize = 6 * PANEL;

/// `output = down(gelu(up(input)))` for rows that lie side by side. `wide` has room for `up`'s rows, or for
/// [`PART_COLUMNS`] of each in 32 bits; it is not used where the numbers between the two products stay narrow.
pub fn feed_forward(
    arch: Arch,
    input: &[f32],
    up: &Panels,
    wide: &mut [f32],
    down: &Panels,
    output: &mut [f32],
) {
    let rows = input.len() / up.depth();
    #[cfg(target_arch = "x86_64")]
    if choice::narrow_pair(input, rows, up, down, output) {
        return;
    }
    if up.kernel().goes_in_parts() && down.kernel().goes_in_parts() {
        return parts(arch, input, up, wide, down, output);
    }
    let wide = &mut wide[..rows * up.width()];
    let linear = |input: &[f32], weights: &Panels, output: &mut [f32], after| {
        Linear {
            input,
            input_stride: weights.depth(),
            rows,
            weights,
            output,
            output_stride: weights.width(),
            after,
        }
        .run(arch);
    };
    linear(input, up, wide, After::Gelu);
    linear(wide, down, output, After::Nothing);
}

/// As [`feed_forward`] in 32 bits, some columns of `up` at a time.
fn parts(arch: Arch, input: &[f32], up: &Panels, wide: &mut [f32], down: &Panels, output: &mut [f32]) {
    let rows = input.len() / up.depth();
    for first in (0..up.width()).step_by(PART_COLUMNS) {
        let end = up.width().min(first + PART_COLUMNS);
        let columns = end - first;
        let wide = &mut wide[..rows * columns];
        arch.dispatch(float::Product {
            linear: Linear {
                input,
                input_stride: up.depth(),
                rows,
                weights: up,
                output: wide,
                output_stride: columns,
                after: After::Gelu,
            },
            part: float::Part {
                panels: first / PANEL..end.div_ceil(PANEL),
                depth: 0..up.depth(),
            },
        });
        arch.dispatch(float::Product {
            linear: Linear {
                input: wide,
                input_stride: columns,
                rows,
                weights: down,
                output,
                output_stride: down.width(),
                after: After::Nothing,
            },
            part: float::Part {
                panels: 0..down.panels(),
                depth: first..end,
            },
        });
    }
}

/// Attention of one sequence, each token seeing all: `rows` holds the heads of queries, of keys and of values,
/// each of `width` numbers, the queries scaled. Of the heads of keys only those of `chosen`, and the heads of queries that
/// they serve. False, and nothing done, where `kernel` has no such attention.
pub fn attend(
    kernel: Kernel,
    queries: usize,
    keys: usize,
    width: usize,
    chosen: Range<usize>,
    rows: &[f32],
    output: &mut [f32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    return choice::attend(
        kernel,
        heads::Shares { queries, keys, width },
        chosen,
        rows,
        output,
    );
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Billions of operations a second that this core's tiles do on bf16 that lies in the first-level cache; a
/// measurement for the benchmark.
#[allow(
    dead_code,
    reason = "benches/kernels.rs builds these sources, too, and calls it"
)]
#[cfg(target_arch = "x86_64")]
pub fn peak_of_tiles() -> Option<f64> {
    choice::peak_of_tiles()
}
