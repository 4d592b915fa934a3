//! Commands that mend: exact, for a shell, and safe to run twice.

use super::handed::{Giver, Variables};
use crate::config::{Inputs, Line, Origin, Reading, keys_of, locate};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// For a shell: as it is where that is plain, else in quotes.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '=' | ':');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A path for a shell.
pub fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Who types the commands, and where the configuration lies.
#[derive(Debug, Clone)]
pub struct Hand {
    /// Root's commands need `sudo`: whoever asks is not root, or came by it.
    sudo: bool,
    uid: u32,
    /// The file that keys are added to.
    file: PathBuf,
    /// The service's unit, without its ending.
    pub unit: String,
    /// The files that the unit hands over as credentials.
    pub credentials: Vec<PathBuf>,
    /// The variables that the unit hands over and this shell does not have: they are mended in other places than its own.
    pub handed: Variables,
}

impl Hand {
    /// Whoever has called this process.
    pub fn new(inputs: &Inputs, reading: &Reading) -> Hand {
        Hand {
            sudo: inputs.uid != 0 || inputs.environment.contains_key("SUDO_USER"),
            uid: inputs.uid,
            file: inputs
                .file
                .clone()
                .unwrap_or_else(|| reading.folder.join("embeddings.toml")),
            unit: inputs.unit(),
            credentials: Vec::new(),
            handed: Variables::new(),
        }
    }

    /// The service's unit.
    pub fn service(&self) -> String {
        format!("{}.service", self.unit)
    }

    /// Whether systemd reads this file for the service.
    pub fn hands_over(&self, file: &Path) -> bool {
        self.credentials.iter().any(|known| known == file)
    }

    /// What is said of a variable, with who hands it over.
    pub fn whence(&self, text: String) -> String {
        let of_variable = text.strip_prefix("environment ");
        let Some((name, rest)) = of_variable.and_then(|text| text.split_once(':')) else {
            return text;
        };
        match self.handed.get(name) {
            Some((_, Giver::Manager)) => format!("systemctl show-environment, {name}:{rest}"),
            Some((_, Giver::Passed)) => format!("PassEnvironment= of {}, {name}:{rest}", self.service()),
            Some((_, Giver::Unit)) => format!("Environment= of {}, {name}:{rest}", self.service()),
            Some((_, Giver::File(file))) => {
                let (file, service) = (file.display(), self.service());
                format!("{file} (EnvironmentFile= of {service}), {name}:{rest}")
            }
            None => text,
        }
    }

    /// Lines of `[Service]` in a drop-in of the unit, and the service with them.
    pub fn drop_in(&self, name: &str, lines: &[String]) -> Vec<String> {
        let folder = format!("/etc/systemd/system/{}.d", self.service());
        let lines: Vec<String> = lines.iter().map(|line| quoted(line)).collect();
        vec![
            self.root(format!("mkdir -p {folder}")),
            format!(
                "printf '%s\\n' '[Service]' {} | {} >/dev/null",
                lines.join(" "),
                self.root(format!("tee -a {folder}/{name}.conf"))
            ),
            self.root("systemctl daemon-reload"),
            self.root(format!("systemctl restart {}", self.unit)),
        ]
    }

    /// A variable that the unit hands over, taken away or set to something else.
    fn hand_over(&self, name: &str, giver: &Giver, value: Option<&str>) -> Vec<String> {
        let file = match giver {
            // What the unit says wins over what systemd has of its own. % begins a specifier there.
            Giver::Unit | Giver::Manager | Giver::Passed => {
                let line = match value {
                    Some(value) => format!("Environment=\"{name}={}\"", value.replace('%', "%%")),
                    None => format!("UnsetEnvironment={name}"),
                };
                return self.drop_in("zz-environment", &[line]);
            }
            Giver::File(file) => file,
        };
        let is_set = format!("/^[[:space:]]*{name}[[:space:]]*=/");
        let script = match value {
            Some(value) => format!("{is_set}c\\{name}=\"{value}\""),
            None => format!("{is_set}s/^/#/"),
        };
        vec![
            self.sed(file, &script),
            self.root(format!("systemctl restart {}", self.unit)),
        ]
    }

    /// A file beside the configuration.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.file.with_file_name(name)
    }

    /// A command that only root may run.
    pub fn root(&self, command: impl std::fmt::Display) -> String {
        let sudo = if self.sudo { "sudo " } else { "" };
        format!("{sudo}{command}")
    }

    /// A command that writes to a file: its owner needs no help.
    pub fn on(&self, file: &Path, command: impl std::fmt::Display) -> String {
        let owner = file.metadata().map(|of| of.uid());
        match owner {
            Ok(owner) if owner == self.uid && self.uid != 0 => command.to_string(),
            _ => self.root(command),
        }
    }

    /// Opens the file for a person, where no command can know what is meant.
    pub fn edit(&self, file: &Path, line: Option<usize>) -> String {
        let at = line.map(|line| format!("+{line} ")).unwrap_or_default();
        self.on(file, format!("nano {at}{}", path(file)))
    }

    /// Takes out what sets `key`, so that the default holds.
    pub fn unset(&self, origin: &Origin, key: &str) -> Vec<String> {
        match origin {
            Origin::File(file) => match place(file, key) {
                Some(line) => vec![self.comment_out(file, &line)],
                None => vec![self.edit(file, None)],
            },
            Origin::Env(name) => match self.handed.get(name) {
                Some((_, giver)) => self.hand_over(name, giver, None),
                None => vec![format!("unset {name}")],
            },
            Origin::Flag | Origin::Default => Vec::new(),
        }
    }

    /// Makes a comment of a line.
    pub fn comment_out(&self, file: &Path, line: &Line) -> String {
        let Line { number, written } = line;
        let script = format!("{number}s/^[[:space:]]*{}[[:space:]]*=/#&/", pattern(written));
        self.sed(file, &script)
    }

    /// Writes another name for the key of a line.
    pub fn rename(&self, file: &Path, line: &Line, to: &str) -> String {
        let Line { number, written } = line;
        let script = format!("{number}s/{}/{}/", pattern(written), pattern(to));
        self.sed(file, &script)
    }

    /// Replaces text in a line.
    pub fn replace(&self, file: &Path, line: usize, from: &str, to: &str) -> String {
        self.sed(file, &format!("{line}s/{}/{}/", pattern(from), pattern(to)))
    }

    fn sed(&self, file: &Path, script: &str) -> String {
        self.on(file, format!("sed -i {} {}", quoted(script), path(file)))
    }

    /// Sets `key` to a value, as TOML writes it, wherever it is set now.
    pub fn set(&self, origin: &Origin, key: &str, value: &str) -> Vec<String> {
        let file = match origin {
            Origin::Env(name) => {
                let value = value.trim_matches('"');
                return match self.handed.get(name) {
                    Some((_, giver)) => self.hand_over(name, giver, Some(value)),
                    None => vec![format!("export {name}={}", quoted(value))],
                };
            }
            Origin::File(file) => file,
            Origin::Default => &self.file,
            Origin::Flag => return Vec::new(),
        };
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(Line { number, written }) = locate(&text, key) {
            let line = format!("{written} = {value}");
            return vec![self.sed(file, &format!("{number}c\\{line}"))];
        }
        vec![self.add(file, &text, key, value)]
    }

    /// A key that the file does not have: into its table, or with its table at the end.
    fn add(&self, file: &Path, text: &str, key: &str, value: &str) -> String {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let header = format!("[{table}]");
        let at = self::header(file, table);
        let empty = text.is_empty();
        match (table, at) {
            ("", _) if !empty => self.sed(file, &format!("1i\\{name} = {value}")),
            (_, Some(at)) => self.sed(file, &format!("{at}a\\{name} = {value}")),
            // A dotted key above makes a table of this name impossible.
            _ if keys_of(text)
                .iter()
                .any(|(other, _)| other.starts_with(&format!("{table}."))) =>
            {
                self.sed(file, &format!("1i\\{key} = {value}"))
            }
            _ => {
                let header = if table.is_empty() {
                    String::new()
                } else {
                    format!(" {}", quoted(&header))
                };
                let line = quoted(&format!("{name} = {value}"));
                let tee = self.on(file, format!("tee -a {}", path(file)));
                format!("printf '%s\\n'{header} {line} | {tee} >/dev/null")
            }
        }
    }
}

/// The line of a key in a file.
pub fn place(file: &Path, key: &str) -> Option<Line> {
    locate(&std::fs::read_to_string(file).ok()?, key)
}

/// The line of a table's header in a file.
pub fn header(file: &Path, table: &str) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    let header = format!("[{table}]");
    let at = text
        .lines()
        .position(|line| line.split('#').next().unwrap_or_default().trim() == header)?;
    Some(at + 1)
}

/// Text as a pattern or a replacement of sed.
fn pattern(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(c, '\\' | '/' | '.' | '*' | '[' | ']' | '^' | '$' | '&') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn hand(file: &Path) -> Hand {
        Hand {
            sudo: false,
            uid: 0,
            file: file.to_owned(),
            unit: "embeddings".to_owned(),
            credentials: Vec::new(),
            handed: Variables::new(),
        }
    }

    /// Goal: the commands do to a file what they promise, twice as well as once. Method: a shell runs them.
    #[test]
    fn commands_change_just_the_line_they_mean() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("it's a file.toml");
        let hand = hand(&file);
        let origin = Origin::File(file.clone());
        let text =
            "max_queue = 0\n[broker]\n  url = 'amqp://a/%2f'\n[models.\"a/b.c\"]\n\"device\" = 'cuda'\n";
        for (commands, expected) in [
            (
                |hand: &Hand, origin: &Origin| hand.unset(origin, "max_queue"),
                "#max_queue = 0\n[broker]",
            ),
            (
                |hand, origin| hand.unset(origin, "models.\"a/b.c\".device"),
                "#\"device\" = 'cuda'\n",
            ),
            (
                |hand, origin| hand.set(origin, "max_queue", "7"),
                "max_queue = 7\n[broker]",
            ),
            (
                |hand, origin| hand.set(origin, "max_inputs", "7"),
                "max_inputs = 7\nmax_queue = 0\n",
            ),
            (
                |hand, origin| hand.set(origin, "broker.declare", "true"),
                "[broker]\ndeclare = true\n",
            ),
            (
                |hand, origin| hand.set(origin, "http.listen", "\"x\""),
                "cuda'\n[http]\nlisten = \"x\"\n",
            ),
            (
                |hand, _| vec![hand.replace(&hand.file, 3, "amqp:", "amqps:")],
                "  url = 'amqps://a/%2f'",
            ),
        ] as [(fn(&Hand, &Origin) -> Vec<String>, &str); 7]
        {
            std::fs::write(&file, text).unwrap();
            for command in commands(&hand, &origin) {
                let done = Command::new("sh").args(["-c", &command]).output().unwrap();
                assert!(done.status.success(), "{command}: {done:?}");
            }
            let after = std::fs::read_to_string(&file).unwrap();
            assert!(after.contains(expected), "{expected} is not in\n{after}");
        }
    }

    #[test]
    fn an_instance_has_a_unit_and_files_of_its_own() {
        let inputs = Inputs::from_process(None, Vec::new()).of_instance(Some("gpu0".to_owned()));
        let hand = Hand::new(&inputs, &crate::config::reading(&inputs));
        assert_eq!(hand.service(), "embeddings@gpu0.service");
        let expected = Path::new("/etc/embeddings/instances/gpu0/http-token");
        assert_eq!(hand.beside("http-token"), expected);
    }

    #[test]
    fn whoever_came_by_sudo_needs_it_again() {
        let hand = Hand {
            sudo: true,
            uid: 0,
            file: PathBuf::new(),
            unit: String::new(),
            credentials: Vec::new(),
            handed: Variables::new(),
        };
        assert_eq!(hand.root("systemctl start x"), "sudo systemctl start x");
        assert_eq!(quoted("o'neil"), r"'o'\''neil'");
        assert!(hand.unset(&Origin::Flag, "x").is_empty());
    }
}
