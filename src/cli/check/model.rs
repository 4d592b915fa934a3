//! Judges the models: each is found, looked through, loaded and tried, and all together must fit into memory.

use super::super::model::{Facts, Source, inspect, trial};
use super::finding::Finding;
use super::mend::{Hand, path as shell_path, quoted};
use super::table::{self, Check};
use super::user::{Reader, Want};
use crate::app;
use crate::config::{Config, ConfigError, Device, Examined, Inputs, ModelDirError, Precision};
use crate::engine::device::{self, ChoiceError};
use crate::engine::{LoadError, Model};
use indicatif::HumanBytes;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// A load that shows no progress for so long is given up; a disk that answers slowly moves.
const STILL_MAX: Duration = Duration::from_secs(60);

/// What judging needs to know.
pub struct Models<'a> {
    /// What was asked for.
    pub inputs: &'a Inputs,
    /// The configuration.
    pub examined: &'a Examined,
    /// The service's user, if another than ours.
    pub reader: Option<&'a Reader>,
    /// Who types the commands.
    pub hand: &'a Hand,
    /// Memory that the service may have, in bytes, and in whose words.
    pub memory: Option<(u64, String)>,
}

impl Models<'_> {
    fn config(&self) -> &Config {
        &self.examined.loaded.config
    }

    /// All models, each as far as it goes.
    pub fn judge(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut whole: Vec<(&str, PathBuf, Facts)> = Vec::new();
        for name in self.config().models.keys() {
            match self.folder(name) {
                Ok((dir, facts)) => {
                    found.extend(self.unreadable(name, &dir, &facts));
                    whole.push((name, dir, facts));
                }
                Err(finding) => found.push(finding.refused(app::refuses(self.config(), name))),
            }
        }
        let bytes = whole.iter().map(|(name, _, facts)| self.least(name, facts)).sum();
        let memory = self
            .memory
            .as_ref()
            .map(|(bound, whose)| memory(bytes, *bound, whose, self.hand));
        let fits = memory.as_ref().is_none_or(|finding| finding.mend.is_empty());
        found.extend(memory);
        for (name, dir, _) in whole {
            let above = format!("models.{name:?}.");
            let refused = |error: &ConfigError| match error {
                ConfigError::Combination { key, .. } | ConfigError::Value { key, .. } => {
                    key.starts_with(&above)
                }
                _ => false,
            };
            // What would end this process, or was refused already, is not tried.
            if fits && !self.examined.errors.iter().any(refused) {
                found.push(self.works(name, dir));
            }
        }
        found
    }

    /// Memory without which the model cannot be: a byte for each number at least in int8, else what the file has.
    fn least(&self, name: &str, facts: &Facts) -> u64 {
        match self.config().models[name].precision {
            Precision::Int8 => facts.bytes / 4,
            Precision::Bf16 | Precision::F16 => facts.bytes / 2,
            Precision::Auto | Precision::F32 => facts.bytes,
        }
    }

    /// One of our own commands, for the same configuration.
    fn own(&self, command: String) -> String {
        let config = self.inputs.file.as_ref();
        let mut flag = config
            .map(|file| format!(" --config {}", shell_path(file)))
            .unwrap_or_default();
        if let Some(name) = &self.inputs.instance {
            flag.push_str(&format!(" --instance {name}"));
        }
        self.hand
            .on(&self.config().dirs.state, format!("embeddings {command}{flag}"))
    }

    fn folder(&self, name: &str) -> Result<(PathBuf, Facts), Box<Finding>> {
        let dir = self
            .config()
            .model_dir(name)
            .map_err(|error| Box::new(self.missing(name, &error)))?;
        let facts = inspect(&dir).map_err(|error| {
            let text = format!("{name}: {error:#}");
            Box::new(Finding::error(&table::MODEL_FILES, text, self.again(name, &dir)))
        })?;
        if let Err(error) = Model::vet(&dir) {
            let check = row(&error);
            let commands = match check.id == table::MODEL_ARCHITECTURE.id {
                true => self.another(name),
                false => self.again(name, &dir),
            };
            let note = "docs/models.md lists what works";
            return Err(Box::new(
                Finding::error(check, format!("{name}: {error}"), commands).note(note),
            ));
        }
        Ok((dir, facts))
    }

    fn missing(&self, name: &str, error: &ModelDirError) -> Finding {
        let check = &table::MODEL_MISSING;
        let key = format!("models.{name:?}.path");
        if let ModelDirError::Path { .. } = error {
            let origin = super::configuration::origin(self.examined, &key);
            let installed = self.config().installed_dir(name).is_ok();
            let mut commands = self.hand.unset(&origin, &key);
            if !installed {
                commands.extend(self.install(name));
            }
            return Finding::error(check, error.to_string(), commands)
                .note("or write the folder where it is into path");
        }
        if let Some(near) = self.near(name) {
            let origin = super::configuration::origin(self.examined, "default_model");
            let commands = self.hand.set(&origin, "default_model", &format!("{near:?}"));
            return Finding::error(check, format!("{error}; did you mean {near}?"), commands);
        }
        Finding::error(check, error.to_string(), self.install(name))
            .note("with the ID that it has on the Hub, or `embeddings model add DIR`")
    }

    /// A model that is there, whose name is nearly that of a default model that is not.
    fn near(&self, name: &str) -> Option<String> {
        let config = self.config();
        if config.default_model != name {
            return None;
        }
        let mut there: Vec<String> = config
            .models
            .keys()
            .filter(|other| config.model_dir(other).is_ok())
            .cloned()
            .collect();
        for dir in config.model_dirs() {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            there.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        }
        there.retain(|other| {
            other != name && (config.models.contains_key(other) || config.installed_dir(other).is_ok())
        });
        crate::config::similar(name, there)
    }

    /// The package of the one model that has one, else a pull.
    fn install(&self, name: &str) -> Vec<String> {
        if name.eq_ignore_ascii_case("all-MiniLM-L6-v2") {
            return vec![self.hand.root("apt install embeddings-model-all-minilm-l6-v2")];
        }
        let id = if name.contains('/') {
            name.to_owned()
        } else {
            format!("sentence-transformers/{name}")
        };
        vec![self.own(format!("model pull {} --name {}", quoted(&id), quoted(name)))]
    }

    /// Fetches a damaged model anew from where it came.
    fn again(&self, name: &str, dir: &Path) -> Vec<String> {
        let name_q = quoted(name);
        if dir.starts_with(&self.config().dirs.share) {
            let package = format!("embeddings-model-{}", name.to_lowercase());
            return vec![self.hand.root(format!("apt install --reinstall {package}"))];
        }
        match Source::read(dir) {
            Some(Source {
                from,
                commit: Some(commit),
            }) => {
                let id = quoted(&format!("{from}@{commit}"));
                vec![self.own(format!("model pull {id} --name {name_q} --replace"))]
            }
            Some(Source { from, .. }) => {
                vec![self.own(format!("model add {} --name {name_q} --replace", quoted(&from)))]
            }
            None => {
                let mut commands = self.install(name);
                let key = format!("models.{name:?}.path");
                commands.extend(
                    self.hand
                        .unset(&super::configuration::origin(self.examined, &key), &key),
                );
                commands
            }
        }
    }

    /// Back to the model that comes with the service.
    fn another(&self, name: &str) -> Vec<String> {
        match self.config().default_model == name {
            true => {
                let origin = super::configuration::origin(self.examined, "default_model");
                self.hand.set(&origin, "default_model", "\"all-MiniLM-L6-v2\"")
            }
            false => Vec::new(),
        }
    }

    fn unreadable(&self, name: &str, dir: &Path, facts: &Facts) -> Option<Finding> {
        let reader = self.reader?;
        let file = facts
            .files
            .iter()
            .map(|file| dir.join(file))
            .find(|file| reader.may(Want::Read, file) == Some(false))?;
        let mut commands: Vec<String> = reader
            .walls(dir)
            .iter()
            .map(|wall| self.hand.root(format!("chmod a+x {}", shell_path(wall))))
            .collect();
        commands.push(self.hand.root(format!("chmod -R a+rX {}", shell_path(dir))));
        let text = format!(
            "{name}: the service's user {} cannot read {}",
            reader.name,
            file.display()
        );
        // The service finds that the right to read is denied, which does not pass.
        Some(Finding::error(&table::MODEL_USER, text, commands).refused(true))
    }

    /// Computes, and not where this build is made for.
    fn slow(&self, name: &str, text: &str, why: &str) -> Finding {
        let key = format!("models.{name:?}.device");
        let origin = super::configuration::origin(self.examined, &key);
        let found = format!("{name}: {text}; {why}");
        Finding::warning(
            &table::DEVICE_FALLBACK,
            found,
            self.hand.set(&origin, &key, "\"cpu\""),
        )
        .note("if there is no card here; else install what is missing")
    }

    fn works(&self, name: &str, dir: PathBuf) -> Finding {
        let own = &self.config().models[name];
        match attempt(dir.clone(), own.device, own.precision) {
            Ok(text) => {
                let fallen_back = device::Device::fallen_back().filter(|_| own.device == Device::Auto);
                fallen_back.map_or_else(
                    || Finding::ok(&table::MODEL_WORKS, format!("{name}: {text}")),
                    |why| self.slow(name, &text, why),
                )
            }
            Err(error) => {
                let check = error.downcast_ref::<LoadError>().map_or(&table::MODEL_WORKS, row);
                let key = match (check.group(), check == &table::DEVICE_PRECISION) {
                    (_, true) => Some("precision"),
                    ("device", _) => Some("device"),
                    _ => None,
                };
                let unset = |key| {
                    let key = format!("models.{name:?}.{key}");
                    self.hand
                        .unset(&super::configuration::origin(self.examined, &key), &key)
                };
                let commands = key.map_or_else(|| self.again(name, &dir), unset);
                let settled = |error: &LoadError| !error.may_pass();
                Finding::error(check, format!("{name}: {error:#}"), commands)
                    .refused(error.downcast_ref().is_some_and(settled))
            }
        }
    }
}

/// The row of what the engine says.
fn row(error: &LoadError) -> &'static Check {
    match error {
        LoadError::Value { .. } => &table::MODEL_ARCHITECTURE,
        LoadError::Missing { .. }
        | LoadError::Corrupt { .. }
        | LoadError::Tensor { .. }
        | LoadError::Io { .. } => &table::MODEL_FILES,
        LoadError::Choice(ChoiceError::Build { .. }) => &table::DEVICE_BUILD,
        LoadError::Choice(ChoiceError::Libraries { .. }) | LoadError::Device { .. } => {
            &table::DEVICE_LIBRARIES
        }
        LoadError::Choice(ChoiceError::Precision { .. }) => &table::DEVICE_PRECISION,
    }
}

/// Loads and tries it on a thread that may be left behind.
fn attempt(dir: PathBuf, device: Device, precision: Precision) -> anyhow::Result<String> {
    let (tell, told) = mpsc::channel();
    let work = move || {
        let moved = tell.clone();
        let trial = trial::attempt_telling(&dir, device, precision, &mut || drop(moved.send(None)));
        let said = trial.map(|trial| {
            let info = trial.model.info();
            let (device, precision) = (info.device.name(), info.precision.name());
            let (load, embed) = (trial.load_ms, trial.embed_ms);
            let dimensions = info.dimensions;
            format!("{dimensions} dimensions on {device} in {precision}, loaded in {load} ms, one sentence in {embed} ms")
        });
        drop(tell.send(Some(said)));
    };
    std::thread::Builder::new()
        .name("check-model".into())
        .spawn(work)?;
    loop {
        match told.recv_timeout(STILL_MAX) {
            Ok(None) => {}
            Ok(Some(said)) => return said,
            Err(RecvTimeoutError::Timeout) => {
                anyhow::bail!("nothing moved for {} s while it loaded", STILL_MAX.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the thread that loaded it has ended"),
        }
    }
}

/// What all models need at least, against what there is.
fn memory(needed: u64, bound: u64, whose: &str, hand: &Hand) -> Finding {
    let check = &table::MODEL_MEMORY;
    let text = format!(
        "models of {} and {whose} of {}",
        HumanBytes(needed),
        HumanBytes(bound)
    );
    if needed <= bound {
        return Finding::ok(check, text);
    }
    // A third above the weights is room for what lies between the layers.
    let wanted = (needed + needed / 3).div_ceil(1 << 30);
    let command = format!("systemctl set-property {} MemoryMax={wanted}G", hand.service());
    Finding::error(check, text, vec![hand.root(command)])
        .note("if the machine has as much; else fewer models, smaller ones, or precision = \"int8\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Reading;

    #[test]
    fn models_that_cannot_fit_are_told_beforehand() {
        let hand = Hand::new(&Inputs::from_process(None, Vec::new()), &Reading::default());
        let fits = memory(90 << 20, 1 << 30, "MemoryMax=", &hand);
        assert_eq!(
            (fits.level, fits.mend.len()),
            (super::super::finding::Level::Ok, 0)
        );
        let bursts = memory(4 << 30, 1 << 30, "MemoryMax=", &hand);
        assert!(
            bursts.found.contains("4.00 GiB") && bursts.found.contains("MemoryMax= of 1.00 GiB"),
            "{}",
            bursts.found
        );
        assert!(bursts.mend[0].ends_with("MemoryMax=6G"), "{:?}", bursts.mend);
    }
}
