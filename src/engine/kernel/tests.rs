//! Every kernel against sums in 64 bits.

use super::*;

/// Every instruction set that this machine has, and plain numbers.
fn each(mut f: impl FnMut(&str, &dyn Fn(Linear<'_>))) {
    f("scalar", &|op| op.run(Arch::Usual(pulp::Arch::Scalar)));
    f("least", &|op| op.run(Arch::least()));
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        f("AVX2", &|op| op.run(Arch::Usual(pulp::Arch::V3(simd))));
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
        let mut weights = Panels::packed(Kernel::Floats, depth, width);
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
    let mut by_row = Panels::packed(Kernel::Floats, 3, 40);
    let mut by_column = Panels::packed(Kernel::Floats, 3, 40);
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

// Goal: the way of weights at load sets the same bits as the one for any numbers, at the edges of panels, pairs and
// of what is made at once. Method: both, for every kernel.
#[test]
fn stored_columns_set_the_same_bits() {
    let mut kernels = narrow_kernels();
    kernels.push(("floats", Kernel::Floats));
    for (name, kernel) in kernels {
        for (depth, width) in [(1, 1), (2, 3), (33, 31), (128, 33), (131, 40), (384, 64)] {
            let mut one = Panels::packed(kernel, depth, width);
            let mut other = Panels::packed(kernel, depth, width);
            for column in 0..width {
                let values: Vec<f32> = (0..depth).map(|k| number(k * width + column) * 3.7).collect();
                one.set_column(column, values.iter().copied(), 0.3);
                other.set_stored(column, &values, 0.3);
            }
            let bits = |panels: &Panels| -> Vec<u32> {
                panels
                    .rows
                    .iter()
                    .flat_map(|row| row.0.map(f32::to_bits))
                    .collect()
            };
            assert!(bits(&one) == bits(&other), "{name}: {depth} × {width}");
        }
    }
}

/// Every narrow kernel of this machine, and the same rounding in 32 bits. Those it lacks are named.
fn narrow_kernels() -> Vec<(&'static str, Kernel)> {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_mut, reason = "nothing is added there")
    )]
    let mut kernels = vec![
        ("bf16 in 32 bits", Kernel::Rounded(choice::Rounding::Bf16)),
        ("int8 in 32 bits", Kernel::Rounded(choice::Rounding::Int8)),
    ];
    #[cfg(target_arch = "x86_64")]
    {
        use choice::By;
        use narrow::Format;
        if dots::available() {
            kernels.push(("f32 by dots", Kernel::Narrow(Format::Split, By::Dots)));
            kernels.push(("bf16 by dots", Kernel::Narrow(Format::Pairs, By::Dots)));
            kernels.push(("int8 by dots", Kernel::Narrow(Format::Quads, By::Dots)));
        } else {
            eprintln!("skipped: this machine has no AVX-512 with dot products of bf16 and of bytes");
        }
        if dots::available() && tiles::available() {
            kernels.push(("f32 by tiles", Kernel::Narrow(Format::Split, By::Tiles)));
            kernels.push(("bf16 by tiles", Kernel::Narrow(Format::Pairs, By::Tiles)));
            kernels.push(("int8 by tiles", Kernel::Narrow(Format::Quads, By::Tiles)));
        } else {
            eprintln!("skipped: this machine has no tiles of AMX, or the system does not grant them");
        }
    }
    kernels
}

fn number(i: usize) -> f32 {
    ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0
}

fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + crate::engine::math::erf_exact(x))
}

/// What a kernel may be off by for each unit of `Σ|a·b|`, beyond sums in 64 bits: half of the last place of
/// both numbers, or of the rests of both.
fn place(name: &str) -> f64 {
    match name.split(' ').next() {
        Some("f32") => 2.5 / 65536.0,
        Some("bf16") => 2.5 / 256.0,
        // Half a step of 255 from −1 to 1, against numbers that are 1/2 on average; and of 127 up to 1.
        Some("int8") => 3.5 / 255.0,
        _ => unreachable!("names begin with the precision"),
    }
}

// Goal: narrow products are right at every edge, and no further off than their rounding. Method: shapes around
// the sizes of tiles, panels and slices of the depth, against sums in 64 bits; what lies outside stays.
#[test]
fn narrow_products_are_right_at_every_edge() {
    for (rows, depth, width) in [
        (1, 1, 1),
        (2, 3, 5),
        (15, 32, 32),
        (16, 33, 31),
        (17, 64, 33),
        (32, 65, 64),
        (33, 384, 96),
        (47, 513, 65),
        (64, 1030, 40),
        (100, 800, 32),
    ] {
        let (input_stride, output_stride) = (depth + 3, width + 2);
        let input: Vec<f32> = (0..rows * input_stride).map(number).collect();
        for (name, kernel) in narrow_kernels() {
            let mut weights = Panels::packed(kernel, depth, width);
            for column in 0..width {
                weights.set_column(column, (0..depth).map(|k| number(k * width + column + 5)), 0.5);
                weights.set_bias(column, number(column));
            }
            for after in [After::Nothing, After::Gelu] {
                let mut output = vec![7.0; rows * output_stride];
                Linear {
                    input: &input,
                    input_stride,
                    rows,
                    weights: &weights,
                    output: &mut output,
                    output_stride,
                    after,
                }
                .run(arch());
                for (i, row) in output.chunks(output_stride).enumerate() {
                    assert_eq!(row[width..], [7.0; 2], "{name} writes beside its columns");
                    for (j, got) in row[..width].iter().enumerate() {
                        let (mut want, mut size) = (f64::from(number(j)), 0.0);
                        for k in 0..depth {
                            let (a, b) = (input[i * input_stride + k], number(k * width + j + 5));
                            want += f64::from(a) * f64::from(b) * 0.5;
                            size += f64::from(a * b * 0.5).abs();
                        }
                        // Errors of single numbers cancel out along the depth.
                        let near = 1e-5 + place(name) * (size + 1.0) / (depth as f64).sqrt().max(1.0) * 3.0;
                        let near = if after == After::Gelu {
                            1.2 * near + 2e-4
                        } else {
                            near
                        };
                        let want = if after == After::Gelu { gelu(want) } else { want };
                        assert!(
                            (f64::from(*got) - want).abs() < near,
                            "{name} {rows}x{depth}x{width} {after:?}: {got} and not {want} within {near}"
                        );
                    }
                }
            }
        }
    }
}

// Goal: who computes which panels makes no difference, to the bit, and nobody writes beside their own. Method: every kernel
// at odd sizes, the panels dealt to two outputs in every way that two can share them, and what neither got stays.
#[test]
fn panels_are_the_same_whoever_computes_them() {
    let kernels = || [("f32", Kernel::Floats)].into_iter().chain(narrow_kernels());
    for (rows, depth, width) in [
        (1, 3, 33),
        (7, 64, 96),
        (15, 384, 160),
        (16, 70, 150),
        (35, 513, 128),
    ] {
        let input: Vec<f32> = (0..rows * depth).map(number).collect();
        for (name, kernel) in kernels() {
            let mut weights = Panels::packed(kernel, depth, width);
            for column in 0..width {
                weights.set_column(column, (0..depth).map(|k| number(k * width + column)), 0.4);
                weights.set_bias(column, number(column + 3));
            }
            let panels = weights.panels();
            let some = |mut chosen: Vec<Range<usize>>, after: After| {
                let mut output = vec![7.0; rows * width];
                Linear {
                    input: &input,
                    input_stride: depth,
                    rows,
                    weights: &weights,
                    output: &mut output,
                    output_stride: width,
                    after,
                }
                .run_panels(arch(), &mut || chosen.pop());
                output
            };
            for after in [After::Nothing, After::Gelu] {
                let whole = some(std::iter::once(0..panels).collect(), after);
                for deal in 0..1 << panels {
                    let of = |one: usize| -> Vec<Range<usize>> {
                        let own = (0..panels).filter(|panel| deal >> panel & 1 == one);
                        own.map(|panel| panel..panel + 1).collect()
                    };
                    let both = [some(of(0), after), some(of(1), after)];
                    for (at, want) in whole.iter().enumerate() {
                        let one = deal >> (at % width / PANEL) & 1;
                        let (got, beside) = (both[one][at], both[1 - one][at]);
                        assert!(
                            got.to_bits() == want.to_bits() && beside == 7.0,
                            "{name} {rows}x{depth}x{width} {after:?}, dealt {deal:b}: {got} and not {want}, {beside}"
                        );
                    }
                }
            }
        }
    }
}

// Goal: two products with GELU between them are what they are one by one, whether or not the numbers between
// them stay narrow. Method: both ways, on every kernel, at odd sizes.
#[test]
fn a_pair_of_products_is_two_products() {
    for (rows, depth, wide) in [(1, 32, 96), (17, 40, 70), (45, 64, 128), (20, 70, 430)] {
        for (name, kernel) in [("f32", Kernel::Floats)].into_iter().chain(narrow_kernels()) {
            let (mut up, mut down) = (
                Panels::packed(kernel, depth, wide),
                Panels::packed(kernel, wide, depth),
            );
            for column in 0..wide {
                up.set_column(column, (0..depth).map(|k| number(k * wide + column)), 0.4);
                up.set_bias(column, number(column + 3));
            }
            for column in 0..depth {
                down.set_column(column, (0..wide).map(|k| number(k * depth + column)), 0.3);
            }
            let input: Vec<f32> = (0..rows * depth).map(number).collect();
            let (mut between, mut one_by_one) = (vec![0.0; rows * wide], vec![0.0; rows * depth]);
            product(&input, &up, &mut between, rows, After::Gelu);
            product(&between, &down, &mut one_by_one, rows, After::Nothing);
            let (mut scratch, mut both) = (vec![0.0; rows * wide], vec![0.0; rows * depth]);
            feed_forward(arch(), &input, &up, &mut scratch, &down, &mut both);
            let largest = one_by_one.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for (a, b) in one_by_one.iter().zip(&both) {
                assert!(
                    (a - b).abs() < 2e-3 * largest,
                    "{name} {rows}x{depth}x{wide}: {a} and {b}"
                );
            }
        }
    }
}

fn product(input: &[f32], weights: &Panels, output: &mut [f32], rows: usize, after: After) {
    Linear {
        input,
        input_stride: weights.depth(),
        rows,
        weights,
        output,
        output_stride: weights.width(),
        after,
    }
    .run(arch());
}

// Goal: attention in narrow numbers is attention. Method: lengths around those of tiles and panels, heads that
// share keys, against 64 bits.
#[test]
fn attention_is_right_at_every_length() {
    for (name, kernel) in narrow_kernels() {
        for (queries, keys, width) in [(3, 3, 32), (4, 2, 64)] {
            for tokens in [1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 130] {
                let stride = (queries + 2 * keys) * width;
                let rows: Vec<f32> = (0..tokens * stride).map(|i| number(i * 31 + tokens)).collect();
                let mut output = vec![9.0; tokens * queries * width];
                let some = |chosen: Range<usize>, output: &mut [f32]| {
                    attend(kernel, queries, keys, width, chosen, &rows, output)
                };
                // Head by head is the same to the bit, and touches no other head: they begin as 9.
                let mut single = output.clone();
                for head in 0..keys {
                    some(head..head + 1, &mut single);
                }
                let done = some(0..keys, &mut output);
                assert_eq!(single, output, "{name} {queries}/{keys}x{width}, {tokens} tokens");
                if !done {
                    assert!(
                        !name.ends_with("tiles") || name.starts_with("int8"),
                        "{name} has attention"
                    );
                    continue;
                }
                let at = |token: usize, head: usize| -> Vec<f64> {
                    let row = &rows[token * stride + head * width..][..width];
                    row.iter().map(|v| f64::from(*v)).collect()
                };
                for query in 0..tokens {
                    for head in 0..queries {
                        let group = head / (queries / keys);
                        let q = at(query, head);
                        let scores: Vec<f64> = (0..tokens)
                            .map(|key| at(key, queries + group).iter().zip(&q).map(|(k, q)| k * q).sum())
                            .collect();
                        let most = scores.iter().fold(f64::MIN, |most, v| most.max(*v));
                        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                        let sum: f64 = weights.iter().sum();
                        for i in 0..width {
                            let want: f64 = (0..tokens)
                                .map(|key| weights[key] * at(key, queries + keys + group)[i] / sum)
                                .sum();
                            let got = f64::from(output[(query * queries + head) * width + i]);
                            let near = if name.starts_with("f32") { 2e-4 } else { 0.06 };
                            assert!(
                                (got - want).abs() < near,
                                "{name} {queries}/{keys}x{width}, {tokens} tokens: {got} and not {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_the_nearest_even() {
    let mut row = [1.0, 1.003_906_2, 1.011_718_8, -3.4e38, f32::INFINITY];
    choice::round_bf16(&mut row);
    assert_eq!(row, [1.0, 1.0, 1.015_625, f32::NEG_INFINITY, f32::INFINITY]);
}

// Goal: a few wide places of a row do not cost the others their steps. Method: one place a hundred times as wide
// as the others, in bytes, with and without being told of it.
#[test]
fn wide_places_are_evened_out() {
    let (rows, depth, width) = (5, 96, 40);
    let spread: Vec<f32> = (0..depth).map(|k| if k == 17 { 100.0 } else { 1.0 }).collect();
    let input: Vec<f32> = (0..rows * depth).map(|i| number(i) * spread[i % depth]).collect();
    for (name, kernel) in narrow_kernels() {
        if !name.starts_with("int8") {
            continue;
        }
        let mut worst = [0.0f64; 2];
        for (told, worst) in worst.iter_mut().enumerate() {
            let mut weights = Panels::packed(kernel, depth, width);
            if told == 1 {
                weights.even_out(&spread);
            }
            // The wide place matters no more than the others.
            let weight = |k: usize, column: usize| number(k * width + column) / spread[k];
            for column in 0..width {
                weights.set_column(column, (0..depth).map(|k| weight(k, column)), 1.0);
            }
            let mut output = vec![0.0; rows * width];
            product(&input, &weights, &mut output, rows, After::Nothing);
            for (i, got) in output.iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let want: f64 = (0..depth)
                    .map(|k| f64::from(input[row * depth + k]) * f64::from(weight(k, column)))
                    .sum();
                *worst = worst.max((f64::from(*got) - want).abs());
            }
        }
        assert!(worst[1] < 0.15 && worst[1] < worst[0] / 5.0, "{name}: {worst:?}");
    }
}
