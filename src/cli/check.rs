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
use crate::config::{self, BrokerUrl, ConfigError, EXIT_CONFIG, Examined, Inputs};
use anyhow::Context;
use finding::{Finding, Findings, Skipped};
use mend::Hand;
use std::process::ExitCode;
use units::Units;
use user::Reader;

/// Runs the command: 0 if there is no error, 78 if there is one in the configuration, else 1.
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
    Ok(
        match (findings.fails(Some("config")) || refused, findings.fails(None)) {
            (true, _) => ExitCode::from(EXIT_CONFIG),
            (false, true) => ExitCode::FAILURE,
            (false, false) => ExitCode::SUCCESS,
        },
    )
}

/// Looks at everything; and whether loading the configuration refused anything.
fn examine(mut inputs: Inputs, user: Option<&str>) -> anyhow::Result<(Findings, bool)> {
    let reading = config::reading(&inputs);
    let mut hand = Hand::new(&inputs, &reading);
    let units = Units::ask(&hand);
    as_the_unit_would(&mut inputs, &units, &mut hand);
    let (inputs, hand) = (&inputs, &hand);
    let examined = &config::examine(inputs);
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
    all.extend(secrets::token(config, reader, hand));
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

/// What systemd hands to the service and not to a shell: its ring, and the credential with the password.
fn as_the_unit_would(inputs: &mut Inputs, units: &Units, hand: &mut Hand) {
    if let Some(ring) = units.watchdog_us() {
        let ring = ring.to_string();
        inputs
            .environment
            .entry("WATCHDOG_USEC".to_owned())
            .or_insert(ring);
    }
    // Another file's broker is another one, with a password of its own.
    let by_hand = inputs.file.is_none() && !inputs.environment.contains_key("CREDENTIALS_DIRECTORY");
    if let Some(path) = units.password_file().filter(|_| by_hand) {
        inputs
            .set
            .push(format!("broker.password_file={}", path.display()));
        hand.credential = Some(path);
    }
}

/// What has to be mended before the keys that begin so can be believed; a file that is not read may hold any key.
fn hindrance(errors: &[ConfigError], keys: &[&str]) -> Option<String> {
    let begins = |key: &str| keys.iter().any(|begin| key.starts_with(begin));
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
