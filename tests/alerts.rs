//! The alert rules and the dashboard as they are shipped.

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
