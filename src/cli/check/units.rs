//! Judges what systemd knows: the service's unit, its monitor, its sandbox, the clock.
//!
//! What systemd says is read once, and judged apart from the reading.

use super::super::ask::ask;
use super::super::status::span_ms;
use super::configuration;
use super::finding::Finding;
use super::handed::{self, Said, Unread, Variables};
use super::mend::{self, Hand};
use super::table;
use crate::clock::millis;
use crate::config::{Config, Examined, Origin, Reading};
use crate::telemetry;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// systemd that does not answer in this time is left out.
const PATIENCE: Duration = Duration::from_secs(3);
const PROPERTIES: &str = "LoadState,ActiveState,SubState,Result,ExecMainStatus,UnitFileState,WatchdogUSec,User,\
                          MemoryMax,ProtectHome,Environment,EnvironmentFiles,UnsetEnvironment,PassEnvironment,TimeoutStopUSec,NTPSynchronized,NTP";
/// From the end of draining to the end of the process.
const DRAINED_MS: u64 = 1000;
/// One monitor for all units.
const MONITOR: &str = "embeddings-monitor.service";

/// What systemd knows, property by property; empty where it does not run.
#[derive(Debug, Clone, Default)]
pub struct Units {
    service: Shown,
    monitor: Shown,
    clock: Shown,
    /// What `systemctl show-environment` prints.
    manager_environment: String,
    /// What systemd itself was started with, where that may be read.
    own_environment: Option<String>,
    /// The credentials that the unit hands over, and the files that they are, where that is known.
    credentials: BTreeMap<String, Option<PathBuf>>,
}

/// Properties by name; what is said several times has a line for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown(BTreeMap<String, String>);

impl Shown {
    fn parse(text: &str) -> Shown {
        let mut all = BTreeMap::<String, String>::new();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let said = all.entry(key.to_owned()).or_default();
            if !said.is_empty() {
                said.push('\n');
            }
            said.push_str(value);
        }
        Shown(all)
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// A unit that is not installed has nothing to be judged.
    fn is_known(&self) -> bool {
        !matches!(self.get("LoadState"), "" | "not-found")
    }
}

impl Units {
    /// Asks systemd, where it runs.
    pub fn ask(hand: &Hand) -> Units {
        if !Path::new("/run/systemd/system").is_dir() {
            return Units::default();
        }
        let said = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments);
            let output = ask(command, PATIENCE);
            output.map_or_else(String::new, |it| String::from_utf8_lossy(&it.stdout).into_owned())
        };
        let show = |program: &str, arguments: &[&str]| Shown::parse(&said(program, arguments));
        let unit = hand.service();
        Units {
            service: show("systemctl", &["show", "--property", PROPERTIES, "--", &unit]),
            monitor: show("systemctl", &["show", "--property", PROPERTIES, "--", MONITOR]),
            clock: show("timedatectl", &["show"]),
            manager_environment: said("systemctl", &["show-environment"]),
            own_environment: std::fs::read(handed::OWN)
                .ok()
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            // `show` leaves credentials out (seen with systemd 252).
            credentials: handed::credentials(&said("systemctl", &["cat", "--", &unit]), &unit),
        }
    }

    /// A service of which systemd says this, for tests.
    #[cfg(test)]
    pub fn of_service(shown: &str, files: &str) -> Units {
        Units {
            service: Shown::parse(shown),
            credentials: handed::credentials(files, "embeddings.service"),
            ..Units::default()
        }
    }

    /// The same, with what systemd hands to every service, and what it was started with.
    #[cfg(test)]
    pub fn with_environment(self, manager: &str, own: Option<&str>) -> Units {
        Units {
            manager_environment: manager.to_owned(),
            own_environment: own.map(str::to_owned),
            ..self
        }
    }

    /// Whether systemd knows the service.
    pub fn is_installed(&self) -> bool {
        self.service.is_known()
    }

    /// The variables of the configuration that systemd hands over, and the places of such that cannot be read here.
    pub fn variables(&self) -> (Variables, Vec<Unread>) {
        let of = |property| self.service.get(property);
        handed::variables(Said {
            set: of("Environment"),
            files: of("EnvironmentFiles"),
            unset: of("UnsetEnvironment"),
            pass: of("PassEnvironment"),
            manager: &self.manager_environment,
            own: self.own_environment.as_deref(),
        })
    }

    /// The credential of this name: the file that it is, where that is known; none if the unit hands over no such one.
    pub fn credential(&self, name: &str) -> Option<Option<&Path>> {
        self.credentials.get(name).map(Option::as_deref)
    }

    /// The user that the unit runs as.
    pub fn user(&self) -> Option<String> {
        let user = self.service.get("User");
        (!user.is_empty()).then(|| user.to_owned())
    }

    /// `WatchdogSec=` in microseconds, for the rules of the rings.
    pub fn watchdog_us(&self) -> Option<u64> {
        let ms = span_ms(self.service.get("WatchdogUSec"))?;
        (self.service.is_known() && ms > 0).then_some(ms * 1000)
    }

    /// The file that the unit hands over as the credential `broker-password`.
    pub fn password_file(&self) -> Option<PathBuf> {
        self.credential("broker-password")?.map(Path::to_owned)
    }

    /// Memory that the service may have, in bytes, and in whose words.
    pub fn memory(&self) -> Option<(u64, String)> {
        match self.service.get("MemoryMax").parse::<u64>() {
            Ok(bytes) if bytes < u64::MAX => Some((bytes, "MemoryMax= of the unit".to_owned())),
            _ => telemetry::memory::bound().map(|bytes| (bytes, "memory here".to_owned())),
        }
    }

    /// All findings on units and clock.
    pub fn judge(&self, hand: &Hand) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.service.is_known() {
            found.push(unit(&self.service, hand));
            found.push(watchdog(&self.service, hand));
        }
        if self.monitor.is_known() || self.service.is_known() {
            found.push(monitor(&self.monitor, hand));
        }
        found.extend(clock(&self.clock, hand));
        found
    }

    /// Whether systemd waits until what is unfinished has been handed back.
    pub fn stop(&self, examined: &Examined, hand: &Hand) -> Option<Finding> {
        let limit_ms = span_ms(self.service.get("TimeoutStopUSec")).filter(|_| self.service.is_known())?;
        let drain_ms = millis(examined.loaded.config.limits.drain);
        if drain_ms.saturating_add(DRAINED_MS) < limit_ms {
            return None;
        }
        let seconds = limit_ms / 1000;
        let text = format!(
            "drain_ms = {drain_ms} leaves no second of TimeoutStopSec={seconds}s of {}: systemd kills what still drains",
            hand.service()
        );
        let commands = match configuration::origin(examined, "drain_ms") {
            Origin::Default => hand.drop_in("zz-stop", &["TimeoutStopSec=20s".to_owned()]),
            origin => hand.unset(&origin, "drain_ms"),
        };
        Some(Finding::warning(&table::CONFIG_RISK, text, commands))
    }

    /// Files and models that the unit's sandbox hides.
    pub fn hidden(&self, reading: &Reading, config: &Config, hand: &Hand) -> Vec<Finding> {
        let sandboxed = self.service.is_known() && !matches!(self.service.get("ProtectHome"), "" | "no");
        if !sandboxed {
            return Vec::new();
        }
        let own = reading
            .files
            .iter()
            .chain(&config.http.token_file)
            .chain(&config.broker.ca_file);
        let own = own.chain(&config.broker.password_file);
        // systemd reads credentials outside of the sandbox.
        let own = own.filter(|path| !hand.hands_over(path)).map(|path| (path, None));
        let models = config
            .models
            .iter()
            .filter_map(|(name, model)| Some((model.path.as_ref()?, Some(name))));
        own.chain(models)
            .filter_map(|(path, model)| hidden(path, model.map(String::as_str), hand))
            .collect()
    }
}

fn hidden(path: &Path, model: Option<&str>, hand: &Hand) -> Option<Finding> {
    const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
    let under = HIDDEN.into_iter().find(|folder| path.starts_with(folder))?;
    let text = format!(
        "{}: the unit's sandbox hides {under} from the service",
        path.display()
    );
    let (command, note) = match model {
        Some(name) => {
            let (dir, name) = (mend::path(path), mend::quoted(name));
            (
                format!("embeddings model add {dir} --name {name}"),
                "then take path out of its section",
            )
        }
        None => {
            let to = hand.beside(&path.file_name().unwrap_or_default().to_string_lossy());
            let (from, to) = (mend::path(path), mend::path(&to));
            (
                format!("install -m 640 -g embeddings {from} {to}"),
                "then name that file",
            )
        }
    };
    Some(Finding::error(&table::SYSTEM_SANDBOX, text, vec![hand.root(command)]).note(note))
}

fn unit(shown: &Shown, hand: &Hand) -> Finding {
    let check = &table::SYSTEM_UNIT;
    let (service, unit) = (hand.service(), &hand.unit);
    let systemctl = |what: &str| vec![hand.root(format!("systemctl {what} {unit}"))];
    let state = format!(
        "{service}: {} ({})",
        shown.get("ActiveState"),
        shown.get("SubState")
    );
    if shown.get("LoadState") == "masked" || shown.get("UnitFileState").starts_with("masked") {
        let text = format!("{service} is masked: systemd refuses to start it");
        return Finding::error(check, text, systemctl("unmask"));
    }
    if !matches!(shown.get("LoadState"), "loaded") {
        let text = format!("{service}: systemd says {}", shown.get("LoadState"));
        return Finding::error(check, text, vec![format!("systemd-analyze verify {service}")]);
    }
    if shown.get("ActiveState") == "failed" {
        let why = match (shown.get("Result"), shown.get("ExecMainStatus")) {
            ("exit-code", "78") => "its configuration was refused (exit 78)".to_owned(),
            ("exit-code", status) => format!("its process ended with {status}"),
            ("start-limit-hit", _) => "it died too often".to_owned(),
            (result, _) => result.to_owned(),
        };
        let text = format!("{service} has failed: {why}");
        let mut commands = systemctl("reset-failed");
        commands.extend(systemctl("start"));
        return Finding::error(check, text, commands)
            .note("when the rest is mended; `embeddings status` shows the last deaths");
    }
    if shown.get("UnitFileState") == "disabled" {
        let text = format!("{state}, and it does not start at the next boot");
        return Finding::warning(check, text, systemctl("enable"));
    }
    if shown.get("ActiveState") == "inactive" {
        return Finding::warning(check, format!("{state}: it was stopped"), systemctl("start"));
    }
    Finding::ok(check, state)
}

fn watchdog(shown: &Shown, hand: &Hand) -> Finding {
    let check = &table::SYSTEM_WATCHDOG;
    let service = hand.service();
    let drop_ins = format!("/etc/systemd/system/{service}.d");
    match span_ms(shown.get("WatchdogUSec")) {
        Some(ms) if ms > 0 => Finding::ok(check, format!("WatchdogSec={} s", ms / 1000)),
        _ => Finding::warning(
            check,
            format!("{service} has no WatchdogSec="),
            vec![
                hand.root(format!("mkdir -p {drop_ins}")),
                format!(
                    "printf '[Service]\\nWatchdogSec=40s\\n' | {} >/dev/null",
                    hand.root(format!("tee {drop_ins}/zz-watchdog.conf"))
                ),
                hand.root("systemctl daemon-reload"),
                hand.root(format!("systemctl restart {}", hand.unit)),
            ],
        ),
    }
}

fn monitor(shown: &Shown, hand: &Hand) -> Finding {
    let check = &table::SYSTEM_MONITOR;
    let systemctl = |what: &str| hand.root(format!("systemctl {what} embeddings-monitor"));
    match (shown.get("LoadState"), shown.get("ActiveState")) {
        ("masked", _) => {
            let commands = vec![systemctl("unmask"), systemctl("start")];
            Finding::warning(check, format!("{MONITOR} is masked"), commands)
        }
        ("loaded", "active" | "activating") => {
            Finding::ok(check, format!("{MONITOR} is {}", shown.get("ActiveState")))
        }
        (_, state) => {
            let state = if state.is_empty() {
                "not known to systemd"
            } else {
                state
            };
            Finding::warning(check, format!("{MONITOR} is {state}"), vec![systemctl("start")])
        }
    }
}

fn clock(shown: &Shown, hand: &Hand) -> Option<Finding> {
    let check = &table::SYSTEM_CLOCK;
    match (shown.get("NTPSynchronized"), shown.get("NTP")) {
        ("yes", _) => Some(Finding::ok(check, "kept right by the network")),
        ("no", "yes") => Some(
            Finding::warning(
                check,
                "not yet set by the network",
                vec!["timedatectl timesync-status".to_owned()],
            )
            .note("shows the server that is asked; it may take a minute after the boot"),
        ),
        ("no", _) => Some(
            Finding::warning(
                check,
                "nothing keeps it right",
                vec![hand.root("timedatectl set-ntp true")],
            )
            .note("needs apt install systemd-timesyncd, or chrony"),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::config::Inputs;

    fn hand() -> Hand {
        let inputs = Inputs::from_process(None, Vec::new());
        let inputs = Inputs {
            uid: 0,
            environment: BTreeMap::from([("SUDO_USER".to_owned(), "me".to_owned())]),
            ..inputs
        };
        Hand::new(&inputs, &Reading::default())
    }

    fn judged(service: &str) -> (Level, String, Vec<String>) {
        let finding = unit(&Shown::parse(service), &hand());
        (finding.level, finding.found, finding.mend)
    }

    /// Goal: each state in which a unit does not do its work is told apart. Method: what `systemctl show` prints.
    #[test]
    fn a_unit_that_does_not_run_says_why() {
        let (level, found, mend) = judged("LoadState=masked\nActiveState=inactive\nUnitFileState=masked\n");
        assert_eq!(
            (level, mend[0].as_str()),
            (Level::Error, "sudo systemctl unmask embeddings"),
            "{found}"
        );
        let failed =
            "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainStatus=78\n";
        let (level, found, mend) = judged(failed);
        assert!(
            level == Level::Error && found.contains("refused (exit 78)"),
            "{found}"
        );
        assert_eq!(mend[0], "sudo systemctl reset-failed embeddings");
        let disabled = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=disabled\n";
        let (level, _, mend) = judged(disabled);
        assert_eq!(
            (level, mend[0].as_str()),
            (Level::Warning, "sudo systemctl enable embeddings")
        );
        let stopped = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nUnitFileState=enabled\n";
        assert_eq!(judged(stopped).2, ["sudo systemctl start embeddings"]);
        let well = "LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n";
        assert_eq!(judged(well).0, Level::Ok);
    }

    #[test]
    fn rings_and_clock_are_told_when_they_are_off() {
        let service = |text: &str| Units {
            service: Shown::parse(&format!("LoadState=loaded\n{text}")),
            ..Units::default()
        };
        let off = watchdog(&service("WatchdogUSec=0").service, &hand());
        assert!(off.level == Level::Warning && off.mend.iter().any(|it| it.contains("WatchdogSec=40s")));
        assert_eq!(
            watchdog(&service("WatchdogUSec=40s").service, &hand()).level,
            Level::Ok
        );
        assert_eq!(service("WatchdogUSec=40s").watchdog_us(), Some(40_000_000));
        let idle = monitor(&Shown::parse("LoadState=loaded\nActiveState=inactive\n"), &hand());
        assert_eq!(
            (idle.level, idle.mend[0].as_str()),
            (Level::Warning, "sudo systemctl start embeddings-monitor")
        );
        let of =
            |text: &str| clock(&Shown::parse(text), &hand()).map(|it| (it.level, it.mend.first().cloned()));
        assert_eq!(of("NTP=yes\nNTPSynchronized=yes\n"), Some((Level::Ok, None)));
        let off = of("NTP=no\nNTPSynchronized=no\n").unwrap();
        assert_eq!(
            off,
            (Level::Warning, Some("sudo timedatectl set-ntp true".to_owned()))
        );
        assert_eq!(of(""), None);
        let with = service("User=embeddings\nMemoryMax=infinity");
        assert_eq!(with.user().as_deref(), Some("embeddings"));
        assert_eq!(
            service("MemoryMax=1048576").memory(),
            Some((1 << 20, "MemoryMax= of the unit".to_owned()))
        );
    }

    /// Goal: a drain that systemd would cut off is told, whoever of both is to blame.
    #[test]
    fn a_drain_has_to_end_before_systemd_s_patience() {
        let told = |drain: Option<&str>, limit: &str| {
            let set = drain.map(|ms| format!("drain_ms={ms}")).into_iter().collect();
            let inputs = Inputs {
                etc: "/nowhere".into(),
                environment: BTreeMap::new(),
                ..Inputs::from_process(None, set)
            };
            let examined = crate::config::examine(&inputs);
            let units = Units::of_service(&format!("LoadState=loaded\nTimeoutStopUSec={limit}\n"), "");
            units
                .stop(&examined, &hand())
                .map(|finding| (finding.found, finding.mend))
        };
        assert_eq!(told(None, "20s"), None);
        assert_eq!(told(Some("600000"), "infinity"), None);
        let (found, _) = told(Some("20000"), "20s").unwrap();
        assert!(
            found.starts_with("drain_ms = 20000 leaves no second of TimeoutStopSec=20s"),
            "{found}"
        );
        let (_, mend) = told(None, "5s").unwrap();
        assert!(mend[1].contains("TimeoutStopSec=20s"), "{mend:?}");
    }

    #[test]
    fn what_the_sandbox_hides_is_named() {
        let finding = hidden(Path::new("/home/me/model"), Some("mine"), &hand()).unwrap();
        assert_eq!(
            finding.mend,
            ["sudo embeddings model add /home/me/model --name mine"]
        );
        assert!(hidden(Path::new("/srv/model"), Some("mine"), &hand()).is_none());
        assert!(hidden(Path::new("/homes/x"), None, &hand()).is_none());
    }
}
