//! Judges what surrounds the service on this machine: another process, the port, the directories.

use super::finding::Finding;
use super::mend::{self, Hand};
use super::table;
use super::user::{Reader, Want};
use crate::config::{Directories, Examined, Inputs};
use crate::control::{self, Asked, SOCKET};
use crate::report::Report;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

/// A process that does not answer in this time hangs.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The process that answers where the service of this configuration would, if there is one.
pub fn running(dirs: &Directories, inputs: &Inputs, hand: &Hand) -> (Vec<Finding>, Option<Report>) {
    let check = &table::SYSTEM_RUNNING;
    let mut sockets = vec![dirs.runtime.join(SOCKET)];
    if !inputs.environment.contains_key("RUNTIME_DIRECTORY") {
        sockets.push(Path::new("/run").join(&hand.unit).join(SOCKET));
        sockets.dedup();
    }
    for socket in &sockets {
        let (pid, how) = match control::ask(socket, ANSWER_MAX) {
            Ok(Asked::Answer(answer)) => {
                let report: Option<Report> = serde_json::from_slice(&answer).ok();
                let text = match &report {
                    Some(report) => format!(
                        "process {} answers: {}",
                        report.pid.unwrap_or_default(),
                        report.line
                    ),
                    None => format!("{}: a process of another version answers", socket.display()),
                };
                return (vec![Finding::ok(check, text)], report);
            }
            Ok(Asked::Nobody) | Err(_) => continue,
            Ok(Asked::Unanswered { pid }) => (pid, "takes questions and does not answer"),
            Ok(Asked::Silent { pid }) => (pid, "says nothing"),
        };
        let who = pid.map_or("a process".to_owned(), |pid| format!("process {pid}"));
        let text = format!("{}: {who} {how}", socket.display());
        let commands = pid.map(|pid| format!("kill -KILL {pid}")).into_iter().collect();
        let note = "`embeddings status` says which of the watchdogs ends it, and when";
        return (vec![Finding::error(check, text, commands).note(note)], None);
    }
    (vec![Finding::ok(check, "no other process has its place")], None)
}

/// Whether the address can be listened on.
pub fn port(examined: &Examined, report: Option<&Report>, hand: &Hand) -> Option<Finding> {
    let check = &table::SYSTEM_PORT;
    let listen = examined.loaded.config.http.listen?;
    let from = super::configuration::origin(examined, "http.listen");
    let own = |report: &Report| {
        report.http.problem.is_none() && report.http.listen.as_deref() == Some(&listen.to_string())
    };
    if report.is_some_and(own) {
        return Some(Finding::ok(
            check,
            format!("{listen}: the running service listens"),
        ));
    }
    let error = match TcpListener::bind(listen) {
        Ok(_) => return Some(Finding::ok(check, format!("{listen} is free"))),
        Err(error) => error,
    };
    let to = |address: Option<SocketAddr>| {
        let set = |address: SocketAddr| hand.set(&from, "http.listen", &format!("\"{address}\""));
        address.map(set).unwrap_or_default()
    };
    Some(match error.kind() {
        ErrorKind::AddrInUse => {
            let text = format!("http.listen = \"{listen}\": another program has this port");
            let who = hand.root(format!("ss -ltnp 'sport = :{}'", listen.port()));
            Finding::error(check, text, to(free_above(listen)))
                .note(format!("or end the one that `{who}` shows"))
        }
        ErrorKind::PermissionDenied => {
            let text = format!("http.listen = \"{listen}\": ports below 1024 are root's");
            let above = SocketAddr::new(listen.ip(), 8970);
            Finding::error(check, text, to(free_above(above)))
        }
        ErrorKind::AddrNotAvailable => {
            let text = format!("http.listen = \"{listen}\": this machine has no such address");
            let note = "or one of those that `ip -brief address` shows";
            Finding::error(
                check,
                text,
                to(Some(SocketAddr::from(([127, 0, 0, 1], listen.port())))),
            )
            .note(note)
        }
        _ => Finding::error(check, format!("http.listen = \"{listen}\": {error}"), to(None)),
    })
}

/// Whether the collector takes spans. It is asked to take none.
pub fn collector(examined: &Examined, hand: &Hand) -> Option<Finding> {
    let check = &table::SYSTEM_COLLECTOR;
    let endpoint = examined.loaded.config.traces.otlp_endpoint.as_deref()?;
    Some(match crate::traces::probe(endpoint) {
        Ok(()) => Finding::ok(check, format!("{endpoint} takes spans")),
        Err(why) => {
            let from = super::configuration::origin(examined, "traces.otlp_endpoint");
            let text = format!("traces.otlp_endpoint = \"{endpoint}\": {why}");
            Finding::warning(check, text, hand.unset(&from, "traces.otlp_endpoint"))
                .note("or start a collector there that takes OTLP over HTTP")
        }
    })
}

/// The next port that nobody has.
fn free_above(listen: SocketAddr) -> Option<SocketAddr> {
    let ports = listen.port()..=listen.port().saturating_add(100);
    ports
        .map(|port| SocketAddr::new(listen.ip(), port))
        .find(|address| TcpListener::bind(address).is_ok())
}

/// Whether the service can write where it keeps things. What is not there is made, by systemd or by the service.
pub fn directories(dirs: &Directories, reader: Option<&Reader>, hand: &Hand) -> Vec<Finding> {
    let check = &table::SYSTEM_DIRECTORIES;
    let mut found = Vec::new();
    let mut well = Vec::new();
    for (what, dir) in [
        ("runtime", &dirs.runtime),
        ("state", &dirs.state),
        ("cache", &dirs.cache),
    ] {
        let there = dir
            .ancestors()
            .find(|above| above.exists())
            .unwrap_or(Path::new("/"));
        let exists = there == dir;
        let may = match reader {
            // Below /run, /var/lib and /var/cache systemd makes it for the user.
            Some(_) if !exists && (dir.starts_with("/run") || dir.starts_with("/var")) => Some(true),
            Some(reader) => reader.may(Want::Write, there),
            None => Some(writable(there)),
        };
        let shown = dir.display();
        if exists && !dir.is_dir() {
            let text = format!("the {what} directory {shown} is no directory");
            let away = hand.on(
                there,
                format!(
                    "mv {} {}",
                    mend::path(dir),
                    mend::path(&dir.with_extension("old"))
                ),
            );
            found.push(Finding::error(check, text, vec![away]));
        } else if may == Some(false) {
            let whom = reader.map_or(String::new(), |reader| {
                format!(" to the service's user {}", reader.name)
            });
            let text = format!("the {what} directory {shown} cannot be written{whom}");
            let commands = match reader {
                Some(reader) if exists => {
                    vec![hand.root(format!(
                        "chown -R {}:{} {}",
                        reader.name,
                        reader.group,
                        mend::path(dir)
                    ))]
                }
                Some(reader) => vec![hand.root(format!(
                    "install -d -m 750 -o {} -g {} {}",
                    reader.name,
                    reader.group,
                    mend::path(dir)
                ))],
                None => vec![hand.on(there, format!("chmod u+rwx {}", mend::path(there)))],
            };
            found.push(Finding::error(check, text, commands));
        } else {
            well.push(format!("{what} {shown}"));
        }
    }
    if found.is_empty() {
        found.push(Finding::ok(check, well.join(", ")));
    }
    found
}

fn writable(dir: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(dir, Access::WRITE_OK).is_ok()
}
