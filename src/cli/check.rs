//! `embeddings check`: configuration, device, models, folders and broker, each a line with what to mend.

use super::model::trial;
use super::{Colour, Paint, configuration, count, print};
use crate::args::CheckArgs;
use crate::broker::probe::{Finding, Level, probe};
use crate::config::{Config, ConfigErrors, EXIT_CONFIG, Loaded};
use crate::engine::device;
use anyhow::Context;
use serde_json::json;
use std::process::ExitCode;

/// Runs the command: 0 if nothing fails, 1 if something does, 78 for the configuration.
///
/// # Errors
/// Stdout that cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (findings, bad_config) = match configuration(&args.config) {
        Ok(loaded) => (examine(&loaded)?, false),
        Err(errors) => (refused(&errors), true),
    };
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    let text = if args.json {
        format!("{:#}\n", machine(&findings))
    } else {
        people(&findings, Paint::stdout())
    };
    print(&text)?;
    Ok(match (bad_config, failed) {
        (true, _) => ExitCode::from(EXIT_CONFIG),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}

fn refused(errors: &ConfigErrors) -> Vec<Finding> {
    let mend = "change that value; `embeddings config --default-file` shows every key with its range";
    errors
        .0
        .iter()
        .map(|error| Finding::fail("configuration", error.to_string(), mend))
        .collect()
}

fn examine(loaded: &Loaded) -> anyhow::Result<Vec<Finding>> {
    let config = &loaded.config;
    let mut findings = vec![Finding::ok("configuration", count(loaded.sources.len(), "key"))];
    for warning in &loaded.warnings {
        findings.push(Finding::warn(
            "configuration",
            warning.clone(),
            "see embeddings.toml(5)",
        ));
    }
    findings.push(threads(config));
    for name in config.models.keys() {
        findings.push(model(config, name));
    }
    findings.extend(token(config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start a runtime")?;
    findings.extend(runtime.block_on(probe(&config.broker)));
    Ok(findings)
}

fn threads(config: &Config) -> Finding {
    let allowed = device::threads();
    match config.engine.threads {
        0 => Finding::ok(
            "device",
            format!("{allowed} threads, as affinity and cgroup allow"),
        ),
        wanted if wanted > allowed => Finding::warn(
            "device",
            format!("engine.threads = {wanted}, and affinity and cgroup allow {allowed}"),
            format!("set engine.threads to 0 (automatic) or to at most {allowed}"),
        ),
        wanted => Finding::ok("device", format!("{wanted} of {allowed} threads")),
    }
}

fn model(config: &Config, name: &str) -> Finding {
    let what = format!("model {name}");
    let own = &config.models[name];
    let dir = match config.model_dir(name) {
        Ok(dir) => dir,
        Err(error) if own.path.is_some() => {
            return Finding::fail(
                what,
                error.to_string(),
                format!("change path in [models.{name:?}]"),
            );
        }
        Err(error) => {
            let package = format!("embeddings-model-{}", name.to_lowercase());
            let mend = format!(
                "apt install {package}, embeddings model pull ID --name {name}, or embeddings model add DIR --name {name}"
            );
            return Finding::fail(what, error.to_string(), mend);
        }
    };
    match trial::attempt(&dir, own.device, own.precision) {
        Ok(trial) => {
            let info = trial.model.info();
            let found = format!(
                "{} dimensions on {} in {}, loaded in {} ms, one sentence in {} ms",
                info.dimensions,
                info.device.name(),
                info.precision.name(),
                trial.load_ms,
                trial.embed_ms
            );
            Finding::ok(what, found)
        }
        Err(error) => {
            let mend = format!("install it anew, or change device or precision in [models.{name:?}]");
            Finding::fail(what, format!("{error:#}"), mend)
        }
    }
}

/// The token's file is read when the service starts; here it is seen whether that will work.
fn token(config: &Config) -> Option<Finding> {
    config.http.listen?;
    let path = config.http.token_file.as_deref()?;
    Some(match config.http.read_token() {
        Ok(_) => Finding::ok("http token", path.display().to_string()),
        Err(problem) => Finding::fail(
            "http token",
            problem,
            "write the token into its first line, readable by the service's user, or change http.token_file",
        ),
    })
}

fn people(findings: &[Finding], paint: Paint) -> String {
    let number = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (failed, warned) = (number(Level::Fail), number(Level::Warn));
    let mut out = match failed {
        0 => format!(
            "all is well: {}, {}\n\n",
            count(findings.len(), "check"),
            count(warned, "warning")
        ),
        _ => format!(
            "{failed} of {} failed, {}\n\n",
            count(findings.len(), "check"),
            count(warned, "warning")
        ),
    };
    let width = findings
        .iter()
        .map(|finding| finding.what.chars().count())
        .max()
        .unwrap_or(0);
    for finding in findings {
        let (word, colour) = match finding.level {
            Level::Ok => ("ok  ", Colour::Green),
            Level::Warn => ("warn", Colour::Yellow),
            Level::Fail => ("FAIL", Colour::Red),
        };
        let line = format!(
            "{}  {:<width$}  {}\n",
            paint.paint(colour, word),
            finding.what,
            finding.found
        );
        out.push_str(&line);
        if let Some(mend) = &finding.mend {
            out.push_str(&format!("{:indent$}-> {mend}\n", "", indent = width + 8));
        }
    }
    out
}

fn machine(findings: &[Finding]) -> serde_json::Value {
    let checks: Vec<serde_json::Value> = findings
        .iter()
        .map(|finding| {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "fail",
            };
            json!({"level": level, "what": finding.what, "found": finding.found, "mend": finding.mend})
        })
        .collect();
    json!({"ok": findings.iter().all(|finding| finding.level != Level::Fail), "checks": checks})
}
