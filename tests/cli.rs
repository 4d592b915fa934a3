//! Goal: the small commands answer as their help says, with the exit codes that units and scripts rely on.
//! Method: the real binary with an environment of its own.

#[path = "../examples/papers.rs"]
#[expect(
    dead_code,
    reason = "its main is cargo's to call; the test calls what main calls"
)]
mod papers;

use clap::CommandFactory;
use embeddings::args::Cli;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A machine of its own for the binary.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
        command
            .env_clear()
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.path("state"))
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The smallest folder that is a model from outside.
fn model(home: &Home, folder: &str) -> PathBuf {
    let header = json!({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).to_string();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header.as_bytes());
    weights.extend_from_slice(&1f32.to_le_bytes());
    let modules = json!([{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]);
    home.write(&format!("{folder}/modules.json"), modules.to_string());
    home.write(
        &format!("{folder}/config.json"),
        r#"{"model_type": "bert", "vocab_size": 240, "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12,
            "intermediate_size": 64, "max_position_embeddings": 64}"#,
    );
    home.write(
        &format!("{folder}/tokenizer.json"),
        include_str!("golden/cls/tokenizer.json"),
    );
    home.write(
        &format!("{folder}/1_Pooling/config.json"),
        r#"{"pooling_mode": "mean"}"#,
    );
    home.write(
        &format!("{folder}/2_Dense/config.json"),
        r#"{"in_features": 384, "out_features": 128, "activation_function": "torch.nn.modules.activation.Tanh"}"#,
    );
    home.write(&format!("{folder}/pytorch_model.bin"), "not needed");
    home.write(&format!("{folder}/2_Dense/model.safetensors"), &weights);
    home.write(&format!("{folder}/model.safetensors"), &weights);
    home.path(folder)
}

#[test]
fn every_command_has_help() {
    fn visit(home: &Home, command: &clap::Command, path: &[String]) {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let output = home.run(&args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert!(
            stdout(&output).contains("Usage: embeddings"),
            "{args:?}: {}",
            stdout(&output)
        );
        for below in command.get_subcommands() {
            let path: Vec<String> = path
                .iter()
                .cloned()
                .chain([below.get_name().to_owned()])
                .collect();
            visit(home, below, &path);
        }
    }
    visit(&Home::new(), &Cli::command(), &[]);
    Cli::command().debug_assert();
}

#[test]
fn embed_takes_as_many_threads_as_there_can_be() {
    for threads in ["0", "1025", "100000", "two"] {
        let output = Home::new().run(&["embed", "--model", "nowhere", "--threads", threads]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(threads) && told.contains("--threads"), "{told}");
    }
}

// Goal: what came before an input without a vector is answered, and that input is named. Method: a model whose table of words ends
// before the tokenizer's own tokens do, and a text that holds such a token.
#[test]
fn embed_answers_what_came_before_a_bad_input() {
    let home = Home::new();
    let folder = home.path("model");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let copied = Command::new("cp").arg("-r").args([&golden, &folder]).status();
    assert!(copied.unwrap().success());
    let path = folder.join("tokenizer.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let own = spec["added_tokens"].as_array_mut().unwrap();
    let mut beyond = own[0].clone();
    (beyond["id"], beyond["content"]) = (423.into(), "<|beyond|>".into());
    own.push(beyond);
    std::fs::write(&path, spec.to_string()).unwrap();
    let lines = home.write(
        "lines",
        "\"a\"\n[\"b\", \"c\"]\n[\"d\", \"e <|beyond|>\"]\n\"f\"\n",
    );
    for threads in ["1", "2"] {
        let mut command = home.command(&["embed", "--model", "model", "--threads", threads]);
        let output = command
            .current_dir(home.0.path())
            .stdin(std::fs::File::open(&lines).unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let told = "embeddings: line 3 of stdin: input 2: input has token 423, the model has 423\n";
        assert_eq!(stderr(&output), told);
        let answers: Vec<Value> = stdout(&output)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[1].as_array().unwrap().len(), 2);
    }
}

// Goal: who stops reading what is said on stderr changes nothing. Method: commands that fail, with a pipe that nobody reads.
#[test]
fn nobody_has_to_read_what_is_said_on_stderr() {
    let home = Home::new();
    home.write("bad.toml", "max_queue = 0\n");
    for (args, code) in [
        (&["embed", "--model", "nowhere"][..], 1),
        (&["serve", "--config", "bad.toml"], 78),
        (&["config", "--config", "bad.toml"], 78),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = home.command(args);
        let status = command
            .current_dir(home.0.path())
            .stderr(writer)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}: {status}");
    }
}

#[test]
fn config_shows_every_value_and_who_set_it() {
    let home = Home::new();
    let file = home.write("own.toml", "max_queue = 10\nmax_inputs = 10\nmax_attempts = 10\n");
    let file = file.to_str().unwrap();
    let args = ["config", "--json", "--config", file, "--set", "max_attempts=30"];
    let output = home
        .command(&args)
        .env("EMBED_MAX_INPUTS", "20")
        .env("EMBED_MAX_ATTEMPTS", "20")
        .env("HEARTBEAT_TIMEOUT", "40000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let find = |key: &str| {
        let all = answer["settings"].as_array().unwrap();
        let setting = all.iter().find(|setting| setting["key"] == key).unwrap();
        json!([
            setting["value"],
            setting["origin"]["kind"],
            setting["origin"]["name"]
        ])
    };
    assert_eq!(find("max_queue"), json!([10, "file", file]));
    assert_eq!(find("max_inputs"), json!([20, "environment", "EMBED_MAX_INPUTS"]));
    assert_eq!(
        find("heartbeat_timeout_ms"),
        json!([40000, "environment", "HEARTBEAT_TIMEOUT"])
    );
    assert_eq!(find("max_attempts"), json!([30, "flag", "--set"]));
    assert_eq!(find("max_inflight"), json!([8, "default", null]));
    assert_eq!(
        find("broker.url"),
        json!(["amqp://guest:***@127.0.0.1:5672/%2f", "default", null])
    );
    let people = stdout(&home.run(&["config", "--config", file]));
    assert!(people.starts_with("valid: "), "{people}");
    assert!(
        people
            .lines()
            .any(|line| line.starts_with("max_queue ") && line.ends_with(file)),
        "{people}"
    );
    assert!(!people.contains('\x1b'), "colours without a terminal: {people}");
}

#[test]
fn a_bad_configuration_ends_with_78_and_names_file_key_value_and_range() {
    let home = Home::new();
    let file = home.write(
        "bad.toml",
        "max_queue = 0\nmax_inflihgt = 3\n[broker]\nurl = 'http://u:hunter2@h'\n",
    );
    let file = file.to_str().unwrap();
    for command in [
        &["config"][..],
        &["check"],
        &["model", "list"],
        &["model", "rm", "x"],
        &["dead", "list"],
        &["top"],
        &["dead", "purge", "x"],
    ] {
        let output = home.run(&[command, &["--config", file]].concat());
        assert_eq!(output.status.code(), Some(78), "{command:?}: {}", stderr(&output));
        let said = format!("{}{}", stdout(&output), stderr(&output));
        // `check` names the line, too.
        let said = (1..5).fold(said, |said, line| {
            said.replace(&format!("{file}:{line}: "), &format!("{file}: "))
        });
        for part in [
            format!("{file}: max_queue = 0: must be a whole number from 1 to 1000000 (jobs)"),
            format!("{file}: unknown key max_inflihgt; did you mean max_inflight?"),
            format!("{file}: broker.url = \"http://***@h\": the scheme must be amqp:// or amqps://"),
        ] {
            assert!(said.contains(&part), "{command:?}: {part} is not in\n{said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }
    let output = home.run(&["config", "--config", "/absent.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        stderr(&output).contains("/absent.toml: failed to read"),
        "{}",
        stderr(&output)
    );
    assert_eq!(home.run(&["config", "--nonsense"]).status.code(), Some(2));
}

#[test]
fn the_default_file_can_be_printed_and_used() {
    let home = Home::new();
    let text = stdout(&home.run(&["config", "--default-file"]));
    assert!(text.contains("#max_queue = 256\n"), "{text}");
    let file = home.write("default.toml", &text);
    assert!(
        home.run(&["config", "--config", file.to_str().unwrap()])
            .status
            .success()
    );
}

#[test]
fn check_says_what_to_mend_and_fails() {
    let home = Home::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("broker.url=amqp://guest:hunter2@127.0.0.1:{port}");
    let output = home.run(&[
        "check",
        "--config",
        "/dev/null",
        "--set",
        &url,
        "--set",
        "default_model=absent",
    ]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(
        said.starts_with("2 errors, 0 warnings: the service will not start\n"),
        "{said}"
    );
    assert!(
        said.contains("model.missing") && said.contains("--name absent"),
        "{said}"
    );
    assert!(
        said.contains("broker.address") && said.contains("systemctl start rabbitmq-server"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    let output = home.run(&[
        "check",
        "--json",
        "--config",
        "/dev/null",
        "--set",
        &url,
        "--set",
        "default_model=absent",
    ]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    assert!(
        answer["checks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|check| check["id"] == "broker.address")
    );
}

/// Goal: of a cluster each node is looked at, and one that is away is no failure while another answers.
#[test]
fn check_looks_at_each_node() {
    let home = Home::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap().port();
    // Takes the connections, and closes them: an address that answers, and no broker.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let url = format!("broker.url=amqp://guest:hunter2@127.0.0.1:{there},127.0.0.1:1");
    let arguments = ["--config", "/dev/null", "--set", &url];
    let output = home.run(&[&["check"][..], &arguments].concat());
    let said = stdout(&output);
    let level_of = |words: &str| {
        said.lines()
            .find(|line| line.contains(words))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        level_of(&format!("127.0.0.1:{there} answers")).contains("ok"),
        "{said}"
    );
    assert!(level_of("127.0.0.1:1: ").contains("warning"), "{said}");
    assert!(
        level_of("broker.protocol").contains("does not speak AMQP"),
        "{said}"
    );
    let shown = stdout(&home.run(&[&["config"][..], &arguments].concat()));
    assert!(
        shown.contains(&format!("amqp://guest:***@127.0.0.1:{there},127.0.0.1:1")),
        "{shown}"
    );
    assert!(!format!("{said}{shown}").contains("hunter2"));
}

#[test]
fn dead_letters_are_not_deleted_by_accident() {
    let home = Home::new();
    let nowhere = ["--set", "broker.url=amqp://guest:hunter2@127.0.0.1:1"];
    let none = ["--config", "/dev/null"];
    let run = |args: &[&str]| home.run(&[&["dead"], args, &none, &nowhere].concat());
    for wrong in [
        &["purge"][..],
        &["purge", "--all"],
        &["purge", "x", "--all", "--yes"],
        &["purge", "--all", "--yes", "--older-than", "7"],
        &["requeue"],
        &["requeue", "x", "--all"],
        &["show"],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
    }
    let output = run(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("127.0.0.1:1") && said.contains("embeddings check"),
        "{said}"
    );
    assert!(!said.contains("hunter2") && stdout(&output).is_empty(), "{said}");
}

#[test]
fn models_are_added_listed_and_removed() {
    let home = Home::new();
    let dir = model(&home, "downloads/tiny");
    let dir = dir.to_str().unwrap();
    let none = ["--config", "/dev/null"];
    let run = |args: &[&str]| home.run(&[args, &none].concat());
    let added = run(&["model", "add", dir]);
    assert!(
        stdout(&added).starts_with("installed tiny: bert, 128 dimensions"),
        "{}",
        stderr(&added)
    );
    let installed = home.path("state/models/tiny");
    assert!(
        installed.join("1_Pooling/config.json").exists() && !installed.join("pytorch_model.bin").exists()
    );
    let twice = run(&["model", "add", dir]);
    assert_eq!(twice.status.code(), Some(1));
    assert!(
        stderr(&twice).contains("is installed already"),
        "{}",
        stderr(&twice)
    );
    assert!(run(&["model", "add", dir, "--replace"]).status.success());
    for name in ["../tiny", "a/b", ".hidden", "", "-x"] {
        let refused = run(&["model", "add", dir, &format!("--name={name}")]);
        assert!(
            stderr(&refused).contains("must be 1 to 100"),
            "{name}: {}",
            stderr(&refused)
        );
    }
    assert!(run(&["model", "add", dir, "--name", "second"]).status.success());

    let listed: Value = serde_json::from_slice(&run(&["model", "list", "--json"]).stdout).unwrap();
    let models = listed["models"].as_array().unwrap();
    let tiny = models.iter().find(|model| model["name"] == "tiny").unwrap();
    assert_eq!(
        (&tiny["dimensions"], &tiny["configured"]),
        (&json!(128), &json!(false))
    );
    let default = models.iter().find(|model| model["default"] == true).unwrap();
    assert_eq!(
        (&default["name"], &default["path"]),
        (&json!("all-MiniLM-L6-v2"), &Value::Null)
    );
    let people = stdout(&run(&["model", "list"]));
    assert!(
        people.starts_with("2 models installed, 1 configured, 1 of them missing\n"),
        "{people}"
    );

    assert!(stdout(&run(&["model", "rm", "tiny"])).starts_with("removed tiny"));
    assert!(!installed.exists() && home.path("state/models/second").exists());
    for name in ["tiny", "../second", "second/../second"] {
        let refused = run(&["model", "rm", name]);
        assert_eq!(refused.status.code(), Some(1), "{name}");
        assert!(
            stderr(&refused).contains("is installed neither"),
            "{name}: {}",
            stderr(&refused)
        );
    }
    let left: Vec<_> = std::fs::read_dir(home.path("state/models"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["second"], "half-done folders stayed behind");
}

#[test]
fn a_damaged_folder_is_not_installed() {
    let home = Home::new();
    let run = |dir: &Path| home.run(&["model", "add", dir.to_str().unwrap(), "--config", "/dev/null"]);
    for (file, text, part) in [
        (
            "model.safetensors",
            "version https://git-lfs.github.com/spec/v1",
            "Git LFS pointer",
        ),
        ("model.safetensors", "\u{1}\0\0\0\0\0\0\0{}", "its header"),
        ("config.json", "{", "is not JSON"),
        (
            "config.json",
            "{\"model_type\": \"llama\"}",
            "model_type is \"llama\", supported: bert, roberta,",
        ),
        (
            "modules.json",
            "[{\"idx\":0,\"path\":\"\",\"type\":\"sentence_transformers.models.Transformer\"},
              {\"idx\":1,\"path\":\"1_Pooling\",\"type\":\"sentence_transformers.models.LSTM\"}]",
            "type of module 1 is \"sentence_transformers.models.LSTM\"",
        ),
        (
            "modules.json",
            "[{\"path\":\"../..\",\"type\":\"x.Transformer\"}]",
            "not inside the model",
        ),
    ] {
        let dir = model(&home, "broken");
        home.write(&format!("broken/{file}"), text);
        let output = run(&dir);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(part), "{file}: {}", stderr(&output));
    }
    let dir = model(&home, "broken");
    for file in ["tokenizer.json", "model.safetensors", "modules.json"] {
        std::fs::remove_file(dir.join(file)).unwrap();
        let output = run(&dir);
        assert!(stderr(&output).contains("has no "), "{file}: {}", stderr(&output));
    }
    assert!(!home.path("state/models/broken").exists());
}

#[test]
fn the_papers_are_written_and_the_manual_pages_are_clean() {
    let home = Home::new();
    let out = home.path("papers");
    papers::papers(&out).unwrap();
    for file in [
        "man/embeddings.1",
        "man/embeddings-serve.1",
        "man/embeddings-model-pull.1",
        "man/embeddings.toml.5",
        "man/embeddings.service.8",
        "completions/bash/embeddings",
        "completions/zsh/_embeddings",
        "completions/fish/embeddings.fish",
        "embeddings.toml",
    ] {
        assert!(std::fs::metadata(out.join(file)).unwrap().len() > 200, "{file}");
    }
    for page in std::fs::read_dir(out.join("man")).unwrap().flatten() {
        // Where there is no man, there is nothing to ask.
        let rendered = Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .arg(page.path())
            .output();
        let Ok(rendered) = rendered else { break };
        assert_eq!(stderr(&rendered), "", "{:?}", page.path());
    }
}
