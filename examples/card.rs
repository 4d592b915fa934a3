//! The engine alone on any device, for comparisons: `card MODEL_DIR DEVICE PRECISION BATCH_TOKENS`. Each line of stdin is a
//! JSON array of texts; each line of stdout has the seconds from the texts to the vectors, and the vectors.

use anyhow::Context;
use embeddings::clock::Clock;
use embeddings::engine::{LoadOptions, Model, Sequence, pooling};
use std::io::{BufRead, Write};
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, device, precision, tokens] = &args[..] else {
        anyhow::bail!("usage: card MODEL_DIR DEVICE PRECISION BATCH_TOKENS");
    };
    let options = LoadOptions {
        device: device.parse()?,
        precision: precision.parse()?,
        ..LoadOptions::default()
    };
    let budget: usize = tokens.parse().context("BATCH_TOKENS")?;
    let model = Model::load(&PathBuf::from(dir), &options, &mut |_| ())?;
    let mut engine = model.engine();
    let clock = Clock::start();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let texts: Vec<String> = serde_json::from_str(&line?)?;
        let begin = clock.now();
        let sequences = tokenize(&model, &texts)?;
        // The service's batches are of similar length, too.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|index| sequences[*index].ids.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut total = 0;
            let fits = |index: &&usize| {
                total += sequences[**index].ids.len();
                total <= budget
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (part, behind) = rest.split_at(count);
            let batch: Vec<&Sequence> = part.iter().map(|index| &sequences[*index]).collect();
            for (index, vector) in part.iter().zip(engine.embed(&batch, &mut || ())?) {
                vectors[*index] = pooling::finish(vector?, None, model.info().normalize);
            }
            rest = behind;
        }
        let seconds = clock.now().since(begin).as_secs_f64();
        serde_json::to_writer(
            &mut out,
            &serde_json::json!({ "seconds": seconds, "vectors": vectors }),
        )?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// On all threads, as the service does it.
fn tokenize(model: &Model, texts: &[String]) -> anyhow::Result<Vec<Sequence>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = texts.len().div_ceil(threads).max(1);
    let all = |part: &[String]| {
        let one = |text: &String| model.tokenize(text, None, true);
        part.iter().map(one).collect::<Result<Vec<_>, _>>()
    };
    let parts = std::thread::scope(|scope| {
        let running: Vec<_> = texts
            .chunks(share)
            .map(|part| scope.spawn(move || all(part)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a tokenizer panicked"))
            .collect::<Vec<_>>()
    });
    let parts: Result<Vec<Vec<Sequence>>, _> = parts.into_iter().collect();
    Ok(parts?.concat())
}
