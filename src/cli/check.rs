//! `embeddings check`: finds in one run whatever is wrong, and says the command that mends it.
//!
//! ```text
//!   configuration ──┬─▶ permissions of files, directories, port, units      all that does not need what is wrong
//!                   ├─▶ models and device ──┐ side by side                  is looked at; the rest is named
//!                   └─▶ broker ─────────────┴─▶ findings ─▶ people, JSON
//! ```
//!
//! Nothing is changed, here or on the broker, and every step has a limit. [`table`] has a row for each thing that is
//! looked at; the rest of the modules judge one group each.

mod broker;
mod configuration;
mod device;
mod finding;
mod handed;
mod mend;
mod model;
mod secrets;
mod system;
pub mod table;
mod topology;
mod units;
mod user;

use super::{Paint, print};
use crate::args::CheckArgs;
use crate::broker::probe;
use crate::config::{self, BrokerUrl, Config, ConfigError, EXIT_CONFIG, Examined, Inputs};
use anyhow::Context;
use finding::{Finding, Findings, Skipped};
use mend::Hand;
use std::process::ExitCode;
use units::Units;
use user::Reader;

/// Runs the command: 0 if there is no error, 78 if there is one for which the service refuses to start, else 1.
///
/// # Errors
/// Stdout that cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let inputs = super::inputs(&args.config);
    let (findings, refused) = examine(inputs, args.user.as_deref())?;
    let text = if args.json {
        format!("{:#}\n", findings.machine())
    } else {
        findings.people(Paint::stdout())
    };
    print(&text)?;
    Ok(match (findings.refuse() || refused, findings.fail()) {
        (true, _) => ExitCode::from(EXIT_CONFIG),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}

/// Looks at everything; and whether loading the configuration refused anything.
fn examine(mut inputs: Inputs, user: Option<&str>) -> anyhow::Result<(Findings, bool)> {
    let reading = config::reading(&inputs);
    let mut hand = Hand::new(&inputs, &reading);
    let units = Units::ask(&hand);
    let environment = as_the_unit_would(&mut inputs, &units, &mut hand);
    let mut examined = config::examine(&inputs);
    lay_down_the_token(&mut examined.loaded.config, &units, &mut hand);
    let (inputs, hand, examined) = (&inputs, &hand, &examined);
    let config = &examined.loaded.config;
    let told = user.map(str::to_owned).or_else(|| units.user());
    let reader = told.as_deref().unwrap_or("embeddings");
    let reader = Reader::find(reader, inputs.uid);
    if let (Some(user), None) = (user, &reader) {
        anyhow::bail!(
            "--user {user}: there must be such a user other than root, and only root can look as another user"
        );
    }
    let reader = reader.as_ref();

    let mut findings = Findings::default();
    let all = &mut findings.all;
    all.extend(configuration::judge(&reading, examined, reader, hand));
    all.extend(environment);
    all.extend(secrets::token(config, &units, reader, hand));
    all.push(device::threads(
        config,
        &configuration::origin(examined, "engine.threads"),
        hand,
    ));
    all.extend(system::directories(&config.dirs, reader, hand));
    let (running, report) = system::running(&config.dirs, inputs, hand);
    all.extend(running);
    all.extend(system::port(examined, report.as_ref(), hand));
    all.extend(system::collector(examined, hand));
    all.extend(units.judge(hand));
    all.extend(units.stop(examined, hand));
    all.extend(units.hidden(&reading, config, hand));

    let models = model::Models {
        inputs,
        examined,
        reader,
        hand,
        memory: units.memory(),
    };
    let hindered = |keys: &[&str]| hindrance(&examined.errors, keys);
    let no_models = hindered(&["default_model"]);
    let no_broker = hindered(&["broker."]);
    let (of_models, of_broker) = std::thread::scope(|scope| {
        let work = || {
            no_broker
                .is_none()
                .then(|| ask_broker(examined, hand))
                .transpose()
        };
        let asked = scope.spawn(work);
        let of_models = no_models.is_none().then(|| models.judge());
        (of_models, asked.join().expect("a panic ends the process"))
    });
    findings.all.extend(of_models.into_iter().flatten());
    findings.all.extend(of_broker?.into_iter().flatten());
    for (groups, because) in [
        (&["broker", "permissions", "topology"][..], no_broker),
        (&["model"], no_models),
    ] {
        let because = because.into_iter();
        findings.skipped.extend(because.flat_map(|because| {
            groups.iter().map(move |group| Skipped {
                group,
                because: because.clone(),
            })
        }));
    }
    let place = |finding: &Finding| table::ALL.iter().position(|check| **check == *finding.check);
    findings.all.sort_by_key(place);
    Ok((findings, !examined.errors.is_empty()))
}

/// What systemd hands to the service and not to a shell: its ring, its variables, and the credential with the password.
fn as_the_unit_would(inputs: &mut Inputs, units: &Units, hand: &mut Hand) -> Vec<Finding> {
    if let Some(ring) = units.watchdog_us() {
        let ring = ring.to_string();
        inputs
            .environment
            .entry("WATCHDOG_USEC".to_owned())
            .or_insert(ring);
    }
    // Another file is another service's, with a broker and a password of its own; and the service itself has all of this.
    let by_hand = inputs.file.is_none() && !inputs.environment.contains_key("CREDENTIALS_DIRECTORY");
    if !by_hand || !units.is_installed() {
        return Vec::new();
    }
    if let Some(path) = units.password_file() {
        inputs
            .set
            .push(format!("broker.password_file={}", path.display()));
        hand.credentials.push(path);
    }
    handed::take(units, inputs, hand)
}

/// A token that is a credential lies where the configuration says while the service runs; it is judged where it comes from.
fn lay_down_the_token(config: &mut Config, units: &Units, hand: &mut Hand) {
    let service = hand.service();
    let Some(named) = &config.http.token_file else {
        return;
    };
    let name = handed::credential_of(named, &service);
    if let Some(Some(source)) = name.and_then(|name| units.credential(name)) {
        hand.credentials.push(source.to_owned());
        config.http.token_file = Some(source.to_owned());
    }
}

/// What has to be mended before the keys that begin so can be believed; a file that is not read may hold any key.
fn hindrance(errors: &[ConfigError], keys: &[&str]) -> Option<String> {
    // A table that is no table holds all of its keys.
    let begins = |key: &str| {
        let within = |begin: &str| key.starts_with(begin) || begin.strip_suffix('.') == Some(key);
        keys.iter().any(|begin| within(begin))
    };
    errors.iter().find_map(|error| match error {
        ConfigError::Unreadable { path, .. } | ConfigError::Syntax { path, .. } => Some(format!(
            "mend {} first: what it says of this is not known",
            path.display()
        )),
        ConfigError::Unknown { key, .. }
        | ConfigError::Value { key, .. }
        | ConfigError::Combination { key, .. }
            if begins(key) =>
        {
            Some(format!("mend {key} first"))
        }
        _ => None,
    })
}

fn ask_broker(examined: &Examined, hand: &Hand) -> anyhow::Result<Vec<Finding>> {
    let config = &examined.loaded.config.broker;
    let url = BrokerUrl::parse(&config.url).map_err(anyhow::Error::msg)?;
    let from = |key| configuration::origin(examined, key);
    let place = broker::Place {
        hand,
        config,
        url: &url,
        url_from: from("broker.url"),
        declare_from: from("broker.declare"),
        ca_from: from("broker.ca_file"),
    };
    let mut found = broker::before(&place);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start a runtime")?;
    let seen = runtime.block_on(probe::look(config));
    // A resolver that does not answer still waits on a thread of the runtime.
    runtime.shutdown_background();
    found.extend(broker::judge(&seen, &place));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use finding::Level;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    /// What is found of a configuration in this folder, as root, where systemd says this of the unit.
    fn found(etc: &Path, environment: &[(&str, &str)], shown: &str, files: &str) -> (Vec<Finding>, Config) {
        let text = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let mut inputs = Inputs {
            etc: etc.to_owned(),
            environment: environment.iter().map(text).collect::<BTreeMap<_, _>>(),
            uid: 0,
            ..Inputs::from_process(None, Vec::new())
        };
        let units = Units::of_service(&format!("LoadState=loaded\n{shown}"), files);
        let reading = config::reading(&inputs);
        let mut hand = Hand::new(&inputs, &reading);
        let mut found = as_the_unit_would(&mut inputs, &units, &mut hand);
        let mut examined = config::examine(&inputs);
        lay_down_the_token(&mut examined.loaded.config, &units, &mut hand);
        found.extend(configuration::judge(&reading, &examined, None, &hand));
        found.extend(secrets::token(&examined.loaded.config, &units, None, &hand));
        (found, examined.loaded.config)
    }

    fn troubles(found: &[Finding]) -> Vec<(&str, &str)> {
        let bad = found.iter().filter(|it| it.level != Level::Ok);
        let mut all: Vec<_> = bad.map(|it| (it.check.id, it.found.as_str())).collect();
        all.sort_unstable();
        all
    }

    /// Goal: what a drop-in or a file of variables sets is judged as the service will see it, and mended where it stands.
    #[test]
    fn variables_of_the_unit_are_the_service_s() {
        let dir = tempfile::tempdir().unwrap();
        let defaults = dir.path().join("defaults");
        std::fs::write(dir.path().join("embeddings.toml"), "max_queue = 50\n").unwrap();
        std::fs::write(&defaults, "EMBED_DRAIN_MS=soon\n").unwrap();
        let shown = format!(
            "Environment=EMBED_MAX_QUEUE=90 EMBED_MAX_QEUE=7\nEnvironmentFiles={} (ignore_errors=no)\n",
            defaults.display()
        );
        let (all, config) = found(dir.path(), &[], &shown, "");
        assert_eq!(config.limits.max_queue, 90, "the unit's word, not the file's");
        let [(environment, unknown), (value, wrong)] = troubles(&all)[..] else {
            panic!("{all:?}")
        };
        assert_eq!((environment, value), ("config.environment", "config.value"));
        assert!(
            unknown.starts_with("Environment= of embeddings.service, EMBED_MAX_QEUE: unknown key max_qeue"),
            "{unknown}"
        );
        let from = format!(
            "{} (EnvironmentFile= of embeddings.service), EMBED_DRAIN_MS: ",
            defaults.display()
        );
        assert!(wrong.starts_with(&from), "{wrong}");
        let mend = |id| {
            &all.iter()
                .find(|it| it.check.id == id && it.level != Level::Ok)
                .unwrap()
                .mend
        };
        assert_eq!(
            mend("config.environment")[1],
            "printf '%s\\n' '[Service]' UnsetEnvironment=EMBED_MAX_QEUE | \
             tee -a /etc/systemd/system/embeddings.service.d/zz-environment.conf >/dev/null"
        );
        let edit = &mend("config.value")[0];
        let done = std::process::Command::new("sh")
            .args(["-c", edit])
            .status()
            .unwrap();
        assert!(done.success(), "{edit}");
        let shown = format!("EnvironmentFiles={} (ignore_errors=no)\n", defaults.display());
        assert_eq!(troubles(&found(dir.path(), &[], &shown, "").0), []);

        // What only this shell has is told as such.
        let shell = [("EMBED_MAX_QUEUE", "8"), ("EMBED_DRAIN_MS", "9")];
        let (all, config) = found(dir.path(), &shell, "Environment=EMBED_MAX_QUEUE=7\n", "");
        assert_eq!(config.limits.max_queue, 8);
        let [(_, drain), (_, queue)] = troubles(&all)[..] else {
            panic!("{all:?}")
        };
        assert!(
            drain.starts_with("EMBED_DRAIN_MS is set here, and not for"),
            "{drain}"
        );
        assert!(
            queue.starts_with("EMBED_MAX_QUEUE has another value here than for"),
            "{queue}"
        );

        let secret = "Environment=EMBED_BROKER__URL=amqp://me:hunter2@h\n";
        let (all, _) = found(dir.path(), &[], secret, "");
        let told = troubles(&all).into_iter().find(|(id, _)| *id == "config.secret");
        assert!(told.is_some_and(|(_, text)| !text.contains("hunter2")), "{all:?}");

        let missing = "EnvironmentFiles=/nowhere/defaults (ignore_errors=no)\n";
        let (all, _) = found(dir.path(), &[], missing, "");
        assert_eq!(all[0].mend, ["install -D -m 640 /dev/null /nowhere/defaults"]);
    }

    /// Goal: what systemd has of its own is told by where it stands, mended in the unit, which wins, and a secret in it is told.
    #[test]
    fn variables_of_systemd_itself_are_the_service_s() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("embeddings.toml"), "").unwrap();
        let found = |pass: &str, manager: &str, own: Option<&str>| {
            let mut inputs = Inputs {
                etc: dir.path().to_owned(),
                environment: BTreeMap::new(),
                uid: 0,
                ..Inputs::from_process(None, Vec::new())
            };
            let shown = format!("LoadState=loaded\nPassEnvironment={pass}");
            let units = Units::of_service(&shown, "").with_environment(manager, own);
            let reading = config::reading(&inputs);
            let mut hand = Hand::new(&inputs, &reading);
            let mut found = as_the_unit_would(&mut inputs, &units, &mut hand);
            let examined = config::examine(&inputs);
            found.extend(configuration::judge(&reading, &examined, None, &hand));
            found
        };
        let all = found(
            "EMBED_DRAIN_MS",
            "EMBED_MAX_QUEUE=many\n",
            Some("EMBED_DRAIN_MS=soon\0"),
        );
        let [(_, passed), (_, block)] = troubles(&all)[..] else {
            panic!("{all:?}")
        };
        assert!(
            passed.starts_with("PassEnvironment= of embeddings.service, EMBED_DRAIN_MS: "),
            "{passed}"
        );
        assert!(
            block.starts_with("systemctl show-environment, EMBED_MAX_QUEUE: "),
            "{block}"
        );
        let mends: Vec<_> = all.iter().flat_map(|it| &it.mend).collect();
        for name in ["EMBED_DRAIN_MS", "EMBED_MAX_QUEUE"] {
            assert!(
                mends
                    .iter()
                    .any(|it| it.contains(name) && it.contains("zz-environment.conf")),
                "{mends:?}"
            );
        }

        let all = found("", "EMBED_BROKER__URL=amqp://me:hunter2@h\n", None);
        let told = troubles(&all).into_iter().find(|(id, _)| *id == "config.secret");
        assert!(
            told.is_some_and(
                |(_, text)| text.starts_with("systemctl show-environment, ") && !text.contains("hunter2")
            ),
            "{all:?}"
        );
        let all = found("EMBED_DRAIN_MS", "", None);
        assert_eq!(
            troubles(&all),
            [(
                "config.environment",
                "/proc/1/environ: PassEnvironment= of embeddings.service, and what it hands over cannot be read here"
            )]
        );
    }

    /// Goal: a token that systemd hands over is not missing while the service is stopped; one that it does not hand over is.
    #[test]
    fn a_token_may_be_a_credential() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("http-token");
        let place = "/run/credentials/embeddings.service/http-token";
        let lines = format!("[http]\nlisten = '0.0.0.0:0'\ntoken_file = '{place}'\n");
        std::fs::write(dir.path().join("embeddings.toml"), lines).unwrap();
        let unit = format!("[Service]\nLoadCredential=http-token:{}\n", token.display());

        let (all, _) = found(dir.path(), &[], "", &unit);
        let [(id, missing)] = troubles(&all)[..] else {
            panic!("{all:?}")
        };
        assert_eq!(id, "config.http");
        assert!(
            missing.contains(&token.display().to_string()),
            "the file that is to be made: {missing}"
        );
        std::fs::write(&token, "a word\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(troubles(&found(dir.path(), &[], "", &unit).0), []);
        assert_eq!(
            troubles(&found(dir.path(), &[], "", "SetCredential=http-token:word\n").0),
            []
        );

        let (all, _) = found(dir.path(), &[], "", "");
        let [(_, unknown)] = troubles(&all)[..] else {
            panic!("{all:?}")
        };
        assert!(
            unknown.ends_with("embeddings.service hands over no credential http-token"),
            "{unknown}"
        );
    }
}
