//! `embeddings model …`: add, list, check, pull and remove models.
//!
//! A model is installed as a folder of its name below `models` in the state directory; packages put theirs
//! below /usr/share/embeddings/models. Both are only ever seen whole: a folder is filled beside its place
//! and renamed into it.

mod board;
mod cache;
mod download;
mod folder;
mod hub;
mod install;
mod list;
mod part;
mod patience;
mod pull;
mod remote;
mod room;
pub mod trial;
mod wire;

use super::{configuration, print};
use crate::args::{ConfigFlags, ModelCommand};
use crate::engine::Model;
use anyhow::{Context, bail};
use indicatif::HumanBytes;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub use folder::{Facts, inspect};
pub use install::Source;

/// Runs the command.
///
/// # Errors
/// A bad configuration, or why the command could not be done.
pub fn run(command: &ModelCommand) -> anyhow::Result<ExitCode> {
    match command {
        ModelCommand::Add {
            dir,
            name,
            replace,
            json,
            config,
        } => add(dir, name.as_deref(), *replace, *json, config),
        ModelCommand::List { json, config } => list::run(config, *json),
        ModelCommand::Check { model, json, config } => trial::run(model, *json, config),
        ModelCommand::Pull {
            id,
            sha256,
            name,
            replace,
            json,
            config,
        } => pull::run(id, sha256.as_deref(), name.as_deref(), *replace, *json, config),
        ModelCommand::Rm { name, json, config } => remove(name, *json, config),
    }
}

fn add(
    dir: &Path,
    name: Option<&str>,
    replace: bool,
    as_json: bool,
    flags: &ConfigFlags,
) -> anyhow::Result<ExitCode> {
    let config = configuration(flags)?.config;
    // Made absolute first, so that `.` has a name too.
    let dir = dir
        .canonicalize()
        .with_context(|| format!("failed to find {}", dir.display()))?;
    let own = dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let name = name.unwrap_or(&own);
    let models = config.dirs.state.join("models");
    install::place(&models, name, replace)?;
    let facts = inspect(&dir)?;
    vet(&dir)?;
    let source = Source {
        from: dir.display().to_string(),
        commit: None,
    };
    let target = install::install(&dir, &facts.files, &models, name, replace, &source)?;
    print(&installed(name, &facts, &target, &source, as_json))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what the engine does not know, before it is installed and found wanting at the start.
fn vet(dir: &Path) -> anyhow::Result<()> {
    Model::vet(dir).with_context(|| format!("{} is no model that this service runs", dir.display()))
}

/// The answer after installing: what, how large, where, and how to go on.
fn installed(name: &str, facts: &Facts, target: &Path, source: &Source, as_json: bool) -> String {
    if as_json {
        let answer = json!({
            "name": name,
            "installed": true,
            "path": target,
            "type": facts.architecture,
            "dimensions": facts.dimensions,
            "bytes": facts.bytes,
            "source": source,
        });
        return format!("{answer:#}\n");
    }
    let dimensions = facts
        .dimensions
        .map(|n| format!(", {n} dimensions"))
        .unwrap_or_default();
    format!(
        "installed {name}: {}{dimensions}, {}, in {}\ntry it with `embeddings model check {name}`\n",
        facts.architecture,
        HumanBytes(facts.bytes),
        target.display()
    )
}

fn remove(name: &str, as_json: bool, flags: &ConfigFlags) -> anyhow::Result<ExitCode> {
    let config = configuration(flags)?.config;
    let models = config.dirs.state.join("models");
    let found = config.installed_dir(name)?;
    if found.parent() != Some(models.as_path()) {
        let owner = match found.starts_with(&config.dirs.share) {
            true => "belongs to a package; remove that with apt",
            false => "is the service's own and not this instance's; remove it without --instance",
        };
        bail!("model {name} in {} {owner}", found.display());
    }
    install::remove(&models, name)?;
    let needed = config.models.contains_key(name) && config.model_dir(name).is_err();
    print(&match as_json {
        true => format!(
            "{:#}\n",
            json!({"name": name, "removed": true, "path": found, "still_configured": needed})
        ),
        false => format!("removed {name} from {}\n", models.display()),
    })?;
    if needed {
        tell!(
            "warning: the configuration still names {name}; the service will not find it at its next start"
        );
    }
    Ok(ExitCode::SUCCESS)
}
