//! Goal: `embeddings model pull` installs all of a model or nothing, goes on after a cut, and needs no network
//! for what it has. Method: the real binary against a server in this test that speaks the Hub's protocol.

mod hub;

use embeddings::clock::{Clock, Moment};
use hub::{COMMIT, Hub, ID, WEIGHTS, model, sha256, weights};
use serde_json::json;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Weights of 20 MB, which are fetched in three pieces.
const LARGE: u32 = 5_000_000;

/// A machine of its own for the binary.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn command(&self, endpoint: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
        command
            .env_clear()
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.0.path().join("state"))
            .env("CACHE_DIRECTORY", self.0.path().join("cache"))
            .env("HF_ENDPOINT", endpoint)
            .args(["model", "pull"])
            .args(args)
            .args(["--config", "/dev/null"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn pull(&self, endpoint: &str, args: &[&str]) -> Output {
        self.command(endpoint, args).output().unwrap()
    }

    fn installed_weights(&self) -> Vec<u8> {
        std::fs::read(self.models().join("tiny-model").join(WEIGHTS)).unwrap()
    }

    /// What is half there in the cache.
    fn parts(&self) -> Vec<String> {
        let mut all = Vec::new();
        let cache = self.0.path().join("cache");
        walk(&cache, &cache, &mut all);
        all.retain(|name| name.contains(".part"));
        all
    }

    fn models(&self) -> PathBuf {
        self.0.path().join("state/models")
    }

    /// Everything below the models' folder, hidden folders of a half-done install included.
    fn installed(&self) -> Vec<String> {
        let mut all = Vec::new();
        walk(&self.models(), &self.models(), &mut all);
        all.sort();
        all
    }
}

fn walk(root: &Path, dir: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => walk(root, &entry.path(), all),
            false => all.push(entry.path().strip_prefix(root).unwrap().display().to_string()),
        }
    }
}

const NEEDED: [&str; 6] = [
    "tiny-model/.source.json",
    "tiny-model/1_Pooling/config.json",
    "tiny-model/config.json",
    "tiny-model/model.safetensors",
    "tiny-model/modules.json",
    "tiny-model/tokenizer.json",
];

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn waited(clock: Clock) -> Duration {
    clock.now().since(Moment::ZERO)
}

/// An address at which nobody listens: it was just given back.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_pull_installs_what_the_model_needs_and_only_that() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &sha256(&hub.weights())]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("installed tiny-model: bert, 384 dimensions"));
    assert!(
        stderr(&output).contains("fetching model.safetensors (1.14 MiB)"),
        "{}",
        stderr(&output)
    );
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(home.installed_weights(), hub.weights());
    assert_eq!(home.parts(), Vec::<String>::new());
    for unneeded in ["pytorch_model.bin", "model.onnx", "README.md"] {
        assert!(hub.asked(unneeded).is_empty(), "{unneeded}");
    }
}

/// The weights of a Dense module have the same name, and come first in the Hub's list.
#[test]
fn a_checksum_is_for_the_transformer_s_weights() {
    let mut files = model(10);
    let modules = json!([
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]);
    files.insert("modules.json".into(), modules.to_string().into_bytes());
    let dense = json!({"in_features": 384, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"});
    files.insert("2_Dense/config.json".into(), dense.to_string().into_bytes());
    files.insert("2_Dense/model.safetensors".into(), weights(3, 0));
    let (hub, home) = (Hub::with(files), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &sha256(&weights(3, 0))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--sha256 asks for"),
        "{}",
        stderr(&output)
    );
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &sha256(&hub.weights())]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn modules_in_folders_and_weights_in_parts_come_along() {
    let mut files = model(10);
    files.remove(WEIGHTS);
    let modules = json!([
        {"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]);
    files.insert("modules.json".into(), modules.to_string().into_bytes());
    for name in ["config.json", "tokenizer.json"] {
        let file = files.remove(name).unwrap();
        files.insert(format!("0_Transformer/{name}"), file);
    }
    let dense = json!({"in_features": 384, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"});
    files.insert("2_Dense/config.json".into(), dense.to_string().into_bytes());
    files.insert("2_Dense/model.safetensors".into(), weights(3, 0));
    files.insert("2_Dense/pytorch_model.bin".into(), vec![0; 10]);
    let parts = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let index = json!({"weight_map": {"a": parts[0], "b": parts[1]}});
    files.insert(
        "0_Transformer/model.safetensors.index.json".into(),
        index.to_string().into_bytes(),
    );
    // Both parts have the same content: one file in the cache, and fetched once.
    for name in [parts[0], parts[1], "consolidated.safetensors"] {
        files.insert(format!("0_Transformer/{name}"), weights(1000, 7));
    }
    let (hub, home) = (Hub::with(files), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &sha256(&weights(3, 0))]);
    let why = "--sha256 is for 0_Transformer/model.safetensors, which this model has not";
    assert!(stderr(&output).contains(why), "{}", stderr(&output));
    assert!(hub.asked(parts[0]).is_empty() && hub.asked(parts[1]).is_empty());
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    let expected = [
        ".source.json",
        "0_Transformer/config.json",
        "0_Transformer/model-00001-of-00002.safetensors",
        "0_Transformer/model-00002-of-00002.safetensors",
        "0_Transformer/model.safetensors.index.json",
        "0_Transformer/tokenizer.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "modules.json",
    ]
    .map(|name| format!("tiny-model/{name}"));
    assert_eq!(home.installed(), expected);
    assert_eq!(hub.asked(parts[0]).len() + hub.asked(parts[1]).len(), 1);

    // A part that the index names and the Hub has not, and a module with pickled weights only.
    hub.state().files.remove(&format!("0_Transformer/{}", parts[1]));
    let output = home.pull(&hub.endpoint, &[ID, "--replace"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("which it has not"),
        "{}",
        stderr(&output)
    );
    let part = weights(1000, 7);
    hub.state()
        .files
        .insert(format!("0_Transformer/{}", parts[1]), part);
    hub.state().files.remove("2_Dense/model.safetensors");
    let output = home.pull(&hub.endpoint, &[ID, "--replace"]);
    assert!(
        stderr(&output).contains("module Dense in 2_Dense has no *.safetensors"),
        "{}",
        stderr(&output)
    );
    assert_eq!(home.installed(), expected, "the one that was there stays");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_was_cut() {
    let (hub, home) = (Hub::start(), Home::new());
    hub.state().cut = Some((500_000, 2));
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(home.installed_weights(), hub.weights());
    let starts = hub.starts();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(
        starts[0] == 0 && starts[1] > 0 && starts[2] > starts[1],
        "{starts:?}"
    );
    let second = &hub.asked(WEIGHTS)[1];
    assert_eq!(second.if_range, Some(format!("\"{}\"", sha256(&hub.weights()))));
    assert!(stderr(&output).contains("trying again in"), "{}", stderr(&output));
}

/// A large file comes over several connections at once: the server answers none of them before it has three.
#[test]
fn a_large_file_comes_in_several_pieces_at_once() {
    let (hub, home) = (Hub::with(model(LARGE)), Home::new());
    hub.state().together = 3;
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    let mut starts = hub.starts();
    starts.sort();
    assert_eq!(starts, [0, 8 << 20, 16 << 20]);
}

/// What a killed command has fetched is not fetched again by the next one.
#[test]
fn a_killed_pull_goes_on_where_it_was() {
    let (hub, home) = (Hub::with(model(LARGE)), Home::new());
    // Each of the three pieces stops before its end: at 6 MB, and the last, shorter one nowhere.
    hub.state().silent = Some((6 << 20, 2));
    let mut first = home.command(&hub.endpoint, &[ID]).spawn().unwrap();
    let noted = |home: &Home| -> u64 {
        let name = home.parts().into_iter().find(|name| name.ends_with(".part.json"));
        let text = name.and_then(|name| std::fs::read(home.0.path().join("cache").join(name)).ok());
        let note: serde_json::Value = text
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let pieces = note["pieces"].as_array().cloned().unwrap_or_default();
        pieces.iter().map(|piece| piece["done"].as_u64().unwrap()).sum()
    };
    let clock = Clock::start();
    while noted(&home) < 8 << 20 {
        assert!(waited(clock) < Duration::from_secs(60), "nothing is noted");
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(home.installed(), Vec::<String>::new());
    let there = noted(&home);
    hub.state().silent = None;
    hub.state().log.clear();
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    let again: usize = hub
        .asked(WEIGHTS)
        .iter()
        .map(|asked| {
            let range = asked.range.as_deref().unwrap().trim_start_matches("bytes=");
            let (from, to) = range.split_once('-').unwrap();
            to.parse::<usize>().unwrap() + 1 - from.parse::<usize>().unwrap()
        })
        .sum();
    assert_eq!(again as u64 + there, hub.weights().len() as u64);
    assert!(
        stderr(&output).contains("of it are there)"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_server_without_ranges_sends_the_whole() {
    let (hub, home) = (Hub::with(model(LARGE)), Home::new());
    hub.state().no_ranges = true;
    hub.state().cut = Some((9_000_000, 2));
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    // The other connections may ask for their pieces before the first learns that there are none.
    let asked = hub.asked(WEIGHTS);
    let whole = asked.iter().filter(|asked| asked.range.is_none()).count();
    assert!((1..=3).contains(&whole), "asked for as a whole {whole} times");
    assert!(asked.len() - whole <= 3, "no piece is asked for twice");
}

/// The file is another one after the cut. No mixture of the two may come out, whatever the checksum would say of it.
#[test]
fn content_that_changes_on_the_way_is_begun_anew() {
    for honest in [true, false] {
        let (hub, home) = (Hub::start(), Home::new());
        let fresh = weights(300_000, 9);
        {
            let mut state = hub.state();
            state.cut = Some((500_000, 1));
            state.later = Some(fresh.clone());
            // A mirror without checksums can be checked by its tags alone.
            let sum = if honest { sha256(&fresh) } else { "unknown".into() };
            state.claimed.insert(WEIGHTS.into(), sum);
        }
        let output = home.pull(&hub.endpoint, &[ID]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(home.installed_weights() == fresh, "a mixture");
    }
}

#[test]
fn a_busy_hub_is_left_alone_for_as_long_as_it_asks() {
    let (hub, home) = (Hub::start(), Home::new());
    hub.state().refusals = [(429, "Retry-After: 2\r\n"), (503, "")].into();
    let clock = Clock::start();
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(waited(clock) > Duration::from_secs(2), "{:?}", waited(clock));
    assert!(
        stderr(&output).contains("answers 429, come again in 2 s; trying again in 2.0 s"),
        "{}",
        stderr(&output)
    );

    let home = Home::new();
    hub.state().refusals = [(429, "Retry-After: 86400\r\n")].into();
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("failed to fetch model.safetensors")
            && stderr(&output).contains("answers 429, come again in 86400 s"),
        "{}",
        stderr(&output)
    );
    assert_eq!(home.installed(), Vec::<String>::new());
}

#[test]
fn a_silent_server_is_given_up_and_asked_again() {
    let (hub, home) = (Hub::start(), Home::new());
    hub.state().silent = Some((500_000, 1));
    let output = home
        .command(&hub.endpoint, &[ID])
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    assert_eq!(hub.starts(), [0, 500_000]);
}

/// The Hub sends on to stores of other hosts. They get no token, nor does anyone who reads over the shoulder.
#[test]
fn the_token_goes_to_the_hub_alone() {
    let (hub, store, home) = (Hub::start(), Hub::start(), Home::new());
    hub.state().store = Some(store.endpoint.clone());
    store.state().refusals = [(503, "")].into();
    let pull = |args: &[&str]| {
        let mut command = home.command(&hub.endpoint, args);
        command.env("HF_TOKEN", "hf_secret").output().unwrap()
    };
    let output = pull(&[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    let bearer = Some("Bearer hf_secret".to_owned());
    assert!(hub.state().log.iter().all(|asked| asked.authorization == bearer));
    let at_store = store.asked("model.safetensors?signed=1");
    assert_eq!(at_store.len(), 2);
    assert!(
        at_store.iter().all(|asked| asked.authorization.is_none()),
        "{at_store:?}"
    );
    store.state().refusals = [(403, "")].into();
    std::fs::remove_dir_all(home.0.path()).unwrap();
    let failed = pull(&[ID]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("answers 403"), "{}", stderr(&failed));
    for output in [output, failed] {
        assert!(!stderr(&output).contains("secret") && !stdout(&output).contains("secret"));
    }
}

#[test]
fn a_checksum_that_does_not_match_installs_nothing() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &"0".repeat(64)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--sha256 asks for 0000"),
        "{}",
        stderr(&output)
    );
    assert!(hub.asked(WEIGHTS).is_empty(), "the weights were fetched in vain");
    // The Hub says one thing and sends another: damaged on the way. Of the small files it knows Git's names.
    for (name, digits) in [(WEIGHTS, 64), ("tokenizer.json", 40)] {
        hub.state().claimed.insert(name.into(), "1".repeat(digits));
        let output = home.pull(&hub.endpoint, &[ID]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains(&format!("failed to fetch {name}")), "{text}");
        assert!(text.contains("the Hub says 1111"), "{text}");
        assert_eq!(home.installed(), Vec::<String>::new());
        hub.state().claimed.clear();
    }
    // And what was damaged is not taken for good the next time.
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
}

#[test]
fn a_disk_without_room_is_found_out_beforehand() {
    let (hub, home) = (Hub::start(), Home::new());
    hub.state().sizes.insert(WEIGHTS.into(), 1 << 55);
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("not enough room in"),
        "{}",
        stderr(&output)
    );
    assert!(hub.asked(WEIGHTS).is_empty());
    assert_eq!(home.installed(), Vec::<String>::new());
}

#[test]
fn two_pulls_at_once_fetch_it_once() {
    let (hub, home) = (Hub::with(model(LARGE)), Home::new());
    let start = || home.command(&hub.endpoint, &[ID]).spawn().unwrap();
    for output in [start(), start()].map(|child| child.wait_with_output().unwrap()) {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(home.installed_weights(), hub.weights());
    assert_eq!(hub.asked(WEIGHTS).len(), 3, "three pieces, each once");
}

#[test]
fn a_taken_name_is_refused_before_the_weights_are_fetched() {
    let (hub, home) = (Hub::start(), Home::new());
    std::fs::create_dir_all(home.models().join("tiny-model")).unwrap();
    let refused = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("is installed already"),
        "{}",
        stderr(&refused)
    );
    assert!(hub.asked(WEIGHTS).is_empty());
    assert!(home.pull(&hub.endpoint, &[ID, "--replace"]).status.success());
}

#[test]
fn the_second_pull_needs_no_network() {
    let (hub, home) = (Hub::start(), Home::new());
    assert!(home.pull(&hub.endpoint, &[ID]).status.success());
    let closed = nobody();
    let again = home.pull(&closed, &[ID]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(stdout(&again).contains("is installed already"));
    std::fs::remove_dir_all(home.models()).unwrap();
    let again = home.pull(&closed, &[ID]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(
        stderr(&again).contains("using what an earlier pull left in the cache"),
        "{}",
        stderr(&again)
    );
    assert_eq!(home.installed(), NEEDED);
    let other = home.pull(&closed, &["test-org/other"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        stderr(&other).contains("failed to reach http://127.0.0.1:"),
        "{}",
        stderr(&other)
    );
}

/// A commit never changes: what is there of it needs no question. A branch does: its commit is looked up and recorded.
#[test]
fn a_pinned_commit_is_not_asked_for_again() {
    let (hub, home) = (Hub::start(), Home::new());
    let pinned = format!("{ID}@{COMMIT}");
    let output = home.pull(&hub.endpoint, &[&pinned]);
    assert!(output.status.success(), "{}", stderr(&output));
    hub.state().log.clear();
    std::fs::remove_dir_all(home.models()).unwrap();
    let again = home.pull(&hub.endpoint, &[&pinned]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(stderr(&again), "");
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(hub.state().log.len(), 0);

    let offline = |id: &str| {
        let mut command = home.command(&hub.endpoint, &[id]);
        command.env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let output = offline(&format!("{ID}@v1"));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("HF_HUB_OFFLINE is set"),
        "{}",
        stderr(&output)
    );
    assert_eq!(hub.state().log.len(), 0);

    // The branch has moved to another commit, whose weights are other ones; the rest is there already.
    let moved = "f".repeat(40);
    hub.state().commit = moved.clone();
    hub.state().files.insert(WEIGHTS.into(), weights(300_000, 5));
    let output = home.pull(&hub.endpoint, &[&format!("{ID}@refs/pr/1"), "--replace"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed_weights(), hub.weights());
    assert_eq!(hub.state().log.len(), 2, "the listing and the weights");
    let source = std::fs::read_to_string(home.models().join("tiny-model/.source.json")).unwrap();
    assert!(source.contains(&moved), "{source}");
    assert!(offline(&format!("{ID}@refs/pr/1")).status.success());
}

#[test]
fn an_unknown_model_and_an_unusable_one_are_refused_clearly() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &["test-org/absent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("has no model test-org/absent at revision main"),
        "{}",
        stderr(&output)
    );
    let file = hub.state().files.remove(WEIGHTS).unwrap();
    hub.state().files.insert("model.safetensors.bak".to_owned(), file);
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("has no *.safetensors: other formats"),
        "{}",
        stderr(&output)
    );
    let output = home.pull(&hub.endpoint, &[ID, "--name", "../../etc"]);
    assert!(stderr(&output).contains("model name"), "{}", stderr(&output));
    assert_eq!(home.installed(), Vec::<String>::new());
}

#[test]
fn a_model_is_replaced_only_when_asked() {
    let (hub, home) = (Hub::start(), Home::new());
    assert!(home.pull(&hub.endpoint, &[ID]).status.success());
    std::fs::write(
        home.models().join("tiny-model/.source.json"),
        "{\"from\":\"elsewhere\"}",
    )
    .unwrap();
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--replace replaces it"),
        "{}",
        stderr(&output)
    );
    let output = home.pull(&hub.endpoint, &[ID, "--replace"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
    let source = std::fs::read_to_string(home.models().join("tiny-model/.source.json")).unwrap();
    assert!(source.contains(ID) && source.contains(COMMIT), "{source}");
}

/// Goal: what the documents tell people to type fetches a model. Method: their blocks that need the Hub, as they stand, in a
/// shell that finds this one; `COMMIT` is a commit of it, and an administrator needs no `sudo`.
#[test]
fn the_documents_fetch_models() {
    let mut installed = Vec::new();
    for (document, blocks) in [("docs/guide.md", 1), ("docs/models.md", 1)] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
        let scripts: Vec<&str> = text
            .split("```sh because the Hub is needed; tests/pull runs it with one of its own\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert_eq!(scripts.len(), blocks, "{document}");
        for script in scripts {
            let (hub, home) = (Hub::start(), Home::new());
            let ids = script.split_whitespace().filter(|word| word.contains('/'));
            hub.state().names = ids.map(|id| id.split('@').next().unwrap().to_owned()).collect();
            let programs = home.0.path().join("bin");
            std::fs::create_dir(&programs).unwrap();
            let own = format!(
                "exec {} \"$@\" --config /dev/null",
                env!("CARGO_BIN_EXE_embeddings")
            );
            for (name, line) in [("sudo", "exec \"$@\""), ("embeddings", own.as_str())] {
                let path = programs.join(name);
                std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let done = Command::new("sh")
                .args(["-euc", &script.replace("COMMIT", COMMIT)])
                .env_clear()
                .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
                .env("HOME", home.0.path())
                .env("STATE_DIRECTORY", home.0.path().join("state"))
                .env("CACHE_DIRECTORY", home.0.path().join("cache"))
                .env("HF_ENDPOINT", &hub.endpoint)
                .output()
                .unwrap();
            assert!(done.status.success(), "{document}: {}", stderr(&done));
            let models = std::fs::read_dir(home.models()).unwrap().flatten();
            installed.extend(models.map(|entry| entry.file_name().into_string().unwrap()));
        }
    }
    installed.sort();
    assert_eq!(installed, ["all-MiniLM-L6-v2", "all-MiniLM-L6-v2", "e5"]);
}
