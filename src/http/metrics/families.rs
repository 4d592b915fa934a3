//! The families of metrics: their names (the contract's, section 12, and some beside them), their help texts, and where each
//! value comes from.

use super::text::Page;
use crate::clock::{Moment, millis};
use crate::http::board::Process;
use crate::job::{ErrorType, Lane};
use crate::logic::event::Outcome;
use crate::logic::ledger::Stage;
use crate::logic::pressure::Cause;
use crate::logic::residence::Told;
use crate::logic::tally::Tally;
use crate::report::{Kill, Report};
use std::collections::BTreeMap;
use std::time::Duration;

/// Lanes that hold jobs of callers and have backpressure.
const LANES: [Lane; 2] = [Lane::Interactive, Lane::Bulk];

/// All that is known at one moment.
pub(super) struct Scene<'a> {
    pub(super) report: Report,
    pub(super) tally: Option<&'a Tally>,
    /// How long ago both were true.
    pub(super) age: Duration,
    pub(super) now: Moment,
    pub(super) unix_ms: u64,
    /// Unless they cannot be read: a zero would be a counter that fell, and the next reading deaths that never were.
    pub(super) kills: Option<Vec<Kill>>,
    pub(super) storm: Duration,
    pub(super) watchdog: Option<Duration>,
    pub(super) process: Process,
    /// Spans that a collector took, and spans that were given up.
    pub(super) spans: (u64, u64),
    pub(super) requests: BTreeMap<(&'static str, u16), u64>,
    /// What HTTP itself turned away, by what was full.
    pub(super) refused: [(&'static str, u64); 3],
}

impl Scene<'_> {
    /// All of it as text.
    pub(super) fn write(&self) -> String {
        let mut page = Page::default();
        self.service(&mut page);
        if let Some(tally) = self.tally {
            self.jobs(&mut page, tally);
            self.stages(&mut page, tally);
            self.broker(&mut page, tally);
            self.watchdog(&mut page, tally);
            self.limits(&mut page);
        }
        self.models(&mut page);
        self.deaths(&mut page);
        self.http(&mut page);
        self.traces(&mut page);
        self.process(&mut page);
        page.finish()
    }

    fn service(&self, page: &mut Page) {
        let report = &self.report;
        let name = "embeddings_build_info";
        page.gauge(
            name,
            "Always 1; the version, the default model and where it runs are its labels.",
        );
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("model", report.model.as_str()),
            ("device", report.device.as_str()),
        ];
        page.sample(name, &labels, 1.0);
        let ready = f64::from(u8::from(report.ready));
        page.lone(
            "embeddings_ready",
            "Whether new work is welcome: 1 or 0.",
            Some(ready),
        );
        let live = f64::from(u8::from(report.live));
        page.lone(
            "embeddings_live",
            "Whether no stage is stalled and the loop turns: 1 or 0.",
            Some(live),
        );
        page.lone(
            "embeddings_report_age_seconds",
            "Since the loop last said how it is; a loop that hangs falls silent.",
            Some(self.age.as_secs_f64()),
        );
    }

    fn jobs(&self, page: &mut Page, tally: &Tally) {
        let name = "embeddings_jobs_total";
        page.counter(
            name,
            "Jobs that ended here, by lane and outcome. The lane probe has the service's own canaries.",
        );
        for lane in Lane::ALL {
            for outcome in Outcome::ALL {
                let labels = [("lane", lane.name()), ("outcome", outcome.name())];
                page.sample(name, &labels, tally.jobs[lane as usize][outcome as usize] as f64);
            }
        }
        page.lone(
            "embeddings_inputs_total",
            "Inputs computed, canaries included.",
            Some(tally.inputs as f64),
        );
        page.lone(
            "embeddings_tokens_total",
            "Tokens computed, special ones included.",
            Some(tally.tokens as f64),
        );
        page.lone(
            "embeddings_retries_total",
            "Attempts that failed and are followed by another.",
            Some(tally.retries as f64),
        );
        let name = "embeddings_rejected_total";
        page.counter(
            name,
            "Jobs that got no vectors, by reason: the error's type, and for overloads the bound that was reached.",
        );
        // Beside those that became jobs, what HTTP turned away before.
        for (reason, count) in self.refused {
            page.sample(name, &[("reason", reason)], count as f64);
        }
        for cause in Cause::ALL {
            let of_lane =
                |pressure: &crate::report::Backpressure| pressure.refused.get(cause.name()).copied();
            let refused: u64 = self.report.backpressure.values().filter_map(of_lane).sum();
            page.sample(name, &[("reason", cause.name())], refused as f64);
        }
        for error in ErrorType::ALL {
            if error != ErrorType::Overloaded {
                let refused = tally.refused[error as usize];
                page.sample(name, &[("reason", error.name())], refused as f64);
            }
        }
        let name = "embeddings_job_seconds";
        page.histogram(
            name,
            "From a job's delivery to its acknowledgement, of jobs answered with vectors.",
        );
        for lane in Lane::ALL {
            page.distribution(name, &[("lane", lane.name())], &tally.job_seconds[lane as usize]);
        }
        let name = "embeddings_batch_tokens";
        page.histogram(name, "Tokens of a batch.");
        page.distribution(name, &[], &tally.batch_tokens);
        let name = "embeddings_canary_seconds";
        page.histogram(name, "From sending a canary until it has gone all the way round.");
        page.distribution(name, &[], &tally.canary_seconds);
    }

    fn stages(&self, page: &mut Page, tally: &Tally) {
        let report = &self.report;
        let name = "embeddings_queue_jobs";
        page.gauge(
            name,
            "Admitted jobs that no engine has begun, by lane. The backlog in the broker is not counted.",
        );
        for lane in LANES {
            let waiting = report.queues.get(lane.name()).copied().unwrap_or(0);
            page.sample(name, &[("lane", lane.name())], waiting as f64);
        }
        let help = "Bound on the jobs of the interactive lane, max_queue.";
        page.lone("embeddings_queue_jobs_limit", help, Some(report.queue_max as f64));
        let help = "Jobs whose computation has begun and is not finished.";
        page.lone("embeddings_inflight_jobs", help, Some(report.inflight as f64));
        let name = "embeddings_backpressure";
        page.gauge(name, "Whether a lane turns jobs away or holds them back: 1 or 0.");
        for lane in LANES {
            let on = report.backpressure.get(lane.name()).is_some_and(|it| it.on);
            page.sample(name, &[("lane", lane.name())], f64::from(u8::from(on)));
        }
        let name = "embeddings_stage_seconds";
        page.histogram(
            name,
            "The time that a job spent in a stage. What comes before its delivery is not known.",
        );
        for stage in Stage::ALL.into_iter().filter(|stage| *stage != Stage::Received) {
            page.distribution(
                name,
                &[("stage", stage.name())],
                &tally.stage_seconds[stage as usize],
            );
        }
        let name = "embeddings_stage_inside";
        page.gauge(
            name,
            "What is inside a stage: jobs, or inputs between tokenizing and computing.",
        );
        for stage in &report.stages {
            page.sample(name, &[("stage", &stage.name)], stage.inside as f64);
        }
        let name = "embeddings_stage_waiting_seconds";
        page.gauge(
            name,
            "How long something has been inside a stage without anything leaving it.",
        );
        for stage in &report.stages {
            page.sample(name, &[("stage", &stage.name)], seconds(stage.waiting_ms));
        }
        let name = "embeddings_stage_stalled";
        page.gauge(name, "Whether nothing has left a stage for liveness_max_stall_ms although something is inside: 1 or 0.");
        for stage in &report.stages {
            let condition = format!("{}_moves", stage.name);
            let stalled = report.conditions.iter().any(|it| it.name == condition && !it.ok);
            page.sample(name, &[("stage", &stage.name)], f64::from(u8::from(stalled)));
        }
        page.lone(
            "embeddings_last_progress_age_seconds",
            "Since something last left a stage; canaries see to it that it stays small.",
            report.progress_age_ms.map(seconds),
        );
    }

    fn broker(&self, page: &mut Page, tally: &Tally) {
        let broker = &self.report.broker;
        page.lone(
            "embeddings_broker_proof_age_seconds",
            "Since the broker last answered; absent before the first answer.",
            broker.proof_age_ms.map(|ms| seconds(ms) + self.age.as_secs_f64()),
        );
        let without = tally
            .disconnected
            .map_or(0.0, |since| self.now.since(since).as_secs_f64());
        page.lone(
            "embeddings_broker_disconnected_seconds",
            "How long there has been no session with the broker; 0 while there is one.",
            Some(without),
        );
        let help = "Sessions with the broker that were lost.";
        page.lone(
            "embeddings_broker_disconnects_total",
            help,
            Some(tally.disconnects as f64),
        );
        page.lone(
            "embeddings_broker_blocked_seconds",
            "How long the broker has been blocking what is published; 0 while it takes it.",
            Some(broker.blocked_ms.map_or(0.0, seconds)),
        );
    }

    fn watchdog(&self, page: &mut Page, tally: &Tally) {
        let pets = Some(tally.pets as f64);
        page.lone(
            "embeddings_watchdog_pets_total",
            "Times that systemd was told of a proven round.",
            pets,
        );
        page.lone(
            "embeddings_watchdog_pet_age_seconds",
            "Since systemd was last told; absent before the first time.",
            tally.petted.map(|at| self.now.since(at).as_secs_f64()),
        );
        page.lone(
            "embeddings_watchdog_limit_seconds",
            "Silence after which systemd ends the process (WatchdogSec=); absent where it does not watch.",
            self.watchdog.map(|limit| limit.as_secs_f64()),
        );
        page.lone(
            "embeddings_round_age_seconds",
            "Since a job or canary last went all the way round; absent before the first.",
            self.report
                .round_age_ms
                .map(|ms| seconds(ms) + self.age.as_secs_f64()),
        );
    }

    /// What alerts compare with: they hold for every configuration.
    fn limits(&self, page: &mut Page) {
        let all = || self.report.limits.iter();
        let name = "embeddings_limit_seconds";
        page.gauge(
            name,
            "Time limits in force, by their keys in the configuration, in seconds whatever the key's unit.",
        );
        for (key, ms) in all().filter(|(key, _)| key.ends_with("_ms")) {
            page.sample(name, &[("key", key)], seconds(*ms));
        }
        let name = "embeddings_limit";
        page.gauge(
            name,
            "Bounds in force, by their keys in the configuration: jobs, inputs, attempts or bytes.",
        );
        for (key, bound) in all().filter(|(key, _)| !key.ends_with("_ms")) {
            page.sample(name, &[("key", key)], *bound as f64);
        }
    }

    fn models(&self, page: &mut Page) {
        if self.report.models.is_empty() {
            return;
        }
        let name = "embeddings_model_state";
        page.gauge(name, "1 for the state in which a model is, 0 for the others.");
        for (model, state) in &self.report.models {
            for known in Told::ALL.map(Told::name) {
                let labels = [("model", model.as_str()), ("state", known)];
                page.sample(name, &labels, f64::from(u8::from(state == known)));
            }
        }
    }

    fn deaths(&self, page: &mut Page) {
        let name = "embeddings_kills_total";
        page.counter(
            name,
            "Processes that ended, by reason, from the records that are kept (the last 200).",
        );
        let kills = self.kills.as_deref();
        // Each reason that is known is there from the first, so that its first death is seen to be one more; and a record of
        // another version may have one that is not.
        let mut counts = BTreeMap::from_iter(Kill::REASONS.map(|reason| (reason, 0)));
        for kill in kills.into_iter().flatten() {
            *counts.entry(&kill.reason).or_default() += 1;
        }
        for (reason, count) in counts.into_iter().filter(|_| kills.is_some()) {
            page.sample(name, &[("reason", reason)], f64::from(count));
        }
        let since = self.unix_ms.saturating_sub(millis(self.storm));
        let recent = |kill: &&Kill| kill.at_unix_ms.is_some_and(|at| at >= since);
        page.lone(
            "embeddings_restarts_window",
            "Processes that ended within the last 15 minutes; at 5 systemd gives up for a while.",
            kills.map(|kills| kills.iter().filter(recent).count() as f64),
        );
    }

    fn http(&self, page: &mut Page) {
        let name = "embeddings_http_requests_total";
        page.counter(name, "HTTP requests answered, by route and status.");
        for ((route, code), count) in &self.requests {
            page.sample(
                name,
                &[("route", route), ("code", &code.to_string())],
                *count as f64,
            );
        }
    }

    fn traces(&self, page: &mut Page) {
        let (sent, dropped) = self.spans;
        let help = "Spans that the collector took; 0 where none is configured.";
        page.lone("embeddings_spans_sent_total", help, Some(sent as f64));
        let help = "Spans that were given up: the queue was full, or the collector would not have them.";
        page.lone("embeddings_spans_dropped_total", help, Some(dropped as f64));
    }

    fn process(&self, page: &mut Page) {
        let process = &self.process;
        let as_float = |value: Option<u64>| value.map(|value| value as f64);
        let help = "Processor time of all threads, in seconds.";
        page.lone("process_cpu_seconds_total", help, process.cpu_seconds);
        let help = "Memory in use, in bytes.";
        page.lone("process_resident_memory_bytes", help, as_float(process.rss_bytes));
        let started_ms = self.unix_ms.saturating_sub(self.now.as_millis());
        let help = "When the process was started, in seconds since 1970.";
        page.lone("process_start_time_seconds", help, Some(seconds(started_ms)));
        page.lone(
            "process_open_fds",
            "Open file descriptors.",
            as_float(process.open_fds),
        );
        page.lone(
            "process_max_fds",
            "Bound on open file descriptors.",
            as_float(process.max_fds),
        );
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn scene(tally: &Tally) -> Scene<'_> {
        Scene {
            report: Report {
                progress_age_ms: Some(10),
                limits: [("liveness_max_stall_ms", 30_000), ("max_queue", 256)]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
                models: [("m".to_owned(), "ready".to_owned())].into(),
                ..Report::default()
            },
            tally: Some(tally),
            age: Duration::ZERO,
            now: Moment::from_millis(5000),
            unix_ms: 1_000_000_000,
            kills: Some(
                [("signal", 999_999_000), ("of_tomorrow", 1)]
                    .map(|(reason, at)| Kill {
                        reason: reason.into(),
                        at_unix_ms: Some(at),
                        ..Kill::default()
                    })
                    .into(),
            ),
            storm: Duration::from_secs(900),
            watchdog: Some(Duration::from_secs(40)),
            process: Process::default(),
            spans: (7, 0),
            requests: [(("/metrics", 200), 3)].into(),
            refused: [("http_requests", 4), ("http_bodies", 0), ("http_connections", 0)],
        }
    }

    /// Goal: what the dashboard and the alerts ask for is there. Method: every name in them, against a page on which
    /// nothing is absent.
    #[test]
    fn the_dashboard_and_the_alerts_name_what_is_there() {
        let mut tally = Tally::new(Moment::ZERO);
        tally.petted = Some(Moment::ZERO);
        let mut scene = scene(&tally);
        scene.report.broker.proof_age_ms = Some(1);
        scene.report.round_age_ms = Some(1);
        scene.report.stages = Stage::ALL
            .map(|stage| crate::report::Stage {
                name: stage.name().into(),
                ..Default::default()
            })
            .into();
        scene.process = Process {
            rss_bytes: Some(1),
            cpu_seconds: Some(1.0),
            open_fds: Some(1),
            max_fds: Some(1),
        };
        let page = scene.write();
        let samples: BTreeSet<&str> = (page.lines())
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        for file in ["grafana/embeddings.json", "prometheus/embeddings.rules.yml"] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let named: BTreeSet<&str> = words
                .filter(|word| word.starts_with("embeddings_") || word.starts_with("process_"))
                .collect();
            assert!(named.len() > 9, "{named:?}");
            for name in named {
                assert!(samples.contains(name), "{file} names {name}, which is nowhere");
            }
        }
    }

    /// Goal: every name of the contract is there from the start. Method: its list, against the families of a service
    /// that has done nothing.
    #[test]
    fn the_contract_s_names_are_there() {
        let tally = Tally::new(Moment::ZERO);
        let mut scene = scene(&tally);
        scene.report.broker.proof_age_ms = Some(1);
        let page = scene.write();
        let families: BTreeSet<&str> = (page.lines())
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for name in [
            "jobs_total",
            "inputs_total",
            "tokens_total",
            "queue_jobs",
            "inflight_jobs",
            "job_seconds",
            "stage_seconds",
            "batch_tokens",
            "stage_stalled",
            "last_progress_age_seconds",
            "broker_proof_age_seconds",
            "broker_disconnected_seconds",
            "backpressure",
            "rejected_total",
            "canary_seconds",
            "watchdog_pets_total",
            "kills_total",
            "restarts_window",
            "model_state",
        ] {
            assert!(
                families.contains(format!("embeddings_{name}").as_str()),
                "{name}: {page}"
            );
        }
        assert!(
            page.contains("embeddings_kills_total{reason=\"signal\"} 1\n")
                && page.contains("embeddings_kills_total{reason=\"of_tomorrow\"} 1\n")
                && page.contains("embeddings_kills_total{reason=\"panic\"} 0\n"),
            "{page}"
        );
        assert!(page.contains("embeddings_restarts_window 1\n"), "{page}");
        assert!(
            page.contains("embeddings_broker_disconnected_seconds 5\n"),
            "{page}"
        );
        assert!(
            page.contains("embeddings_jobs_total{lane=\"bulk\",outcome=\"dead_lettered\"} 0\n"),
            "{page}"
        );
        assert!(
            page.contains("embeddings_model_state{model=\"m\",state=\"ready\"} 1\n"),
            "{page}"
        );
        for line in [
            "embeddings_rejected_total{reason=\"http_requests\"} 4",
            "embeddings_limit_seconds{key=\"liveness_max_stall_ms\"} 30",
            "embeddings_limit{key=\"max_queue\"} 256",
        ] {
            assert!(page.lines().any(|it| it == line), "{line}: {page}");
        }
        scene.kills = None;
        let unread = scene.write();
        assert!(
            !unread.contains("kills_total{") && !unread.contains("restarts_window"),
            "{unread}"
        );
    }
}
