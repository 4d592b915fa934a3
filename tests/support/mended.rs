//! A machine of its own for `embeddings check`, and a shell that does what it is told.
#![allow(dead_code, reason = "each test binary uses its part")]

use serde_json::Value;
use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What `embeddings check --json` said, and how it ended.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub said: Value,
}

/// One thing that it found.
#[derive(Debug, Clone)]
pub struct Found(pub Value);

impl Found {
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    pub fn mend(&self) -> Vec<String> {
        let all = self.0["mend"].as_array().unwrap();
        all.iter()
            .map(|command| command.as_str().unwrap().to_owned())
            .collect()
    }
}

impl Answer {
    fn all(&self) -> impl Iterator<Item = &Value> {
        self.said["checks"].as_array().unwrap().iter()
    }

    pub fn find(&self, id: &str) -> Option<&Value> {
        self.all().find(|it| it["id"] == id && it["level"] != "ok")
    }

    /// The ids of all that is not well, each once.
    pub fn troubled(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self
            .all()
            .filter(|it| it["level"] != "ok")
            .map(|it| it["id"].as_str().unwrap())
            .collect();
        ids.dedup();
        ids
    }

    pub fn well(&self, id: &str) -> Option<&Value> {
        self.all().find(|it| it["id"] == id && it["level"] == "ok")
    }

    /// What was found under this id, at any level but ok, as one; it must say why it matters.
    pub fn troubled_by(&self, id: &str) -> Found {
        let mut own = self.all().filter(|it| it["id"] == id && it["level"] != "ok");
        let mut found = own
            .next()
            .unwrap_or_else(|| panic!("no {id} in {:#}", self.said))
            .clone();
        assert!(found["why"].as_str().unwrap().len() > 20, "{found}");
        for more in own {
            let both = format!(
                "{}; {}",
                found["found"].as_str().unwrap(),
                more["found"].as_str().unwrap()
            );
            found["found"] = both.into();
            found["mend"]
                .as_array_mut()
                .unwrap()
                .extend(more["mend"].as_array().unwrap().iter().cloned());
        }
        Found(found)
    }

    pub fn error(&self, id: &str) -> Found {
        let found = self.troubled_by(id);
        assert_eq!(found.text("level"), "error", "{found:?}");
        found
    }
}

/// A folder with a configuration and directories, an environment, and flags.
pub struct Machine {
    dir: TempDir,
    env: RefCell<Vec<(String, String)>>,
    flags: RefCell<Vec<String>>,
    typed: RefCell<String>,
    /// What a shell does before any command.
    before: RefCell<String>,
}

impl Machine {
    pub fn new() -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
            env: RefCell::default(),
            flags: RefCell::default(),
            typed: RefCell::default(),
            before: RefCell::default(),
        };
        let binary = Path::new(env!("CARGO_BIN_EXE_embeddings")).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        machine.env("PATH", &format!("{}:{path}", binary.display()));
        machine.env("HOME", &machine.dir().display().to_string());
        for (name, folder) in [("STATE", "state"), ("RUNTIME", "run"), ("CACHE", "cache")] {
            let folder = machine.path(folder).display().to_string();
            machine.env(&format!("{name}_DIRECTORY"), &folder);
        }
        machine
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir().join(path)
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn change(&self, path: &str, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.path(path)).unwrap();
        self.write(path, change(text));
    }

    pub fn append(&self, path: &str, lines: &str) {
        self.change(path, |text| format!("{text}{lines}\n"));
    }

    pub fn prepend(&self, path: &str, lines: &str) {
        self.change(path, |text| format!("{lines}{text}"));
    }

    pub fn replace(&self, path: &str, from: &str, to: &str) {
        self.change(path, |text| {
            assert!(text.contains(from), "{from} is not in {text}");
            text.replace(from, to)
        });
    }

    /// A folder with all that is in another, readable by all.
    pub fn copy(&self, from: &Path, to: &str) -> PathBuf {
        let to = self.path(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let done = Command::new("cp")
            .args(["-rL"])
            .args([from, &to])
            .status()
            .unwrap();
        let open = Command::new("chmod")
            .args(["-R", "a+rX"])
            .arg(&to)
            .status()
            .unwrap();
        assert!(done.success() && open.success());
        to
    }

    pub fn env(&self, name: &str, value: &str) {
        self.env.borrow_mut().push((name.to_owned(), value.to_owned()));
    }

    pub fn set(&self, setting: &str) {
        self.flags(&["--set", setting]);
    }

    pub fn flags(&self, flags: &[&str]) {
        self.flags
            .borrow_mut()
            .extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    pub fn forget_flags(&self) {
        self.flags.borrow_mut().clear();
    }

    /// What the commands that mend read from a terminal.
    pub fn types(&self, text: &str) {
        *self.typed.borrow_mut() = text.to_owned();
    }

    /// What a shell does before the commands that mend.
    pub fn before(&self, script: &str) {
        *self.before.borrow_mut() = script.to_owned();
    }

    /// The binary in this machine's environment.
    pub fn command(&self, args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
        command
            .env_clear()
            .envs(self.env.borrow().iter().cloned())
            .args(args);
        command
    }

    pub fn arguments(&self, json: bool) -> Vec<String> {
        let config = self.path("embeddings.toml").display().to_string();
        let mut all = vec!["check".to_owned(), "--config".to_owned(), config];
        all.extend(self.flags.borrow().iter().cloned());
        all.extend(json.then(|| "--json".to_owned()));
        all
    }

    pub fn check(&self) -> Answer {
        answer(&self.command(&self.arguments(true)).output().unwrap())
    }

    /// Runs the commands and checks again in the same shell: what was found must be gone.
    pub fn mended_by(&self, found: &Found) {
        let commands = found.mend();
        assert!(!commands.is_empty(), "no command mends {found:?}");
        // Only the commands read what is typed.
        let script = format!(
            "set -e\n{}\n{{\n{}\n}} >&2\nexec embeddings \"$@\" </dev/null",
            self.before.borrow(),
            commands.join("\n")
        );
        let mut shell = Command::new("bash")
            .args(["-c", &script, "sh"])
            .args(self.arguments(true))
            .env_clear()
            .envs(self.env.borrow().iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read has ended already.
        let _ = shell
            .stdin
            .take()
            .unwrap()
            .write_all(self.typed.borrow().as_bytes());
        let output = shell.wait_with_output().unwrap();
        let after = answer(&output);
        let id = found.text("id");
        assert!(
            after.find(id).is_none(),
            "{commands:?} left {id}: {:#}",
            after.said
        );
    }

    pub fn is_mended(&self, found: &Found) {
        let after = self.check();
        assert!(after.find(found.text("id")).is_none(), "{:#}", after.said);
    }
}

fn answer(output: &Output) -> Answer {
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    Answer {
        code: output.status.code().unwrap(),
        said,
    }
}
