//! The report for people: the first line is the answer, then aligned sections, 80 columns wide.

use super::super::{Colour, Paint, count, table};
pub use crate::report::advice::span;
use crate::report::{Kill, Report, State};
use std::collections::BTreeMap;

const COLUMNS: usize = 80;
const SEPARATOR: &str = " · ";
/// Width of the labels of the sections, with the blanks behind them.
const LABEL: usize = 10;

/// The whole text.
pub fn people(report: &Report, paint: Paint) -> String {
    let mut out = head(report, paint);
    for hint in &report.hints {
        push_wrapped(&mut out, "  -> ", "     ", hint.split(' '), " ");
    }
    if !report.stages.is_empty() {
        out.push('\n');
        out.push_str(&stages(report, paint));
    }
    out.push('\n');
    section(&mut out, "models", models(report));
    section(&mut out, "broker", broker(report));
    section(&mut out, "http", http(report));
    section(&mut out, "round", round(report));
    section(&mut out, "jobs", jobs(&report.jobs));
    section(&mut out, "refusing", refusing(report));
    section(&mut out, "systemd", systemd(report));
    section(&mut out, "retrying", retrying(report));
    out.push_str(&deaths(report, paint));
    out
}

/// Symbol, state and what makes it so; then which process that is.
fn head(report: &Report, paint: Paint) -> String {
    let (symbol, colour) = match report.state {
        State::Running => ("●", Colour::Green),
        State::Degraded => ("◐", Colour::Yellow),
        State::Stopped => ("○", Colour::Red),
    };
    let word = match (report.state, report.activity.as_str()) {
        (State::Running, _) => "running",
        (State::Degraded, "starting") => "starting",
        (State::Degraded, "draining") => "stopping",
        (State::Degraded, "hung") => "hung",
        (State::Degraded, "stalled") => "stalled",
        (State::Degraded, _) => "degraded",
        (State::Stopped, _) => "stopped",
    };
    // A service of an older version does not say its name.
    let name = match report.name.as_str() {
        "" => "embeddings",
        name => name,
    };
    let opening = format!("{symbol} {name} is {word}");
    // The line's first word says the same as ours.
    let said = ["ready", "degraded", "draining", "starting"];
    let parts: Vec<&str> = report.line.split(SEPARATOR).collect();
    let parts = parts
        .strip_prefix(&[parts[0]])
        .filter(|_| said.contains(&parts[0]))
        .unwrap_or(&parts);
    let mut out = String::new();
    let parts = parts.iter().copied().filter(|part| !part.is_empty());
    // What comes first in the line is the cause.
    let cause = parts.clone().next().unwrap_or_default();
    let width = [opening.as_str(), SEPARATOR, cause].map(|part| part.chars().count());
    let all: Vec<&str> = [opening.as_str()].into_iter().chain(parts).collect();
    if width.iter().sum::<usize>() <= COLUMNS {
        push_wrapped(&mut out, "", "  ", all.into_iter(), SEPARATOR);
    } else {
        // The first line is the answer: a long cause begins in it.
        push_wrapped(&mut out, "", "  ", all.join(SEPARATOR).split(' '), " ");
    }
    out = out.replacen(&opening, &paint.paint(colour, &opening), 1);
    let process = report.pid.map(|pid| match report.host.as_str() {
        "" => format!("pid {pid}"),
        host => format!("pid {pid} on {host}"),
    });
    let version = (!report.version.is_empty()).then(|| format!("version {}", report.version));
    let up = report.uptime_ms.map(|ms| format!("up {}", span(ms)));
    let memory = report.rss_bytes.map(|bytes| format!("{} MiB", bytes >> 20));
    let facts: Vec<String> = [process, version, up, memory].into_iter().flatten().collect();
    if !facts.is_empty() {
        let mut line = String::new();
        push_wrapped(&mut line, "  ", "  ", facts.iter().map(String::as_str), SEPARATOR);
        out.push_str(&paint.paint(Colour::Dim, line.trim_end_matches('\n')));
        out.push('\n');
    }
    out
}

fn stages(report: &Report, paint: Paint) -> String {
    let limit = report
        .limits
        .get("liveness_max_stall_ms")
        .copied()
        .unwrap_or(u64::MAX);
    let mut out = format!(
        "{:<LABEL$}{:>7}  no progress for (limit {})\n",
        "stage",
        "inside",
        span(limit)
    );
    for stage in &report.stages {
        let waiting = match (stage.inside, stage.waiting_ms) {
            (0, _) => "-".to_owned(),
            (_, ms) => span(ms),
        };
        let line = format!("{:<LABEL$}{:>7}  {waiting}", stage.name, stage.inside);
        out.push_str(&match stage.waiting_ms {
            ms if ms >= limit => paint.paint(Colour::Red, &line),
            ms if ms >= limit / 2 => paint.paint(Colour::Yellow, &line),
            _ => line,
        });
        out.push('\n');
    }
    out
}

/// Every model and where it stands; nothing where there is only one and it is in memory.
fn models(report: &Report) -> Vec<String> {
    let there = |state: &String| ["ready", "working"].contains(&state.as_str());
    if report.models.len() < 2 && report.models.values().all(there) {
        return Vec::new();
    }
    let line = |(name, state): (&String, &String)| format!("{name} {state}");
    report.models.iter().map(line).collect()
}

/// Where HTTP is served, or why it is not; nothing where it is switched off.
fn http(report: &Report) -> Vec<String> {
    let problem = report
        .http
        .problem
        .as_ref()
        .map(|problem| format!("not served: {problem}"));
    let served = report.http.listen.as_ref().map(|listen| {
        let of = |full: &str| report.http.refused.get(full).copied().unwrap_or(0);
        let turned_away = [
            (of("http_requests") + of("http_bodies"), "request"),
            (of("http_connections"), "connection"),
        ];
        let turned_away = turned_away.iter().filter(|(number, _)| *number > 0);
        let parts: Vec<String> = turned_away
            .map(|&(number, thing)| count(usize::try_from(number).unwrap_or(usize::MAX), thing))
            .collect();
        match parts.as_slice() {
            [] => listen.clone(),
            parts => format!("{listen}, {} turned away at the door", parts.join(" and ")),
        }
    });
    problem.or(served).into_iter().collect()
}

/// Lanes that take nothing now, and why; nothing where all do.
fn refusing(report: &Report) -> Vec<String> {
    let lanes = report.backpressure.iter().filter(|(_, lane)| lane.on);
    let line = |(name, lane): (&String, &crate::report::Backpressure)| {
        let cause = lane.cause.as_deref().unwrap_or("unknown");
        let since = lane.since_ms.map(|ms| format!(" since {}", span(ms)));
        let refused: u64 = lane.refused.values().sum();
        let refused = (refused > 0).then(|| format!(", {refused} refused in all"));
        format!(
            "{name}: {cause}{}{}",
            since.unwrap_or_default(),
            refused.unwrap_or_default()
        )
    };
    lanes.map(line).collect()
}

fn broker(report: &Report) -> Vec<String> {
    let broker = &report.broker;
    if broker.address.is_empty() || report.stages.is_empty() {
        return Vec::new();
    }
    let mut line = match broker.connected {
        true => format!("connected to {}", broker.address),
        false => format!("not connected to {}", broker.address),
    };
    if let Some(age) = broker.proof_age_ms {
        line.push_str(&format!(", answered {} ago", span(age)));
    }
    if let Some(limit) = report.limits.get("disconnect_kill_ms") {
        line.push_str(&format!(" (limit {})", span(*limit)));
    }
    let blocked = broker
        .blocked_ms
        .map(|ms| format!("blocks publishing since {} (memory or disk alarm)", span(ms)));
    [Some(line), blocked].into_iter().flatten().collect()
}

fn round(report: &Report) -> Vec<String> {
    let round = report
        .round_age_ms
        .map(|age| format!("last went all the way {} ago", span(age)));
    let latency = report.last_job_latency_ms.map(|ms| format!("last job {ms} ms"));
    let mean = report.avg_job_ms.map(|ms| format!("mean {ms} ms"));
    let parts: Vec<String> = [round, latency, mean].into_iter().flatten().collect();
    if parts.is_empty() {
        parts
    } else {
        vec![parts.join(SEPARATOR)]
    }
}

fn jobs(jobs: &BTreeMap<String, BTreeMap<String, u64>>) -> Vec<String> {
    let lane = |(lane, outcomes): (&String, &BTreeMap<String, u64>)| {
        let outcomes: Vec<String> = outcomes
            .iter()
            .map(|(outcome, count)| format!("{count} {}", outcome.replace('_', "-")))
            .collect();
        format!("{lane}: {}", outcomes.join(", "))
    };
    jobs.iter().map(lane).collect()
}

fn systemd(report: &Report) -> Vec<String> {
    let Some(unit) = &report.systemd else {
        return Vec::new();
    };
    let mut first = format!("{} ({})", unit.active_state, unit.sub_state);
    if !unit.since.is_empty() {
        first.push_str(&format!(" since {}", unit.since));
    }
    let mut second = format!("result {}", unit.result);
    if let Some(status) = unit.exit_status {
        second.push_str(&format!(", exit {status}"));
    }
    match unit.restarts {
        None | Some(0) => {}
        Some(1) => second.push_str(", 1 restart"),
        Some(restarts) => second.push_str(&format!(", {restarts} restarts")),
    }
    let text = (!unit.status_text.is_empty()).then(|| format!("last said: {}", unit.status_text));
    [Some(first), Some(second), text].into_iter().flatten().collect()
}

fn retrying(report: &Report) -> Vec<String> {
    let line = |job: &crate::report::Retrying| {
        let wait = job
            .retry_in_ms
            .map(|ms| format!(" in {}", span(ms)))
            .unwrap_or_default();
        format!("{} attempt {}{wait}: {}", job.job, job.attempt, job.last_error)
    };
    match report.retrying.as_slice() {
        [] if report.stages.is_empty() => Vec::new(),
        [] => vec!["none".into()],
        jobs => jobs.iter().map(line).collect(),
    }
}

fn deaths(report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    match (&report.kills_unknown, report.kills.as_slice()) {
        (Some(why), _) => section(&mut out, "deaths", vec![why.clone()]),
        (None, []) => section(&mut out, "deaths", vec!["none on record".into()]),
        (None, kills) => {
            out.push_str("\ndeaths, the newest first\n");
            let rows: Vec<Vec<String>> = kills.iter().map(|kill| row(kill, report.at_unix_ms)).collect();
            for (line, kill) in table(&rows).lines().zip(kills) {
                out.push_str(&format!("  {line}\n"));
                if let Some(detail) = kill.detail.as_deref().filter(|detail| !detail.is_empty()) {
                    let mut lines = String::new();
                    push_wrapped(&mut lines, "      ", "      ", detail.split_whitespace(), " ");
                    out.push_str(&paint.paint(Colour::Dim, lines.trim_end_matches('\n')));
                    out.push('\n');
                }
            }
        }
    }
    out
}

/// When, how long ago, of what and where, after what life.
fn row(kill: &Kill, now_ms: u64) -> Vec<String> {
    let stage = kill.stage.as_deref().filter(|stage| !stage.is_empty());
    vec![
        kill.at_unix_ms.map(moment).unwrap_or_else(|| "-".into()),
        kill.at_unix_ms
            .filter(|&at| now_ms > at)
            .map_or_else(String::new, |at| format!("{} ago", span(now_ms - at))),
        stage.map_or_else(|| kill.reason.clone(), |stage| format!("{}/{stage}", kill.reason)),
        kill.uptime_ms
            .map_or_else(String::new, |ms| format!("after {}", span(ms))),
    ]
}

/// A label and its lines beside it.
fn section(out: &mut String, label: &str, lines: Vec<String>) {
    let beside = " ".repeat(LABEL);
    for (at, line) in lines.iter().enumerate() {
        let label = if at == 0 { label } else { "" };
        push_wrapped(out, &format!("{label:<LABEL$}"), &beside, line.split(' '), " ");
    }
}

/// Appends parts with separators between them, and begins a new line where one would get too wide.
fn push_wrapped<'a>(
    out: &mut String,
    first: &str,
    other: &str,
    parts: impl Iterator<Item = &'a str>,
    separator: &str,
) {
    let mut line = first.to_owned();
    let mut empty = true;
    for part in parts {
        let gap = if empty { "" } else { separator };
        if !empty && line.chars().count() + gap.chars().count() + part.chars().count() > COLUMNS {
            out.push_str(line.trim_end());
            out.push('\n');
            line = format!("{other}{part}");
        } else {
            line.push_str(gap);
            line.push_str(part);
        }
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// A moment of the wall clock, in UTC.
pub fn moment(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests;
