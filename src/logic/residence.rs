//! Which models are in memory: one is loaded when a job wants it, and given back when no job has wanted it for long.
//!
//! A job holds its model from its admission until it is gone. So no model is unloaded under a job; what is asked of
//! one that is on its way out waits until it is out, and in again.
//!
//! At the start every model is loaded once, so that what cannot work is known before the service calls itself ready. One
//! that need not be kept goes again as soon as it has been seen to work, unless a job waits for it by then.

use super::event::ModelId;
use crate::clock::Moment;
use std::time::Duration;

/// Where a model stands.
///
/// ```text
///   the start ─────────────────┐
///              hold            v    loaded                 due
///  Unloaded ────────────> Loading ──────────> Ready ─────────────────> Unloading ──unloaded──> Unloaded
///     ^                      │                ^   │                        │ held meanwhile
///     └────── failed ────────┘                └───┘ held: working          └──unloaded──> Loading
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not in memory.
    Unloaded,
    /// On its way into memory.
    Loading,
    /// In memory.
    Ready,
    /// On its way out.
    Unloading,
}

/// What is told of a model: its [`State`], and where that is not all, what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Not in memory.
    Unloaded,
    /// On its way into memory.
    Loading,
    /// In memory, and no job needs it.
    Ready,
    /// In memory, and jobs need it.
    Working,
    /// On its way out.
    Unloading,
    /// Not in memory, and the last try to load it came to nothing.
    Failed,
}

impl Told {
    /// All of them.
    pub const ALL: [Told; 6] = [
        Told::Unloaded,
        Told::Loading,
        Told::Ready,
        Told::Working,
        Told::Unloading,
        Told::Failed,
    ];

    /// The name used in the status, in metrics and in heartbeats.
    pub fn name(self) -> &'static str {
        match self {
            Told::Unloaded => "unloaded",
            Told::Loading => "loading",
            Told::Ready => "ready",
            Told::Working => "working",
            Told::Unloading => "unloading",
            Told::Failed => "failed",
        }
    }
}

/// One model.
#[derive(Clone, Debug)]
struct Place {
    state: State,
    /// Jobs that need it.
    held: usize,
    /// When the last job that used it left.
    used: Moment,
    /// Its own bound on idleness, if it has one.
    idle_unload: Option<Duration>,
    /// The last try to load it came to nothing.
    failed: bool,
    /// It has not been in memory since the start.
    first: bool,
    /// Without a job it is in memory only to be seen to work.
    spare: bool,
}

/// All models.
#[derive(Clone, Debug)]
pub struct Residence {
    models: Vec<Place>,
    /// The bound of those that have none of their own; zero is never.
    idle_unload: Duration,
}

impl Residence {
    /// All are on their way into memory. Per model, its own bound on idleness, and whether it is kept once it has been seen
    /// to work.
    pub fn new(
        models: impl Iterator<Item = (Option<Duration>, bool)>,
        idle_unload: Duration,
        now: Moment,
    ) -> Residence {
        let place = |(idle_unload, kept): (_, bool)| Place {
            state: State::Loading,
            held: 0,
            used: now,
            idle_unload,
            failed: false,
            first: true,
            spare: !kept,
        };
        Residence {
            models: models.map(place).collect(),
            idle_unload,
        }
    }

    /// A new bound for those that have none of their own.
    pub fn reload(&mut self, idle_unload: Duration) {
        self.idle_unload = idle_unload;
    }

    /// A job needs the model. True if it is to be loaded now.
    pub fn hold(&mut self, model: ModelId) -> bool {
        let place = &mut self.models[model.0];
        place.held += 1;
        place.spare = false;
        let load = place.state == State::Unloaded;
        if load {
            place.state = State::Loading;
        }
        load
    }

    /// A job needs it no longer. `used` says that this counts as use: the canaries of an idle service do not.
    pub fn release(&mut self, model: ModelId, used: bool, now: Moment) {
        let place = &mut self.models[model.0];
        assert!(place.held > 0, "model {} is given back twice", model.0);
        place.held -= 1;
        if used {
            place.used = now;
        }
    }

    /// It is in memory.
    pub fn loaded(&mut self, model: ModelId, now: Moment) {
        let place = &mut self.models[model.0];
        assert_eq!(place.state, State::Loading, "model {} was not asked for", model.0);
        (place.state, place.failed, place.used) = (State::Ready, false, now);
        place.first = false;
    }

    /// It could not be loaded.
    pub fn failed(&mut self, model: ModelId) {
        let place = &mut self.models[model.0];
        assert_eq!(place.state, State::Loading, "model {} was not asked for", model.0);
        (place.state, place.failed) = (State::Unloaded, true);
    }

    /// It is out of memory. True if it is to be loaded again, since a job came meanwhile.
    pub fn unloaded(&mut self, model: ModelId) -> bool {
        let place = &mut self.models[model.0];
        assert_eq!(place.state, State::Unloading, "model {} was to stay", model.0);
        let again = place.held > 0;
        place.state = if again { State::Loading } else { State::Unloaded };
        again
    }

    /// A model that has been idle for its time; it counts as on its way out from now on.
    pub fn unload(&mut self, now: Moment) -> Option<ModelId> {
        let due = |model: &ModelId| self.idle_until(*model).is_some_and(|until| until <= now);
        let model = (0..self.models.len()).map(ModelId).find(due)?;
        let place = &mut self.models[model.0];
        (place.state, place.spare) = (State::Unloading, false);
        Some(model)
    }

    /// When the next model will have been idle for its time.
    pub fn next_check(&self) -> Option<Moment> {
        let models = (0..self.models.len()).map(ModelId);
        models.filter_map(|model| self.idle_until(model)).min()
    }

    fn idle_until(&self, model: ModelId) -> Option<Moment> {
        let place = &self.models[model.0];
        let idle_unload = place.idle_unload.unwrap_or(self.idle_unload);
        let may = place.state == State::Ready && place.held == 0;
        if may && place.spare {
            return Some(place.used);
        }
        (may && !idle_unload.is_zero()).then(|| place.used + idle_unload)
    }

    /// Whether a model has not been in memory yet.
    pub fn starts(&self) -> bool {
        self.models.iter().any(|place| place.first)
    }

    /// Whether it is in memory.
    pub fn is_ready(&self, model: ModelId) -> bool {
        self.models[model.0].state == State::Ready
    }

    /// Whether it is not in memory, nor on its way.
    pub fn is_unloaded(&self, model: ModelId) -> bool {
        self.models[model.0].state == State::Unloaded
    }

    /// Whether the last try to load it came to nothing.
    pub fn has_failed(&self, model: ModelId) -> bool {
        self.models[model.0].failed
    }

    /// The next model in memory from this one on, in the order of their numbers and round again.
    pub fn next_ready(&self, from: usize) -> Option<ModelId> {
        let all = (0..self.models.len()).map(|step| ModelId((from + step) % self.models.len()));
        all.into_iter().find(|model| self.is_ready(*model))
    }

    /// The name of each model's state, in the order of their numbers.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        let told = |place: &Place| match place.state {
            State::Unloaded if place.failed => Told::Failed,
            State::Unloaded => Told::Unloaded,
            State::Loading => Told::Loading,
            State::Ready if place.held > 0 => Told::Working,
            State::Ready => Told::Ready,
            State::Unloading => Told::Unloading,
        };
        self.models.iter().map(move |place| told(place).name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODEL: ModelId = ModelId(0);

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn of(models: impl IntoIterator<Item = Option<u64>>, idle_ms: u64) -> Residence {
        let own = |ms: Option<u64>| (ms.map(Duration::from_millis), true);
        let models: Vec<_> = models.into_iter().map(own).collect();
        let count = models.len();
        let mut models = Residence::new(models.into_iter(), Duration::from_millis(idle_ms), at(0));
        (0..count).for_each(|model| models.loaded(ModelId(model), at(0)));
        models
    }

    /// One that has been through its first load, and is in memory or not.
    fn one(loaded: bool) -> Residence {
        let mut models = of([None], 100);
        if !loaded {
            assert_eq!(models.unload(at(100)), Some(MODEL));
            assert!(!models.unloaded(MODEL));
        }
        models
    }

    #[test]
    fn at_the_start_each_is_seen_to_work_and_goes_if_nobody_needs_it() {
        let own = [(None, true), (None, false), (None, false)];
        let mut models = Residence::new(own.into_iter(), Duration::from_secs(1), at(0));
        assert!(!models.hold(ModelId(2)), "on its way already");
        for model in 0..3 {
            assert!(models.starts());
            models.loaded(ModelId(model), at(10));
        }
        assert!(!models.starts());
        assert_eq!(models.unload(at(10)), Some(ModelId(1)));
        assert_eq!(
            models.unload(at(1009)),
            None,
            "one is held, one is kept for its time"
        );
        models.release(ModelId(2), true, at(1009));
        assert_eq!(models.unload(at(1010)), Some(ModelId(0)));
        assert_eq!(models.unload(at(2008)), None);
        // What has gone once is a model like any other.
        assert!(!models.unloaded(ModelId(1)) && models.hold(ModelId(1)));
        models.loaded(ModelId(1), at(2000));
        models.release(ModelId(1), true, at(2000));
        assert_eq!(models.unload(at(2999)), Some(ModelId(2)));
        assert_eq!(models.unload(at(2999)), None);
    }

    #[test]
    fn an_idle_model_goes_and_one_that_is_held_stays() {
        let mut models = one(true);
        assert!(!models.hold(MODEL));
        assert_eq!(models.unload(at(500)), None);
        models.release(MODEL, true, at(600));
        assert_eq!(
            (models.unload(at(699)), models.next_check()),
            (None, Some(at(700)))
        );
        // A canary holds it and does not count as use.
        assert!(!models.hold(MODEL));
        assert_eq!(models.unload(at(700)), None);
        models.release(MODEL, false, at(701));
        assert_eq!(models.unload(at(701)), Some(MODEL));
        assert_eq!(models.unload(at(702)), None);
    }

    #[test]
    fn a_job_that_comes_during_an_unload_waits_for_the_reload() {
        let mut models = one(true);
        assert_eq!(models.unload(at(100)), Some(MODEL));
        assert!(!models.hold(MODEL) && !models.is_ready(MODEL));
        assert!(models.unloaded(MODEL));
        models.loaded(MODEL, at(200));
        assert_eq!(models.names().collect::<Vec<_>>(), ["working"]);
    }

    #[test]
    fn what_could_not_be_loaded_is_tried_again_for_the_next_job() {
        let mut models = one(false);
        assert!(models.hold(MODEL) && !models.hold(MODEL));
        models.failed(MODEL);
        assert!(models.has_failed(MODEL) && models.hold(MODEL));
        models.loaded(MODEL, at(10));
        assert!(!models.has_failed(MODEL));
    }

    #[test]
    fn zero_is_never() {
        let mut models = of([Some(0), None], 1000);
        assert_eq!(models.unload(at(10_000)), Some(ModelId(1)));
        assert_eq!((models.unload(at(10_000)), models.next_check()), (None, None));
    }

    proptest! {
        /// Over any history: never two loads at once, never unloaded while held, and whoever holds a model finds it
        /// ready once the machine has done what it was asked.
        #[test]
        fn never_two_loads_never_unloaded_under_a_job(
            steps in prop::collection::vec((0u8..6, 0usize..3, 1u64..60), 1..200),
        ) {
            let own = [None, Some(Duration::from_millis(30)), Some(Duration::ZERO)];
            let kept = [true, false, false];
            let mut models = Residence::new(own.into_iter().zip(kept), Duration::from_millis(50), at(0));
            let (mut held, mut under_way) = ([0usize; 3], [Some(true); 3]);
            let mut now = 0;
            for (step, which, pause) in steps {
                now += pause;
                let model = ModelId(which);
                match step {
                    0 | 1 => {
                        held[which] += 1;
                        if models.hold(model) {
                            prop_assert_eq!(under_way[which].replace(true), None, "a second load");
                        }
                    }
                    2 if held[which] > 0 => {
                        held[which] -= 1;
                        models.release(model, pause % 2 == 0, at(now));
                    }
                    3 => while let Some(model) = models.unload(at(now)) {
                        prop_assert_eq!(held[model.0], 0, "unloaded under a job");
                        prop_assert_eq!(under_way[model.0].replace(false), None);
                    },
                    4 => match under_way[which].take() {
                        Some(true) => models.loaded(model, at(now)),
                        Some(false) if models.unloaded(model) => under_way[which] = Some(true),
                        _ => {}
                    },
                    // One that cannot be loaded at the start ends the process.
                    5 if under_way[which] == Some(true) && !models.models[which].first => {
                        under_way[which] = None;
                        models.failed(model);
                        // Its jobs are told and leave.
                        while held[which] > 0 {
                            held[which] -= 1;
                            models.release(model, false, at(now));
                        }
                    }
                    _ => {}
                }
                for (which, held) in held.iter().enumerate() {
                    let there = models.is_ready(ModelId(which)) || under_way[which].is_some();
                    prop_assert!(*held == 0 || there, "a job waits for what nobody loads");
                }
            }
        }
    }
}
