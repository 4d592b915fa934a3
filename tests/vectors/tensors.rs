//! The way of a GPU: the same models in Candle's tensors, here on the CPU. What a card computes by kernels of its own
//! is tested beside them (`tests/cuda`) and on a machine that has one (`benches/gpu`).

use super::{Golden, OFF, OFF_SHARP, compare, cosine, embed, farthest, golden, load};
use embeddings::config::{Device, Precision};
use embeddings::engine::{EngineError, LoadOptions, Model, Sequence};
use std::path::{Path, PathBuf};

/// Where tests that need a card find it.
const CARD: Device = Device::Cuda(0);

fn by_tensors(folder: &Path, precision: Precision) -> Model {
    let options = LoadOptions {
        precision,
        by_tensors: true,
        ..LoadOptions::default()
    };
    Model::load(folder, &options, &mut |_| ()).unwrap()
}

fn small_models() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(golden()).unwrap();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("modules.json").exists());
    folders.sort();
    assert_eq!(folders.len(), 24);
    folders
}

// Goal: every family, pooling and module computes the reference's vectors in tensors too, alone and in company.
// Method: all golden models in 32 bits.
#[test]
fn every_small_model_equals_the_reference_in_tensors() {
    for folder in small_models() {
        let lines = Golden::read(&folder.join("golden.jsonl"));
        let least = compare(&by_tensors(&folder, Precision::F32), &lines, OFF_SHARP);
        println!(
            "{}: 1 - {:.1e}",
            folder.file_name().unwrap().display(),
            1.0 - least
        );
    }
}

/// The shorter ones of the real model's golden texts: tensors are slow on a CPU.
fn short() -> Vec<Golden> {
    let lines = Golden::read(&golden().join("minilm-256.jsonl"));
    lines.into_iter().filter(|line| line.tokens <= 64).collect()
}

/// The smallest cosine of any golden text's vector to the reference's, computed with the others of its model.
fn least(model: &Model, lines: &[Golden]) -> f64 {
    let sequences: Vec<Sequence> = lines.iter().map(|line| line.sequence(model)).collect();
    let vectors = embed(model, &sequences.iter().collect::<Vec<_>>());
    let near = lines
        .iter()
        .zip(vectors)
        .map(|(line, vector)| cosine(&vector, &line.vector()));
    near.fold(1.0, f64::min)
}

// Goal: what 16 bits cost is known for every family. Method: the golden models, whose weights are random and so sharp
// that each part bends the vectors more than in a trained one, and the real one within its promise.
#[test]
fn narrow_numbers_stay_near_in_tensors() {
    for (precision, bound, real) in [
        (Precision::F16, 0.99999, 0.99999),
        (Precision::Bf16, 0.9995, 0.9999),
    ] {
        for folder in small_models() {
            let lines = Golden::read(&folder.join("golden.jsonl"));
            let least = least(&by_tensors(&folder, precision), &lines);
            let name = folder.file_name().unwrap().display();
            println!("{name} {precision}: 1 - {:.1e}", 1.0 - least);
            assert!(least >= bound, "{name} in {precision}: cosine {least}");
        }
        let least = least(&by_tensors(&super::minilm(), precision), &short());
        println!("all-MiniLM-L6-v2 {precision}: 1 - {:.1e}", 1.0 - least);
        assert!(least >= real, "all-MiniLM-L6-v2 in {precision}: cosine {least}");
    }
}

#[test]
fn minilm_equals_the_reference_in_tensors() {
    compare(&by_tensors(&super::minilm(), Precision::F32), &short(), OFF);
}

// Goal: the automatic choice takes the nearer of the narrow numbers only where they are near and faster, and says which.
#[test]
fn the_automatic_precision_of_a_gpu_keeps_near() {
    let folder = golden().join("cls");
    let model = by_tensors(&folder, Precision::Auto);
    let lines = Golden::read(&folder.join("golden.jsonl"));
    let least = least(&model, &lines);
    let fingerprint = model.fingerprint(model.info().dimensions);
    assert!(least >= 0.9999, "{fingerprint}: cosine {least}");
}

#[test]
fn tensors_refuse_what_the_cpu_refuses() {
    let model = by_tensors(&golden().join("cls"), Precision::F32);
    let sequence = |ids: Vec<u32>| Sequence {
        ids: ids.into(),
        truncated: false,
        prompt_tokens: 0,
    };
    let refused = |ids| model.engine().embed(&[&sequence(ids)], &mut || ()).unwrap_err();
    assert_eq!(refused(vec![]), EngineError::Empty { index: 0 });
    assert!(matches!(
        refused(vec![1 << 20]),
        EngineError::UnknownToken { index: 0, .. }
    ));
    assert!(matches!(
        refused(vec![1; 1 << 16]),
        EngineError::TooLong { index: 0, .. }
    ));
    let options = LoadOptions {
        precision: Precision::Int8,
        by_tensors: true,
        ..LoadOptions::default()
    };
    let error = Model::load(&golden().join("cls"), &options, &mut |_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "precision is int8, cpu computes in auto, f32, bf16, f16"
    );
}

#[test]
fn every_layer_is_a_step_in_tensors_too() {
    let model = by_tensors(&super::minilm(), Precision::F32);
    let sequence = model.tokenize("hello world", None, true).unwrap();
    let mut steps = 0;
    let vectors = model.engine().embed(&[&sequence], &mut || steps += 1).unwrap();
    assert!(vectors[0].is_ok());
    assert_eq!(steps, 7, "the embeddings and six layers");
}

// Goal: the kernels of our own compute on a card what the tensors compute on the CPU, in every kind of number.
#[test]
#[ignore = "needs an NVIDIA card and a build with the feature cuda: benches/gpu/run.sh"]
fn a_card_computes_what_the_cpu_does() {
    for folder in small_models() {
        let lines = Golden::read(&folder.join("golden.jsonl"));
        let name = folder.file_name().unwrap().display().to_string();
        for (precision, bound) in [
            (Precision::F32, 0.9999),
            (Precision::F16, 0.9999),
            (Precision::Bf16, 0.9995),
        ] {
            let options = LoadOptions {
                precision,
                device: CARD,
                ..LoadOptions::default()
            };
            let card = Model::load(&folder, &options, &mut |_| ()).unwrap();
            let least = least(&card, &lines);
            assert!(least >= bound, "{name} in {precision}: cosine {least}");
        }
        let card = LoadOptions {
            precision: Precision::F32,
            device: CARD,
            ..LoadOptions::default()
        };
        let (card, host) = (Model::load(&folder, &card, &mut |_| ()).unwrap(), load(&folder));
        for line in &lines {
            let sequence = line.sequence(&host);
            let (a, b) = (embed(&card, &[&sequence]), embed(&host, &[&sequence]));
            let scale = b[0].iter().fold(1.0f32, |a, b| a.max(b.abs()));
            assert!(
                farthest(&a[0], &b[0]) < OFF_SHARP * scale,
                "{name}: {:?}",
                line.text
            );
        }
    }
}
