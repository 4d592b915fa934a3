//! What is written down keeps to what is there: commands, keys, variables and links of the documents, units, manual pages.
//!
//! What can be run is run, in `tests/system` (blocks marked `sh run`) and `tests/broker/clients.rs`. Here everything is
//! read: a command must be one that the program knows, a key one that it has, a link one that leads somewhere.

#[allow(dead_code, reason = "of all it can be, the documents need only one machine")]
mod machine;

use clap::Parser;
use embeddings::args::Cli;
use embeddings::config::{KEYS, MODEL_KEYS};
use machine::Machine;
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A document for people who use or run the service, with its path from the root.
struct Document {
    path: PathBuf,
    text: String,
}

/// A fenced block.
struct Block<'a> {
    /// What stands behind the fence: `sh run`, `sh because …`, `toml`, nothing.
    kind: &'a str,
    line: usize,
    text: String,
}

fn documents() -> Vec<Document> {
    let mut paths = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    let entries = fs::read_dir(root().join("docs")).unwrap().flatten();
    let named = entries.map(|entry| Path::new("docs").join(entry.file_name()));
    paths.extend(named.filter(|path| path.extension().is_some_and(|end| end == "md")));
    paths.sort();
    let with_text = |path: PathBuf| Document {
        text: read(path.to_str().unwrap()),
        path,
    };
    paths.into_iter().map(with_text).collect()
}

impl Document {
    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut inside = false;
        for (at, line) in self.text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), inside) {
                (Some(kind), false) => {
                    blocks.push(Block {
                        kind: kind.trim(),
                        line: at + 1,
                        text: String::new(),
                    });
                    inside = true;
                }
                (Some(_), true) => inside = false,
                (None, true) => {
                    let block = blocks.last_mut().unwrap();
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, false) => {}
            }
        }
        assert!(!inside, "{}: a block does not end", self.path.display());
        blocks
    }

    /// Text outside of fenced blocks.
    fn prose(&self) -> String {
        let mut inside = false;
        let keep = |line: &&str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !fence && !inside
        };
        self.text.lines().filter(keep).collect::<Vec<_>>().join("\n")
    }

    /// What stands between backticks.
    fn inline(&self) -> Vec<String> {
        let code = Regex::new("`([^`\n]+)`").unwrap();
        let prose = self.prose();
        code.captures_iter(&prose)
            .map(|found| found[1].to_owned())
            .collect()
    }
}

/// The calls of `embeddings` in a line of shell, each with its arguments.
fn calls(line: &str) -> Vec<Vec<String>> {
    let Some(words) = shlex::split(line) else {
        return Vec::new();
    };
    let ends = |word: &str| {
        ["|", "||", "&&", ";", "&", "then", "do"].contains(&word)
            || word.starts_with(['>', '<'])
            || word.starts_with("2>")
    };
    let mut calls: Vec<Vec<String>> = Vec::new();
    let mut inside = false;
    let mut command_may_begin = true;
    for word in words {
        if ends(&word) {
            inside = false;
            command_may_begin = true;
            continue;
        }
        let program = ["embeddings", "/usr/bin/embeddings"].contains(&word.as_str());
        if !inside && command_may_begin && program {
            calls.push(vec!["embeddings".into()]);
            inside = true;
        } else if inside {
            let (word, end) = match word.strip_suffix(';') {
                Some(word) => (word.to_owned(), true),
                None => (word, false),
            };
            calls.last_mut().unwrap().push(word);
            (inside, command_may_begin) = (!end, end);
        } else {
            // Words before a command that leave it one.
            let prefix = ["sudo", "until", "if", "while", "!", "exec", "time", "$"].contains(&word.as_str());
            let option = word.starts_with('-') || word.contains('=');
            command_may_begin &=
                prefix || option || word == "systemd-run" || word.starts_with("LoadCredential");
        }
    }
    calls
}

/// Why the program would refuse these arguments.
fn refused(call: &[String]) -> Option<String> {
    use clap::error::ErrorKind;
    match Cli::try_parse_from(call) {
        Ok(_) => None,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => None,
        Err(error) => Some(format!("{}: {error}", call.join(" "))),
    }
}

/// Goal: no document shows a call that the program does not know. Method: clap itself, on every line of every block for
/// the shell, and on what stands between backticks and has no placeholder.
#[test]
fn every_command_of_every_document_is_one() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        for block in document.blocks() {
            if !["sh", "console", ""].contains(&block.kind.split(' ').next().unwrap_or_default()) {
                continue;
            }
            let whole = block.text.replace("\\\n", " ");
            for line in whole.lines() {
                // A block without a language has output, too: there a call begins the line.
                let line = line.trim_start_matches("$ ");
                if block.kind.is_empty() && !line.starts_with("embeddings ") {
                    continue;
                }
                for call in calls(line) {
                    checked += 1;
                    let told = refused(&call);
                    wrong
                        .extend(told.map(|why| format!("{}:{}: {why}", document.path.display(), block.line)));
                }
            }
        }
        for code in document.inline() {
            let told_of = code.starts_with("embeddings ") || code.starts_with("sudo embeddings ");
            if !told_of || code.contains(['…', '[', '·']) {
                continue;
            }
            for call in calls(&code) {
                // `embeddings dead` names a family of commands.
                let family = call.len() == 2 && ["dead", "model"].contains(&call[1].as_str());
                if family {
                    continue;
                }
                checked += 1;
                let told = refused(&call).filter(|why| !why.contains("required arguments were not provided"));
                wrong.extend(told.map(|why| format!("{}: `{code}`: {why}", document.path.display())));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 80, "only {checked} calls were found");
}

/// Goal: no command of a document is left untried by oversight. Method: a block for the shell is marked as one that `tests/system`
/// runs, or with the reason why it does not.
#[test]
fn every_block_for_the_shell_is_run_or_says_why_not() {
    let (mut run, mut wrong) = (0, Vec::new());
    for document in documents() {
        for block in document.blocks() {
            let (language, mark) = block.kind.split_once(' ').unwrap_or((block.kind, ""));
            if !["sh", "console", "bash", "shell"].contains(&language) {
                continue;
            }
            run += usize::from(block.kind == "sh run");
            let says_why = mark.strip_prefix("because ").is_some_and(|why| why.len() > 10);
            if block.kind != "sh run" && !says_why {
                wrong.push(format!(
                    "{}:{}: {:?}",
                    document.path.display(),
                    block.line,
                    block.kind
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "neither `sh run` nor `sh because …`:\n{}",
        wrong.join("\n")
    );
    assert!(run > 20, "only {run} blocks are run");
}

#[test]
fn calls_are_found_where_the_shell_would_find_them() {
    let found = |line: &str| {
        calls(line)
            .iter()
            .map(|call| call.join(" "))
            .collect::<Vec<_>>()
            .join(" & ")
    };
    assert_eq!(
        found("sudo embeddings check # finds what is wrong"),
        "embeddings check"
    );
    assert_eq!(
        found("until embeddings status >/dev/null; do embeddings config; done"),
        "embeddings status & embeddings config"
    );
    assert_eq!(
        found("echo 'a b' | embeddings submit --search \"x y\" | head"),
        "embeddings submit --search x y"
    );
    assert_eq!(found("systemctl restart embeddings"), "");
    assert_eq!(found("journalctl -u embeddings -p crit"), "");
    assert!(refused(&["embeddings".into(), "staus".into()]).is_some());
}

/// Goal: what documents tell people to write into the configuration is taken. Method: each block of TOML is a file.
#[test]
fn every_configuration_of_every_document_is_one() {
    let mut checked = 0;
    for document in documents() {
        for block in document.blocks().iter().filter(|block| block.kind == "toml") {
            checked += 1;
            if let Err(errors) = Machine::new().file(&block.text).load() {
                // Files that it names, and cards, are not on this machine.
                let others = errors
                    .0
                    .iter()
                    .map(ToString::to_string)
                    .filter(|error| !error.contains("failed to read") && !error.contains("has no CUDA"));
                let others: Vec<String> = others.collect();
                assert!(
                    others.is_empty(),
                    "{}:{}: {}",
                    document.path.display(),
                    block.line,
                    others.join("\n")
                );
            }
        }
    }
    assert!(checked > 5, "only {checked} blocks were found");
}

/// Goal: a key or a variable that is named exists. Method: everything between backticks that looks like one.
#[test]
fn every_key_and_variable_that_is_named_exists() {
    let keys: BTreeSet<&str> = KEYS.iter().chain(MODEL_KEYS).map(|key| key.name).collect();
    let variables: BTreeSet<String> = KEYS
        .iter()
        .map(|key| format!("EMBED_{}", key.name.replace('.', "__").to_uppercase()))
        .collect();
    let sections = Regex::new(r"^(broker|http|engine|log|traces)\.[a-z_]+$").unwrap();
    let limits = Regex::new(
        r"^(max_[a-z_]+|(liveness|disconnect|watchdog|drain|heartbeat|slam|canary|idle)_[a-z_]*ms)$",
    )
    .unwrap();
    let variable = Regex::new(r"\bEMBED_[A-Z_]+").unwrap();
    // Of RabbitMQ, of sentence-transformers, of OpenAI's clients, of OpenTelemetry; names of measures in the output of `embeddings bench`.
    let of_others = [
        "max_message_size",
        "max_seq_length",
        "max_tokens",
        "engine.short",
        "engine.mixed",
        "engine.long",
        "engine.own",
        "broker.bulk",
        "max_position_embeddings",
        "max_retries",
        "http.route",
    ];
    // The names of checks look alike.
    let mut checks = String::new();
    let mut folders = vec![root().join("src/cli"), root().join("src/broker")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => checks.push_str(&fs::read_to_string(path).unwrap()),
            }
        }
    }
    let mut named = 0;
    for document in documents() {
        let place = document.path.display();
        for code in document.inline() {
            let key = code.split([' ', '=']).next().unwrap_or_default();
            let of_check = checks.contains(&format!("\"{key}\""));
            let known = of_check || of_others.contains(&key);
            if (sections.is_match(key) || limits.is_match(key)) && !known {
                named += 1;
                assert!(keys.contains(key), "{place}: there is no key {key}");
            }
        }
        for found in variable.find_iter(&document.text) {
            let name = found.as_str();
            let model = name.starts_with("EMBED_MODELS__");
            assert!(
                model || variables.contains(name) || name == "EMBED_",
                "{place}: no key has the variable {name}"
            );
        }
    }
    assert!(named > 50, "only {named} keys were found");
}

/// The anchor that a heading has.
fn anchor(heading: &str) -> String {
    let heading = heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .replace('`', "");
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    for document in documents() {
        let folder = document.path.parent().unwrap();
        for found in link.captures_iter(&document.prose()) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => document.path.clone(),
                file => folder.join(file),
            };
            let place = document.path.display();
            assert!(root().join(&path).exists(), "{place}: {target} is not there");
            if wanted.is_empty() {
                continue;
            }
            let text = fs::read_to_string(root().join(&path)).unwrap();
            let mut anchors = text.lines().filter(|line| line.starts_with('#')).map(anchor);
            assert!(
                anchors.any(|anchor| anchor == wanted),
                "{place}: {target} has no such heading"
            );
        }
    }
}

/// Goal: whatever is marked to be run is run.
#[test]
fn every_document_with_blocks_to_run_is_in_the_system_tests() {
    let run = read("tests/system/run");
    let mut marked = 0;
    for document in documents() {
        let blocks = document.blocks();
        let shown = |kind: &str| blocks.iter().filter(|block| block.kind == kind).count();
        if shown("sh run") == 0 {
            continue;
        }
        marked += 1;
        let name = document.path.to_str().unwrap();
        let called = format!("document_runs {name}");
        assert!(run.contains(&called), "{name} is not run");
        if name == "docs/tour.md" {
            assert_eq!(shown("sh"), 0, "the tour has a block that is not run");
        }
    }
    assert!(marked >= 4, "only {marked} documents have blocks to run");
}

/// Goal: an instance is the service in everything but its name. Method: the units, setting by setting.
#[test]
fn an_instance_s_unit_differs_from_the_service_s_in_its_names_alone() {
    let settings = |path: &str| -> Vec<String> {
        let text = read(path);
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let names = [
        ("embeddings@%i", "embeddings"),
        (" --instance %i", ""),
        (", instance %i", ""),
        ("RestartPreventExitStatus=78 2", "RestartPreventExitStatus=78"),
    ];
    let instance = settings("systemd/embeddings@.service").into_iter().map(|line| {
        let plain =
            |line: String, (of_instance, of_service): &(&str, &str)| line.replace(of_instance, of_service);
        names.iter().fold(line, plain)
    });
    assert_eq!(
        instance.collect::<Vec<_>>(),
        settings("systemd/embeddings.service")
    );
}

/// Goal: embeddings.service(8) tells of every field of a record, and of every exit status of the service.
#[test]
fn the_manual_of_the_units_tells_of_every_field_of_a_record() {
    let manual = read("packaging/embeddings.service.8");
    let source = read("src/telemetry/death.rs");
    let fields = Regex::new(r#"\("([A-Z_]{4,})", "#).unwrap();
    let fields: BTreeSet<&str> = fields
        .captures_iter(&source)
        .map(|found| found.extract::<1>().1[0])
        .filter(|field| *field != "OBJECT_SYSTEMD_UNIT")
        .collect();
    assert!(fields.len() > 15, "{fields:?}");
    for field in fields {
        assert!(manual.contains(field), "{field} is not in embeddings.service(8)");
    }
    for id in [
        embeddings::telemetry::death::MESSAGE_ID_KILL,
        embeddings::telemetry::storm::MESSAGE_ID_ALARM,
        embeddings::telemetry::storm::MESSAGE_ID_CHRONIC,
    ] {
        assert!(manual.contains(id), "{id}");
    }
    for reason in [
        "broker_disconnected",
        "no_progress",
        "engine_corrupt",
        "config_error",
        "drain_timeout",
        "watchdog_timeout",
        "heartbeat_timeout",
        "start_timeout",
        "oom_killed",
        "panic",
        "signal",
        "failed",
    ] {
        assert!(
            manual.contains(reason),
            "{reason} is not in embeddings.service(8)"
        );
    }
}
