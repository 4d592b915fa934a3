//! Models that come into memory when a job wants them, and go when none has for long.

use crate::caller::{Caller, cosine, headers};
use crate::service::{Bench, MODEL, SOON, Service, bench};
use embeddings::clock::{Clock, Moment};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A second model beside the default one: the same files in a folder that a test may change.
struct Second {
    dir: tempfile::TempDir,
}

impl Second {
    fn of(bench: &Bench) -> Second {
        let dir = tempfile::tempdir().unwrap();
        link(bench.model_dir(), dir.path());
        Second { dir }
    }

    /// Lines for the configuration; both models may be unloaded after `idle_unload_ms`.
    fn settings(&self, idle_unload_ms: u64, more: &str) -> String {
        let path = self.dir.path().display();
        format!(
            "idle_unload_ms = {idle_unload_ms}\n{more}\n[models.second]\npath = \"{path}\"\nmax_queue = 2"
        )
    }

    fn modules(&self) -> PathBuf {
        self.dir.path().join("modules.json")
    }

    fn tokenizer(&self) -> PathBuf {
        self.dir.path().join("tokenizer.json")
    }

    /// From now on whoever loads the model waits until [`Second::let_go`].
    fn hold_up(&self) {
        std::fs::remove_file(self.tokenizer()).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(self.tokenizer())
            .status();
        assert!(made.unwrap().success());
    }

    fn let_go(&self, bench: &Bench) {
        let text = std::fs::read(bench.model_dir().join("tokenizer.json")).unwrap();
        // Waits for the reader.
        std::fs::write(self.tokenizer(), text).unwrap();
    }
}

/// The same tree with links in place of files.
fn link(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            link(&entry.path(), &target);
        } else {
            symlink(entry.path().canonicalize().unwrap(), &target).unwrap();
        }
    }
}

fn report(service: &Service) -> Value {
    let output = service.status(&["--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until the models stand so, and says how much memory the service has then.
fn models_become(service: &Service, default: &str, second: &str) -> u64 {
    let clock = Clock::start();
    loop {
        let seen = report(service);
        let models = &seen["models"];
        if models[MODEL] == default && models["second"] == second {
            return seen["rss_bytes"].as_u64().unwrap();
        }
        let waited = clock.now().since(Moment::ZERO);
        assert!(waited < SOON, "{models}, expected {default} and {second}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn second(texts: &[&str]) -> Value {
    json!({"model": "second", "input": texts})
}

/// Goal: an idle model gives its memory back, the service stays ready and alive without any, and whoever asks for one
/// gets it, with the same vectors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_model_goes_and_comes_back() {
    let Some(bench) = bench("idle") else { return };
    let folder = Second::of(&bench);
    let service = bench.serve(&folder.settings(1500, "canary_interval_ms = 300"));
    assert_eq!(report(&service)["models"]["second"], "unloaded");
    let mut caller = Caller::connect(&bench).await;
    let first = caller.ask(&json!({"input": "it comes back"})).await.vectors();
    let other = caller.ask(&second(&["it comes back"])).await.vectors();
    assert!(cosine(&first[0], &other[0]) > 0.9999);
    let full = models_become(&service, "ready", "ready");
    // Each is 91 MB of weights. The allocator keeps what it was given for some seconds.
    let clock = Clock::start();
    while models_become(&service, "unloaded", "unloaded") + (140 << 20) > full {
        let waited = clock.now().since(Moment::ZERO);
        assert!(
            waited < SOON,
            "of {full} bytes too many are left: {}",
            report(&service)
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    // Nothing of the service is in doubt without a model: canaries go round, engines compute.
    service.forget_told();
    let clock = Clock::start();
    while !service.has_told("WATCHDOG=1") {
        assert!(clock.now().since(Moment::ZERO) < SOON, "no proof without a model");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let idle = report(&service);
    assert_eq!(
        (&idle["ready"], &idle["live"]),
        (&json!(true), &json!(true)),
        "{idle}"
    );
    assert_eq!(idle["models"][MODEL], "unloaded", "a canary loads no model");
    for _ in 0..3 {
        let again = caller.ask(&json!({"input": "it comes back"})).await.vectors();
        assert!(cosine(&first[0], &again[0]) > 0.999_999);
        models_become(&service, "unloaded", "unloaded");
    }
}

/// Multiplies the weights of the last layer's norm, and with them every vector of the model.
fn scale(file: &Path, by: f32) {
    let mut bytes = std::fs::read(file).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    for part in ["weight", "bias"] {
        let tensor = &tensors[format!("encoder.layer.1.output.LayerNorm.{part}")];
        assert_eq!(tensor["dtype"], "F32");
        let offset = |at: usize| header + tensor["data_offsets"][at].as_u64().unwrap() as usize;
        for number in bytes[offset(0)..offset(1)].chunks_exact_mut(4) {
            let scaled = by * f32::from_le_bytes((&*number).try_into().unwrap());
            number.copy_from_slice(&scaled.to_le_bytes());
        }
    }
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, bytes).unwrap();
}

/// Goal: models whose vectors have another length than one are served like any other: their canaries go round, and their
/// vectors come at the length that the model gives them. Method: a small one with vectors of length seven, and the same with
/// shorter ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_do_not_normalise_are_proven() {
    let Some(bench) = bench("raw") else { return };
    let long = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/max");
    let short = tempfile::tempdir().unwrap();
    link(&long, short.path());
    scale(&short.path().join("model.safetensors"), 0.05);
    let settings = format!(
        "default_model = \"short\"\ncanary_interval_ms = 200\n[models.short]\npath = \"{}\"\n[models.long]\npath = \"{}\"",
        short.path().display(),
        long.display()
    );
    let mut service = bench.serve(&settings);
    let mut caller = Caller::connect(&bench).await;
    for (model, lengths) in [("short", 0.1..0.9), ("long", 2.0..20.0)] {
        let body = json!({"model": model, "input": "as it is"});
        let vectors = caller.ask(&body).await.vectors();
        let length = vectors[0].iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(lengths.contains(&length), "{model}: {length}");
    }
    // All three models have their turns, again and again.
    for _ in 0..9 {
        service.forget_told();
        service.tells("WATCHDOG=1");
    }
    assert!(service.exited().is_none(), "{}", service.log());
}

/// Goal: while a model is being loaded its jobs wait, those above its bound are refused at once, and jobs of the other
/// model go on; when it is there, all that waited are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_waits_for_a_load() {
    let Some(bench) = bench("load") else { return };
    let folder = Second::of(&bench);
    let service = bench.serve(&folder.settings(60_000, ""));
    folder.hold_up();
    let mut caller = Caller::connect(&bench).await;
    let mut waiting = vec![
        caller.send(&second(&["a"])).await,
        caller.send(&second(&["b"])).await,
    ];
    models_become(&service, "ready", "loading");
    for _ in 0..20 {
        let refused = caller.ask(&second(&["c"])).await;
        assert_eq!(refused.error(), ("overloaded", 429, None));
        assert!(refused.json["error"]["retry_after_ms"].as_u64().unwrap() >= 50);
        caller.ask(&json!({"input": "meanwhile"})).await.vectors();
    }
    let ready = report(&service);
    // The last answer may be here before its acknowledgement is written.
    let waits = ready["queue"]
        .as_u64()
        .is_some_and(|queue| (2..=3).contains(&queue));
    assert!(ready["ready"] == true && waits, "{ready}");
    folder.let_go(&bench);
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        reply.vectors();
        waiting.retain(|id| Some(id.as_str()) != reply.correlation_id());
    }
}

/// Goal: whoever comes while models are loaded at the start is refused at once, or waits and is answered; nothing is ready
/// before, and no job that goes on is taken, which a death would be charged to. Method: the default model's tokenizer is
/// a pipe that nobody writes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_answers_while_it_loads_its_models() {
    let Some(bench) = bench("start") else { return };
    let folder = Second::of(&bench);
    folder.hold_up();
    let settings = folder.settings(0, "default_model = \"second\"");
    let mut service = bench.start(&bench.node.url, &settings);
    let clock = Clock::start();
    while !service.runtime().join("status.sock").exists() || report(&service)["broker"]["connected"] != true {
        assert!(
            clock.now().since(Moment::ZERO) < SOON,
            "no session while it loads"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut caller = Caller::connect(&bench).await;
    let resuming = async |caller: &Caller| {
        let passive = QueueDeclareOptions::default().passive();
        let queue = caller.names.resumed.as_str().into();
        let state = caller
            .channel
            .queue_declare(queue, passive, FieldTable::default());
        state.await.unwrap().consumer_count()
    };
    let (properties, _) = caller.properties();
    let properties = properties.with_headers(headers(&[("x-budget-ms", 200)]));
    let queue = caller.names.interactive.clone();
    let late = caller.ask_raw(&queue, br#"{"input": "late"}"#, properties).await;
    assert_eq!(late.error(), ("deadline_exceeded", 504, None));
    let mut waiting = vec![
        caller.send(&json!({"input": "a"})).await,
        caller.send(&json!({"input": "b"})).await,
    ];
    for _ in 0..20 {
        let refused = caller.ask(&json!({"input": "c"})).await;
        assert_eq!(refused.error(), ("overloaded", 429, None));
        assert!(refused.json["error"]["retry_after_ms"].as_u64().unwrap() >= 50);
    }
    let unknown = caller.ask(&json!({"input": "c", "model": "third"})).await;
    assert_eq!(unknown.error(), ("model_not_found", 404, Some("model")));
    let seen = report(&service);
    assert_eq!(
        (&seen["ready"], &seen["not_ready"], &seen["models"]["second"]),
        (&json!(false), &json!("starting"), &json!("loading")),
        "{seen}"
    );
    assert!(seen["line"].as_str().unwrap().contains("loading"), "{seen}");
    assert_eq!(resuming(&caller).await, 0);
    assert!(!service.has_told("READY=1"));
    folder.let_go(&bench);
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        reply.vectors();
        waiting.retain(|id| Some(id.as_str()) != reply.correlation_id());
    }
    service.ready();
    let clock = Clock::start();
    while resuming(&caller).await == 0 {
        assert!(
            clock.now().since(Moment::ZERO) < SOON,
            "jobs that go on are not taken"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Goal: a load that does not get on is a stall like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_hangs_ends_the_process() {
    let Some(bench) = bench("hang") else { return };
    let folder = Second::of(&bench);
    let limits = "liveness_max_stall_ms = 2000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 300";
    let mut service = bench.serve(&folder.settings(60_000, limits));
    folder.hold_up();
    let mut caller = Caller::connect(&bench).await;
    caller.send(&second(&["never"])).await;
    assert_eq!(service.exit(SOON).0, Some(71), "{}", service.log());
    assert_eq!(service.deaths(), ["no_progress"]);
    assert!(service.log().contains("admitted"), "{}", service.log());
}

/// Goal: a folder that is no longer what it was costs the jobs that ask for it, with the reason, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_has_changed_is_refused() {
    let Some(bench) = bench("gone") else { return };
    let folder = Second::of(&bench);
    let service = bench.serve(&folder.settings(60_000, "max_attempts = 1"));
    let modules = std::fs::read_to_string(folder.modules()).unwrap();
    let mut shorter: Vec<Value> = serde_json::from_str(&modules).unwrap();
    assert_eq!(
        shorter.pop().unwrap()["type"],
        "sentence_transformers.models.Normalize"
    );
    let broken = ["{".to_owned(), serde_json::to_string(&shorter).unwrap()];
    let mut caller = Caller::connect(&bench).await;
    for (text, why) in broken.into_iter().zip(["modules.json", "changed"]) {
        std::fs::remove_file(folder.modules()).unwrap();
        std::fs::write(folder.modules(), text).unwrap();
        let reply = caller.ask(&second(&["x"])).await;
        assert_eq!(reply.error(), ("internal", 500, None));
        let message = reply.json["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("cannot be loaded") && message.contains(why),
            "{message}"
        );
        models_become(&service, "ready", "failed");
    }
    caller.ask(&json!({"input": "the default"})).await.vectors();
    std::fs::write(folder.modules(), modules).unwrap();
    caller.ask(&second(&["mended"])).await.vectors();
}
