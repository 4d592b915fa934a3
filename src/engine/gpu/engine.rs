//! The engine of a device: sorts a batch, computes it whole or in parts, and puts the vectors back in order.

use super::budget::Budget;
use super::forward::Forward;
use super::{fault, layout};
use crate::engine::{Engine, EngineError, Sequence, VectorFault, pooling};
use std::sync::Arc;

/// One thread's engine: shared weights, a budget of its own.
pub struct GpuEngine {
    forward: Arc<Forward>,
    budget: Budget,
}

impl GpuEngine {
    /// An engine on these weights.
    pub fn new(forward: Arc<Forward>) -> GpuEngine {
        GpuEngine {
            forward,
            budget: Budget::default(),
        }
    }
}

impl Engine for GpuEngine {
    fn embed(
        &mut self,
        batch: &[&Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Vec<f32>, VectorFault>>, EngineError> {
        let forward = &self.forward;
        forward.check(batch)?;
        let order = layout::order(batch);
        let sorted: Vec<&Sequence> = order.iter().map(|index| batch[*index]).collect();
        let lengths: Vec<usize> = sorted.iter().map(|sequence| sequence.ids.len()).collect();
        let compute = |first: usize, count: usize| {
            let _turn = forward.whereabouts().turn();
            let vectors = forward.run(&sorted[first..][..count], step);
            vectors.map_err(|error| fault::of(&error))
        };
        let results = self
            .budget
            .spend(&lengths, compute)
            .map_err(|why| EngineError::Device { why })?;
        let mut vectors = vec![Err(VectorFault::Zero); batch.len()];
        for (index, result) in order.into_iter().zip(results) {
            vectors[index] = result.and_then(pooling::check);
        }
        Ok(vectors)
    }
}
