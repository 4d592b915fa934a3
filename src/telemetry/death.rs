//! What a death leaves behind: one record, the same however the process died and whoever writes it.

use super::blackbox::{Contents, Phase};
use super::journal::{Entry, Priority, clip};
use super::storm;
use crate::report::Kill;
use serde::{Deserialize, Serialize};

/// `MESSAGE_ID=` of a death, the same for every reason.
pub const MESSAGE_ID_KILL: &str = "6f8c1727ddbd49cd9cee8f93eafa69e7";
/// Longest text of a field; with all of them a record stays far below a slot of the black box.
const TEXT_BYTES_MAX: usize = 1024;
/// Threads that are named.
const THREADS_BYTES_MAX: usize = 3072;

/// One death.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Death {
    /// `KILL_ID=`, unlike any other.
    pub kill_id: String,
    /// When it was recorded.
    pub unix_ms: u64,
    /// `KILL_REASON=`, one of the contract's, or `failed`.
    pub kill_reason: String,
    /// `STAGE=`: the stage that is to blame, where one is.
    pub stage: String,
    /// `LAST_PROGRESS_AGE_MS=`
    pub last_progress_age_ms: Option<u64>,
    /// `BROKER_PROOF_AGE_MS=`
    pub broker_proof_age_ms: Option<u64>,
    /// `UPTIME_MS=`: how long the process had lived.
    pub uptime_ms: Option<u64>,
    /// `QUEUE=`
    pub queue: Option<usize>,
    /// `INFLIGHT=`
    pub inflight: Option<usize>,
    /// `MODEL=`
    pub model: String,
    /// `SUSPECT_JOBS=`: ids of jobs that were being worked on.
    pub suspect_jobs: Vec<String>,
    /// `SUSPECTS=`: how many they were.
    pub suspects: usize,
    /// `INSIDE=`: what was inside each stage.
    pub inside: String,
    /// `BATCH_SIZE=`: inputs in the engines.
    pub batch_size: Option<usize>,
    /// `THREADS=`: each thread and what it waited for.
    pub threads: String,
    /// `DETAIL=`: whatever else is known.
    pub detail: String,
    /// `EXIT_CODE=`, as systemd puts it.
    pub exit_code: String,
    /// `EXIT_STATUS=`
    pub exit_status: String,
    /// `SERVICE_RESULT=`
    pub service_result: String,
    /// `KILLED_PID=`
    pub pid: u32,
    /// `KILLED_INVOCATION=`
    pub invocation_id: String,
    /// `VERSION=`
    pub version: String,
    /// In a black box: the process has written its record itself.
    #[serde(skip_serializing_if = "is_false")]
    pub recorded: bool,
    /// In the history: the journal has not taken it yet.
    #[serde(skip_serializing_if = "is_false")]
    pub unsent: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl From<Death> for Kill {
    /// What people are shown of it.
    fn from(death: Death) -> Kill {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut other = match serde_json::to_value(&death) {
            Ok(serde_json::Value::Object(fields)) => fields.into_iter().collect(),
            _ => std::collections::BTreeMap::new(),
        };
        for shown in ["kill_reason", "stage", "unix_ms", "uptime_ms", "detail"] {
            other.remove(shown);
        }
        Kill {
            stage: named(&death.stage),
            at_unix_ms: Some(death.unix_ms),
            uptime_ms: death.uptime_ms,
            detail: named(&death.detail),
            hint: Some(storm::hint(Some(&death)).to_owned()),
            reason: death.kill_reason,
            other,
        }
    }
}

impl Death {
    /// A death of which only the reason is known.
    pub fn of(kill_reason: &str) -> Death {
        Death {
            kill_reason: kill_reason.into(),
            ..Death::default()
        }
    }

    /// Adds what the black box knows and the death does not. `now_ms` is the present on the clock that all
    /// processes share: what the box said was true when it was written, and is older now.
    pub fn learn(&mut self, known: &Contents, now_ms: u64) {
        let figures = &known.figures;
        let since = now_ms.saturating_sub(figures.monotonic_ms);
        let older = |age: Option<u64>| age.map(|age| age + since);
        self.last_progress_age_ms = self.last_progress_age_ms.or(older(figures.progress_age_ms));
        self.broker_proof_age_ms = self.broker_proof_age_ms.or(older(figures.proof_age_ms));
        let since_ms = Some(figures.identity.since_ms).filter(|&ms| ms > 0);
        self.uptime_ms = self.uptime_ms.or(since_ms.map(|ms| now_ms.saturating_sub(ms)));
        self.queue = self.queue.or(figures.queue);
        self.inflight = self.inflight.or(figures.inflight);
        let inside = |name: &str| {
            figures
                .stages
                .iter()
                .find(|it| it.stage == name)
                .map(|it| it.inside)
        };
        self.batch_size = self.batch_size.or(inside("computed"));
        if self.model.is_empty() {
            self.model.clone_from(&figures.model);
        }
        if self.stage.is_empty() {
            self.stage.clone_from(&figures.stalled);
        }
        if self.inside.is_empty() {
            let stages = figures
                .stages
                .iter()
                .map(|it| format!("{}={}", it.stage, it.inside));
            self.inside = stages.collect::<Vec<_>>().join(" ");
        }
        if self.suspects == 0 {
            self.suspects = known.suspects.total;
            self.suspect_jobs.clone_from(&known.suspects.ids);
        }
        if self.pid == 0 {
            self.pid = figures.identity.pid;
            self.invocation_id.clone_from(&figures.identity.invocation_id);
            self.version.clone_from(&figures.identity.version);
        }
    }

    /// Puts the blame on the stage that waited longest: for deaths that come from outside because nothing
    /// went on inside.
    pub fn blame_the_longest_wait(&mut self, known: &Contents) {
        let waiting = known.figures.stages.iter().filter(|it| it.inside > 0);
        if let (true, Some(longest)) = (self.stage.is_empty(), waiting.max_by_key(|it| it.waiting_ms)) {
            self.stage.clone_from(&longest.stage);
        }
        if self.detail.is_empty() && known.figures.phase == Phase::Loading {
            self.detail = "while loading".into();
        }
    }

    /// Gives it its id and its moment, and every text its bound.
    pub fn seal(&mut self, unix_ms: u64) {
        if self.kill_id.is_empty() {
            self.kill_id = format!("{:032x}", rand::random::<u128>());
            self.unix_ms = unix_ms;
        }
        let texts = [
            &mut self.kill_reason,
            &mut self.stage,
            &mut self.model,
            &mut self.inside,
            &mut self.detail,
        ];
        for text in texts {
            let plain = text.replace(|c: char| c.is_control() && c != '\n', " ");
            *text = clip(plain.trim(), TEXT_BYTES_MAX).into();
        }
        self.threads = clip(&self.threads, THREADS_BYTES_MAX).into();
    }

    /// The death in one line.
    pub fn summary(&self) -> String {
        let mut line = format!("embeddings ended: {}", self.kill_reason);
        if !self.stage.is_empty() {
            line.push_str(&format!(" at {}", self.stage));
        }
        if !self.detail.is_empty() {
            line.push_str(&format!(" · {}", self.detail.replace('\n', " · ")));
        }
        let seconds = |ms: u64| ms as f64 / 1000.0;
        if let Some(age) = self.last_progress_age_ms {
            line.push_str(&format!(" · progress {:.1} s ago", seconds(age)));
        }
        if let Some(age) = self.broker_proof_age_ms {
            line.push_str(&format!(" · broker proof {:.1} s ago", seconds(age)));
        }
        if let (Some(queue), Some(inflight)) = (self.queue, self.inflight) {
            line.push_str(&format!(" · queue {queue} · inflight {inflight}"));
        }
        line
    }

    /// The record for the journal. The contract's fields are always there, even if nothing is known.
    pub fn entry(&self, unit: Option<&str>) -> Entry {
        let mut entry = Entry::new(Priority::Critical, &self.summary());
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let size = |size: Option<usize>| size.map(|size| size.to_string()).unwrap_or_default();
        // A comma parts the ids, so it can be in none of them.
        let suspects: Vec<String> = self.suspect_jobs.iter().map(|id| id.replace(',', "_")).collect();
        let promised = [
            ("MESSAGE_ID", MESSAGE_ID_KILL.to_owned()),
            ("KILL_REASON", self.kill_reason.clone()),
            ("STAGE", self.stage.clone()),
            ("LAST_PROGRESS_AGE_MS", number(self.last_progress_age_ms)),
            ("BROKER_PROOF_AGE_MS", number(self.broker_proof_age_ms)),
            ("QUEUE", size(self.queue)),
            ("INFLIGHT", size(self.inflight)),
            ("MODEL", self.model.clone()),
            ("SUSPECT_JOBS", suspects.join(",")),
            ("KILL_ID", self.kill_id.clone()),
        ];
        let more = [
            ("SUSPECTS", self.suspects.to_string()),
            ("UPTIME_MS", number(self.uptime_ms)),
            ("INSIDE", self.inside.clone()),
            ("BATCH_SIZE", size(self.batch_size)),
            ("THREADS", self.threads.clone()),
            ("DETAIL", self.detail.clone()),
            ("EXIT_CODE", self.exit_code.clone()),
            ("EXIT_STATUS", self.exit_status.clone()),
            ("SERVICE_RESULT", self.service_result.clone()),
            ("KILLED_PID", self.pid.to_string()),
            ("KILLED_INVOCATION", self.invocation_id.clone()),
            ("KILLED_UNIX_MS", self.unix_ms.to_string()),
            ("VERSION", self.version.clone()),
            // Believed from root only: by it `journalctl -u` finds the record whoever wrote it.
            ("OBJECT_SYSTEMD_UNIT", unit.unwrap_or_default().to_owned()),
        ];
        for (name, value) in &promised {
            entry.field(name, value);
        }
        for (name, value) in more.iter().filter(|(_, value)| !value.is_empty()) {
            entry.field(name, value);
        }
        entry
    }
}

/// Every thread of this process and the place in the kernel where it waits, as `engine-0:futex_wait`. What
/// cannot be read is left out.
pub fn threads() -> String {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return String::new();
    };
    let mut threads: Vec<String> = Vec::new();
    for task in tasks.flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        if let Some(name) = read("comm") {
            let wait = read("wchan").filter(|wait| wait != "0").unwrap_or_default();
            threads.push(format!("{}:{wait}", name.trim()));
        }
    }
    threads.sort();
    threads.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::blackbox::{Figures, StageFigures, Suspects};
    use super::*;

    #[test]
    fn a_death_learns_from_the_box_what_it_does_not_know_itself() {
        let known = Contents {
            figures: Figures {
                monotonic_ms: 1000,
                phase: Phase::Ready,
                queue: Some(3),
                progress_age_ms: Some(10),
                proof_age_ms: Some(20),
                model: "of the box".into(),
                stages: vec![
                    StageFigures {
                        stage: "batched".into(),
                        inside: 2,
                        waiting_ms: 5,
                    },
                    StageFigures {
                        stage: "computed".into(),
                        inside: 7,
                        waiting_ms: 9,
                    },
                    StageFigures {
                        stage: "acked".into(),
                        inside: 0,
                        waiting_ms: 0,
                    },
                ],
                ..Figures::default()
            },
            suspects: Suspects {
                total: 20,
                ids: vec!["a,b".into(), "c".into()],
                ..Suspects::default()
            },
            death: None,
        };
        let mut death = Death::of("watchdog_timeout");
        death.broker_proof_age_ms = Some(1);
        death.model = "own".into();
        death.learn(&known, 1500);
        death.blame_the_longest_wait(&known);
        death.seal(42);
        assert_eq!(death.last_progress_age_ms, Some(510));
        assert_eq!(
            (death.broker_proof_age_ms, death.model.as_str()),
            (Some(1), "own")
        );
        assert_eq!((death.stage.as_str(), death.batch_size), ("computed", Some(7)));
        assert_eq!((death.kill_id.len(), death.unix_ms), (32, 42));
        let entry = death.entry(Some("embeddings.service"));
        let text = String::from_utf8_lossy(entry.bytes()).into_owned();
        for field in [
            "PRIORITY=2\n",
            "KILL_REASON=watchdog_timeout\n",
            "SUSPECT_JOBS=a_b,c\n",
            "SUSPECTS=20\n",
            "INFLIGHT=\n",
            "INSIDE=batched=2 computed=7 acked=0\n",
            "OBJECT_SYSTEMD_UNIT=embeddings.service\n",
        ] {
            assert!(text.contains(field), "{field} is not in {text}");
        }
        assert!(!text.contains("DETAIL="));
    }

    #[test]
    fn threads_are_named() {
        assert!(threads().contains(':'));
    }
}
