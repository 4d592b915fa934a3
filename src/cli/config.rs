//! `embeddings config`: every setting, its value and where it came from. Never a secret.

use super::{Colour, Paint, configuration, count, print, table};
use crate::args::ConfigArgs;
use crate::config::{self, Loaded, Origin};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// A bad configuration, or stdout that cannot be written.
pub fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    if args.default_file {
        print(&config::default_file())?;
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = configuration(&args.config)?;
    let text = if args.json {
        format!("{:#}\n", machine(&loaded))
    } else {
        people(&loaded, Paint::stdout())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn people(loaded: &Loaded, paint: Paint) -> String {
    let set = loaded
        .sources
        .iter()
        .filter(|setting| !is_default(&setting.key, &setting.origin))
        .count();
    let warnings = count(loaded.warnings.len(), "warning");
    let mut out = format!(
        "valid: {}, {set} set, {warnings}\n",
        count(loaded.sources.len(), "key")
    );
    for warning in &loaded.warnings {
        out.push_str(&paint.paint(Colour::Yellow, &format!("warning: {warning}\n")));
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = loaded
        .sources
        .iter()
        .map(|setting| {
            let value = match &setting.value {
                Value::Null => "-".to_owned(),
                Value::Number(number) if !setting.unit.is_empty() => format!("{number} {}", setting.unit),
                value => value.to_string(),
            };
            vec![setting.key.clone(), value, setting.origin.to_string()]
        })
        .collect();
    for (line, setting) in table(&rows).lines().zip(&loaded.sources) {
        let plain = setting.origin == Origin::Default;
        out.push_str(&if plain {
            paint.paint(Colour::Dim, line)
        } else {
            line.to_owned()
        });
        out.push('\n');
    }
    out
}

/// A folder that follows from `$HOME` is as good as a default.
fn is_default(key: &str, origin: &Origin) -> bool {
    *origin == Origin::Default || key.starts_with("directory.")
}

fn machine(loaded: &Loaded) -> Value {
    let settings: Vec<Value> = loaded
        .sources
        .iter()
        .map(|setting| {
            let (kind, name) = match &setting.origin {
                Origin::Default => ("default", None),
                Origin::File(path) => ("file", Some(path.display().to_string())),
                Origin::Env(name) => ("environment", Some(name.clone())),
                Origin::Flag => ("flag", Some("--set".to_owned())),
            };
            let unit = Some(setting.unit).filter(|unit| !unit.is_empty());
            let origin = json!({"kind": kind, "name": name});
            json!({"key": setting.key, "value": setting.value, "unit": unit, "origin": origin})
        })
        .collect();
    json!({"valid": true, "warnings": loaded.warnings, "settings": settings})
}
