//! `embeddings bench` beside a running service.

use crate::service::{Bench, MODEL, SOON, bench};
use serde_json::Value;
use std::process::{Command, Output};

/// `embeddings bench`, quick, with the configuration of a service on this bench.
fn measure(bench: &Bench, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_embeddings"))
        .args([
            "bench",
            "--config",
            "/dev/null",
            "--seconds",
            "0.25",
            "--threads",
            "1",
        ])
        .arg("--set")
        .arg(format!("broker.url={}", bench.node.url))
        .arg("--set")
        .arg(format!("broker.prefix={}", bench.prefix))
        .arg("--set")
        .arg(format!("models.\"{MODEL}\".path={}", bench.model_dir().display()))
        .args(arguments)
        .output()
        .unwrap()
}

/// Goal: through the broker it is the service that computes, all its answers are vectors, and its numbers stand beside
/// the engine's own; where no service is, that is said, and fails only who asked for one. Method: the service's counts
/// of jobs, before and after, and the service taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_measured_and_its_absence_told() {
    let Some(bench) = bench("bench") else { return };
    let mut service = bench.serve("[engine]\nthreads = 1");
    let done = |service: &crate::service::Service| {
        let status: Value = serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap();
        let count = |lane: &str, outcome: &str| status["jobs"][lane][outcome].as_u64().unwrap_or(0);
        [count("bulk", "answered"), count("interactive", "answered")]
    };
    let before = done(&service);
    let output = measure(&bench, &["--engine", "--broker", "--model", MODEL, "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let after = done(&service);
    // At least four bulk jobs in each of five rounds, and one text each.
    assert!(
        after[0] - before[0] >= 20 && after[1] - before[1] >= 6,
        "{before:?} {after:?}"
    );
    // Both have the same model and the same `auto`.
    let fingerprint = report["model"]["service_fingerprint"].as_str().unwrap();
    assert_eq!(report["model"]["fingerprints"], serde_json::json!([fingerprint]));
    let measures = report["measures"].as_array().unwrap();
    let median = |name: &str| {
        let own = measures.iter().find(|measure| measure["name"] == name);
        own.unwrap_or_else(|| panic!("no {name}: {report:#}"))["median"]
            .as_f64()
            .unwrap()
    };
    let ratio = median("broker.bulk.of_engine");
    // Beside other tests on the same cores the one may be disturbed and not the other: only a wrong unit is found.
    assert!(
        (0.01..20.0).contains(&ratio),
        "through the broker {ratio} of the engine alone"
    );
    assert!(median("broker.bulk") > 1.0 && median("broker.single.p50") <= median("broker.single.p99"));
    assert!(median("engine.single.p50") > 0.0);

    let output = measure(&bench, &["--broker", "--model", "other"]);
    assert_eq!(output.status.code(), Some(1), "a model that is nowhere");
    service.signal(libc::SIGTERM);
    service.exit(SOON);
    let output = measure(&bench, &["--broker"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("no service takes jobs from "), "{stderr}");
    assert!(output.stdout.is_empty());
    let output = measure(&bench, &["--texts", "/usr/share/common-licenses/BSD"]);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(
        stdout.contains("note: through the broker nothing is measured: no service takes"),
        "{stdout}"
    );
}
