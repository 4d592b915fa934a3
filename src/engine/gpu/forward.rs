//! A model on its device, made of the same description as the CPU's.

use super::attention::{Attention, Batch};
use super::layout::Layout;
use super::parts::{Dense, Feed, Norm, Turns, Words, put};
use super::place::Place;
use super::{engine::GpuEngine, pooling};
use crate::engine::encoder::{self, Chain, Encoder};
use crate::engine::layers::embedding::{Places, Tables};
use crate::engine::layers::norm;
use crate::engine::layers::rotary::Rotary;
use crate::engine::pooling::Pooling;
use crate::engine::{Engine, EngineError, LoadError, Sequence};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Where the norms of a layer stand: see [`encoder::Norms`].
#[derive(Debug)]
enum Norms {
    Behind {
        attention: Norm,
        feed_forward: Norm,
    },
    Before {
        attention: Option<Norm>,
        attention_result: Option<Norm>,
        feed_forward: Norm,
        feed_forward_result: Option<Norm>,
    },
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    feed: Feed,
    norms: Norms,
}

/// A model on its device. Shared by all engines of the model.
#[derive(Debug)]
pub struct Forward {
    place: Place,
    words: Words,
    positions: Option<Places>,
    turns: Vec<Turns>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    pooling: Pooling,
    dense: Vec<Dense>,
    places: usize,
    dimensions: usize,
}

impl Forward {
    /// Puts together what was read for `place`; its matrices are there already.
    ///
    /// # Errors
    /// The device fails or has no room.
    pub fn place(chain: Chain, place: &Place) -> std::result::Result<Forward, LoadError> {
        let dimensions = chain.dimensions();
        let Chain {
            encoder:
                Encoder {
                    embedding,
                    layers,
                    norm,
                },
            places,
            pooling,
            dense,
        } = chain;
        let width = embedding.width();
        let Tables {
            words,
            positions,
            norm: words_norm,
        } = embedding.tables();
        let (positions, rows) = positions.unzip();
        let mut tables: Vec<Arc<Rotary>> = Vec::new();
        let mut placed = Vec::with_capacity(layers.len());
        for layer in layers {
            let turns = layer.attention.rotary.clone().map(|rotary| {
                let known = tables.iter().position(|table| Arc::ptr_eq(table, &rotary));
                known.unwrap_or_else(|| {
                    tables.push(rotary);
                    tables.len() - 1
                })
            });
            placed.push(Layer {
                norms: norms(&layer.norms, place)?,
                attention: Attention::place(layer.attention, turns, place)?,
                feed: Feed::new(layer.feed_forward),
            });
        }
        let turns = tables.iter().map(|rotary| Turns::place(rotary, place));
        Ok(Forward {
            words: Words::place((words, rows, words_norm), width, place)?,
            positions,
            turns: turns.collect::<std::result::Result<_, _>>()?,
            layers: placed,
            norm: norm.map(|norm| Norm::place(&norm, place)).transpose()?,
            pooling,
            dense: dense
                .into_iter()
                .map(|module| Dense::new(module.placed()))
                .collect(),
            places,
            dimensions,
            place: place.clone(),
        })
    }

    /// Components of a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// An engine on these weights.
    pub fn engine(self: &Arc<Self>) -> Box<dyn Engine> {
        Box::new(GpuEngine::new(self.clone()))
    }

    /// Where it is.
    pub fn whereabouts(&self) -> &Place {
        &self.place
    }

    /// Refuses what was not made for this model.
    pub fn check(&self, batch: &[&Sequence]) -> std::result::Result<(), EngineError> {
        encoder::check(batch, self.places, self.words.count())
    }

    /// A vector for each sequence, which come the shortest first. `step` is called when the device has done a layer.
    pub fn run(&self, sequences: &[&Sequence], step: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>> {
        let layout = Layout::new(sequences, self.positions);
        let device = self.place.device();
        // Work is only ordered until the device says that it is done; a step that was merely ordered is no progress.
        let mut done = || device.synchronize().map(|()| step());
        let mut batch = Batch::new(&layout, &self.turns, &self.place)?;
        let positions = put(&layout.positions, &self.place)?;
        let mut rows = self.words.run(&put(&layout.ids, &self.place)?, &positions)?;
        done()?;
        for layer in &self.layers {
            rows = layer.run(&rows, &mut batch, &self.place)?;
            done()?;
        }
        if let Some(norm) = &self.norm {
            rows = norm.run(&rows)?;
        }
        let mut vectors = pooling::pool(&self.pooling, &rows, sequences, &batch)?;
        for module in &self.dense {
            vectors = module.run(&vectors)?;
        }
        vectors.to_vec2()
    }
}

fn norms(norms: &encoder::Norms, place: &Place) -> std::result::Result<Norms, LoadError> {
    let norm = |norm: &norm::Norm| Norm::place(norm, place);
    let perhaps = |other: &Option<norm::Norm>| other.as_ref().map(norm).transpose();
    Ok(match norms {
        encoder::Norms::Behind {
            attention,
            feed_forward,
        } => Norms::Behind {
            attention: norm(attention)?,
            feed_forward: norm(feed_forward)?,
        },
        encoder::Norms::Before {
            attention,
            attention_result,
            feed_forward,
            feed_forward_result,
        } => Norms::Before {
            attention: perhaps(attention)?,
            attention_result: perhaps(attention_result)?,
            feed_forward: norm(feed_forward)?,
            feed_forward_result: perhaps(feed_forward_result)?,
        },
    })
}

impl Layer {
    /// Of rows of 32-bit numbers.
    fn run(&self, rows: &Tensor, batch: &mut Batch<'_>, place: &Place) -> Result<Tensor> {
        let narrow = |rows: &Tensor| rows.to_dtype(place.dtype());
        let wide = |rows: Tensor| rows.to_dtype(candle_core::DType::F32);
        let perhaps = |norm: &Option<Norm>, rows: Tensor| match norm {
            Some(norm) => norm.run(&rows),
            None => Ok(rows),
        };
        match &self.norms {
            Norms::Behind {
                attention,
                feed_forward,
            } => {
                let part = wide(self.attention.run(&narrow(rows)?, batch)?)?;
                let rows = attention.run(&(rows + part)?)?;
                let part = wide(self.feed.run(&narrow(&rows)?)?)?;
                feed_forward.run(&(rows + part)?)
            }
            Norms::Before {
                attention,
                attention_result,
                feed_forward,
                feed_forward_result,
            } => {
                let normed = perhaps(attention, rows.clone())?;
                let part = wide(self.attention.run(&narrow(&normed)?, batch)?)?;
                let rows = (rows + perhaps(attention_result, part)?)?;
                let normed = feed_forward.run(&rows)?;
                let part = wide(self.feed.run(&narrow(&normed)?)?)?;
                rows + perhaps(feed_forward_result, part)?
            }
        }
    }
}
