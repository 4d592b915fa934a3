//! Judges the files that the configuration names: who can read them, and whether everybody can.

use super::finding::Finding;
use super::handed;
use super::mend::{self, Hand};
use super::table;
use super::units::Units;
use super::user::{Reader, Want, is_public};
use crate::config::{BrokerUrl, Config, ConfigError, Reading};
use std::path::{Path, PathBuf};

/// All of them.
pub fn judge(
    reading: &Reading,
    config: &Config,
    errors: &[ConfigError],
    reader: Option<&Reader>,
    hand: &Hand,
) -> Vec<Finding> {
    let named = named(reading, config, errors);
    let mut found: Vec<Finding> = named
        .iter()
        .filter_map(|file| secret(file, reader, hand))
        .collect();
    if let Some(reader) = reader {
        found.extend(named.iter().filter_map(|file| unreadable(file, reader, hand)));
    }
    found
}

/// A file that the service alone can read, from what is typed.
pub fn install(path: &Path, reader: Option<&Reader>, hand: &Hand) -> String {
    let group = reader
        .map(|reader| format!("-g {} ", reader.group))
        .unwrap_or_default();
    let above = path.parent().unwrap_or(path);
    hand.on(
        above,
        format!("install -D -m 640 {group}/dev/stdin {}", mend::path(path)),
    )
}

/// A file that the configuration reads or names.
struct Named {
    path: PathBuf,
    /// The key that names it; the configuration's own files have none.
    key: Option<&'static str>,
    /// Whether there is a password or token in it.
    secret: bool,
}

fn named(reading: &Reading, config: &Config, errors: &[ConfigError]) -> Vec<Named> {
    let mut all = Vec::new();
    for path in reading.files.iter().filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let url = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let secret = url.flat_map(|line| line.split(['"', '\''])).any(|word| {
            let ours = |url: &BrokerUrl| url.has_password() && !url.secret().contains("://guest:guest@");
            BrokerUrl::parse(word).is_ok_and(|url| ours(&url))
        });
        all.push(Named {
            path: path.clone(),
            key: None,
            secret,
        });
    }
    for (key, path, secret) in [
        ("broker.password_file", &config.broker.password_file, true),
        ("broker.ca_file", &config.broker.ca_file, false),
        ("http.token_file", &config.http.token_file, true),
    ] {
        let refused =
            |error: &ConfigError| matches!(error, ConfigError::Value { key: refused, .. } if refused == key);
        if let Some(path) = path
            .clone()
            .filter(|path| path.is_file() && !errors.iter().any(refused))
        {
            all.push(Named {
                path,
                key: Some(key),
                secret,
            });
        }
    }
    all
}

impl Named {
    fn shown(&self) -> String {
        match self.key {
            Some(key) => format!("{key} = {:?}", self.path.display().to_string()),
            None => self.path.display().to_string(),
        }
    }
}

fn secret(file: &Named, reader: Option<&Reader>, hand: &Hand) -> Option<Finding> {
    if !file.secret || !is_public(&file.path) {
        return None;
    }
    let path = mend::path(&file.path);
    // Without its group the service could not read it any more.
    let mut commands: Vec<String> = reader
        .map(|reader| hand.root(format!("chgrp {} {path}", reader.group)))
        .into_iter()
        .collect();
    let group = if reader.is_some() { "g+r," } else { "" };
    commands.push(hand.on(&file.path, format!("chmod {group}o-rwx {path}")));
    let text = format!(
        "{}: holds a secret, and everybody on this machine can read it",
        file.shown()
    );
    Some(Finding::warning(&table::CONFIG_SECRET, text, commands))
}

fn unreadable(file: &Named, reader: &Reader, hand: &Hand) -> Option<Finding> {
    // A credential is read by systemd, which may read everything.
    if hand.hands_over(&file.path) || reader.may(Want::Read, &file.path) != Some(false) {
        return None;
    }
    let text = format!(
        "{}: the service's user {} cannot read it",
        file.shown(),
        reader.name
    );
    Some(Finding::error(
        &table::CONFIG_USER,
        text,
        reader.open(hand, &file.path),
    ))
}

/// The token's file is read when the service starts; here it is seen whether that will work. systemd lays a credential down
/// only while the service runs: then the file is judged that it will be, and where no path is known systemd's word is taken.
pub fn token(config: &Config, units: &Units, reader: Option<&Reader>, hand: &Hand) -> Option<Finding> {
    config.http.listen?;
    let path = config.http.token_file.as_deref()?;
    let service = hand.service();
    if let Some(name) = handed::credential_of(path, &service)
        && units.is_installed()
        && !path.exists()
    {
        return Some(match units.credential(name) {
            Some(_) => Finding::ok(
                &table::CONFIG_HTTP,
                format!("a token that {service} hands over as {name}"),
            ),
            None => {
                let file = hand.beside(name);
                let make = install(&file, reader, hand);
                let mut commands = vec![format!("head -c 32 /dev/urandom | base64 | {make}")];
                let line = format!("LoadCredential={name}:{}", file.display());
                commands.extend(hand.drop_in("http-token", &[line]));
                let text = format!(
                    "http.token_file = {:?}: {service} hands over no credential {name}",
                    path.display().to_string()
                );
                Finding::error(&table::CONFIG_HTTP, text, commands)
                    .note("callers have to be given the new token")
            }
        });
    }
    Some(match config.http.read_token() {
        Ok(_) => Finding::ok(&table::CONFIG_HTTP, format!("a token in {}", path.display())),
        Err(problem) => {
            let install = install(path, reader, hand);
            let command = format!("head -c 32 /dev/urandom | base64 | {install}");
            let text = format!("http.token_file = {problem}");
            Finding::error(&table::CONFIG_HTTP, text, vec![command])
                .note("callers have to be given the new token")
        }
    })
}
