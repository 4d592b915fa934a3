//! What a unit hands to the service and not to a shell: variables, and files as credentials. Read from what `systemctl`
//! prints, judged elsewhere.

use super::finding::Finding;
use super::mend::{self, Hand};
use super::table;
use super::units::Units;
use super::user::is_public;
use crate::config::{BrokerUrl, Inputs};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where systemd puts credentials, in a folder for each unit.
const CREDENTIALS: &str = "/run/credentials";

/// What systemd was started with. Variables that it sets for itself later (`ManagerEnvironment=`) are seen nowhere from outside.
pub const OWN: &str = "/proc/1/environ";

/// Who hands a variable over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Giver {
    /// systemd's own block for all services: `DefaultEnvironment=`, `systemctl set-environment`.
    Manager,
    /// `PassEnvironment=` of the unit: what systemd itself was started with.
    Passed,
    /// `Environment=` of the unit, or of a drop-in.
    Unit,
    /// A file that `EnvironmentFile=` names.
    File(PathBuf),
}

/// Variables by name: the value, and who hands it over.
pub type Variables = BTreeMap<String, (String, Giver)>;

/// Whether the configuration reads this variable.
pub fn is_ours(name: &str) -> bool {
    name.starts_with("EMBED_") || name == "HEARTBEAT_TIMEOUT"
}

/// What systemd says of the variables of a unit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    /// `Environment`, as `systemctl show` prints it.
    pub set: &'a str,
    /// `EnvironmentFiles`, likewise.
    pub files: &'a str,
    /// `UnsetEnvironment`, likewise.
    pub unset: &'a str,
    /// `PassEnvironment`, likewise.
    pub pass: &'a str,
    /// What `systemctl show-environment` prints: every service has it, without being asked.
    pub manager: &'a str,
    /// What systemd itself was started with, as `/proc/1/environ` has it, if that may be read.
    pub own: Option<&'a str>,
}

/// A place that variables come from, and that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The place.
    pub path: PathBuf,
    /// Why not.
    pub kind: ErrorKind,
    /// What names it in the unit.
    pub setting: &'static str,
}

/// The variables of the configuration among those of a unit, and where more of them may come from. The unit wins over what
/// is passed, that over systemd's block, and a file over all of them (systemd.exec(5), `EnvironmentFile=`, `PassEnvironment=`).
pub fn variables(said: Said<'_>) -> (Variables, Vec<Unread>) {
    let mut all = Variables::new();
    let mut unread = Vec::new();
    let pair = |text: &str| {
        let (name, value) = text.split_once('=')?;
        is_ours(name).then(|| (name.to_owned(), value.to_owned()))
    };
    for (name, value) in said.manager.lines().filter_map(pair) {
        all.insert(name, (unescaped(&value), Giver::Manager));
    }
    let passed = words(said.pass);
    match said.own {
        Some(own) => {
            let passed = |(name, _): &(String, String)| passed.contains(name);
            for (name, value) in own.split('\0').filter_map(pair).filter(passed) {
                all.insert(name, (value, Giver::Passed));
            }
        }
        None if passed.iter().any(|name| is_ours(name)) => unread.push(Unread {
            path: OWN.into(),
            kind: ErrorKind::PermissionDenied,
            setting: "PassEnvironment=",
        }),
        None => {}
    }
    for (name, value) in words(said.set).iter().filter_map(|word| pair(word)) {
        all.insert(name, (value, Giver::Unit));
    }
    for line in said.files.lines().filter(|line| !line.is_empty()) {
        let (path, ignore) = line.rsplit_once(" (ignore_errors=").unwrap_or((line, "no)"));
        let path = PathBuf::from(path);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                for (name, value) in assignments(&text).iter().filter_map(|line| pair(line)) {
                    all.insert(name, (value, Giver::File(path.clone())));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound && ignore.starts_with("yes") => {}
            Err(error) => unread.push(Unread {
                path,
                kind: error.kind(),
                setting: "EnvironmentFile=",
            }),
        }
    }
    for word in words(said.unset) {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        let same = |(of, _): &(String, Giver)| !word.contains('=') || of == value;
        if all.get(name).is_some_and(same) {
            all.remove(name);
        }
    }
    (all, unread)
}

/// Has the configuration be read with the variables that the service will see, and says where this shell has others: they hold
/// here, because whoever sets one for a command means it.
pub fn take(units: &Units, inputs: &mut Inputs, hand: &mut Hand) -> Vec<Finding> {
    let check = &table::CONFIG_ENVIRONMENT;
    let service = hand.service();
    let (variables, unread) = units.variables();
    let mut found = Vec::new();
    for Unread { path, kind, setting } in unread {
        let shown = path.display();
        found.push(if kind == ErrorKind::NotFound {
            let text = format!("{shown}: {setting} of {service} names it, and it is not there");
            let make = hand.root(format!("install -D -m 640 /dev/null {}", mend::path(&path)));
            Finding::error(check, text, vec![make])
        } else {
            let text = format!("{shown}: {setting} of {service}, and what it hands over cannot be read here");
            let again = match &inputs.instance {
                Some(name) => format!("sudo embeddings check --instance {name}"),
                None => "sudo embeddings check".to_owned(),
            };
            Finding::warning(check, text, vec![again])
        });
    }
    for (name, value) in inputs.environment.iter().filter(|(name, _)| is_ours(name)) {
        let how = match variables.get(name) {
            Some((theirs, _)) if theirs == value => continue,
            Some(_) => "has another value here than",
            None => "is set here, and not",
        };
        let text = format!("{name} {how} for {service}: what is said of it is not true of the service");
        found.push(Finding::warning(check, text, vec![format!("unset {name}")]));
    }
    for (name, (value, giver)) in variables {
        found.extend(shown_to_all(&name, &value, &giver, hand));
        if !inputs.environment.contains_key(&name) {
            inputs.environment.insert(name.clone(), value.clone());
            hand.handed.insert(name, (value, giver));
        }
    }
    found
}

/// A password in a variable of the unit or of systemd's block, which `systemctl` tells every user, or in a file that everybody
/// can read. What systemd was started with only root sees.
fn shown_to_all(name: &str, value: &str, giver: &Giver, hand: &Hand) -> Option<Finding> {
    let ours = |url: BrokerUrl| url.has_password() && !url.secret().contains("://guest:guest@");
    if name != "EMBED_BROKER__URL" || !BrokerUrl::parse(value).is_ok_and(ours) {
        return None;
    }
    let service = hand.service();
    let (whose, mend) = match giver {
        Giver::Unit => {
            let whose = format!("Environment= of {service}, {name}");
            (whose, hand.root(format!("systemctl edit --full {service}")))
        }
        Giver::Manager => {
            let whose = format!("systemctl show-environment, {name}");
            (whose, hand.root(format!("systemctl unset-environment {name}")))
        }
        Giver::File(file) if is_public(file) => {
            let mend = hand.on(file, format!("chmod o-rwx {}", mend::path(file)));
            (format!("{}, {name}", file.display()), mend)
        }
        Giver::File(_) | Giver::Passed => return None,
    };
    let text = format!("{whose}: holds a secret, and everybody on this machine can read it");
    let note = "take :PASSWORD out of it, and hand it over by LoadCredential=broker-password:FILE";
    Some(Finding::warning(&table::CONFIG_SECRET, text, vec![mend]).note(note))
}

/// Words as `systemctl show` prints a list of them: one with blanks or quotes stands in double quotes.
fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        let quoted = first == '"';
        if !quoted {
            word.push(first);
        }
        while let Some(c) = chars.next() {
            match c {
                '\\' if quoted => word.extend(chars.next()),
                '"' if quoted => break,
                c if !quoted && c.is_whitespace() => break,
                c => word.push(c),
            }
        }
        all.push(word);
    }
    all
}

/// A value as `systemctl show-environment` prints it: one that a shell would read otherwise stands in `$'…'`.
fn unescaped(text: &str) -> String {
    let Some(inner) = text.strip_prefix("$'").and_then(|text| text.strip_suffix('\'')) else {
        return text.to_owned();
    };
    let mut value = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|c| match c {
                'n' => '\n',
                't' => '\t',
                c => c,
            })),
            c => value.push(c),
        }
    }
    value
}

/// `NAME=VALUE` of each line of a file as `EnvironmentFile=` reads it: comments begin a line, a value may stand in quotes.
fn assignments(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", "");
    let plain = |line: &str| {
        let line = line.trim();
        let (name, value) = line.split_once('=').filter(|_| !line.starts_with(['#', ';']))?;
        let value = value.trim();
        let inner = ['"', '\'']
            .iter()
            .find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
        Some(format!("{}={}", name.trim(), inner.unwrap_or(value)))
    };
    joined.lines().filter_map(plain).collect()
}

/// The credentials in a unit's files, one behind the other as systemd reads them, by name: the file that is handed over. One
/// that systemd would look up in its own folders, that is encrypted, or that stands in the unit has none.
pub fn credentials(files: &str, unit: &str) -> BTreeMap<String, Option<PathBuf>> {
    let instance = unit
        .split_once('@')
        .map_or("", |(_, rest)| rest.trim_end_matches(".service"));
    let mut all = BTreeMap::new();
    for line in files.lines() {
        let Some((key, value)) = line.trim().split_once('=') else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        let by_file = match key {
            "LoadCredential" => true,
            "LoadCredentialEncrypted" | "SetCredential" | "SetCredentialEncrypted" => false,
            _ => continue,
        };
        if value.is_empty() {
            all.clear();
            continue;
        }
        let (name, source) = value.split_once(':').unwrap_or((value, ""));
        let path = source.replace("%i", instance);
        let known = by_file && path.starts_with('/') && !path.contains('%');
        all.insert(name.to_owned(), known.then(|| PathBuf::from(path)));
    }
    all
}

/// The name of the credential that a path in this unit's folder of credentials stands for.
pub fn credential_of<'a>(path: &'a Path, unit: &str) -> Option<&'a str> {
    path.strip_prefix(CREDENTIALS)
        .ok()?
        .strip_prefix(unit)
        .ok()?
        .to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what the service will see is known: later ones win, files over the unit, and what is unset is gone.
    #[test]
    fn variables_are_those_that_the_service_will_see() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("embeddings");
        std::fs::write(
            &file,
            "# EMBED_DRAIN_MS=1\nEMBED_MAX_QUEUE = '9' \nPATH=/x\nEMBED_LOG__LEVEL=\"in\\\nfo\"\nEMBED_DRAIN_MS\n",
        )
        .unwrap();
        let there = file.display();
        let files = format!(
            "{there} (ignore_errors=no)\n/nowhere/one (ignore_errors=yes)\n/nowhere/two (ignore_errors=no)"
        );
        let set = r#"EMBEDDINGS_POSTMORTEM=1 EMBED_MAX_QUEUE=7 "EMBED_BROKER__PREFIX=a \"b\" c" HEARTBEAT_TIMEOUT=9 EMBED_GONE=1"#;
        let (all, unread) = variables(Said {
            set,
            files: &files,
            unset: "EMBED_GONE HEARTBEAT_TIMEOUT=8",
            ..Said::default()
        });
        let given = |name: &str| all.get(name).cloned().unwrap();
        assert_eq!(given("EMBED_MAX_QUEUE"), ("9".into(), Giver::File(file.clone())));
        assert_eq!(
            given("EMBED_LOG__LEVEL"),
            ("info".into(), Giver::File(file.clone()))
        );
        assert_eq!(given("EMBED_BROKER__PREFIX"), ("a \"b\" c".into(), Giver::Unit));
        assert_eq!(given("HEARTBEAT_TIMEOUT"), ("9".into(), Giver::Unit));
        assert_eq!(all.len(), 4, "{all:?}");
        let [absent] = &unread[..] else {
            panic!("{unread:?}")
        };
        assert_eq!(
            (&*absent.path, absent.kind, absent.setting),
            (Path::new("/nowhere/two"), ErrorKind::NotFound, "EnvironmentFile=")
        );
    }

    /// Goal: what systemd hands to every service, and what it passes on of its own, is known, and gives way to the unit.
    #[test]
    fn variables_of_systemd_itself_are_handed_on() {
        let manager = "LANG=C\nEMBED_MAX_QUEUE=1\nEMBED_DRAIN_MS=2\nEMBED_BROKER__PREFIX=$'it\\'s \\\\ a'\n";
        let said = Said {
            set: "EMBED_MAX_QUEUE=5",
            pass: "HOME EMBED_DRAIN_MS EMBED_LOG__LEVEL EMBED_MAX_QUEUE EMBED_ABSENT",
            manager,
            own: Some(
                "HOME=/\0EMBED_DRAIN_MS=3\0EMBED_LOG__LEVEL=info\0EMBED_MAX_INPUTS=4\0EMBED_MAX_QUEUE=4\0",
            ),
            ..Said::default()
        };
        let (all, unread) = variables(said);
        let known = |name: &str, value: &str, giver| (name.to_owned(), (value.to_owned(), giver));
        let expected = Variables::from([
            known("EMBED_BROKER__PREFIX", "it's \\ a", Giver::Manager),
            known("EMBED_DRAIN_MS", "3", Giver::Passed),
            known("EMBED_LOG__LEVEL", "info", Giver::Passed),
            known("EMBED_MAX_QUEUE", "5", Giver::Unit),
        ]);
        assert_eq!((all, unread), (expected, Vec::new()));

        let hidden = Said { own: None, ..said };
        assert_eq!(variables(hidden).1[0].setting, "PassEnvironment=");
        let of_others = Said {
            pass: "HOME",
            ..hidden
        };
        assert_eq!(variables(of_others).1, []);
    }

    #[test]
    fn the_last_file_says_which_credential() {
        let of = |files: &str| credentials(files, "embeddings@card.service").remove("broker-password");
        let one = "[Service]\nLoadCredential=other:/x\nLoadCredential=broker-password:/etc/embeddings/broker-password\n";
        assert_eq!(of(one), Some(Some("/etc/embeddings/broker-password".into())));
        assert_eq!(of(&format!("{one}LoadCredential=\n")), None);
        let own = format!("{one}LoadCredential=broker-password:/etc/%i/word\nLoadCredential=http-token:/y\n");
        assert_eq!(of(&own), Some(Some("/etc/card/word".into())));
        for unknown in [
            "LoadCredential=broker-password:%E/word\n",
            "LoadCredential=broker-password\n",
            "LoadCredentialEncrypted=broker-password:/x\n",
            "SetCredential=broker-password:/x\n",
        ] {
            assert_eq!(of(unknown), Some(None), "{unknown}");
        }
    }

    #[test]
    fn a_path_may_stand_for_a_credential() {
        let of = |path: &'static str| credential_of(Path::new(path), "embeddings.service");
        assert_eq!(
            of("/run/credentials/embeddings.service/http-token"),
            Some("http-token")
        );
        assert_eq!(of("/run/credentials/embeddings@x.service/http-token"), None);
        assert_eq!(of("/etc/embeddings/http-token"), None);
    }
}
