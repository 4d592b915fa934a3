//! What an engine thread computes when it is asked whether it still can and has no model to show it by.

use super::kernel::{After, Arch, Kernel, Linear, Panels};

/// Rows, depth and width of the product: more than one tile and panel each way, and over in microseconds.
const SHAPE: (usize, usize, usize) = (13, 40, 48);

/// Multiplies two matrices of small whole numbers in 32 bits. Such numbers have no
/// rounding, so the product is right to the bit or the processor is not.
pub fn computes(arch: Arch) -> bool {
    let (rows, depth, width) = SHAPE;
    let left = |row: usize, k: usize| ((row * 7 + k * 3) % 11) as f32 - 5.0;
    let right = |k: usize, column: usize| ((k * 5 + column) % 7) as f32 - 3.0;
    let mut weights = Panels::packed(Kernel::Floats, depth, width);
    for column in 0..width {
        weights.set_column(column, (0..depth).map(|k| right(k, column)), 1.0);
        weights.set_bias(column, column as f32);
    }
    let input: Vec<f32> = (0..rows * depth).map(|at| left(at / depth, at % depth)).collect();
    let mut output = vec![f32::NAN; rows * width];
    Linear {
        input: &input,
        input_stride: depth,
        rows,
        weights: &weights,
        output: &mut output,
        output_stride: width,
        after: After::Nothing,
    }
    .run(arch);
    output.iter().enumerate().all(|(at, got)| {
        let (row, column) = (at / width, at % width);
        let sum: f32 = (0..depth).map(|k| left(row, k) * right(k, column)).sum();
        *got == sum + column as f32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_processor_computes() {
        assert!(computes(Arch::new()));
        assert!(computes(Arch::least()));
        assert!(computes(Arch::Usual(pulp::Arch::Scalar)));
    }
}
