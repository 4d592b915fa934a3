//! From rows to one vector for each sequence, on the device: what goes back to the processor is a vector for a text and
//! not a row for a token.

use super::attention::Batch;
use super::layout::Layout;
use crate::engine::Sequence;
use crate::engine::pooling::{Mode, Pooling};
use candle_core::{Result, Tensor};

/// `rows` holds a row of 32-bit numbers for each token of `sequences`, which lie as `batch` says. Gives a row for each
/// sequence.
pub fn pool(pooling: &Pooling, rows: &Tensor, sequences: &[&Sequence], batch: &Batch<'_>) -> Result<Tensor> {
    let modes = pooling.modes.iter();
    let pooled = modes.map(|mode| {
        #[cfg(feature = "cuda")]
        if rows.device().is_cuda() && *mode != Mode::Max {
            return whole(pooling, *mode, rows, sequences, batch);
        }
        one(pooling, *mode, rows, sequences, batch.layout)
    });
    Tensor::cat(&pooled.collect::<Result<Vec<_>>>()?, 1)
}

/// All sequences at once, by a kernel of our own.
#[cfg(feature = "cuda")]
fn whole(
    pooling: &Pooling,
    mode: Mode,
    rows: &Tensor,
    sequences: &[&Sequence],
    batch: &Batch<'_>,
) -> Result<Tensor> {
    let of = |sequence: &&Sequence| pooling.weights(mode, sequence.ids.len(), sequence.prompt_tokens);
    let weights: Vec<f32> = sequences.iter().filter_map(of).flatten().collect();
    let weights = Tensor::from_vec(weights, rows.dims()[0], rows.device())?;
    super::cuda::attention::pool(&rows.contiguous()?, &weights, batch)
}

/// The sequences of one length after those of another.
fn one(
    pooling: &Pooling,
    mode: Mode,
    rows: &Tensor,
    sequences: &[&Sequence],
    layout: &Layout,
) -> Result<Tensor> {
    let width = rows.dims()[1];
    let mut pooled = Vec::with_capacity(layout.groups.len());
    let mut rest = sequences;
    for group in &layout.groups {
        let (own, behind) = rest.split_at(group.count);
        rest = behind;
        let block = rows.narrow(0, group.row, group.count * group.tokens)?;
        let block = block.reshape((group.count, group.tokens, width))?;
        let each = |own: &[&Sequence], of: &dyn Fn(&Sequence) -> Option<Vec<f32>>| {
            let all: Option<Vec<Vec<f32>>> = own.iter().map(|sequence| of(sequence)).collect();
            all.map(|all| all.concat())
        };
        let weights = each(own, &|sequence| {
            pooling.weights(mode, group.tokens, sequence.prompt_tokens)
        });
        pooled.push(match weights {
            Some(weights) => {
                let weights = Tensor::from_vec(weights, (group.count, 1, group.tokens), rows.device())?;
                weights.matmul(&block)?.squeeze(1)?
            }
            None if pooling.include_prompt => block.max(1)?,
            None => {
                let left_out = |sequence: &Sequence| {
                    let place = |token| {
                        if token < sequence.prompt_tokens {
                            f32::NEG_INFINITY
                        } else {
                            0.0
                        }
                    };
                    Some((0..group.tokens).map(place).collect())
                };
                let mask = each(own, &left_out).unwrap_or_default();
                let mask = Tensor::from_vec(mask, (group.count, group.tokens, 1), rows.device())?;
                block.broadcast_add(&mask)?.max(1)?
            }
        });
    }
    Tensor::cat(&pooled, 0)
}
