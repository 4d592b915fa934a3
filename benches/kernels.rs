//! The kernels alone, beside what the registers of one core can do: `cargo bench --bench kernels`.
//!
//! Shapes are those of all-MiniLM-L6-v2. Each line is the best of many short runs, which is what a busy machine
//! disturbs least; compare lines of one run only.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(
    dead_code,
    reason = "the kernels are built as they are, and not all of them are measured"
)]

/// The sources themselves, so that nothing has to be public for a measurement.
#[path = "."]
mod engine {
    #[path = "../src/engine/kernel/mod.rs"]
    pub mod kernel;
    #[path = "../src/engine/math.rs"]
    pub mod math;
    pub mod device {
        //! What the kernels need of it.
        #[derive(Clone, Copy)]
        pub enum Precision {
            F32,
            Bf16,
            #[allow(dead_code, reason = "named by the kernels, which the CPU has none for")]
            F16,
            Int8,
        }
    }
}

use engine::device::Precision;
use engine::kernel::{After, Kernel, Linear, Panels, arch, attend, feed_forward};
use engine::math::LayerNorm;
use std::hint::black_box;
use std::time::Instant;

/// Seconds of the fastest of the runs that fit into a third of a second.
fn best(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

fn packed(kernel: Kernel, depth: usize, width: usize) -> Panels {
    let mut panels = Panels::packed(kernel, depth, width);
    for column in 0..width {
        panels.set_column(
            column,
            (0..depth).map(|k| ((k * 7 + column) % 13) as f32 / 13.0 - 0.5),
            0.1,
        );
    }
    panels
}

fn main() {
    peaks();
    for (name, precision) in [
        ("f32", Precision::F32),
        ("bf16", Precision::Bf16),
        ("int8", Precision::Int8),
    ] {
        let kernel = Kernel::choose(precision);
        println!("{name}: {kernel:?}");
        for (rows, depth, width, after) in [
            (16, 384, 1152, After::Nothing),
            (128, 384, 384, After::Nothing),
            (512, 384, 1152, After::Nothing),
            (128, 384, 1536, After::Nothing),
            (128, 384, 1536, After::Gelu),
            (128, 1536, 384, After::Nothing),
        ] {
            let weights = packed(kernel, depth, width);
            let input = vec![0.25; rows * depth];
            let mut output = vec![0.0; rows * width];
            let seconds = best(|| {
                Linear {
                    input: &input,
                    input_stride: depth,
                    rows,
                    weights: &weights,
                    output: black_box(&mut output),
                    output_stride: width,
                    after,
                }
                .run(arch());
            });
            let flop = 2.0 * (rows * depth * width) as f64;
            println!(
                "  {rows:4} x {depth:4} x {width:4} {after:?}: {:7.0} GFLOP/s, {:8.1} µs",
                flop / seconds * 1e-9,
                seconds * 1e6
            );
        }
        // As many layers as the model has, one after another: their weights come from the third-level cache.
        let layers: Vec<(Panels, Panels)> = (0..6)
            .map(|_| (packed(kernel, 384, 1536), packed(kernel, 1536, 384)))
            .collect();
        for rows in [16, 128, 256, 512, 1024] {
            let input = vec![0.25; rows * 384];
            let (mut wide, mut output) = (vec![0.0; rows * 1536], vec![0.0; rows * 384]);
            let seconds = best(|| {
                for (up, down) in &layers {
                    feed_forward(arch(), &input, up, &mut wide, down, black_box(&mut output));
                }
            }) / layers.len() as f64;
            let flop = 4.0 * (rows * 384 * 1536) as f64;
            let each = seconds * 1e6 / rows as f64;
            println!(
                "  feed-forward of {rows:4} rows: {:7.0} GFLOP/s, {each:6.3} µs a row",
                flop / seconds * 1e-9
            );
        }
        for tokens in [16, 64, 256] {
            let rows: Vec<f32> = (0..tokens * 1152).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
            let mut output = vec![0.0; tokens * 384];
            let mut done = false;
            let seconds =
                best(|| done = attend(kernel.careful(), 12, 12, 32, 0..12, &rows, black_box(&mut output)));
            if done {
                println!(
                    "  attention of {tokens:3} tokens: {:6.3} µs a token",
                    seconds * 1e6 / tokens as f64
                );
            }
        }
    }
    let (weight, bias, added) = (vec![1.0; 384], vec![0.0; 384], vec![0.5; 128 * 384]);
    let mut rows = vec![0.25; 128 * 384];
    let seconds = best(|| {
        LayerNorm {
            rows: black_box(&mut rows),
            added: Some(&added),
            weight: &weight,
            bias: &bias,
            epsilon: 1e-12,
        }
        .run(arch());
    });
    println!("layer norm: {:.3} µs a row", seconds * 1e6 / 128.0);
}

/// What the registers of one core give: the bound for everything above.
fn peaks() {
    #[cfg(target_arch = "x86_64")]
    {
        println!("registers, f32: {:.0} GFLOP/s", registers::fused(arch()));
        if let Some(rate) = engine::kernel::peak_of_tiles() {
            println!("registers, tiles of bf16: {rate:.0} GFLOP/s");
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use super::engine::kernel::{Arch, mul_add};
    use pulp::{Simd, WithSimd};

    struct Fused(u32);
    impl WithSimd for Fused {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> usize {
            let mut sums = [simd.splat_f32s(0.0); 12];
            let (x, y) = (simd.splat_f32s(std::hint::black_box(1e-9)), simd.splat_f32s(1.0));
            for _ in 0..self.0 {
                for sum in &mut sums {
                    *sum = mul_add(simd, x, y, *sum);
                }
            }
            std::hint::black_box(sums);
            24 * S::F32_LANES
        }
    }

    pub fn fused(arch: Arch) -> f64 {
        const TURNS: u32 = 100_000;
        let mut flop = 0;
        let seconds = super::best(|| flop = arch.dispatch(Fused(TURNS)));
        flop as f64 * f64::from(TURNS) / seconds * 1e-9
    }
}
