//! `embeddings model list`: what is installed, what is configured, and where they do not meet.

use super::folder::{self, Facts};
use super::install::Source;
use crate::args::ConfigFlags;
use crate::cli::{Colour, Paint, configuration, count, print, table};
use crate::config::Config;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// One model as listed.
struct Line {
    name: String,
    path: Option<PathBuf>,
    facts: Result<Facts, String>,
    aliases: Vec<String>,
    configured: bool,
    default: bool,
}

/// Runs the command.
///
/// # Errors
/// A bad configuration, or stdout that cannot be written.
pub fn run(flags: &ConfigFlags, json: bool) -> anyhow::Result<ExitCode> {
    let config = configuration(flags)?.config;
    let lines = collect(&config);
    let text = if json {
        format!("{:#}\n", machine(&lines))
    } else {
        people(&lines, Paint::stdout())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn collect(config: &Config) -> Vec<Line> {
    // The first folder of the search wins, so it is entered last.
    let mut found: BTreeMap<String, Option<PathBuf>> = BTreeMap::new();
    for dir in config.model_dirs().iter().rev() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if config.installed_dir(&name).is_ok() {
                found.insert(name, Some(entry.path()));
            }
        }
    }
    for name in config.models.keys() {
        found.insert(name.clone(), config.model_dir(name).ok());
    }
    found
        .into_iter()
        .map(|(name, path)| line(config, name, path))
        .collect()
}

fn line(config: &Config, name: String, path: Option<PathBuf>) -> Line {
    let facts = match &path {
        Some(path) => folder::inspect(path).map_err(|error| format!("{error:#}")),
        None => Err(config
            .model_dir(&name)
            .map_or_else(|error| error.to_string(), |_| String::new())),
    };
    let configured = config.models.get(&name);
    Line {
        aliases: configured.map(|model| model.aliases.clone()).unwrap_or_default(),
        configured: configured.is_some(),
        default: config.default_model == name,
        name,
        path,
        facts,
    }
}

fn people(lines: &[Line], paint: Paint) -> String {
    let installed = lines.iter().filter(|line| line.path.is_some()).count();
    let configured = lines.iter().filter(|line| line.configured).count();
    let missing = lines.iter().filter(|line| line.path.is_none()).count();
    let mut out = format!("{} installed, {configured} configured", count(installed, "model"));
    if missing > 0 {
        out.push_str(&format!(", {missing} of them missing"));
    }
    out.push_str("\n\n");
    let mut rows = vec![
        ["NAME", "TYPE", "DIMS", "SIZE", "USE", "WHERE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for line in lines {
        let (kind, dims, size) = match &line.facts {
            Ok(facts) => (
                facts.architecture.clone(),
                facts.dimensions.map_or_else(|| "?".to_owned(), |n| n.to_string()),
                HumanBytes(facts.bytes).to_string(),
            ),
            Err(_) => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        let mut usage = match (line.default, line.configured) {
            (true, _) => "default".to_owned(),
            (false, true) => "configured".to_owned(),
            (false, false) => "-".to_owned(),
        };
        if !line.aliases.is_empty() {
            usage.push_str(&format!(" ({})", line.aliases.join(", ")));
        }
        let place = line
            .path
            .as_ref()
            .map_or_else(|| "missing".to_owned(), |path| path.display().to_string());
        rows.push(vec![line.name.clone(), kind, dims, size, usage, place]);
    }
    out.push_str(&table(&rows));
    for line in lines {
        if let Err(problem) = &line.facts {
            out.push_str(&paint.paint(Colour::Red, &format!("{}: {problem}", line.name)));
            out.push('\n');
        }
    }
    out
}

fn machine(lines: &[Line]) -> Value {
    let models: Vec<Value> = lines
        .iter()
        .map(|line| {
            let facts = line.facts.as_ref().ok();
            json!({
                "name": line.name,
                "path": line.path,
                "type": facts.map(|facts| &facts.architecture),
                "dimensions": facts.and_then(|facts| facts.dimensions),
                "bytes": facts.map(|facts| facts.bytes),
                "configured": line.configured,
                "default": line.default,
                "aliases": line.aliases,
                "source": line.path.as_deref().and_then(Source::read),
                "problem": line.facts.as_ref().err(),
            })
        })
        .collect();
    json!({"models": models})
}
