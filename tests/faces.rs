//! How the commands look: to people on a terminal, to people who pipe, and to machines.
//!
//! Goal: whatever prints facts prints them as JSON, too; colours are for terminals alone, and never with `NO_COLOR` or on a
//! terminal that has none. Method: the real binary, on a pipe and on a pseudo terminal.

#[path = "support/mended.rs"]
mod mended;
#[path = "support/model.rs"]
mod model;

use clap::CommandFactory;
use embeddings::args::Cli;
use mended::Machine;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::process::Stdio;

/// Commands without `--json`, and why they need none.
const NO_FACTS: [(&str, &str); 6] = [
    ("serve", "the service: it writes a log"),
    ("monitor", "a service: it writes a log"),
    ("postmortem", "systemd's to call: it writes to the journal"),
    ("alarm", "systemd's to call: it writes to the journal"),
    ("submit", "its output is JSON Lines"),
    ("embed", "its output is JSON"),
];

fn machine() -> Machine {
    let machine = Machine::new();
    machine.write(
        "embeddings.toml",
        "http.listen = ''\nbroker.url = 'amqp://u:p@127.0.0.1:1'\n",
    );
    machine.env("TERM", "xterm-256color");
    machine
}

/// Everything here that prints facts without a broker. The model is added first and removed last.
fn commands() -> Vec<Vec<String>> {
    let minilm = model::minilm().display().to_string();
    let all: [&[&str]; 8] = [
        &["config"],
        &["status"],
        &["check"],
        &["model", "add", &minilm, "--name", "tiny"],
        &["model", "list"],
        &["model", "check", "tiny"],
        &["bench", "--engine", "--seconds", "0.1", "--model", "tiny"],
        &["model", "rm", "tiny"],
    ];
    let owned = |words: &&[&str]| words.iter().map(|&word| word.to_owned()).collect();
    all.iter().map(owned).collect()
}

fn with_config(machine: &Machine, words: &[String], more: &[&str]) -> Vec<String> {
    let config = machine.path("embeddings.toml").display().to_string();
    let mut all = words.to_vec();
    all.extend(["--config".to_owned(), config]);
    all.extend(more.iter().map(|&word| word.to_owned()));
    all
}

#[test]
fn whatever_prints_facts_has_json() {
    fn visit(command: &clap::Command, above: &str, without: &mut Vec<String>) {
        for below in command
            .get_subcommands()
            .filter(|below| below.get_name() != "help")
        {
            let name = format!("{above} {}", below.get_name()).trim().to_owned();
            let json = below
                .get_arguments()
                .any(|argument| argument.get_long() == Some("json"));
            if !json && below.get_subcommands().next().is_none() {
                without.push(name.clone());
            }
            visit(below, &name, without);
        }
    }
    let mut without = Vec::new();
    visit(&Cli::command(), "", &mut without);
    without.retain(|name| NO_FACTS.iter().all(|(known, _)| known != name));
    assert!(without.is_empty(), "these have no --json: {without:?}");
}

#[test]
fn json_is_json_and_a_pipe_gets_no_colours() {
    let machine = machine();
    for words in commands() {
        // What adds and removes does so once.
        let once = words[0] == "model" && ["add", "rm"].contains(&words[1].as_str());
        let faces: &[&[&str]] = if once { &[&["--json"]] } else { &[&[], &["--json"]] };
        for more in faces {
            let output = machine
                .command(&with_config(&machine, &words, more))
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout.clone()).unwrap();
            assert!(!said.contains('\x1b'), "{words:?}: {said}");
            assert!(
                !said.lines().any(|line| line.ends_with(' ')),
                "{words:?}: blanks at the end: {said:?}"
            );
            if more.is_empty() {
                let first = said.lines().next().unwrap_or_default();
                assert!(
                    first.chars().any(char::is_alphabetic),
                    "{words:?} begins with no answer: {said}"
                );
            } else {
                let json: Result<Value, _> = serde_json::from_str(&said);
                assert!(
                    json.is_ok_and(|json| json.is_object()),
                    "{words:?}: {said} {output:?}"
                );
            }
        }
    }
}

/// Goal: a script that asked for JSON gets one object also where the command comes to nothing, and the exit code that it had. Method:
/// nobody at the broker, names of nothing, a socket that cannot be, a configuration that is wrong.
#[test]
fn what_cannot_be_told_is_told_in_json() {
    let machine = machine();
    // No socket can have such a name, so nothing can be known of one.
    let runtime = machine.path(&"far/".repeat(40)).display().to_string();
    machine.env("RUNTIME_DIRECTORY", &runtime);
    let minilm = model::minilm().display().to_string();
    let failing: [(&[&str], i32); 11] = [
        (&["status"], 4),
        (&["top"], 69),
        (&["dead", "list"], 1),
        (&["dead", "show", "job-1"], 1),
        (&["dead", "requeue", "--all"], 1),
        (&["dead", "purge", "--all"], 2),
        (&["dead", "purge", "--all", "--yes"], 1),
        (&["model", "check", "nobody"], 1),
        (&["model", "add", "/nowhere"], 1),
        (&["model", "rm", "nobody"], 1),
        (&["bench", "--broker", "--seconds", "0.1", "--model", &minilm], 69),
    ];
    let judge = |words: &[&str], code: i32| {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let mut command = machine.command(&with_config(&machine, &words, &["--json"]));
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        let said: Result<Value, _> = serde_json::from_slice(&output.stdout);
        let said = said.unwrap_or_else(|error| panic!("{words:?}: {error}: {output:?}"));
        let error = said["error"].as_str().unwrap_or_default();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            error.lines().all(|line| told.contains(line)),
            "{words:?}: {said} {told}"
        );
        assert!(!error.is_empty() && said["exit"] == code, "{words:?}: {said}");
    };
    for (words, code) in failing {
        judge(words, code);
    }
    machine.append("embeddings.toml", "max_queue = 0\nmax_qeue = 1");
    for words in [
        &["config"][..],
        &["top"],
        &["dead", "list"],
        &["model", "list"],
        &["bench"],
    ] {
        judge(words, 78);
    }
}

/// What the command writes to a terminal.
fn on_terminal(machine: &Machine, words: &[String], env: &[(&str, &str)]) -> String {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both places are ours; the optional parts are left out.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptors are fresh and belong to nobody else.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
    let mut command = machine.command(&with_config(machine, words, &[]));
    let spawned = command
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::from(theirs))
        .stderr(Stdio::null())
        .spawn();
    // The command holds its own end of the terminal for as long as it lives, and so does this.
    drop(command);
    let mut child = spawned.unwrap();
    let mut said = Vec::new();
    // Reading ends with an error when the last of the other side has gone.
    let _ = ours.read_to_end(&mut said);
    child.wait().unwrap();
    String::from_utf8(said).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let machine = machine();
    for words in [&["config"][..], &["status"], &["check"], &["model", "list"]] {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let coloured = on_terminal(&machine, &words, &[]);
        assert!(coloured.contains("\x1b["), "{words:?} has no colours: {coloured}");
        // no-color.org: an empty value is none.
        assert!(
            on_terminal(&machine, &words, &[("NO_COLOR", "")]).contains("\x1b["),
            "{words:?}"
        );
        for off in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let plain = on_terminal(&machine, &words, &[off]);
            assert!(!plain.contains('\x1b'), "{words:?} with {off:?}: {plain}");
            let stripped = strip(&coloured);
            assert_eq!(
                steady(&plain),
                steady(&stripped),
                "{words:?}: colours change nothing else"
            );
        }
    }
}

/// Without what takes no place.
fn strip(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        rest = after.split_once('m').expect("a colour ends with m").1;
    }
    out + rest
}

/// Numbers differ from run to run.
fn steady(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}
