//! Self-attention of one sequence, head by head, on its exact length: no padded row, and no mask but where a
//! token may not see all others.

use super::bias::Distances;
use super::matrix::Matrix;
use super::norm::Norm;
use super::rotary::Rotary;
use crate::engine::kernel::Arch;
use crate::engine::kernel::{self, After, Floats, Linear, PANEL, Panels};
use crate::engine::math::Softmax;
use std::ops::Range;
use std::sync::Arc;

/// Query rows whose scores are held at once: with 512 keys they take 96 KiB.
const QUERY_ROWS: usize = 48;
/// The same where each block of queries sees other keys, which are packed anew for it.
const QUERY_ROWS_SLIDING: usize = 128;

/// How the numbers of a row are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys, and of values. Each serves `queries / keys` neighbouring heads of queries.
    pub keys: usize,
    /// Numbers of a head.
    pub width: usize,
}

impl Heads {
    /// As many heads of keys as of queries.
    pub fn equal(count: usize, width: usize) -> Heads {
        Heads {
            queries: count,
            keys: count,
            width,
        }
    }

    /// One over the root of a head's width, by which scores are scaled.
    pub fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Numbers of all queries of a row.
    pub fn query_width(self) -> usize {
        self.queries * self.width
    }

    /// Numbers of all keys of a row.
    pub fn key_width(self) -> usize {
        self.keys * self.width
    }

    /// Numbers of a row: queries, keys, values.
    pub fn row_width(self) -> usize {
        self.query_width() + 2 * self.key_width()
    }

    /// Queries, of a row, that these heads of keys serve. Their results stand in the same columns.
    pub fn served(self, chosen: &Range<usize>) -> Range<usize> {
        let each = self.queries / self.keys * self.width;
        chosen.start * each..chosen.end * each
    }

    /// Of a row, the queries that these heads of keys serve, those keys, and their values.
    pub fn columns(self, chosen: &Range<usize>) -> [Range<usize>; 3] {
        let keys =
            self.query_width() + chosen.start * self.width..self.query_width() + chosen.end * self.width;
        let values = keys.start + self.key_width()..keys.end + self.key_width();
        [self.served(chosen), keys, values]
    }
}

/// Which other tokens a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Reach {
    /// Only itself and those before it.
    pub causal: bool,
    /// Only those so many places away or nearer.
    pub window: Option<usize>,
}

impl Reach {
    /// What the token at `place` sees of a sequence of `tokens`.
    pub fn of(self, place: usize, tokens: usize) -> Range<usize> {
        let window = self.window.unwrap_or(tokens);
        let end = if self.causal {
            place + 1
        } else {
            (place + window + 1).min(tokens)
        };
        place.saturating_sub(window)..end
    }
}

/// The weights of a layer's attention and what is particular about it.
#[derive(Debug)]
pub struct SelfAttention {
    /// See [`Heads`].
    pub heads: Heads,
    /// See [`Reach`].
    pub reach: Reach,
    /// Queries, keys and values side by side. The queries, or their norm, are scaled by [`Heads::scale`].
    pub qkv: Matrix,
    /// Norms of each head of the queries, and of the keys.
    pub norms: Option<(Norm, Norm)>,
    /// Turns queries and keys by their place.
    pub rotary: Option<Arc<Rotary>>,
    /// Is added to the scores.
    pub distances: Option<Arc<Distances>>,
    /// From the heads' results to a row.
    pub out: Matrix,
}

impl SelfAttention {
    /// Norms and places of the chosen heads, on the rows of one sequence.
    fn prepare(&self, arch: Arch, chosen: &Range<usize>, rows: &mut [f32]) {
        let stride = self.heads.row_width();
        let [queries, keys, _] = self.heads.columns(chosen);
        if let Some((of_queries, of_keys)) = &self.norms {
            for row in rows.chunks_exact_mut(stride) {
                of_queries.run(arch, &mut row[queries.clone()], None);
                of_keys.run(arch, &mut row[keys.clone()], None);
            }
        }
        if let Some(rotary) = &self.rotary {
            for columns in [queries, keys] {
                let heads = columns.len() / self.heads.width;
                rotary.turn(arch, &mut rows[columns.start..], stride, heads);
            }
        }
    }
}

/// Buffers that are used again for every head.
#[derive(Debug, Default)]
pub struct Attention {
    keys: Panels,
    values: Panels,
    scores: Floats,
    sums: Vec<f32>,
}

impl Attention {
    /// `rows` holds what [`SelfAttention::qkv`] gave for each token of one sequence, and is changed. `output`
    /// has a row of [`Heads::query_width`] numbers for each token. Of both only the columns of the `chosen` heads of keys
    /// are used, which are all heads or some.
    pub fn run(
        &mut self,
        arch: Arch,
        layer: &SelfAttention,
        chosen: Range<usize>,
        rows: &mut [f32],
        output: &mut [f32],
    ) {
        layer.prepare(arch, &chosen, rows);
        let Heads { queries, keys, width } = layer.heads;
        let plain = layer.reach == Reach::default() && layer.distances.is_none();
        let kernel = layer.qkv.kernel();
        if plain && kernel::attend(kernel, queries, keys, width, chosen.clone(), rows, output) {
            return;
        }
        let (stride, out_stride) = (layer.heads.row_width(), layer.heads.query_width());
        let tokens = output.len() / out_stride;
        let sliding = layer.reach != Reach::default();
        let block = if sliding { QUERY_ROWS_SLIDING } else { QUERY_ROWS };
        for group in chosen {
            let key = layer.heads.query_width() + group * width;
            let mut packed = 0..0;
            for start in (0..tokens).step_by(block) {
                let count = block.min(tokens - start);
                let seen = layer.reach.of(start, tokens).start..layer.reach.of(start + count - 1, tokens).end;
                if seen != packed {
                    self.pack(
                        &rows[seen.start * stride..seen.end * stride],
                        stride,
                        key,
                        &layer.heads,
                    );
                    packed = seen;
                }
                for head in group * (queries / keys)..(group + 1) * (queries / keys) {
                    let input = &rows[start * stride + head * width..];
                    let output = &mut output[start * out_stride + head * width..];
                    let part = Part {
                        head,
                        start,
                        count,
                        seen: packed.clone(),
                        tokens,
                    };
                    self.head(arch, layer, part, input, output);
                }
            }
        }
    }

    /// Lays the keys and values of `rows` out for products. Keys of one head begin at number `key` of a row.
    fn pack(&mut self, rows: &[f32], stride: usize, key: usize, heads: &Heads) {
        let tokens = rows.len() / stride;
        self.keys.reset(heads.width, tokens);
        self.values.reset(tokens, heads.width);
        for (token, row) in rows.chunks_exact(stride).enumerate() {
            let values = &row[key + heads.key_width()..][..heads.width];
            self.keys
                .set_column(token, row[key..][..heads.width].iter().copied(), 1.0);
            self.values.set_row(token, values);
        }
    }

    /// One head of a block of queries, on the packed keys and values.
    fn head(&mut self, arch: Arch, layer: &SelfAttention, part: Part, input: &[f32], output: &mut [f32]) {
        let Heads { width, .. } = layer.heads;
        let (stride, out_stride) = (layer.heads.row_width(), layer.heads.query_width());
        let (count, len) = (part.count, part.seen.len());
        let score_stride = len.next_multiple_of(PANEL);
        let scores = self.scores.take(count * score_stride);
        Linear {
            input,
            input_stride: stride,
            rows: count,
            weights: &self.keys,
            output: scores,
            output_stride: score_stride,
            after: After::Nothing,
        }
        .run(arch);
        for (row, scores) in scores.chunks_exact_mut(score_stride).enumerate() {
            let query = part.start + row;
            if let Some(distances) = &layer.distances {
                let added = distances.of(part.head, query, part.seen.start);
                scores[..len]
                    .iter_mut()
                    .zip(added)
                    .for_each(|(score, more)| *score += more);
            }
            if layer.reach != Reach::default() {
                let own = layer.reach.of(query, part.tokens);
                scores[..own.start - part.seen.start].fill(f32::NEG_INFINITY);
                scores[own.end - part.seen.start..len].fill(f32::NEG_INFINITY);
            }
        }
        self.sums.resize(count, 0.0);
        Softmax {
            scores,
            stride: score_stride,
            len,
            sums: &mut self.sums,
        }
        .run(arch);
        Linear {
            input: scores,
            input_stride: score_stride,
            rows: count,
            weights: &self.values,
            output,
            output_stride: out_stride,
            after: After::Nothing,
        }
        .run(arch);
        for (row, sum) in output.chunks_mut(out_stride).zip(&self.sums) {
            let factor = 1.0 / sum;
            row[..width].iter_mut().for_each(|v| *v *= factor);
        }
    }
}

/// One head of a block of queries.
struct Part {
    head: usize,
    /// The first query's place.
    start: usize,
    /// Queries.
    count: usize,
    /// Places of the packed keys: what any of the queries sees.
    seen: Range<usize>,
    /// Of the whole sequence.
    tokens: usize,
}
