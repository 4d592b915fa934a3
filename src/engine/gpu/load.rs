//! Loading onto a device: one thing after another, since the way to it is one.

use super::{Forward, Place};
use crate::engine::auto;
use crate::engine::device::Precision;
use crate::engine::load::Pack;
use crate::engine::tokenize::Tokenize;
use crate::engine::weights::Weights;
use crate::engine::{LoadError, LoadStep};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What comes of it.
pub struct Parts {
    pub tokenize: Tokenize,
    pub forward: Arc<Forward>,
    pub precision: Precision,
    /// Of the weights' files, SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Loads for a `place`. `precisions` are those of [`Precision::choose`]: the lesser ones in the order in which they are
/// tried, and behind them the full one.
///
/// # Errors
/// What `tokens` says, what the weights lack, or what the device says.
pub fn run(
    mut weights: Weights,
    place: &Place,
    precisions: &[Precision],
    tokens: &dyn Fn() -> Result<Tokenize, LoadError>,
    pack: &Pack<'_>,
    step: &mut dyn FnMut(LoadStep),
) -> Result<Parts, LoadError> {
    let tokenize = tokens()?;
    let mut bytes = 0;
    let sha256 = weights.checksum()?.take(&AtomicBool::new(false), &mut |more| {
        bytes += more;
        step(LoadStep::Read { bytes });
    })?;
    let mut step = || step(LoadStep::Packed);
    let mut load = |precision, step: &mut dyn FnMut()| {
        let place = place.computing_in(precision);
        weights.place = Some(place.clone());
        Ok::<_, LoadError>(Arc::new(Forward::place(pack(&weights, step)?, &place)?))
    };
    let (full, lesser) = precisions.split_last().expect("there is a precision");
    let reference = load(*full, &mut step)?;
    for precision in lesser {
        let forward = load(*precision, &mut step)?;
        let engines = [forward.engine(), reference.engine()];
        if auto::is_worth_on_a_gpu(&tokenize, engines, &mut step) {
            return Ok(Parts {
                tokenize,
                forward,
                precision: *precision,
                sha256,
            });
        }
    }
    Ok(Parts {
        tokenize,
        forward: reference,
        precision: *full,
        sha256,
    })
}
