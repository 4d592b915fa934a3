//! The forward pass on the CPU without padding: all tokens of a batch stand below one another, the linear layers
//! see one matrix, attention sees each sequence alone.
//!
//! Every family is an [`Encoder`]: what differs between them is data, decided at load. Nothing is decided for
//! a row; what is decided for a layer costs one comparison a layer.

use super::hands::{Company, Hands, Own, Part, Rows};
use super::kernel::{self, Arch};
use super::layers::attention::SelfAttention;
use super::layers::dense::Dense;
use super::layers::embedding::Embedding;
use super::layers::feed_forward::FeedForward;
use super::layers::norm::Norm;
use super::pooling::{self, Pooling};
use super::team::Team;
use super::{Engine, EngineError, Sequence, VectorFault};
use std::sync::Arc;

/// Rows that go through the feed-forward part at once where it is shared out: 128 rows of 1536 numbers are 768 KiB.
const SHARED_ROWS: usize = 128;

/// Where the norms of a layer stand.
#[derive(Debug)]
pub enum Norms {
    /// Behind each sum: `x = norm(x + part(x))`. BERT and its kin.
    Behind {
        /// Behind attention's sum.
        attention: Norm,
        /// Behind the feed-forward part's sum.
        feed_forward: Norm,
    },
    /// Before each part, and in some families also on what it gives: `x = x + norm(part(norm(x)))`.
    Before {
        /// Before attention. ModernBERT's first layer has none.
        attention: Option<Norm>,
        /// On what attention gives.
        attention_result: Option<Norm>,
        /// Before the feed-forward part.
        feed_forward: Norm,
        /// On what the feed-forward part gives.
        feed_forward_result: Option<Norm>,
    },
}

/// One layer.
#[derive(Debug)]
pub struct Layer {
    /// What tokens take from each other.
    pub attention: SelfAttention,
    /// What is then made of each token alone.
    pub feed_forward: FeedForward,
    /// Around them.
    pub norms: Norms,
}

/// Tokens in, a row for each out. Weights ready for the kernels.
#[derive(Debug)]
pub struct Encoder {
    /// Before the first layer.
    pub embedding: Embedding,
    /// From the first to the last.
    pub layers: Vec<Layer>,
    /// Behind the last.
    pub norm: Option<Norm>,
}

/// An encoder, and how its rows become one vector. Shared by all engines of a model.
#[derive(Debug)]
pub struct Chain {
    /// See [`Encoder`].
    pub encoder: Encoder,
    /// Longest sequence that the encoder has places for.
    pub places: usize,
    /// Behind the encoder.
    pub pooling: Pooling,
    /// Behind the pooling.
    pub dense: Vec<Arc<Dense>>,
}

impl Chain {
    /// Components of a vector.
    pub fn dimensions(&self) -> usize {
        let pooled = self.encoder.embedding.width() * self.pooling.modes.len();
        self.dense.last().map_or(pooled, |dense| dense.width())
    }

    /// An engine on these weights.
    pub fn engine(self: &Arc<Self>) -> Box<dyn Engine> {
        self.engine_of(self.encoder.layers.len())
    }

    /// An engine of the first so many layers. What it computes is nothing; the time that it takes is telling.
    pub fn engine_of(self: &Arc<Self>, layers: usize) -> Box<dyn Engine> {
        Box::new(CpuEngine {
            chain: self.clone(),
            layers,
            arch: kernel::arch(),
            hidden: Rows::default(),
            lengths: Vec::new(),
            own: Own::default(),
            buffers: Buffers::default(),
            company: None,
        })
    }
}

/// Refuses sequences that were not made for a model of so many `places` and tokens.
pub fn check(batch: &[&Sequence], places: usize, count: usize) -> Result<(), EngineError> {
    for (index, sequence) in batch.iter().enumerate() {
        let (tokens, limit) = (sequence.ids.len(), places);
        if tokens == 0 {
            return Err(EngineError::Empty { index });
        }
        if tokens > limit {
            return Err(EngineError::TooLong { index, tokens, limit });
        }
        let limit = count;
        if let Some(token) = sequence.ids.iter().copied().find(|id| *id as usize >= limit) {
            return Err(EngineError::UnknownToken { index, token, limit });
        }
    }
    Ok(())
}

/// One thread's engine: shared weights, buffers of its own.
struct CpuEngine {
    chain: Arc<Chain>,
    /// How many of its layers take part: all of them, but in a trial of speed.
    layers: usize,
    arch: Arch,
    hidden: Rows,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    own: Own,
    buffers: Buffers,
    company: Option<Company>,
}

/// What lies between the parts of a layer.
#[derive(Default)]
struct Buffers {
    context: Rows,
    narrow: Rows,
    wide: Rows,
}

impl Engine for CpuEngine {
    fn lead(&mut self, team: &Arc<Team>) {
        self.company = Some(Company::new(team));
    }

    fn embed(
        &mut self,
        batch: &[&Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Vec<f32>, VectorFault>>, EngineError> {
        let (chain, arch) = (self.chain.clone(), self.arch);
        let encoder = &chain.encoder;
        check(batch, chain.places, encoder.embedding.count())?;
        let width = encoder.embedding.width();
        let tokens: usize = batch.iter().map(|sequence| sequence.ids.len()).sum();
        self.lengths.clear();
        self.lengths
            .extend(batch.iter().map(|sequence| sequence.ids.len()));
        encoder
            .embedding
            .run(arch, batch, self.hidden.take(tokens * width));
        step();
        for (index, layer) in encoder.layers.iter().enumerate().take(self.layers) {
            let company = self.company.as_ref().filter(|company| company.gather());
            let mut hands = Hands {
                arch,
                layer,
                lengths: &self.lengths,
                own: &mut self.own,
                company: company.map(|company| (company, &chain, index)),
            };
            layer.run(&mut hands, tokens, &mut self.hidden, &mut self.buffers);
            step();
        }
        if let Some(company) = &self.company {
            company.dismiss();
        }
        let hidden = self.hidden.take(tokens * width);
        if let Some(norm) = &encoder.norm {
            norm.run(arch, hidden, None);
        }

        let mut first = 0;
        let vectors = batch.iter().map(|sequence| {
            let end = first + sequence.ids.len();
            let rows = &hidden[first * width..end * width];
            first = end;
            let mut vector = chain.pooling.pool(rows, width, sequence.prompt_tokens);
            for dense in &chain.dense {
                vector = dense.apply(arch, &vector);
            }
            pooling::check(vector)
        });
        Ok(vectors.collect())
    }
}

impl Layer {
    /// Computes the layer on the rows of all sequences, in place.
    fn run(&self, hands: &mut Hands<'_>, tokens: usize, hidden: &mut Rows, buffers: &mut Buffers) {
        let arch = hands.arch;
        let Buffers {
            context,
            narrow,
            wide,
        } = buffers;
        let (attention, feed_forward) = (&self.attention, &self.feed_forward);
        let (width, context_width) = (attention.qkv.depth(), attention.heads.query_width());
        // Norms before the parts go the way without the narrow numbers in between, and so do parts that are shared out.
        let whole = hands.shared() || matches!(self.norms, Norms::Before { .. });
        let (block, wide_width) = (
            if hands.shared() {
                SHARED_ROWS
            } else {
                feed_forward.block_rows()
            },
            if whole {
                feed_forward.width()
            } else {
                feed_forward.scratch_width()
            },
        );
        let all = 0..tokens * width;
        let results = context.take(tokens * context_width);
        match &self.norms {
            Norms::Before {
                attention: Some(norm),
                ..
            } => {
                norm.copy(arch, hidden.get(all.end), narrow.take(all.end));
                hands.compute(Part::Attention, narrow, all, results);
            }
            _ => hands.compute(Part::Attention, hidden, all, results),
        }

        for first in (0..tokens).step_by(block) {
            let rows = first..tokens.min(first + block);
            let of = |width: usize| rows.start * width..rows.end * width;
            let (own, widened) = (rows.len() * width, rows.len() * wide_width);
            hands.compute(Part::Out, context, of(context_width), narrow.take(own));
            match &self.norms {
                Norms::Behind {
                    attention,
                    feed_forward: last,
                } => {
                    attention.run(
                        arch,
                        narrow.take(own),
                        Some(&hidden.get(tokens * width)[of(width)]),
                    );
                    let sum = &mut hidden.take(tokens * width)[of(width)];
                    if hands.shared() {
                        hands.compute(Part::Up, narrow, 0..own, wide.take(widened));
                        feed_forward.activate(arch, wide.take(widened));
                        hands.compute(Part::Down, wide, 0..widened, sum);
                    } else {
                        feed_forward.run(arch, narrow.get(own), wide.take(widened), sum);
                    }
                    last.run(arch, sum, Some(narrow.get(own)));
                }
                Norms::Before {
                    attention_result,
                    feed_forward: norm,
                    feed_forward_result,
                    ..
                } => {
                    let sum = &mut hidden.take(tokens * width)[of(width)];
                    add(arch, sum, narrow.take(own), attention_result.as_ref());
                    norm.copy(arch, sum, narrow.take(own));
                    hands.compute(Part::Up, narrow, 0..own, wide.take(widened));
                    feed_forward.activate(arch, wide.take(widened));
                    hands.compute(Part::Down, wide, 0..widened, narrow.take(own));
                    add(arch, sum, narrow.take(own), feed_forward_result.as_ref());
                }
            }
        }
    }
}

/// `sum = sum + norm(part)`; `part` is used up.
fn add(arch: Arch, sum: &mut [f32], part: &mut [f32], norm: Option<&Norm>) {
    if let Some(norm) = norm {
        norm.run(arch, part, None);
    }
    sum.iter_mut().zip(part).for_each(|(value, more)| *value += *more);
}
