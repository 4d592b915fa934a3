//! What takes time in loading a model, side by side: the tokenizer, the checksum of the weights, and the weights.
//!
//! ```text
//! caller      tokenizer.json ─ step(…) ◀────── steps ─┬── trial of `auto` ─┬─▶ parts
//! load-pack   tables and layers, for each precision ──┘                    │
//! load-hash   SHA-256 of the weights ──────────────────────────────────────┘
//! ```
//!
//! The checksum and the packing take about as long as each other, and either is done by one thread: SHA-256 has no
//! parts that could be shared out, and packing sooner than it is hashed gains nothing.

use super::auto;
use super::device::Precision;
use super::encoder::Chain;
use super::kernel::Kernel;
use super::tokenize::Tokenize;
use super::weights::Weights;
use super::{LoadError, LoadStep};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Steps that may wait for the caller: a gigabyte of weights while it makes the tokenizer.
const STEPS: usize = 4096;

/// What comes of it.
pub(super) struct Parts {
    pub tokenize: Tokenize,
    pub chain: Arc<Chain>,
    pub precision: Precision,
    /// Of the weights' files.
    pub sha256: String,
}

/// Makes a chain of weights, for the kernel that they name; told of each layer.
pub(super) type Pack<'a> = dyn Fn(&Weights, &mut dyn FnMut()) -> Result<Chain, LoadError> + Sync + 'a;

/// Does all of it. `precisions` are those of [`Precision::choose`]; `tokens` and `step` are called on the calling
/// thread.
///
/// # Errors
/// What `tokens` says, else what the weights lack.
pub(super) fn run(
    dir: &Path,
    mut weights: Weights,
    precisions: &[Precision],
    tokens: &dyn Fn() -> Result<Tokenize, LoadError>,
    pack: &Pack<'_>,
    step: &mut dyn FnMut(LoadStep),
) -> Result<Parts, LoadError> {
    let checksum = weights.checksum()?;
    let (moved, steps) = mpsc::sync_channel(STEPS);
    weights.moved = Some(moved.clone());
    weights.shares = precisions.len() > 1;
    // Set where the load is given up: nobody waits then for gigabytes to be hashed.
    let enough = &AtomicBool::new(false);
    let packing = &AtomicUsize::new(precisions.len());
    std::thread::scope(|scope| {
        // Gone when this ends early: nobody waits then to tell a step.
        let steps = steps;
        let give_up = |error| {
            enough.store(true, Ordering::Relaxed);
            error
        };
        let hash = start(dir, scope, "load-hash", move || {
            let mut bytes = 0;
            checksum.take(enough, &mut |more| {
                bytes += more;
                // Nobody listens any more only where the load is given up.
                let _ = moved.send(LoadStep::Read { bytes });
            })
        })?;
        let mut threads = Vec::new();
        for precision in precisions {
            let mut weights = weights.clone();
            weights.kernel = Kernel::choose(*precision);
            let work = move || {
                let chain = pack(&weights, &mut || weights.step()).map_err(give_up);
                packing.fetch_sub(1, Ordering::Release);
                // So that the caller looks.
                weights.step();
                chain
            };
            threads.push(start(dir, scope, "load-pack", work).map_err(give_up)?);
        }
        drop(weights);
        let tokenize = tokens().map_err(give_up);
        for one in &steps {
            step(one);
            if packing.load(Ordering::Acquire) == 0 {
                break;
            }
        }
        let chains: Vec<_> = threads.into_iter().map(join).collect();
        let tokenize = tokenize?;
        let mut chains = chains.into_iter().collect::<Result<Vec<Chain>, _>>()?;
        let chain = Arc::new(chains.remove(0));
        let (chain, precision) = match chains.pop() {
            None => (chain, precisions[0]),
            Some(full) => {
                let full = Arc::new(full);
                match auto::is_worth(&tokenize, &chain, &full, &mut || step(LoadStep::Packed)) {
                    true => (chain, precisions[0]),
                    false => (full, precisions[1]),
                }
            }
        };
        // Until the checksum is done and has let go of its end.
        steps.iter().for_each(step);
        Ok(Parts {
            tokenize,
            chain,
            precision,
            sha256: join(hash)?,
        })
    })
}

fn start<'scope, T: Send + 'scope>(
    dir: &Path,
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, LoadError> {
    let started = Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
    started.map_err(|source| LoadError::Io {
        file: dir.to_owned(),
        source,
    })
}

/// What a thread brought. A panic goes on in the caller; it has been through the hook already.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
