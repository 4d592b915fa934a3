//! The feed-forward half of a layer: up, an activation, and down again; plain or gated.

use super::matrix::Matrix;
use crate::engine::kernel::Arch;
use crate::engine::kernel::{After, PART_COLUMNS};
use crate::engine::math;
use pulp::{Simd, WithSimd};

/// 128 rows of 1536 numbers are 768 KiB.
const BLOCK_ROWS: usize = 128;
/// Where the numbers in between are computed and used a part of the columns at a time: the weights, which do not
/// fit into that cache, so pass through it once for so many rows.
const NARROW_ROWS: usize = 512;
/// Likewise in 32 bits.
const PART_ROWS: usize = 256;

/// What is done to the wide rows. All of them are 0 at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact GELU, `x·Φ(x)`.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// `x·sigmoid(x)`, also called swish.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The names that transformers uses for these.
    pub const NAMES: &str = "gelu, gelu_new, gelu_pytorch_tanh, silu, relu";

    /// By the name in a configuration.
    pub fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" => Activation::Silu,
            "relu" => Activation::Relu,
            _ => return None,
        })
    }
}

/// The two products and what lies between them.
#[derive(Debug)]
pub struct FeedForward {
    /// In a gated layer the numbers that are activated come first, then those they are multiplied with.
    pub up: Matrix,
    /// See `up`.
    pub gated: bool,
    /// What is done between the products.
    pub activation: Activation,
    /// Back to the width of a row.
    pub down: Matrix,
}

impl FeedForward {
    /// Numbers of a wide row.
    pub fn width(&self) -> usize {
        self.up.width()
    }

    /// `output = down(activation(up(input)))`; `wide` has room for [`FeedForward::width`] numbers for each row.
    pub fn run(&self, arch: Arch, input: &[f32], wide: &mut [f32], output: &mut [f32]) {
        if self.fused() {
            return self.up.product_pair(arch, input, wide, &self.down, output);
        }
        self.up
            .product(arch, input, self.up.depth(), wide, self.after_up());
        self.activate(arch, wide);
        self.down
            .product(arch, wide, self.width(), output, After::Nothing);
    }

    /// Rows that go through at once, so that what lies between the two products stays in the second-level cache.
    pub fn block_rows(&self) -> usize {
        if self.stays_narrow() {
            NARROW_ROWS
        } else if self.goes_in_parts() {
            PART_ROWS
        } else {
            BLOCK_ROWS
        }
    }

    /// Numbers of a wide row that [`FeedForward::run`] needs room for.
    pub fn scratch_width(&self) -> usize {
        if self.stays_narrow() {
            0
        } else if self.goes_in_parts() {
            self.width().min(PART_COLUMNS)
        } else {
            self.width()
        }
    }

    fn goes_in_parts(&self) -> bool {
        self.fused() && self.up.kernel().goes_in_parts() && self.down.kernel().goes_in_parts()
    }

    fn stays_narrow(&self) -> bool {
        self.fused() && self.down.kernel().stays_narrow()
    }

    /// Whether the first product does all that lies between the two.
    fn fused(&self) -> bool {
        !self.gated && self.activation == Activation::Gelu
    }

    /// What the first product does to its own columns.
    pub fn after_up(&self) -> After {
        if self.fused() { After::Gelu } else { After::Nothing }
    }

    /// What the first product leaves to be done between the two.
    pub fn activate(&self, arch: Arch, wide: &mut [f32]) {
        if !self.fused() {
            arch.dispatch(Between {
                rows: wide,
                width: self.width(),
                gated: self.gated,
                activation: self.activation,
            });
        }
    }
}

/// Activates rows in place. Of a gated row the first half is activated and multiplied with the second.
struct Between<'a> {
    rows: &'a mut [f32],
    width: usize,
    gated: bool,
    activation: Activation,
}

impl WithSimd for Between<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Between {
            rows,
            width,
            gated,
            activation,
        } = self;
        for row in rows.chunks_exact_mut(width) {
            let (row, factors) = row.split_at_mut(if gated { width / 2 } else { width });
            // One match a row, so that the loops inside know what they do.
            match activation {
                Activation::Gelu => math::gelu(simd, row),
                Activation::GeluTanh => math::gelu_tanh(simd, row),
                Activation::Silu => math::silu(simd, row),
                Activation::Relu => math::relu(simd, row),
            }
            let (head, tail) = S::as_mut_simd_f32s(row);
            let (factors, factors_tail) = S::as_simd_f32s(factors);
            for (value, factor) in head.iter_mut().zip(factors) {
                *value = simd.mul_f32s(*value, *factor);
            }
            for (value, factor) in tail.iter_mut().zip(factors_tail) {
                *value *= factor;
            }
        }
    }
}
