//! The judge's book of the models: which are in memory, who holds them, and since when nobody does.

use embeddings::clock::Moment;
use embeddings::config::Limits;
use embeddings::logic::ModelSetup;
use std::time::Duration;

/// Where a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    ComingIn,
    In,
    GoingOut,
}

#[derive(Clone, Debug)]
struct Model {
    place: Place,
    used: Moment,
    own: Option<Duration>,
    failed: bool,
    /// It has not been there since the start.
    first: bool,
    /// Without a job it goes as soon as it has been there.
    spare: bool,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Models {
    models: Vec<Model>,
    /// Loads and unloads under way, and since when the last of them has not got on.
    moves: usize,
    moved: Moment,
}

impl Models {
    pub fn new(setups: &[ModelSetup], now: Moment) -> Models {
        let model = |setup: &ModelSetup| Model {
            place: Place::ComingIn,
            used: now,
            own: setup.idle_unload,
            failed: false,
            first: true,
            spare: !setup.kept,
        };
        Models {
            models: setups.iter().map(model).collect(),
            moves: setups.len(),
            moved: now,
        }
    }

    pub fn is_in(&self, model: usize) -> bool {
        self.models[model].place == Place::In
    }

    pub fn is_out(&self, model: usize) -> bool {
        self.models[model].place == Place::Out
    }

    pub fn has_failed(&self, model: usize) -> bool {
        self.models[model].failed
    }

    /// Whether one of them has not been there yet.
    pub fn starts(&self) -> bool {
        self.models.iter().any(|model| model.first)
    }

    /// A job wants it.
    pub fn wanted(&mut self, model: usize) {
        self.models[model].spare = false;
    }

    /// A caller's job that held it has left.
    pub fn used(&mut self, model: usize, now: Moment) {
        self.models[model].used = now;
    }

    pub fn load(&mut self, model: usize, wanted: bool, now: Moment) {
        assert_eq!(
            self.models[model].place,
            Place::Out,
            "a second load, or of what is there"
        );
        assert!(wanted, "a load that no job asks for");
        self.models[model].place = Place::ComingIn;
        self.moves(now);
    }

    fn moves(&mut self, now: Moment) {
        if self.moves == 0 {
            self.moved = now;
        }
        self.moves += 1;
    }

    pub fn step(&mut self, now: Moment) {
        self.moved = now;
    }

    pub fn ended(&mut self, model: usize, loaded: bool, now: Moment) {
        let it = &mut self.models[model];
        assert_eq!(it.place, Place::ComingIn);
        it.place = if loaded { Place::In } else { Place::Out };
        it.failed = !loaded;
        assert!(loaded || !it.first, "such a process ends");
        if loaded {
            (it.used, it.first) = (now, false);
        }
        self.moves -= 1;
        self.moved = now;
    }

    pub fn unload(&mut self, model: usize, held: bool, limits: &Limits, now: Moment) {
        assert!(!held, "unloaded under a job");
        assert!(self.is_due(model, limits, now), "unloaded before its time");
        self.models[model].place = Place::GoingOut;
        self.models[model].spare = false;
        self.moves(now);
    }

    pub fn unloaded(&mut self, model: usize, now: Moment) {
        assert_eq!(self.models[model].place, Place::GoingOut);
        self.moves -= 1;
        self.moved = now;
        self.models[model].place = Place::Out;
    }

    /// Whether it is to go, if no job holds it.
    pub fn is_due(&self, model: usize, limits: &Limits, now: Moment) -> bool {
        let it = &self.models[model];
        let span = it.own.unwrap_or(limits.idle_unload);
        it.place == Place::In && (it.spare || !span.is_zero() && now.since(it.used) >= span)
    }

    /// Since when a load or an unload has been under way without getting on.
    pub fn stuck_since(&self) -> Option<Moment> {
        (self.moves > 0).then_some(self.moved)
    }
}
