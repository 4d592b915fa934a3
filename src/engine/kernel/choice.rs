//! Which kernels this machine and a precision lead to, and the way from rows of 32 bits through them.

use super::Arch;
use super::{After, Floats, GROUP, Linear, Next, PANEL, Panels, float};
use crate::engine::device::Precision;
use std::cell::RefCell;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::{
    dots,
    heads::{Heads, Shares},
    narrow::{Format, Narrow},
    product::{Out, Part, Unit, product},
    tiles::{self, Tiles},
};

/// How a matrix is kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernel {
    /// In 32 bits, by the vector instructions that the machine has.
    #[default]
    Floats,
    /// The same on numbers that were rounded first: what a narrow kernel computes, on a machine without one.
    Rounded(Rounding),
    /// By instructions for narrow numbers.
    #[cfg(target_arch = "x86_64")]
    Narrow(Format, By),
}

/// To what numbers are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Eight significant bits.
    Bf16,
    /// 256 steps for a [`GROUP`] of a row of activations, 255 for one of a column of weights.
    Int8,
}

/// Which instructions.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Tiles of AMX.
    Tiles,
    /// Vectors of AVX-512.
    Dots,
}

/// The best instructions that may be used. Below [`Best::Tiles`] only where a comparison asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Best {
    Portable,
    Avx2,
    Avx512,
    Tiles,
}

/// `EMBEDDINGS_CPU_MAX` makes the program believe that it runs on a lesser machine: `avx512` (no tiles),
/// `avx2` or `portable`. It serves comparisons and tests, and is read once.
fn best() -> Best {
    static BEST: OnceLock<Best> = OnceLock::new();
    *BEST.get_or_init(|| match std::env::var("EMBEDDINGS_CPU_MAX").as_deref() {
        Ok("portable") => Best::Portable,
        Ok("avx2") => Best::Avx2,
        Ok("avx512") => Best::Avx512,
        _ => Best::Tiles,
    })
}

/// The vector instructions for everything in 32 bits.
pub fn arch() -> Arch {
    match best() {
        Best::Portable => Arch::least(),
        #[cfg(target_arch = "x86_64")]
        Best::Avx2 => {
            pulp::x86::V3::try_new().map_or(Arch::least(), |simd| Arch::Usual(pulp::Arch::V3(simd)))
        }
        _ => Arch::new(),
    }
}

impl Kernel {
    /// The best kernel here for a precision.
    pub fn choose(precision: Precision) -> Kernel {
        #[cfg(target_arch = "x86_64")]
        {
            let format = match precision {
                Precision::F32 | Precision::F16 => Format::Split,
                Precision::Bf16 => Format::Pairs,
                Precision::Int8 => Format::Quads,
            };
            if best() >= Best::Tiles && dots::available() && tiles::available() {
                return Kernel::Narrow(format, By::Tiles);
            }
            if best() >= Best::Avx512 && dots::available() && format != Format::Split {
                return Kernel::Narrow(format, By::Dots);
            }
        }
        match precision {
            // The CPU is never asked for the numbers of 16 bits that only GPUs have; 32 hold what those hold.
            Precision::F32 | Precision::F16 => Kernel::Floats,
            Precision::Bf16 => Kernel::Rounded(Rounding::Bf16),
            Precision::Int8 => Kernel::Rounded(Rounding::Int8),
        }
    }

    /// For layers that must not lose more than bf16 does: attention's scores are exponents.
    pub fn careful(self) -> Kernel {
        match self {
            Kernel::Rounded(Rounding::Int8) => Kernel::Rounded(Rounding::Bf16),
            #[cfg(target_arch = "x86_64")]
            Kernel::Narrow(Format::Quads, by) => Kernel::Narrow(Format::Pairs, by),
            other => other,
        }
    }

    /// Whether what lies between the two products of a feed-forward part stays narrow: see
    /// [`super::feed_forward`].
    pub fn stays_narrow(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Kernel::Narrow(..));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether a feed-forward part is computed some columns at a time: see [`super::PART_COLUMNS`].
    pub fn goes_in_parts(self) -> bool {
        self == Kernel::Floats
    }

    /// Whether it gains speed over 32 bits, rather than only computing the same as on other machines.
    pub fn is_native(self) -> bool {
        !matches!(self, Kernel::Rounded(_))
    }
}

/// Panels of what lies between the two products of a feed-forward part that are computed at once: 384 numbers of
/// each row, which are whole groups of bytes. Weights so pass through the cache once for all rows, and what lies between never leaves it.
#[cfg(target_arch = "x86_64")]
const BETWEEN: usize = 12;

/// Buffers of the calling thread: an engine's thread computes one product after another.
#[derive(Default)]
struct Buffers {
    #[cfg(target_arch = "x86_64")]
    input: Narrow,
    #[cfg(target_arch = "x86_64")]
    wide: Narrow,
    #[cfg(target_arch = "x86_64")]
    heads: Heads,
    #[cfg(target_arch = "x86_64")]
    middle: Floats,
    sums: Floats,
    #[cfg(target_arch = "x86_64")]
    held: Floats,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Rounds the activations, then computes in 32 bits.
pub(super) fn rounded(linear: Linear<'_>, rounding: Rounding, arch: Arch, next: Next<'_>) {
    let depth = linear.weights.depth();
    BUFFERS.with_borrow_mut(|buffers| {
        let input = buffers.sums.take(linear.rows * depth);
        for (row, from) in input
            .chunks_exact_mut(depth.max(1))
            .zip(linear.input.chunks(linear.input_stride))
        {
            row.copy_from_slice(&from[..depth]);
            match rounding {
                Rounding::Bf16 => round_bf16(row),
                Rounding::Int8 => {
                    for (v, factor) in row.iter_mut().zip(linear.weights.factors()) {
                        *v *= factor;
                    }
                    for group in row.chunks_mut(GROUP) {
                        let (least, most) = group
                            .iter()
                            .fold((f32::INFINITY, f32::NEG_INFINITY), |(least, most), v| {
                                (least.min(*v), most.max(*v))
                            });
                        let step = (most - least) / 255.0;
                        if step > f32::MIN_POSITIVE {
                            for v in group {
                                *v = least + ((*v - least) / step).round_ties_even() * step;
                            }
                        }
                    }
                }
            }
        }
        let linear = Linear {
            input,
            input_stride: depth,
            ..linear
        };
        float::some(linear, arch, next);
    });
}

/// Rounds to bf16, the nearest, of two equally near ones the even.
pub(super) fn round_bf16(row: &mut [f32]) {
    for v in row.iter_mut().filter(|v| v.is_finite()) {
        let bits = v.to_bits();
        *v = f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    }
}

#[cfg(target_arch = "x86_64")]
fn unit(by: By) -> Unit {
    match (by, Tiles::begin()) {
        (By::Tiles, Some(tiles)) => Unit::Tiles(tiles),
        // Panels for tiles are made only where there are some; the layouts are the same.
        _ => Unit::Dots,
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn narrow(linear: Linear<'_>, next: Next<'_>) {
    let Kernel::Narrow(format, by) = linear.weights.kernel() else {
        unreachable!("the caller matched it");
    };
    BUFFERS.with_borrow_mut(|Buffers { input, sums, .. }| {
        input.reset(format, linear.rows, linear.weights.depth());
        let unit = unit(by);
        // SAFETY: `Kernel::choose` makes narrow kernels only where `dots::available` says that the machine has
        // all of these instructions.
        unsafe {
            input.fill(linear.input, linear.input_stride, linear.weights.factors());
            while let Some(panels) = next() {
                let part = Part::columns(format, linear.weights, panels);
                let out = Out::Floats(linear.output, linear.output_stride, 0);
                product(&unit, input, linear.weights, part, out, linear.after, sums);
            }
        }
    });
}

/// Two products with GELU between them that stay narrow; false where they do not.
#[cfg(target_arch = "x86_64")]
pub(super) fn narrow_pair(
    input: &[f32],
    rows: usize,
    up: &Panels,
    down: &Panels,
    output: &mut [f32],
) -> bool {
    let (Kernel::Narrow(format, by), Kernel::Narrow(between, _)) = (up.kernel(), down.kernel()) else {
        return false;
    };
    if !down.kernel().stays_narrow() {
        return false;
    }
    BUFFERS.with_borrow_mut(|buffers| {
        let Buffers {
            input: narrow,
            wide,
            middle,
            sums,
            held,
            ..
        } = buffers;
        narrow.reset(format, rows, up.depth());
        let unit = unit(by);
        // SAFETY: as in `narrow`.
        unsafe {
            narrow.fill(input, up.depth(), up.factors());
            let steps = format.steps(up.depth()).max(1);
            let (panels, down_panels) = (up.panels(), down.panels());
            for first in (0..panels).step_by(BETWEEN) {
                let columns = first..panels.min(first + BETWEEN);
                let part = Part {
                    panels: columns.clone(),
                    steps: 0..steps,
                };
                let place = first * PANEL;
                let width = up.width().min(columns.end * PANEL) - place;
                wide.reset(between, rows, width);
                if between == Format::Quads {
                    // Which bytes a number becomes depends on its whole group.
                    let full = middle.take(rows * width);
                    let out = Out::Floats(full, width, first);
                    product(&unit, narrow, up, part, out, After::Gelu, sums);
                    wide.fill(
                        middle.get(rows * width),
                        width,
                        down.factors().get(place..).unwrap_or_default(),
                    );
                } else {
                    product(&unit, narrow, up, part, Out::Narrow(wide), After::Gelu, sums);
                }
                let begin = place / between.numbers_in_step();
                let part = Part {
                    panels: 0..down_panels,
                    steps: begin..begin + between.steps(width),
                };
                let out = Out::Floats(output, down.width(), 0);
                product(&unit, wide, down, part, out, After::Nothing, held);
            }
        }
    });
    true
}

/// See [`super::attend`].
#[cfg(target_arch = "x86_64")]
pub(super) fn attend(
    kernel: Kernel,
    heads: Shares,
    chosen: Range<usize>,
    rows: &[f32],
    output: &mut [f32],
) -> bool {
    let Kernel::Narrow(format @ (Format::Pairs | Format::Split), by) = kernel else {
        return false;
    };
    if !heads.width.is_multiple_of(32) {
        return false;
    }
    BUFFERS.with_borrow_mut(|buffers| {
        // SAFETY: as in `narrow`.
        unsafe { buffers.heads.run(&unit(by), format, heads, chosen, rows, output) };
    });
    true
}

/// See [`super::peak_of_tiles`].
#[allow(
    dead_code,
    reason = "benches/kernels.rs builds these sources, too, and calls it"
)]
#[cfg(target_arch = "x86_64")]
pub(super) fn peak_of_tiles() -> Option<f64> {
    const STEPS: usize = 12;
    const TURNS: u32 = 1000;
    let unit = Tiles::begin()?;
    let (a, panel) = (vec![super::ZERO; 32 * STEPS], vec![super::ZERO; 16 * STEPS]);
    let (a, panel) = (a.as_ptr().cast::<u8>(), panel.as_ptr().cast::<u8>());
    let mut least = f64::INFINITY;
    for _ in 0..100 {
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
        let start = std::time::Instant::now();
        for _ in 0..TURNS {
            // SAFETY: 32 rows of 128 bytes for each step hold 32 rows of 64 bytes a step; the panel is whole.
            unsafe { tiles::add::<true, false, false>(&unit, a, STEPS * 64, panel, STEPS, panel) };
        }
        least = least.min(start.elapsed().as_secs_f64());
    }
    Some(f64::from(TURNS) * STEPS as f64 * (2 * 32 * 32 * 32) as f64 / least * 1e-9)
}
