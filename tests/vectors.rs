//! The engine against the reference. `tests/golden/make.py` made the vectors; no Python is needed here.

#[path = "vectors/families.rs"]
mod families;
#[path = "vectors/folders.rs"]
mod folders;
#[path = "support/model.rs"]
mod model;
#[path = "vectors/team.rs"]
mod team;
#[path = "vectors/tensors.rs"]
mod tensors;

use base64::Engine as _;
use embeddings::clock::Clock;
use embeddings::config::Precision;
use embeddings::engine::pool::{Pool, PoolEvent, QUEUE, Work};
use embeddings::engine::{LoadError, LoadOptions, Model, Sequence, TokenizeError, pooling};
use model::minilm;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn load(folder: &Path) -> Arc<Model> {
    load_in(folder, Precision::F32)
}

fn load_in(folder: &Path, precision: Precision) -> Arc<Model> {
    let options = LoadOptions {
        precision,
        ..LoadOptions::default()
    };
    Arc::new(Model::load(folder, &options, &mut |_| ()).unwrap())
}

static MINILM: LazyLock<Arc<Model>> = LazyLock::new(|| load(&minilm()));

#[derive(serde::Deserialize)]
struct Golden {
    text: String,
    repeat: usize,
    prompt: Option<String>,
    tokens: usize,
    vector: String,
}

impl Golden {
    fn read(file: &Path) -> Vec<Golden> {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn vector(&self) -> Vec<f32> {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(&self.vector)
            .unwrap();
        bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect()
    }

    fn sequence(&self, model: &Model) -> Sequence {
        model
            .tokenize(&self.text.repeat(self.repeat), self.prompt.as_deref(), true)
            .unwrap()
    }
}

fn embed(model: &Model, sequences: &[&Sequence]) -> Vec<Vec<f32>> {
    let vectors = model.engine().embed(sequences, &mut || ()).unwrap();
    vectors
        .into_iter()
        .map(|vector| pooling::finish(vector.unwrap(), None, model.info().normalize))
        .collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What a component may be off where weights are sharp and random, on kernels that put numbers of 32 bits together
/// from parts. An activation that is taken for its neighbour moves one by 6e-5 at least.
const OFF_SHARP: f32 = 4e-5;
/// The same for a model of the world.
const OFF: f32 = 1e-5;

/// Every text has the reference's tokens and vector, with no component more than `off` away, and the same vector
/// alone as in company. Gives back the smallest cosine.
fn compare(model: &Model, lines: &[Golden], off: f32) -> f64 {
    let mut least = 1.0f64;
    let sequences: Vec<Sequence> = lines.iter().map(|line| line.sequence(model)).collect();
    // In company with neighbours of other lengths, some 4 to a batch.
    let together = sequences
        .chunks(4)
        .flat_map(|part| embed(model, &part.iter().collect::<Vec<_>>()));
    for ((line, sequence), together) in lines.iter().zip(&sequences).zip(together) {
        let name = format!("{:?} x{} {:?}", line.text, line.repeat, line.prompt);
        assert_eq!(sequence.ids.len(), line.tokens, "tokens of {name}");
        let want = line.vector();
        let alone = embed(model, &[sequence]).remove(0);
        let scale = if model.info().normalize {
            1.0
        } else {
            want.iter().fold(1.0f32, |a, b| a.max(b.abs()))
        };
        assert!(
            cosine(&alone, &want) >= 0.99999,
            "{name}: cosine {}",
            cosine(&alone, &want)
        );
        // Products by tiles take 16 to 17 of an f32's 24 bits of each number.
        assert!(
            farthest(&alone, &want) < off * scale,
            "{name}: off by {}",
            farthest(&alone, &want)
        );
        assert!(
            farthest(&alone, &together) < off * scale,
            "{name}: differs in company"
        );
        least = least.min(cosine(&alone, &want));
    }
    least
}

#[test]
fn small_models_equal_the_reference() {
    let mut count = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("modules.json").exists() {
            let least = compare(
                &load(&folder),
                &Golden::read(&folder.join("golden.jsonl")),
                OFF_SHARP,
            );
            println!(
                "{}: 1 - {:.1e}",
                folder.file_name().unwrap().display(),
                1.0 - least
            );
            count += 1;
        }
    }
    assert_eq!(count, 24);
}

#[test]
fn minilm_equals_the_reference() {
    compare(&MINILM, &Golden::read(&golden().join("minilm-256.jsonl")), OFF);
}

// Goal: each precision keeps its promise, alone and in company, and says which one it is. Method: the golden
// texts, on the kernels that this machine has for it.
#[test]
fn each_precision_stays_as_near_as_promised() {
    let lines = Golden::read(&golden().join("minilm-256.jsonl"));
    for (precision, least, name) in [
        (Precision::Bf16, 0.9999, ":bf16:"),
        (Precision::Int8, 0.998, ":int8:"),
    ] {
        let model = load_in(&minilm(), precision);
        assert!(
            model.fingerprint(384).contains(name),
            "{}",
            model.fingerprint(384)
        );
        let sequences: Vec<Sequence> = lines.iter().map(|line| line.sequence(&model)).collect();
        let together = embed(&model, &sequences.iter().collect::<Vec<_>>());
        for ((line, sequence), together) in lines.iter().zip(&sequences).zip(together) {
            let alone = embed(&model, &[sequence]).remove(0);
            let near = cosine(&alone, &line.vector());
            assert!(near >= least, "{precision} {:?}: cosine {near}", line.text);
            assert!(
                farthest(&alone, &together) < 1e-5,
                "{precision} {:?}: differs in company",
                line.text
            );
        }
    }
}

// Goal: what the machine chooses by itself is as near to the reference as promised, and the same at each start.
#[test]
fn the_automatic_precision_keeps_near() {
    let lines = Golden::read(&golden().join("minilm-256.jsonl"));
    let (model, again) = (
        load_in(&minilm(), Precision::Auto),
        load_in(&minilm(), Precision::Auto),
    );
    assert_eq!(model.fingerprint(384), again.fingerprint(384));
    for line in &lines {
        let vector = embed(&model, &[&line.sequence(&model)]).remove(0);
        let near = cosine(&vector, &line.vector());
        assert!(near >= 0.9999, "{:?}: cosine {near}", line.text);
    }
}

#[test]
fn minilm_at_512_tokens_equals_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(minilm()).unwrap() {
        let path = entry.unwrap().path();
        std::os::unix::fs::symlink(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("sentence_bert_config.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, r#"{"max_seq_length": 512, "do_lower_case": false}"#).unwrap();
    compare(
        &load(folder.path()),
        &Golden::read(&golden().join("minilm-512.jsonl")),
        OFF,
    );
}

#[test]
fn minilm_is_what_its_files_say() {
    let info = MINILM.info();
    assert_eq!(
        (info.dimensions, info.max_tokens, info.normalize),
        (384, 256, true)
    );
    assert_eq!(
        (info.pooling.as_str(), info.architecture.as_str()),
        ("mean", "bert")
    );
    assert_eq!(
        info.weights_sha256,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    );
    assert_eq!(MINILM.fingerprint(384), "53aa51172d142c89:mean:f32:384");
}

#[test]
fn a_text_over_the_limit_is_cut_or_refused() {
    let long = "word ".repeat(300);
    let cut = MINILM.tokenize(&long, None, true).unwrap();
    assert!(cut.truncated && cut.ids.len() == 256);
    assert_eq!(
        MINILM.tokenize(&long, None, false),
        Err(TokenizeError::TooLong { limit: 256 })
    );
    let just = MINILM.tokenize(&"word ".repeat(254), None, false).unwrap();
    assert!(!just.truncated && just.ids.len() == 256);
}

#[test]
fn prompts_and_their_tokens_come_from_the_folder() {
    let model = load(&golden().join("last-prompt"));
    assert_eq!(model.info().default_prompt.as_deref(), Some("query"));
    let prompt = &model.info().prompts["query"];
    let sequence = model.tokenize("house", Some(prompt), true).unwrap();
    // [CLS] what is this :
    assert_eq!(sequence.prompt_tokens + 2, sequence.ids.len());
    assert_eq!(model.tokenize("house", None, true).unwrap().prompt_tokens, 0);
}

/// What Hugging Face's tokenizer makes of the whole text, cut to the limit.
fn whole(text: &str) -> Vec<u32> {
    static REFERENCE: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
        let mut reference = tokenizers::Tokenizer::from_file(minilm().join("tokenizer.json")).unwrap();
        reference.with_padding(None);
        let cut = tokenizers::TruncationParams {
            max_length: 256,
            ..Default::default()
        };
        reference.with_truncation(Some(cut)).unwrap();
        reference
    });
    REFERENCE.encode_fast(text, true).unwrap().get_ids().to_vec()
}

fn piece() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        " ",
        "\t",
        "\n",
        "\u{a0}",
        "\u{85}",
        "\0",
        "\u{fffd}",
        "\u{200b}",
        "\u{301}",
        "\u{327}",
        "a\u{301}",
        "é",
        "Å",
        "ß",
        "İ",
        "ΣΑΣ",
        "北",
        "京",
        "서울",
        "क्षि",
        "😀",
        "🇩🇪",
        ".",
        "-",
        "…",
        "$",
        "[CLS]",
        "[MASK]",
        "[MA",
        "SK]",
        "[",
        "]",
        "##",
        "the",
        "Embedding",
        "antidisestablishmentarianism",
        "x",
        "xy1",
        "\u{1b44}",
        "\u{302e}",
    ]);
    prop_oneof![
        6 => (odd, 1usize..4).prop_map(|(text, n)| text.repeat(n)),
        // Runs longer than a window.
        1 => (prop::sample::select(vec![" ", "\0", "x", "\u{301}", "é", "\u{200b}", "[MASK", "a\u{301}"]), 1usize..9000)
            .prop_map(|(text, n)| text.repeat(n)),
        2 => "\\PC{0,12}",
        2 => "[a-zA-Z ]{1,40}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    // Goal: tokens made window by window are those of the whole text. Method: texts of odd pieces, with runs
    // that cross windows in every way, against the tokenizer on the whole.
    #[test]
    fn windows_change_no_token(pieces in prop::collection::vec(piece(), 0..60)) {
        let text = pieces.concat();
        prop_assert_eq!(&MINILM.tokenize(&text, None, true).unwrap().ids[..], &whole(&text)[..]);
    }
}

#[test]
fn megabytes_without_a_space_are_no_burden() {
    for text in ["x", "\0", " ", "\u{301}", "[MASK", "北", "a\u{301}"] {
        let long = text.repeat(4_000_000 / text.len());
        let short = text.repeat(40_000 / text.len());
        // The first 40 kB decide: what follows is more of the same word, of nothing, or beyond the limit.
        assert_eq!(
            MINILM.tokenize(&long, None, true).unwrap().ids[..],
            whole(&short)[..],
            "{text:?}"
        );
    }
}

#[test]
fn foreign_sequences_are_refused() {
    let mut engine = MINILM.engine();
    let mut refused = |ids: Vec<u32>| {
        let sequence = Sequence {
            ids: ids.into(),
            truncated: false,
            prompt_tokens: 0,
        };
        engine.embed(&[&sequence], &mut || ()).unwrap_err().to_string()
    };
    assert_eq!(refused(vec![]), "sequence 0 of the batch has no tokens");
    assert_eq!(
        refused(vec![99_999]),
        "sequence 0 of the batch has token 99999, the model has 30522"
    );
    assert_eq!(
        refused(vec![1; 513]),
        "sequence 0 of the batch has 513 tokens, the model has 512 positions"
    );
}

#[test]
fn every_layer_is_a_step() {
    let sequence = MINILM.tokenize("hello world", None, true).unwrap();
    let mut steps = 0;
    MINILM
        .engine()
        .embed(&[&sequence], &mut || steps += 1)
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(steps, 7, "the embeddings and six layers");
}

// Goal: engines rest between two layers until they are told, a patient batch and an urgent one alike, and no longer. Method: a
// rest that begins before the batches do, and is made longer once; each batch ends behind it and is whole.
#[test]
fn engines_rest_until_they_are_told() {
    let model = load(&golden().join("cls"));
    let sequence = model.tokenize("the way to go home", None, true).unwrap();
    let clock = Clock::start();
    let (events, inbox) = channel();
    let report = Arc::new(move |event| {
        if let PoolEvent::Done { batch, result, .. } = event {
            let _ = events.send((batch, clock.now(), result.is_ok()));
        }
    });
    let pool = Pool::start(1, clock, report).unwrap();
    let submit = |batch, urgent| {
        let (model, sequences) = (model.clone(), vec![sequence.clone()]);
        let work = Work {
            batch,
            model,
            sequences,
            urgent,
        };
        pool.submit(0, work).unwrap();
    };
    let until = clock.now() + Duration::from_millis(300);
    pool.rest(clock.now() + Duration::from_millis(100));
    submit(0, false);
    submit(1, true);
    pool.rest(until);
    for _ in 0..2 {
        let (batch, at, whole) = inbox.recv_timeout(Duration::from_secs(20)).expect("rests end");
        assert!(whole && at >= until, "batch {batch} at {at:?}, before {until:?}");
    }
}

// Goal: batches come back whole from named threads, a full queue hands work back, and a model that nobody
// else holds is let go. Method: hold the first event back, so that the queue fills for sure.
#[test]
fn the_pool_computes_in_order_and_refuses_when_full() {
    let model = load(&golden().join("cls"));
    let sequences: Vec<Sequence> = ["house", "the way to go home"]
        .iter()
        .map(|text| model.tokenize(text, None, true).unwrap())
        .collect();
    let want = embed(&model, &sequences.iter().collect::<Vec<_>>());
    let work = |batch| Work {
        batch,
        model: model.clone(),
        sequences: sequences.clone(),
        urgent: false,
    };

    let (gate, closed) = channel::<()>();
    let closed = std::sync::Mutex::new(closed);
    let (events, inbox) = channel();
    let pool = Pool::start(
        1,
        Clock::start(),
        Arc::new(move |event| {
            let _ = closed.lock().unwrap().recv();
            let _ = events.send((std::thread::current().name().map(str::to_owned), event));
        }),
    )
    .unwrap();
    pool.submit(0, work(0)).unwrap();
    // The first batch is taken at some time; then exactly QUEUE fit, and the next comes back.
    let mut batch = 1;
    while batch <= QUEUE as u64 {
        if pool.submit(0, work(batch)).is_ok() {
            batch += 1;
        }
    }
    while pool.submit(0, work(batch)).is_ok() {
        batch += 1;
    }
    assert!(pool.submit(1, work(99)).is_err(), "there is no second engine");
    drop(gate);

    for expected in 0..batch {
        let mut steps = 0;
        loop {
            let (thread, event) = inbox.recv().unwrap();
            assert_eq!(thread.as_deref(), Some("engine-0"));
            match event {
                PoolEvent::Tried { .. } => {}
                PoolEvent::Step { batch, .. } => {
                    assert_eq!(batch, expected);
                    steps += 1;
                }
                PoolEvent::Done {
                    engine,
                    batch,
                    result,
                } => {
                    assert_eq!((engine, batch, steps), (0, expected, 3));
                    let normalize = model.info().normalize;
                    let vectors = result
                        .unwrap()
                        .into_iter()
                        .map(|v| pooling::finish(v.unwrap(), None, normalize));
                    assert_eq!(vectors.collect::<Vec<_>>(), want);
                    break;
                }
            }
        }
    }
    let weak = Arc::downgrade(&model);
    drop(model);
    pool.tidy();
    drop(pool);
    assert_eq!(weak.strong_count(), 0);
}

// Goal: an urgent batch is computed between two layers of a patient one and ahead of what waits, and each gets its own
// vectors. Method: hold the first step back until all three are submitted.
#[test]
fn the_urgent_come_between_two_layers() {
    let tokens = |text: &str| MINILM.tokenize(text, None, true).unwrap();
    let texts = [
        tokens("a house that stands at the end of a very long road"),
        tokens("urgent"),
        tokens("later"),
    ];
    let work = |batch: u64| Work {
        batch,
        model: MINILM.clone(),
        sequences: vec![texts[batch as usize].clone()],
        urgent: batch == 1,
    };
    let (gate, closed) = channel::<()>();
    let closed = std::sync::Mutex::new(closed);
    let (came, coming) = channel();
    let (events, inbox) = channel();
    let hold = move |event| {
        let _ = came.send(());
        let _ = closed.lock().unwrap().recv();
        let _ = events.send(event);
    };
    let pool = Pool::start(1, Clock::start(), Arc::new(hold)).unwrap();
    pool.submit(0, work(0)).unwrap();
    coming.recv().unwrap();
    for batch in [2, 1] {
        pool.submit(0, work(batch)).unwrap();
    }
    drop(gate);
    let mut order = Vec::new();
    while order.iter().filter(|(_, done)| *done).count() < 3 {
        match inbox.recv().unwrap() {
            PoolEvent::Step { batch, .. } => order.push((batch, false)),
            PoolEvent::Done { batch, result, .. } => {
                let vector = result.unwrap().remove(0).unwrap();
                let vector = pooling::finish(vector, None, MINILM.info().normalize);
                assert_eq!([vector].as_slice(), embed(&MINILM, &[&texts[batch as usize]]));
                order.push((batch, true));
            }
            PoolEvent::Tried { .. } => {}
        }
    }
    let ends: Vec<u64> = order
        .iter()
        .filter(|(_, done)| *done)
        .map(|(batch, _)| *batch)
        .collect();
    assert_eq!(ends, [1, 0, 2], "{order:?}");
    assert_eq!(order[0], (0, false), "the patient one had begun: {order:?}");
}

/// A copy of a small model whose files can be spoilt.
fn copy(name: &str) -> tempfile::TempDir {
    fn all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                all(&path, &to)
            } else {
                std::fs::copy(&path, &to).map(drop).unwrap()
            }
        }
    }
    let copy = tempfile::tempdir().unwrap();
    all(&golden().join(name), copy.path());
    copy
}

fn error(folder: &Path) -> LoadError {
    // A model has no short way to be shown.
    Model::load(folder, &LoadOptions::default(), &mut |_| ())
        .map(drop)
        .unwrap_err()
}

/// Loads a copy of the model in which one piece of a file is replaced, and gives back the error's text.
fn spoilt(name: &str, file: &str, old: &str, new: &str) -> String {
    let folder = copy(name);
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{file} has no {old}");
    std::fs::write(&path, text.replace(old, new)).unwrap();
    let text = error(folder.path()).to_string();
    text.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    let base = "sentence_transformers.sentence_transformer.modules.pooling.Pooling";
    let text = spoilt("cls", "modules.json", base, "sentence_transformers.models.LSTM");
    assert!(
        text.starts_with("modules.json: type of module 1 is \"sentence_transformers.models.LSTM\""),
        "{text}"
    );
    let text = spoilt(
        "cls",
        "modules.json",
        "sentence_transformers.base.modules.transformer",
        "evil",
    );
    assert!(text.contains("\"evil.Transformer\""), "{text}");
    let text = spoilt("cls", "config.json", "\"gelu\"", "\"quick_gelu\"");
    assert_eq!(
        text,
        "config.json: hidden_act is \"quick_gelu\", supported: gelu, gelu_new, gelu_pytorch_tanh, silu, relu"
    );
    let text = spoilt(
        "cls",
        "config.json",
        "\"is_decoder\": false",
        "\"position_embedding_type\": \"relative_key\"",
    );
    assert_eq!(
        text,
        "config.json: position_embedding_type is \"relative_key\", supported: absolute"
    );
    let text = spoilt("cls", "1_Pooling/config.json", "\"cls\"", "\"attention\"");
    assert!(
        text.starts_with("1_Pooling/config.json: pooling_mode is \"\\\"attention\\\"\", supported: cls"),
        "{text}"
    );
    let text = spoilt("sqrt-dense", "2_Dense/config.json", "Tanh", "Mish");
    assert!(
        text.contains("activation_function is \"torch.nn.modules.activation.Mish\""),
        "{text}"
    );
    let text = spoilt("cls", "tokenizer.json", "\"BertPreTokenizer\"", "\"Whitespace\"");
    assert!(
        text.starts_with("tokenizer.json: pre_tokenizer.type is"),
        "{text}"
    );
    let text = spoilt(
        "cls",
        "config.json",
        "\"num_attention_heads\": 2",
        "\"num_attention_heads\": 3",
    );
    assert!(text.contains("a divisor of hidden_size, which is 32"), "{text}");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    for file in [
        "modules.json",
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        "model.safetensors",
    ] {
        let folder = copy("cls");
        std::fs::remove_file(folder.path().join(file)).unwrap();
        let error = error(folder.path());
        assert!(
            matches!(&error, LoadError::Missing { file: missing } if missing.ends_with(file)),
            "{error}"
        );
    }
    assert!(
        spoilt("cls", "config.json", "\"model_type\"", "model_type").starts_with("config.json is corrupt: ")
    );
    let text = spoilt(
        "cls",
        "config.json",
        "\"intermediate_size\": 64",
        "\"intermediate_size\": 65",
    );
    assert!(
        text.contains("encoder.layer.0.intermediate.dense.weight has shape [64, 32]"),
        "{text}"
    );
    let text = spoilt(
        "cls",
        "config.json",
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 3",
    );
    assert!(
        text.contains("tensor encoder.layer.2.attention.self.query.weight is missing"),
        "{text}"
    );
    let text = spoilt(
        "joined",
        "model.safetensors.index.json",
        "model-00002",
        "../model-00002",
    );
    assert!(text.contains("weight_map"), "{text}");

    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        let folder = copy("cls");
        let file = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        change(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        error(folder.path()).to_string()
    };
    assert!(spoil(&|bytes| bytes.truncate(5)).contains("5 bytes are too few"));
    assert!(spoil(&|bytes| bytes.truncate(bytes.len() / 2)).contains("does not fit"));
    assert!(spoil(&|bytes| bytes[..8].fill(0xff)).contains("a header of"));
    assert!(spoil(&|bytes| bytes[9] = b'!').contains("bad header"));
    let nan = spoil(&|bytes| {
        // All bits set is no number. Behind the middle there are tensors that are read.
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xff);
    });
    assert!(nan.contains("not finite"), "{nan}");
}

#[test]
fn what_this_build_cannot_do_is_said() {
    let load = |precision: &str, device: &str| {
        let options = LoadOptions {
            precision: precision.parse().unwrap(),
            device: device.parse().unwrap(),
            ..LoadOptions::default()
        };
        Model::load(&golden().join("cls"), &options, &mut |_| ())
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(load("f32", "cpu"), Ok(()));
    assert!(
        load("f16", "cpu")
            .unwrap_err()
            .contains("precision is f16, cpu computes in auto, f32, bf16, int8")
    );
    #[cfg(not(feature = "cuda"))]
    assert!(
        load("f32", "cuda")
            .unwrap_err()
            .contains("device is cuda:0: this build has no CUDA; install embeddings-cuda")
    );
}
