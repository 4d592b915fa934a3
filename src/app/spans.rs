//! What is remembered of a job of which a span is told when it ends: the moments at which it entered each stage.

use super::desk::Held;
use crate::clock::Moment;
use crate::job::trace::{Place, TraceParent};
use crate::job::{ErrorType, Refusal};
use crate::logic::ledger::Stage;

/// A job that is followed.
#[derive(Debug)]
pub struct Followed {
    /// Where its span stands.
    pub place: Place,
    /// The stages that it has entered, and when.
    pub steps: Vec<(Stage, Moment)>,
    /// The type of its refusal or failure, and the field that is wrong.
    pub refused: Option<(ErrorType, Option<String>)>,
}

impl Followed {
    /// A job that has just come, with this place in its trace.
    pub fn new(place: Place) -> Box<Followed> {
        Box::new(Followed {
            place,
            steps: Vec::with_capacity(5),
            refused: None,
        })
    }

    /// What its answers say of the trace.
    pub fn traceparent(&self) -> TraceParent {
        self.place.traceparent()
    }

    /// Whether the trace begins with it.
    pub fn is_root(&self) -> bool {
        self.place.parent.is_none()
    }

    fn enters(&mut self, stage: Stage, at: Moment) {
        // Of several batches or publications the first is where the stage begins; no job goes back.
        if self.steps.last().is_none_or(|(last, _)| *last < stage) {
            self.steps.push((stage, at));
        }
    }
}

impl Held {
    /// The job enters a stage.
    pub fn enters(&mut self, stage: Stage, at: Moment) {
        if let Some(followed) = &mut self.followed {
            followed.enters(stage, at);
        }
    }

    /// The job is refused, or its attempt has failed: the first reason is the one.
    pub fn fails(&mut self, refusal: &Refusal) {
        if let Some(followed) = &mut self.followed {
            let told = || (refusal.error, refusal.param.clone());
            followed.refused.get_or_insert_with(told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stage begins with the first of several batches or publications, and no job goes back.
    #[test]
    fn a_stage_begins_once() {
        let mut followed = Followed::new(Place::root(1, 2));
        let at = Moment::from_millis;
        for (stage, ms) in [
            (Stage::Admitted, 1),
            (Stage::Computed, 2),
            (Stage::Computed, 3),
            (Stage::Published, 4),
            (Stage::Computed, 5),
            (Stage::Published, 6),
            (Stage::Acked, 7),
        ] {
            followed.enters(stage, at(ms));
        }
        let steps = [
            (Stage::Admitted, at(1)),
            (Stage::Computed, at(2)),
            (Stage::Published, at(4)),
            (Stage::Acked, at(7)),
        ];
        assert_eq!(followed.steps, steps);
    }
}
