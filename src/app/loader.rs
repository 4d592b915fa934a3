//! The thread that brings models into memory and out again, one at a time: reading and packing takes seconds for a large
//! one, and the loop has refusals to send meanwhile, also at the start.

use super::catalogue::{CatalogueError, Proven, Recipe, Unproven};
use crate::engine::Model;
use crate::logic::event::ModelId;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

/// What the thread shall do.
pub enum Order {
    /// Load it for the first time.
    First(ModelId, Unproven),
    /// Load what the folder holds, and see that it still is the model that was there at the start.
    Load(ModelId, PathBuf, Arc<Recipe>),
    /// Let go of it.
    Unload(ModelId, Arc<Model>),
}

/// What it has done.
#[derive(Debug)]
pub enum Loading {
    /// Some more of the model is there; at the start with a line for people.
    Step(Option<String>),
    /// It is there for the first time, or the service cannot go on.
    First(ModelId, Result<Box<Proven>, CatalogueError>),
    /// All of it is.
    Loaded(ModelId, Arc<Model>),
    /// It cannot be had.
    Failed(ModelId, String),
    /// It has been let go of.
    Unloaded(ModelId),
}

/// The way to the thread.
pub struct Loader(mpsc::Sender<Order>);

impl Loader {
    /// Starts the thread. `report` is called on it; it may wait, except for a step.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn start(report: impl Fn(Loading) + Send + 'static) -> std::io::Result<Loader> {
        // The logic asks for a model once and waits for the answer: there are never more orders than models.
        let (to_thread, orders) = mpsc::channel();
        let work = move || {
            for order in orders {
                report(match order {
                    Order::First(id, unproven) => {
                        let step = &mut |line| report(Loading::Step(Some(line)));
                        Loading::First(id, unproven.load(step).map(Box::new))
                    }
                    Order::Unload(id, model) => {
                        drop(model);
                        Loading::Unloaded(id)
                    }
                    Order::Load(id, dir, recipe) => {
                        match recipe.load_again(&dir, &mut || report(Loading::Step(None))) {
                            Ok(model) => Loading::Loaded(id, Arc::new(model)),
                            Err(why) => Loading::Failed(id, why),
                        }
                    }
                });
            }
        };
        std::thread::Builder::new().name("load".into()).spawn(work)?;
        Ok(Loader(to_thread))
    }

    /// Gives the thread an order. False if it is gone.
    pub fn order(&self, order: Order) -> bool {
        self.0.send(order).is_ok()
    }
}
