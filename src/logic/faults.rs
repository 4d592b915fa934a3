//! Engine faults: is it the input, or the engine?
//!
//! A failed input may be poison, and then its job alone pays for it. So after any failure a canary for that
//! model is due at once: if it fails too, the engine computes wrong. And an engine that fails whole batches
//! of several jobs in a row, with nothing good in between, is judged without waiting for the canary, which
//! another engine may have taken. A job that was tried before is no proof: it failed on other engines, too.

use super::event::{EngineId, ModelId};
use crate::job::JobKey;

/// Jobs in a row whose batches failed wholly on one engine, before the engine is to blame.
const FAILED_JOBS_MAX: u32 = 3;

/// What each engine has failed at lately.
#[derive(Clone, Debug)]
pub struct Faults {
    engines: Vec<Streak>,
    check: Option<ModelId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    jobs: u32,
    last: Option<JobKey>,
}

impl Faults {
    /// Nothing has failed yet.
    pub fn new(engines: usize) -> Faults {
        Faults {
            engines: vec![Streak::default(); engines],
            check: None,
        }
    }

    /// A batch came back with `failed` of its `items` inputs without a vector; `lead` is the job of its first
    /// input, unless it was tried before. A part of a batch that failed whole counts for nothing but its good. True if the engine is to blame.
    pub fn batch_done(
        &mut self,
        engine: EngineId,
        model: ModelId,
        lead: Option<JobKey>,
        failed: usize,
        items: usize,
        part: bool,
    ) -> bool {
        if failed > 0 {
            self.check = Some(model);
        }
        let streak = &mut self.engines[engine.0];
        if failed < items {
            *streak = Streak::default();
        } else if !part && lead.is_some() && streak.last != lead {
            streak.jobs += 1;
            streak.last = lead;
        }
        streak.jobs >= FAILED_JOBS_MAX
    }

    /// Whether a model is to be checked by a canary at once.
    pub fn wants_check(&self) -> bool {
        self.check.is_some()
    }

    /// The model to be checked, if one is; it counts as checked from now on.
    pub fn take_check(&mut self) -> Option<ModelId> {
        self.check.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: EngineId = EngineId(0);
    const MODEL: ModelId = ModelId(0);

    #[test]
    fn three_jobs_in_a_row_convict_the_engine() {
        let mut faults = Faults::new(1);
        assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(1)), 2, 2, false));
        assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(2)), 1, 1, false));
        // Attempts of one job are as many jobs here, and would have convicted a sound engine.
        for _ in 0..3 {
            assert!(!faults.batch_done(ENGINE, MODEL, None, 1, 1, false));
        }
        assert!(faults.batch_done(ENGINE, MODEL, Some(JobKey(3)), 4, 4, false));
    }

    /// One poisonous job of many batches is no proof against the engine, and neither are failures beside
    /// which something was computed.
    #[test]
    fn one_job_or_one_good_vector_acquits_it() {
        let mut faults = Faults::new(1);
        for _ in 0..10 {
            assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(1)), 2, 2, false));
        }
        assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(2)), 2, 2, false));
        assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(3)), 3, 4, false));
        assert!(!faults.batch_done(ENGINE, MODEL, Some(JobKey(4)), 4, 4, false));
        assert_eq!(faults.take_check(), Some(MODEL));
        assert!(!faults.wants_check());
    }
}
