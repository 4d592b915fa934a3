//! Goal: each death leaves exactly one record, never two and never none, whoever writes it. Method: the real
//! binary with directories of its own, without systemd; what needs systemd is in `tests/system`.

use embeddings::job::sentence::{self, Sentence};
use embeddings::logic::health::KillReason;
use embeddings::logic::ledger::Stage;
use embeddings::report::Kill;
use embeddings::telemetry::classify::{Ending, classify};
use embeddings::telemetry::{blackbox, history};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A place for one service.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .env_clear()
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .envs(variables.iter().copied())
            .args(args)
            .output()
            .unwrap()
    }

    /// A service whose configuration is wrong.
    fn serve(&self, variables: &[(&str, &str)]) {
        let output = self.run(&["serve", "--set", "max_queue=plenty"], variables);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    }

    /// What systemd calls afterwards.
    fn postmortem(&self, end: [&str; 3], invocation: &str) {
        let [result, code, status] = end;
        let variables = [
            ("SERVICE_RESULT", result),
            ("EXIT_CODE", code),
            ("EXIT_STATUS", status),
            ("INVOCATION_ID", invocation),
        ];
        let output = self.run(&["postmortem"], &variables);
        assert!(output.status.success(), "{output:?}");
    }

    fn deaths(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("state/kills.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[test]
fn without_a_postmortem_the_process_writes_its_record_itself() {
    let home = Home::new();
    home.serve(&[]);
    let deaths = home.deaths();
    assert_eq!(deaths.len(), 1, "{deaths:?}");
    assert_eq!(deaths[0]["kill_reason"], "config_error");
    assert_eq!(deaths[0]["exit_status"], "78");
    assert_eq!(deaths[0]["kill_id"].as_str().unwrap().len(), 32);
    let detail = deaths[0]["detail"].as_str().unwrap();
    assert!(detail.contains("max_queue"), "{detail}");
    // A postmortem that comes all the same finds that all is said.
    home.postmortem(["exit-code", "exited", "78"], "");
    assert_eq!(home.deaths().len(), 1);
}

#[test]
fn with_a_postmortem_the_process_leaves_it_to_it() {
    let home = Home::new();
    home.serve(&[("EMBEDDINGS_POSTMORTEM", "1"), ("INVOCATION_ID", "this")]);
    assert!(home.deaths().is_empty());
    let left = blackbox::read(&home.path("run")).unwrap().death.unwrap();
    home.postmortem(["exit-code", "exited", "78"], "this");
    let kept = history::last(&home.path("state"), 10);
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0].kill_id, &kept[0].detail), (&left.kill_id, &left.detail));
    assert_eq!(kept[0].service_result, "exit-code");
    // The box of that life says nothing of the next one's death.
    home.postmortem(["exit-code", "exited", "71"], "next");
    let kept = history::last(&home.path("state"), 10);
    assert_eq!((kept.len(), kept[0].kill_reason.as_str()), (2, "no_progress"));
    assert_eq!(kept[0].invocation_id, "next");
}

/// Goal: a death by the monitor is told as one, from the file that the monitor leaves beside the runtime directory.
#[test]
fn the_monitors_sentence_is_read_and_taken_away() {
    let home = Home::new();
    blackbox::open(&home.path("run")).unwrap();
    let (monitor, pid) = (home.path("embeddings-monitor"), std::process::id());
    std::fs::create_dir(&monitor).unwrap();
    let said = Sentence {
        pid,
        reason: sentence::REASON.into(),
        silent_ms: 45_000,
        detail: "no heartbeat for 45000 ms".into(),
    };
    let path = monitor.join(sentence::file_name(pid));
    std::fs::write(&path, serde_json::to_vec(&said).unwrap()).unwrap();
    let own = blackbox::Identity::own().invocation_id;
    home.postmortem(["success", "killed", "TERM"], &own);
    let kept = history::last(&home.path("state"), 10);
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (kept[0].kill_reason.as_str(), &kept[0].detail),
        (sentence::REASON, &said.detail)
    );
    assert!(!path.exists(), "the number will be another process's");
}

/// Goal: no reason that a record may have is missing in the metrics. Method: every end that systemd tells of, every verdict.
#[test]
fn every_reason_is_on_the_list() {
    let end = |service_result: &str, exit_status: &str| {
        let ending = Ending {
            service_result: service_result.into(),
            exit_status: exit_status.into(),
            ..Ending::default()
        };
        classify(&ending, None, None, 0).unwrap().kill_reason
    };
    let results = [
        "watchdog",
        "oom-kill",
        "timeout",
        "signal",
        "core-dump",
        "protocol",
    ];
    let ends = results.map(|result| end(result, "TERM"));
    let exits = ["1", "70", "71", "72", "78"].map(|status| end("exit-code", status));
    let verdicts = [
        KillReason::BrokerDisconnected,
        KillReason::NoProgress(Stage::Acked),
        KillReason::EngineCorrupt,
        KillReason::DrainTimeout,
    ];
    let mut said: Vec<String> = verdicts.map(|reason| reason.name().to_owned()).into();
    said.extend(ends.into_iter().chain(exits));
    said.extend([sentence::REASON.to_owned()]);
    for reason in said {
        assert!(Kill::REASONS.contains(&reason.as_str()), "{reason}");
    }
}

#[test]
fn a_clean_stop_leaves_nothing() {
    let home = Home::new();
    home.postmortem(["success", "exited", "0"], "this");
    assert!(home.deaths().is_empty());
    let by_hand = home.run(&["postmortem"], &[]);
    assert_eq!(by_hand.status.code(), Some(1));
}

/// Every MESSAGE_ID of the code is explained by the catalog, and the catalog explains nothing else.
#[test]
fn the_catalog_explains_every_record() {
    fn sources(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, text),
                false => text.push_str(&std::fs::read_to_string(&path).unwrap()),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    let consts = text
        .lines()
        .filter(|line| line.starts_with("pub const MESSAGE_ID"));
    let mut ids: Vec<&str> = consts.filter_map(|line| line.split('"').nth(1)).collect();
    let catalog = std::fs::read_to_string(root.join("packaging/embeddings.catalog")).unwrap();
    let mut explained: Vec<&str> = catalog
        .lines()
        .filter_map(|line| line.strip_prefix("-- "))
        .collect();
    ids.sort_unstable();
    explained.sort_unstable();
    assert!(ids.len() >= 3 && ids.iter().all(|id| id.len() == 32), "{ids:?}");
    assert_eq!(ids, explained);
}
