//! Self-attention of one sequence, head by head, on its exact length: no mask and no padded row.

use super::kernel::{After, Floats, Linear, PANEL, Panels};
use super::math::Softmax;
use pulp::Arch;

/// Query rows whose scores are held at once: with 512 keys they take 96 KiB.
const QUERY_ROWS: usize = 48;

/// Buffers that are used again for every head.
#[derive(Debug, Default)]
pub struct Attention {
    keys: Panels,
    values: Panels,
    scores: Floats,
    sums: Vec<f32>,
}

impl Attention {
    /// `qkv` holds a row for each token: queries, keys, values, each of `heads × head_width` numbers, the
    /// queries already scaled. `output` gets a row of `heads × head_width` for each token.
    pub fn run(&mut self, arch: Arch, qkv: &[f32], heads: usize, head_width: usize, output: &mut [f32]) {
        let hidden = heads * head_width;
        let stride = 3 * hidden;
        let tokens = output.len() / hidden;
        let score_stride = tokens.next_multiple_of(PANEL);
        for head in 0..heads {
            let first = head * head_width;
            self.keys.reset(head_width, tokens);
            self.values.reset(tokens, head_width);
            for (token, row) in qkv.chunks_exact(stride).enumerate() {
                self.keys
                    .set_column(token, row[hidden + first..][..head_width].iter().copied(), 1.0);
                self.values
                    .set_row(token, &row[2 * hidden + first..][..head_width]);
            }
            for start in (0..tokens).step_by(QUERY_ROWS) {
                let rows = QUERY_ROWS.min(tokens - start);
                let scores = self.scores.take(rows * score_stride);
                let input = &qkv[start * stride + first..];
                Linear {
                    input,
                    input_stride: stride,
                    rows,
                    weights: &self.keys,
                    output: scores,
                    output_stride: score_stride,
                    after: After::Nothing,
                }
                .run(arch);
                self.sums.resize(rows, 0.0);
                Softmax {
                    scores,
                    stride: score_stride,
                    len: tokens,
                    sums: &mut self.sums,
                }
                .run(arch);
                let output = &mut output[start * hidden + first..];
                Linear {
                    input: scores,
                    input_stride: score_stride,
                    rows,
                    weights: &self.values,
                    output,
                    output_stride: hidden,
                    after: After::Nothing,
                }
                .run(arch);
                for (row, sum) in output.chunks_mut(hidden).zip(&self.sums) {
                    let factor = 1.0 / sum;
                    row[..head_width].iter_mut().for_each(|v| *v *= factor);
                }
            }
        }
    }
}
