//! Attention of all sequences of a batch. On CUDA one kernel of our own does it for the whole batch, see
//! `cuda/attention`; elsewhere sequences of one length are multiplied together, on their exact length: nothing is padded.

use super::layout::{Group, Layout};
use super::parts::{Norm, Turns, put};
use super::place::{Place, Placed};
use crate::engine::LoadError;
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::bias::Distances;
use candle_core::{DType, Result, Tensor};
use candle_nn::ops;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Scores that are held at once, in numbers of 32 bits: half a GiB.
const SCORES_MAX: usize = 1 << 27;

/// A layer's attention on its device.
#[derive(Debug)]
pub struct Attention {
    heads: Heads,
    reach: Reach,
    qkv: Placed,
    norms: Option<(Norm, Norm)>,
    /// Which of the model's tables turns the heads.
    turns: Option<usize>,
    distances: Option<Arc<Distances>>,
    /// The same table on the device, and its places.
    #[cfg(feature = "cuda")]
    table: Option<(Tensor, usize)>,
    out: Placed,
}

/// What all layers use of a batch.
pub struct Batch<'a> {
    /// How it lies.
    pub layout: &'a Layout,
    /// The rows of each of the model's tables for the batch's tokens.
    pub turns: Vec<Turns>,
    /// What is added to the scores: by which distances, what is seen, of how many tokens, and which queries.
    masks: HashMap<(usize, Reach, usize, Range<usize>), Tensor>,
    /// [`Layout::starts`] on the device.
    #[cfg(feature = "cuda")]
    pub starts: Tensor,
    /// The blocks of CUDA's kernel.
    #[cfg(feature = "cuda")]
    pub tiles: Tensor,
}

impl<'a> Batch<'a> {
    /// Puts on the device what all layers use.
    pub fn new(layout: &'a Layout, turns: &[Turns], place: &Place) -> Result<Batch<'a>> {
        let places = put(&layout.places, place)?;
        Ok(Batch {
            layout,
            turns: turns
                .iter()
                .map(|turns| turns.at(&places))
                .collect::<Result<_>>()?,
            masks: HashMap::new(),
            #[cfg(feature = "cuda")]
            starts: put(&layout.starts, place)?,
            #[cfg(feature = "cuda")]
            tiles: put(&super::cuda::attention::tiles(&layout.starts), place)?,
        })
    }
}

/// Queries, keys and values: tokens by heads by numbers of a head.
pub struct Mixed {
    /// As many heads as there are of queries.
    pub queries: Tensor,
    /// As many as there are of keys.
    pub keys: Tensor,
    /// Likewise.
    pub values: Tensor,
}

impl Attention {
    /// The part on its device. `turns` says which of the model's tables turns the heads.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(
        part: SelfAttention,
        turns: Option<usize>,
        place: &Place,
    ) -> std::result::Result<Attention, LoadError> {
        let norms = match &part.norms {
            Some((queries, keys)) => Some((Norm::place(queries, place)?, Norm::place(keys, place)?)),
            None => None,
        };
        Ok(Attention {
            heads: part.heads,
            reach: part.reach,
            norms,
            turns,
            #[cfg(feature = "cuda")]
            table: match &part.distances {
                Some(distances) => {
                    let (table, places) = distances.table();
                    Some((place.put(table, &[table.len()])?, places))
                }
                None => None,
            },
            distances: part.distances,
            qkv: part.qkv.placed(),
            out: part.out.placed(),
        })
    }

    /// Of rows in the numbers of the place.
    pub fn run(&self, rows: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let mixed = self.mix(rows, batch)?;
        #[cfg(feature = "cuda")]
        if rows.device().is_cuda() && self.heads.width <= super::cuda::attention::WIDTH_MAX {
            let seen = super::cuda::attention::attend(&mixed, self.reach, self.table.as_ref(), batch)?;
            return self.out.product(&seen);
        }
        self.out.product(&self.attend(&mixed, batch)?)
    }

    /// Queries, keys and values, normed and turned.
    fn mix(&self, rows: &Tensor, batch: &Batch<'_>) -> Result<Mixed> {
        let Heads { queries, keys, width } = self.heads;
        let tokens = rows.dims()[0];
        let mixed = self.qkv.product(rows)?;
        // All heads have one width, so a part of them is a view and no copy.
        let mixed = mixed.reshape((tokens, queries + 2 * keys, width))?;
        let heads = |first: usize, heads: usize, norm: Option<&Norm>| {
            let part = mixed.narrow(1, first, heads)?;
            if norm.is_none() && self.turns.is_none() {
                return Ok(part);
            }
            // In 32 bits: a place is as fine as the angle that it is turned by.
            let mut part = part.contiguous()?.to_dtype(DType::F32)?;
            if let Some(norm) = norm {
                part = norm.run(&part)?;
            }
            if let Some(turns) = self.turns {
                part = batch.turns[turns].turn(&part)?;
            }
            part.to_dtype(mixed.dtype())
        };
        let (first, second) = match &self.norms {
            Some((queries, keys)) => (Some(queries), Some(keys)),
            None => (None, None),
        };
        Ok(Mixed {
            queries: heads(0, queries, first)?,
            keys: heads(queries, keys, second)?,
            values: mixed.narrow(1, queries + keys, keys)?,
        })
    }

    /// A row of all heads for each token, by products of Candle's.
    fn attend(&self, mixed: &Mixed, batch: &mut Batch<'_>) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(batch.layout.groups.len());
        let layout = batch.layout;
        for group in &layout.groups {
            let scores = self.heads.queries * group.tokens * group.tokens;
            let at_once = (SCORES_MAX / scores).max(1);
            for first in (0..group.count).step_by(at_once) {
                let part = Group {
                    row: group.row + first * group.tokens,
                    count: at_once.min(group.count - first),
                    tokens: group.tokens,
                };
                rows.push(self.group(mixed, part, batch)?);
            }
        }
        Tensor::cat(&rows, 0)
    }

    /// The same for sequences of one length.
    fn group(&self, mixed: &Mixed, group: Group, batch: &mut Batch<'_>) -> Result<Tensor> {
        let Heads { queries, keys, width } = self.heads;
        let Group { row, count, tokens } = group;
        // As many heads of queries share one of keys: they are rows of one product.
        let shared = queries / keys;
        let block = |all: &Tensor| all.narrow(0, row, count * tokens);
        let q = block(&mixed.queries)?.reshape((count, tokens, keys, shared, width))?;
        let q = q.permute((0, 2, 3, 1, 4))?.contiguous()?;
        let k = block(&mixed.keys)?.reshape((count, tokens, keys, width))?;
        let k = k.permute((0, 2, 3, 1))?.contiguous()?;
        let k = k.reshape((count * keys, width, tokens))?;
        let v = block(&mixed.values)?.reshape((count, tokens, keys, width))?;
        let v = v.permute((0, 2, 1, 3))?.contiguous()?;
        let v = v.reshape((count * keys, tokens, width))?;

        let at_once = (SCORES_MAX / (queries * tokens)).clamp(1, tokens);
        let mut seen = Vec::with_capacity(tokens.div_ceil(at_once));
        for first in (0..tokens).step_by(at_once) {
            let part = first..(first + at_once).min(tokens);
            let some = part.len();
            let q = q.narrow(3, first, some)?.contiguous()?;
            let scores = q.reshape((count * keys, shared * some, width))?.matmul(&k)?;
            let mut scores = scores.to_dtype(DType::F32)?;
            if let Some(mask) = self.mask(tokens, part, batch, scores.device())? {
                let shape = scores.shape().clone();
                scores = scores
                    .reshape((count, queries, some, tokens))?
                    .broadcast_add(mask)?
                    .reshape(shape)?;
            }
            let shares = ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
            let rows = shares.matmul(&v)?.reshape((count, keys, shared, some, width))?;
            seen.push(rows.permute((0, 3, 1, 2, 4))?.contiguous()?);
        }
        let seen = match seen.len() {
            1 => seen.remove(0),
            _ => Tensor::cat(&seen, 1)?,
        };
        seen.reshape((count * tokens, queries * width))
    }

    /// What is added to the scores of some queries of a sequence: one for each head, or for all the same.
    fn mask<'b>(
        &self,
        tokens: usize,
        queries: Range<usize>,
        batch: &'b mut Batch<'_>,
        device: &candle_core::Device,
    ) -> Result<Option<&'b Tensor>> {
        if self.reach == Reach::default() && self.distances.is_none() {
            return Ok(None);
        }
        let known = self
            .distances
            .as_ref()
            .map_or(0, |table| Arc::as_ptr(table) as usize);
        let key = (known, self.reach, tokens, queries.clone());
        if !batch.masks.contains_key(&key) {
            let heads = self.distances.as_ref().map_or(1, |_| self.heads.queries);
            let mut mask = Vec::with_capacity(heads * queries.len() * tokens);
            for head in 0..heads {
                for query in queries.clone() {
                    let own = self.reach.of(query, tokens);
                    let added = self.distances.as_ref().map(|table| table.of(head, query, 0));
                    mask.extend((0..tokens).map(|key| match added {
                        _ if !own.contains(&key) => f32::NEG_INFINITY,
                        Some(added) => added[key],
                        None => 0.0,
                    }));
                }
            }
            let mask = Tensor::from_vec(mask, (1, heads, queries.len(), tokens), device)?;
            batch.masks.insert(key.clone(), mask);
        }
        Ok(batch.masks.get(&key))
    }
}
