//! The alert rules and the dashboard as they are shipped.

use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Goal: each alert is silent while all is well and fires on its own trouble. Method: Prometheus' own unit tests of rules,
/// run by `promtool` (`scripts/get-promtool` fetches it).
#[test]
fn the_alerts_fire_and_are_silent() {
    let promtool: PathBuf = root().join(".cache/prometheus/usr/bin/promtool");
    if !promtool.is_file() {
        eprintln!("skipped: no {} (scripts/get-promtool)", promtool.display());
        return;
    }
    let folder = root().join("packaging/prometheus");
    for arguments in [
        ["check", "rules", "embeddings.rules.yml"],
        ["test", "rules", "embeddings.rules.test.yml"],
    ] {
        let judged = Command::new(&promtool)
            .args(arguments)
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(judged.status.success(), "{judged:?}");
    }
}

/// Goal: every alert has a unit test. Method: the names in both files.
#[test]
fn every_alert_is_tested() {
    let read = |name: &str| std::fs::read_to_string(root().join("packaging/prometheus").join(name)).unwrap();
    let (rules, tests) = (read("embeddings.rules.yml"), read("embeddings.rules.test.yml"));
    let names: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let silent = format!("- {{eval_time: 18m, alertname: {name}}}");
        assert!(tests.contains(&silent), "{name} is not tested to be silent");
        let fires = tests.split("- eval_time:").skip(1).any(|test| {
            let own = test.split("- {eval_time:").next().unwrap_or_default();
            own.contains(&format!("alertname: {name}\n")) && own.contains("exp_alerts:")
        });
        assert!(fires, "{name} is not tested to fire");
    }
}

/// Goal: whoever is woken by an alert is led on: from its annotations to a section of the runbook that is there, on the machine,
/// and by commands that the program knows. Method: the rules line by line; clap itself.
#[test]
fn every_alert_leads_to_a_section_of_the_runbook() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let (rules, runbook) = (
        read("packaging/prometheus/embeddings.rules.yml"),
        read("docs/runbook.md"),
    );
    assert!(rules.contains("/usr/share/doc/embeddings/runbook.md"));
    assert!(read("debian/embeddings.docs").contains("docs/*.md\n"));
    let headings: Vec<&str> = runbook
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| line.trim_matches(['#', ' ']))
        .collect();
    let mut commands = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let annotation = |key: &str| {
            let line = rule.lines().find_map(|line| line.trim().strip_prefix(key));
            let text = line.unwrap_or_else(|| panic!("{name} has no {key}"));
            text.trim_matches([':', ' ', '"']).to_owned()
        };
        let section = annotation("runbook");
        let begins = |heading: &&str| heading.trim_start_matches('`').starts_with(&section);
        assert!(headings.iter().any(begins), "{name}: no section {section}");
        let row = runbook
            .lines()
            .find(|line| line.starts_with("| ") && line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the runbook's table"));
        assert!(row.contains(&format!("[{section}](#")), "{name}: {row}");
        let look = annotation("description");
        // `journalctl -u embeddings -p crit` is no call of ours.
        let calls = look
            .split("embeddings ")
            .skip(1)
            .filter(|words| !words.starts_with('-'));
        for words in calls {
            let call = words.split([';', ',', '"', ':']).next().unwrap();
            let call = ["embeddings"]
                .into_iter()
                .chain(call.split(' ').take_while(|word| *word != "shows"));
            let known = embeddings::args::Cli::try_parse_from(call.clone());
            assert!(known.is_ok(), "{name}: {:?}", call.collect::<Vec<_>>());
            commands += 1;
        }
    }
    assert!(commands >= 6, "{commands} commands");
}

/// Goal: Grafana can load the dashboard: it is JSON, its panels have numbers of their own and do not overlap.
#[test]
fn the_dashboard_is_whole() {
    let text = std::fs::read_to_string(root().join("packaging/grafana/embeddings.json")).unwrap();
    let board: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let place =
        |panel: &serde_json::Value| ["x", "y", "w", "h"].map(|at| panel["gridPos"][at].as_u64().unwrap());
    for (at, panel) in panels.iter().enumerate() {
        assert!(
            !panel["targets"][0]["expr"].as_str().unwrap().is_empty(),
            "{panel}"
        );
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24, "{panel}");
        for other in &panels[..at] {
            assert_ne!(other["id"], panel["id"]);
            let [ox, oy, ow, oh] = place(other);
            let apart = x + w <= ox || ox + ow <= x || y + h <= oy || oy + oh <= y;
            assert!(apart, "{} lies on {}", panel["title"], other["title"]);
        }
    }
    for needed in [
        "Queue depth",
        "In flight",
        "Job latency",
        "Disconnect duration",
        "Kill reasons",
        "Watchdog margin",
    ] {
        assert!(panels.iter().any(|panel| panel["title"] == needed), "{needed}");
    }
}
