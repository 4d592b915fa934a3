//! The engine alone: text in, vector of length one out, on as many threads as were asked for.
//!
//! No queue, no JSON, no broker. Each thread makes tokens of the next texts, a batch of the service's size, and
//! computes it; so a service on the same machine can reach this at most.

use crate::clock::Clock;
use crate::config;
use crate::engine::{Engine, LoadOptions, Model, ModelInfo, Sequence, pooling};
use anyhow::{Context, anyhow};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A model in one precision, with an engine for each thread.
pub struct Rig {
    model: Model,
    engines: Vec<Box<dyn Engine>>,
    batch_tokens: usize,
    /// From the folder to a model that computes, in milliseconds.
    pub load_ms: f64,
}

/// How fast texts became vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Of all threads together, counting no padding.
    pub tokens_per_second: f64,
    /// Tokens of a text, on average.
    pub tokens_per_input: f64,
}

/// Vectors with the places of their texts.
type Placed = Vec<(usize, Vec<f32>)>;

/// What one thread has done.
#[derive(Default)]
struct Done {
    tokens: usize,
    inputs: usize,
    seconds: f64,
    vectors: Placed,
}

/// When a thread stops.
#[derive(Clone, Copy)]
enum Until {
    /// So much time has passed; the texts begin anew as often as needed. Vectors are not kept.
    Passed(Duration),
    /// Every text has its vector.
    All,
}

impl Rig {
    /// Loads a model.
    ///
    /// # Errors
    /// What the engine says, with the folder.
    pub fn load(
        dir: &Path,
        device: config::Device,
        precision: config::Precision,
        threads: usize,
        batch_tokens: usize,
    ) -> anyhow::Result<Rig> {
        let clock = Clock::start();
        let begin = clock.now();
        let options = LoadOptions {
            device,
            precision,
            ..LoadOptions::default()
        };
        let model = Model::load(dir, &options, &mut |_| ())
            .with_context(|| format!("failed to load the model in {} in {precision}", dir.display()))?;
        let load_ms = ms(clock.now().since(begin));
        let engines = (0..threads.max(1)).map(|_| model.engine()).collect();
        Ok(Rig {
            model,
            engines,
            batch_tokens,
            load_ms,
        })
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// Of vectors at their full length.
    pub fn fingerprint(&self) -> String {
        self.model.fingerprint(self.info().dimensions)
    }

    /// Embeds texts for so long.
    ///
    /// # Errors
    /// A text that has no vector.
    pub fn pace(&mut self, texts: &[String], span: Duration) -> anyhow::Result<Pace> {
        Ok(pace(&self.spread(texts, Until::Passed(span))?))
    }

    /// Embeds each text once: its vector, and how fast that went.
    ///
    /// # Errors
    /// A text that has no vector.
    pub fn embed(&mut self, texts: &[String]) -> anyhow::Result<(Vec<Vec<f32>>, Pace)> {
        let done = self.spread(texts, Until::All)?;
        let pace = pace(&done);
        let mut placed: Placed = done.into_iter().flat_map(|done| done.vectors).collect();
        placed.sort_by_key(|(place, _)| *place);
        Ok((placed.into_iter().map(|(_, vector)| vector).collect(), pace))
    }

    /// Embeds texts one at a time on this thread, for so long: milliseconds of each, at least one.
    ///
    /// # Errors
    /// A text that has no vector.
    pub fn single(&mut self, texts: &[String], span: Duration) -> anyhow::Result<Vec<f64>> {
        let (clock, mut times) = (Clock::start(), Vec::new());
        let begin = clock.now();
        let engine = &mut self.engines[0];
        for text in texts.iter().cycle() {
            let start = clock.now();
            let sequence = tokenize(&self.model, text)?;
            vectors(&self.model, engine.as_mut(), &[&sequence])?;
            let end = clock.now();
            times.push(ms(end.since(start)));
            if end.since(begin) >= span {
                break;
            }
        }
        Ok(times)
    }

    /// Has every engine work on the same list of texts.
    fn spread(&mut self, texts: &[String], until: Until) -> anyhow::Result<Vec<Done>> {
        let (model, batch_tokens, next) = (&self.model, self.batch_tokens, &AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let mut started = Vec::new();
            for (number, engine) in self.engines.iter_mut().enumerate() {
                let (name, engine) = (format!("engine-{number}"), engine.as_mut());
                let work = move || run(model, engine, batch_tokens, texts, next, until);
                started.push(std::thread::Builder::new().name(name).spawn_scoped(scope, work));
            }
            let join = |thread: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
                let thread = thread.context("failed to start an engine thread")?;
                thread.join().map_err(|_| anyhow!("an engine thread has ended"))?
            };
            started.into_iter().map(join).collect()
        })
    }
}

/// One thread's work. It takes the next texts of the list until it is to stop.
fn run(
    model: &Model,
    engine: &mut dyn Engine,
    batch_tokens: usize,
    texts: &[String],
    next: &AtomicUsize,
    until: Until,
) -> anyhow::Result<Done> {
    let (clock, mut done) = (Clock::start(), Done::default());
    let begin = clock.now();
    loop {
        let (mut places, mut sequences, mut tokens) = (Vec::new(), Vec::new(), 0);
        while tokens < batch_tokens {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if matches!(until, Until::All) && number >= texts.len() {
                break;
            }
            let place = number % texts.len();
            let sequence = tokenize(model, &texts[place])?;
            tokens += sequence.ids.len();
            places.push(place);
            sequences.push(sequence);
        }
        if sequences.is_empty() {
            return Ok(done);
        }
        let all: Vec<&Sequence> = sequences.iter().collect();
        let vectors = vectors(model, engine, &all)?;
        done.tokens += tokens;
        done.inputs += vectors.len();
        let passed = clock.now().since(begin);
        done.seconds = passed.as_secs_f64();
        match until {
            Until::Passed(span) if passed >= span => return Ok(done),
            Until::Passed(_) => {}
            Until::All => done.vectors.extend(places.into_iter().zip(vectors)),
        }
    }
}

/// Each thread by its own time: one that finished its last batch early is not charged with the others'.
fn pace(done: &[Done]) -> Pace {
    let tokens: usize = done.iter().map(|done| done.tokens).sum();
    let inputs: usize = done.iter().map(|done| done.inputs).sum();
    let rate = |done: &Done| done.tokens as f64 / done.seconds.max(1e-9);
    Pace {
        tokens_per_second: done.iter().filter(|done| done.inputs > 0).map(rate).sum(),
        tokens_per_input: tokens as f64 / inputs.max(1) as f64,
    }
}

fn tokenize(model: &Model, text: &str) -> anyhow::Result<Sequence> {
    let info = model.info();
    let name = info.default_prompt.as_ref();
    let prompt = name.and_then(|name| info.prompts.get(name)).map(String::as_str);
    Ok(model.tokenize(text, prompt, true)?)
}

fn vectors(model: &Model, engine: &mut dyn Engine, batch: &[&Sequence]) -> anyhow::Result<Vec<Vec<f32>>> {
    let normalize = model.info().normalize;
    let results = engine.embed(batch, &mut || ())?;
    let finish = |vector| pooling::finish(vector, None, normalize);
    let vectors: Result<Vec<_>, _> = results.into_iter().map(|one| one.map(finish)).collect();
    vectors.context("a text of the benchmark has no vector")
}

/// Milliseconds.
pub fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_by_their_own_time() {
        let done = |tokens, inputs, seconds| Done {
            tokens,
            inputs,
            seconds,
            vectors: Vec::new(),
        };
        let pace = pace(&[done(1000, 10, 1.0), done(3000, 10, 2.0), done(0, 0, 0.0)]);
        assert_eq!((pace.tokens_per_second, pace.tokens_per_input), (2500.0, 200.0));
    }
}
