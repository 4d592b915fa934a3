//! Every kernel against sums in 64 bits.

use super::*;
use pulp::{Simd, WithSimd};

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
