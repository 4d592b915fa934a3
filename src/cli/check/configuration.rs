//! Judges the configuration: every error of loading it, its risks, and what stands in vain.

use super::finding::{Finding, Level};
use super::mend::{self, Hand, place, quoted};
use super::user::Reader;
use super::{secrets, table};
use crate::config::{ConfigError, Examined, KEYS, Origin, Reading, keys_of, table_near};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All of it.
pub fn judge(reading: &Reading, examined: &Examined, reader: Option<&Reader>, hand: &Hand) -> Vec<Finding> {
    let mut found = files(reading, examined, hand);
    found.extend(
        examined
            .errors
            .iter()
            .map(|error| refused(error, examined, reader, hand)),
    );
    found.extend(
        examined
            .loaded
            .warnings
            .iter()
            .map(|text| risk(text, examined, hand)),
    );
    found.extend(overridden(reading, hand));
    found.extend(secrets::judge(
        reading,
        &examined.loaded.config,
        &examined.errors,
        reader,
        hand,
    ));
    if !found.iter().any(|it| it.level == Level::Error) {
        let (sources, set) = (&examined.loaded.sources, |key: &&str| {
            origin(examined, key) != Origin::Default
        });
        let set = KEYS.iter().map(|key| key.name).filter(|key| set(key)).count();
        let text = match reading.files.as_slice() {
            [] => format!("no file; {} keys, {set} set", sources.len()),
            files => {
                let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                format!("{}; {} keys, {set} set", files.join(", "), sources.len())
            }
        };
        found.insert(0, Finding::ok(&table::CONFIG_FILES, text));
    }
    found
}

/// Where the key's value comes from.
pub fn origin(examined: &Examined, key: &str) -> Origin {
    let sources = &examined.loaded.sources;
    let setting = sources.iter().find(|setting| setting.key == key);
    setting.map_or(Origin::Default, |setting| setting.origin.clone())
}

fn files(reading: &Reading, examined: &Examined, hand: &Hand) -> Vec<Finding> {
    let rename = |path: &PathBuf| {
        let to = PathBuf::from(format!("{}.toml", path.display()));
        let command = hand.on(path, format!("mv {} {}", mend::path(path), mend::path(&to)));
        let text = format!("{}: is not read, its name does not end in .toml", path.display());
        Finding::warning(&table::CONFIG_FILES, text, vec![command])
    };
    let mut found: Vec<Finding> = reading.ignored.iter().map(rename).collect();
    let silent = examined.errors.is_empty() && reading.files.is_empty();
    if silent && reading.folder.is_dir() {
        let file = reading.folder.join("embeddings.toml");
        let tee = hand.root(format!("tee {}", mend::path(&file)));
        let command = format!("embeddings config --default-file | {tee} >/dev/null");
        let text = format!("{}: is not there, every key has its default", file.display());
        found.push(Finding::warning(&table::CONFIG_FILES, text, vec![command]));
    }
    found
}

/// One error of loading.
fn refused(error: &ConfigError, examined: &Examined, reader: Option<&Reader>, hand: &Hand) -> Finding {
    let text = hand.whence(error.to_string());
    match error {
        ConfigError::Unreadable { path, .. } if std::fs::read(path).is_ok() => {
            let commands = vec![hand.edit(path, None)];
            let note =
                "it holds bytes that are not UTF-8; `iconv -f ISO-8859-1 -t UTF-8` turns Latin-1 into that";
            Finding::error(&table::CONFIG_FILES, text, commands).note(note)
        }
        ConfigError::Unreadable { path, .. } => {
            let commands = match path.exists() {
                true => vec![hand.root(format!("chmod a+rX {}", mend::path(path)))],
                // An instance's folder may be missing as a whole.
                false => {
                    let install = format!("install -D -m 644 /dev/stdin {}", mend::path(path));
                    let install = hand.on(path.parent().unwrap_or(path), install);
                    vec![format!("embeddings config --default-file | {install}")]
                }
            };
            Finding::error(&table::CONFIG_FILES, text, commands)
        }
        ConfigError::Syntax { path, line, .. } => {
            let commands = vec![hand.edit(path, Some(*line))];
            let note = "only a person knows what the line should say; `embeddings config --default-file` shows every key";
            Finding::error(&table::CONFIG_SYNTAX, text, commands).note(note)
        }
        ConfigError::Flag { written } => Finding::error(&table::CONFIG_KEY, text, Vec::new())
            .note(format!("leave out --set {}", quoted(written))),
        ConfigError::Unknown {
            origin, key, nearest, ..
        } => unknown(text, origin, key, *nearest, hand),
        ConfigError::Value { key, .. } if key == "broker.password_file" => {
            password(text, examined, reader, hand)
        }
        ConfigError::Value { origin, key, .. } => {
            let note = match origin {
                Origin::Flag => format!("give --set {key}=… a value of that range, or leave it out"),
                _ => "the default holds then; or write a value of that range".to_owned(),
            };
            Finding::error(
                &table::CONFIG_VALUE,
                located(text, origin, key),
                hand.unset(origin, key),
            )
            .note(note)
        }
        ConfigError::Combination { origin, key, .. } => {
            combination(text, origin, key, examined, reader, hand)
        }
    }
}

/// The line behind the file's name, where it is known.
fn located(text: String, origin: &Origin, key: &str) -> String {
    let Origin::File(file) = origin else {
        return text;
    };
    let name = file.display().to_string();
    let line = place(file, key).map(|line| line.number);
    match (line.or_else(|| mend::header(file, key)), text.strip_prefix(&name)) {
        (Some(line), Some(rest)) => format!("{name}:{line}{rest}"),
        _ => text,
    }
}

fn unknown(text: String, origin: &Origin, key: &str, nearest: Option<&'static str>, hand: &Hand) -> Finding {
    let (check, commands) = match origin {
        // What is right may hold a secret, and goes where a person puts it.
        Origin::Env(name) if hand.handed.contains_key(name) => {
            (&table::CONFIG_ENVIRONMENT, hand.unset(origin, key))
        }
        Origin::Env(name) => {
            let unset = format!("unset {name}");
            let command = nearest.map_or(unset.clone(), |nearest| {
                let right = format!("EMBED_{}", nearest.to_uppercase().replace('.', "__"));
                format!("export {right}=\"${name}\"; {unset}")
            });
            (&table::CONFIG_ENVIRONMENT, vec![command])
        }
        Origin::File(file) => {
            let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
            let above = |key: &str| {
                key.rsplit_once('.')
                    .map_or(String::new(), |(above, _)| above.to_owned())
            };
            let commands = match (place(file, key), nearest) {
                (None, _) => match (mend::header(file, key), table_near(key)) {
                    (Some(line), Some(near)) => {
                        vec![hand.replace(file, line, &format!("[{key}]"), &format!("[{near}]"))]
                    }
                    (line, _) => vec![hand.edit(file, line)],
                },
                // A model's keys are known by their last part alone.
                (Some(line), Some(right)) if above(right) == above(key) || key.starts_with("models.") => {
                    let written = line.written.clone();
                    let to = written
                        .strip_suffix(&last(key))
                        .map(|before| format!("{before}{}", last(right)));
                    vec![hand.rename(file, &line, &to.unwrap_or_else(|| last(right)))]
                }
                (Some(line), _) => vec![hand.comment_out(file, &line)],
            };
            (&table::CONFIG_KEY, commands)
        }
        Origin::Flag | Origin::Default => (&table::CONFIG_KEY, Vec::new()),
    };
    let text = located(text, origin, key);
    let finding = Finding::error(check, text, commands);
    match origin {
        Origin::Flag => finding.note(format!(
            "leave out --set {}=…, or write the key rightly",
            quoted(key)
        )),
        Origin::Env(name) if hand.handed.contains_key(name) => {
            let right = nearest.map(|nearest| format!("EMBED_{}", nearest.to_uppercase().replace('.', "__")));
            finding.note(format!(
                "or write {} in its stead",
                right.as_deref().unwrap_or("a key that `embeddings config` lists")
            ))
        }
        Origin::Env(_) => finding,
        Origin::File(_) | Origin::Default => finding,
    }
}

fn password(text: String, examined: &Examined, reader: Option<&Reader>, hand: &Hand) -> Finding {
    let check = &table::CONFIG_PASSWORD;
    if text.contains("names no user") {
        let url = origin(examined, "broker.url");
        let commands = match &url {
            Origin::File(file) => vec![hand.edit(file, place(file, "broker.url").map(|line| line.number))],
            _ => hand.set(&url, "broker.url", "\"amqp://embeddings@127.0.0.1:5672/%2f\""),
        };
        return Finding::error(check, text, commands).note("the user stands before the @ of broker.url");
    }
    // The path stands in the message; the value itself was refused and stands nowhere else.
    let path = text.split('"').nth(1).unwrap_or_default().to_owned();
    let text = if hand.hands_over(Path::new(&path)) {
        text.replacen("flag --set", &format!("LoadCredential= of {}", hand.service()), 1)
    } else {
        text
    };
    let commands = vec![secrets::install(Path::new(&path), reader, hand)];
    Finding::error(check, text, commands).note("type the password, Enter, and Ctrl-D")
}

fn combination(
    text: String,
    origin: &Origin,
    key: &str,
    examined: &Examined,
    reader: Option<&Reader>,
    hand: &Hand,
) -> Finding {
    let config = &examined.loaded.config;
    let text = located(text, origin, key);
    if key.starts_with("http.") {
        let token = hand.beside("http-token");
        let token = match origin {
            Origin::File(file) => file.with_file_name("http-token"),
            _ => token,
        };
        let make = format!(
            "head -c 32 /dev/urandom | base64 | {}",
            secrets::install(&token, reader, hand)
        );
        let mut commands = vec![make];
        commands.extend(hand.set(
            origin,
            "http.token_file",
            &format!("{:?}", token.display().to_string()),
        ));
        return Finding::error(&table::CONFIG_HTTP, text, commands)
            .note("or listen on 127.0.0.1 and let a proxy with TLS pass callers on");
    }
    if key.ends_with(".device") {
        let finding = Finding::error(&table::DEVICE_BUILD, text, hand.unset(origin, key));
        return finding.note("auto computes on what there is");
    }
    if key.ends_with(".precision") {
        let finding = Finding::error(&table::DEVICE_PRECISION, text, hand.unset(origin, key));
        return finding.note("auto is the fastest that keeps the vectors");
    }
    if let Some(name) = key.strip_suffix(".aliases") {
        let taken = text
            .split(" = \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap_or_default();
        let model = config
            .models
            .iter()
            .find(|(model, _)| name == format!("models.{model:?}"));
        let left: Vec<&String> = model
            .map(|(_, model)| model.aliases.iter().filter(|alias| *alias != taken).collect())
            .unwrap_or_default();
        let commands = hand.set(origin, key, &format!("{left:?}"));
        return Finding::error(&table::CONFIG_COMBINATION, text, commands);
    }
    if key == "broker.ca_file" || key == "broker.url" {
        let url = self::origin(examined, "broker.url");
        let commands = match &url {
            Origin::File(file) if place(file, "broker.url").is_some() => {
                let line = place(file, "broker.url").map_or(1, |line| line.number);
                vec![hand.replace(file, line, "amqp:", "amqps:")]
            }
            _ => hand.unset(&self::origin(examined, "broker.ca_file"), "broker.ca_file"),
        };
        return Finding::error(&table::CONFIG_COMBINATION, text, commands)
            .note("the port of TLS is another one, 5671 where none is written");
    }
    let commands = unset_all(&text, examined, hand);
    Finding::error(&table::CONFIG_COMBINATION, text, commands).note("the defaults go well with each other")
}

/// Takes out every key that a sentence names and somebody has set.
fn unset_all(text: &str, examined: &Examined, hand: &Hand) -> Vec<String> {
    let named = |name: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && !"._".contains(c))
            .any(|word| word == name)
    };
    let keys = KEYS.iter().map(|key| key.name).filter(|name| named(name));
    keys.flat_map(|key| hand.unset(&origin(examined, key), key))
        .collect()
}

fn risk(text: &str, examined: &Examined, hand: &Hand) -> Finding {
    let check = &table::CONFIG_RISK;
    if text.starts_with("the password in broker.url") {
        let commands = match origin(examined, "broker.url") {
            Origin::File(file) => {
                let line = place(&file, "broker.url").map(|line| line.number);
                vec![hand.edit(&file, line)]
            }
            _ => Vec::new(),
        };
        return Finding::warning(check, text, commands).note("take :PASSWORD out of broker.url");
    }
    if text.starts_with("models.")
        && let Some((key, _)) = text.split_once(" = ")
    {
        let commands = hand.unset(&origin(examined, key), key);
        return Finding::warning(check, text, commands).note("the limit of all models together holds then");
    }
    let first = |key: &str| {
        text.starts_with(key)
            .then(|| hand.unset(&origin(examined, key), key))
    };
    let commands = ["http.token_file", "broker.password_file"]
        .into_iter()
        .find_map(first);
    let commands = commands.unwrap_or_else(|| unset_all(text, examined, hand));
    Finding::warning(check, text, commands)
        .note("the defaults go well with each other and with the unit as shipped")
}

/// Keys that two files of `conf.d` set differently. The main file is there to be overridden.
fn overridden(reading: &Reading, hand: &Hand) -> Vec<Finding> {
    let parts = reading.folder.join("conf.d");
    let mut last: BTreeMap<String, (PathBuf, crate::config::Line, String)> = BTreeMap::new();
    let mut found = Vec::new();
    for file in reading.files.iter().filter(|file| file.parent() == Some(&parts)) {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        for (key, line) in keys_of(&text) {
            let whole = text.lines().nth(line.number - 1).unwrap_or_default();
            let value = whole
                .split_once('=')
                .map_or("", |(_, value)| value)
                .trim()
                .to_owned();
            let (number, place) = (line.number, file.clone());
            let Some((earlier, its, before)) = last.insert(key.clone(), (place, line, value.clone())) else {
                continue;
            };
            if earlier != *file && before != value {
                let (here, there) = (file.display(), earlier.display());
                let text = format!(
                    "{there}:{}: {key} has no effect: {here}:{number} wins",
                    its.number
                );
                let command = hand.comment_out(&earlier, &its);
                found.push(Finding::warning(&table::CONFIG_OVERRIDDEN, text, vec![command]));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, examine, reading};

    /// Goal: what is written and has no effect is told, with the command that helps. Method: files as an operator leaves them.
    #[test]
    fn files_without_effect_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("conf.d");
        std::fs::create_dir(&parts).unwrap();
        let write = |name: &str, text: &str| std::fs::write(parts.join(name), text).unwrap();
        std::fs::write(dir.path().join("embeddings.toml"), "max_queue = 5\n").unwrap();
        write(
            "10-a.toml",
            "max_queue = 6\nmax_inputs = 7\n[broker]\nprefix = 'a'\n",
        );
        write(
            "20-b.toml",
            "max_queue = 8\nmax_inputs = 7\nbroker.prefix = 'b'\n",
        );
        for name in [
            "broker.conf",
            "old.toml.bak",
            "x.toml~",
            ".y.toml.swp",
            "z.toml.dpkg-old",
        ] {
            write(name, "nonsense");
        }
        let inputs = Inputs {
            etc: dir.path().to_owned(),
            environment: BTreeMap::new(),
            uid: 0,
            ..Inputs::from_process(None, Vec::new())
        };
        let reading = reading(&inputs);
        let judged = || {
            let hand = Hand::new(&inputs, &reading);
            judge(&reading, &examine(&inputs), None, &hand)
        };
        let found = judged();
        let of = |id: &str| -> Vec<&Finding> {
            let troubled = found
                .iter()
                .filter(|it| it.check.id == id && it.level != Level::Ok);
            troubled.collect()
        };
        let ignored = of("config.files");
        assert_eq!(ignored.len(), 1, "{ignored:?}");
        assert!(ignored[0].mend[0].ends_with("/broker.conf.toml"), "{ignored:?}");
        let lost = of("config.overridden");
        assert_eq!(lost.len(), 2, "the main file is there to be overridden: {lost:?}");
        assert!(
            lost[0].found.contains("10-a.toml:1: max_queue has no effect"),
            "{lost:?}"
        );
        assert!(lost[0].found.ends_with("20-b.toml:1 wins"), "{lost:?}");
        for command in lost.iter().flat_map(|it| &it.mend) {
            let done = std::process::Command::new("sh")
                .args(["-c", command])
                .status()
                .unwrap();
            assert!(done.success(), "{command}");
        }
        assert!(judged().iter().all(|it| it.check.id != "config.overridden"));
    }
}
