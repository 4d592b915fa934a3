//! The one table of what `embeddings check` looks at: a stable id, what it finds, and why that matters.
//!
//! The command, `--json` and docs/operating.md speak of the same rows; a test holds the document to them. An id is
//! never given a new meaning: scripts and alerts name them.

/// What an error of this row does to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It runs, and a part of it does not work as meant.
    Part,
    /// It starts, and takes or answers no jobs.
    NoWork,
    /// It does not start.
    NoStart,
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Group, a dot, and what is looked at.
    pub id: &'static str,
    /// What it finds, when it finds something.
    pub finds: &'static str,
    /// Why that matters, in a sentence.
    pub why: &'static str,
    /// What an error does.
    pub effect: Effect,
}

impl Check {
    /// The part of the id before the first dot.
    pub fn group(&self) -> &'static str {
        self.id.split('.').next().unwrap_or_default()
    }
}

/// Groups in the order in which they are shown, with their names for people.
pub const GROUPS: [(&str, &str); 7] = [
    ("config", "configuration"),
    ("broker", "broker"),
    ("permissions", "permissions"),
    ("topology", "topology"),
    ("model", "model"),
    ("device", "device"),
    ("system", "system"),
];

macro_rules! checks {
    ($($name:ident, $id:literal, $effect:ident, $finds:literal, $why:literal;)*) => {
        $(
            #[doc = concat!("`", $id, "`: ", $finds)]
            pub const $name: Check = Check { id: $id, finds: $finds, why: $why, effect: Effect::$effect };
        )*
        /// Every row, in the order in which they are shown.
        pub const ALL: &[&Check] = &[$(&$name),*];
    };
}

checks! {
    CONFIG_FILES, "config.files", NoStart,
        "a file that cannot be read, or a file of `conf.d` that is not read because of its name",
        "What stands in a file that is not read has no effect.";
    CONFIG_SYNTAX, "config.syntax", NoStart,
        "a file that is not TOML",
        "Nothing of such a file can be used, so the service ends with 78 and is not started again.";
    CONFIG_KEY, "config.key", NoStart,
        "a key that does not exist, in a file or a flag",
        "A misspelt key would leave the default in force without a word, so it is refused.";
    CONFIG_ENVIRONMENT, "config.environment", NoStart,
        "a variable `EMBED_…` that names no key, or that this shell has and the service has not; an `EnvironmentFile=` or what a `PassEnvironment=` of the unit passes, if that cannot be read",
        "A misspelt variable would leave the default in force without a word, so it is refused.";
    CONFIG_VALUE, "config.value", NoStart,
        "a value of the wrong type or out of its range",
        "The service does not guess what was meant: it ends with 78 and is not started again.";
    CONFIG_COMBINATION, "config.combination", NoStart,
        "values that exclude each other: an alias twice, a time-out below its interval, TLS settings without TLS",
        "Each is allowed alone, and together the service could not do what they say.";
    CONFIG_RISK, "config.risk", Part,
        "values that are allowed together and rarely wanted: rings out of order, bounds that are never reached",
        "The service starts with it, and a limit is not what it seems.";
    CONFIG_OVERRIDDEN, "config.overridden", Part,
        "a key that two files of `conf.d` set to different values",
        "The file whose name sorts last wins, and whoever edits the other one sees no effect.";
    CONFIG_PASSWORD, "config.password", NoStart,
        "a broker's password that cannot be read, is empty, or has no user in `broker.url`",
        "Without its password the service cannot log in.";
    CONFIG_SECRET, "config.secret", Part,
        "a password or token in a file that everybody on this machine can read",
        "Whoever can read it can send, take and delete jobs as the service.";
    CONFIG_USER, "config.user", NoStart,
        "a file that the service's user cannot read",
        "Root can read everything, the service runs as its own user and ends with 78.";
    CONFIG_HTTP, "config.http", NoStart,
        "`http.listen` beyond loopback without a token, or a token's file or credential that is missing or empty",
        "Whoever reaches the port could use the machine, so the service refuses to start.";
    BROKER_NAME, "broker.name", NoWork,
        "a host whose name does not resolve",
        "The service waits for its broker and takes no job meanwhile.";
    BROKER_ADDRESS, "broker.address", NoWork,
        "a node that refuses connections or does not answer",
        "The service waits for its broker and takes no job meanwhile; with one node of several away the others do its work.";
    BROKER_PROTOCOL, "broker.protocol", NoWork,
        "a port where something other than AMQP 0-9-1 is spoken, or TLS where `broker.url` says `amqp://`",
        "Without a common language there is no login.";
    BROKER_VERSION, "broker.version", NoWork,
        "a broker older than RabbitMQ 3.10",
        "At-least-once dead-lettering came with 3.10; an older broker refuses or ignores the queues' arguments.";
    BROKER_TLS, "broker.tls", NoWork,
        "`amqps://` where the port speaks no TLS, or a certificate that is not trusted",
        "The service does not send its password to somebody whom it cannot recognise.";
    BROKER_CA, "broker.ca_file", NoWork,
        "`broker.ca_file` that is missing, unreadable, or holds no certificate",
        "Without its roots no broker is trusted.";
    BROKER_PLAINTEXT, "broker.plaintext", Part,
        "a password that goes to another machine without TLS",
        "Whoever sees the network's packets reads it.";
    BROKER_GUEST, "broker.guest", NoWork,
        "the user `guest` from another machine",
        "RabbitMQ lets `guest` in from its own machine alone.";
    BROKER_LOGIN, "broker.login", NoWork,
        "a user or password that the broker does not take",
        "The service waits, tries again, and takes no job meanwhile.";
    BROKER_VHOST, "broker.vhost", NoWork,
        "a virtual host that is not there, or that the user may not enter",
        "Queues live in a virtual host; without one there are none.";
    BROKER_ALARM, "broker.alarm", NoWork,
        "a broker that takes no messages because of a memory or disk alarm",
        "Replies cannot leave, so the service is degraded until the alarm is over.";
    PERMISSIONS_CONFIGURE, "permissions.configure", NoWork,
        "no right to configure the service's own queues",
        "The service declares a queue of its own for canaries, and with `broker.declare` the others.";
    PERMISSIONS_WRITE, "permissions.write", NoWork,
        "no right to write to the default exchange or to the events",
        "Replies go out by the default exchange, heartbeats by the events.";
    PERMISSIONS_READ, "permissions.read", NoWork,
        "no right to read the lanes' queues",
        "Jobs come out of these queues.";
    TOPOLOGY_QUEUE, "topology.queue", NoWork,
        "a queue of the service that is missing though `broker.declare` is false",
        "The service only looks for its queues then, and waits until they are there.";
    TOPOLOGY_RESUMED, "topology.resumed", Part,
        "queues for jobs that go on that are missing though `broker.declare` is false",
        "Without them there are no checkpoints and no second attempts; only a job with an id that was at work when a \
         process died is tried again where it is, until the broker has counted `max_attempts` deliveries, also those \
         over which it waited.";
    TOPOLOGY_EXCHANGE, "topology.exchange", NoWork,
        "the exchange of events that is missing though `broker.declare` is false",
        "Heartbeats and backpressure are told there.";
    TOPOLOGY_CONFLICT, "topology.conflict", NoWork,
        "a queue or exchange of the service's name that is of another kind or has other arguments",
        "The broker refuses the service's declaration at every attempt.";
    MODEL_MISSING, "model.missing", NoStart,
        "a configured model that is not installed, or whose `path` is no model's folder",
        "Every configured model is loaded once at the start.";
    MODEL_FILES, "model.files", NoStart,
        "a folder in which a file is missing, cut off, or not what its name says",
        "A model that is not whole would give wrong vectors, so it is refused.";
    MODEL_ARCHITECTURE, "model.architecture", NoStart,
        "an architecture, a module or an option that this engine does not know",
        "A guess would give vectors that look right and are not.";
    MODEL_USER, "model.user", NoStart,
        "a model that the service's user cannot read",
        "Root can read everything, the service runs as its own user.";
    MODEL_MEMORY, "model.memory", Part,
        "models that together need more memory than the unit or the machine has",
        "The kernel ends the service while it loads, or soon after.";
    MODEL_WORKS, "model.works", NoStart,
        "a model that loads and computes nothing usable, or does not load",
        "What cannot be done here cannot be done by the service.";
    DEVICE_BUILD, "device.build", NoStart,
        "a `device` that this build has not: `cuda` in the package for CPUs, `metal` on Linux",
        "The service does not compute elsewhere than it was told.";
    DEVICE_LIBRARIES, "device.libraries", NoStart,
        "a device whose libraries or driver are missing",
        "The service does not compute elsewhere than it was told.";
    DEVICE_FALLBACK, "device.fallback", Part,
        "`device = \"auto\"` in a build for a card, where the card cannot be used",
        "The service computes on the CPU, many times slower than it was meant to.";
    DEVICE_PRECISION, "device.precision", NoStart,
        "a `precision` that the device has not: `f16` on a CPU, `int8` on a GPU",
        "Each device computes in its own number formats.";
    DEVICE_THREADS, "device.threads", Part,
        "more `engine.threads` than CPU affinity and the cgroup's quota allow",
        "Threads that wait for each other compute no faster.";
    SYSTEM_PORT, "system.port", Part,
        "`http.listen` on a port that another program has, or an address that this machine has not",
        "Health, metrics and the OpenAI route are not served; jobs from the broker are.";
    SYSTEM_DIRECTORIES, "system.directories", Part,
        "a runtime, state or cache directory that the service's user cannot write",
        "The status socket, the records of deaths and models that are pulled live there.";
    SYSTEM_RUNNING, "system.running", Part,
        "a process that has the status socket and does not answer",
        "A second service cannot take its place while it hangs.";
    SYSTEM_UNIT, "system.unit", NoStart,
        "a unit that is masked, failed, or not enabled",
        "systemd does not start it, or not at the next boot.";
    SYSTEM_WATCHDOG, "system.watchdog", Part,
        "a unit without `WatchdogSec=`",
        "The outer ring ends a process that cannot even end itself.";
    SYSTEM_MONITOR, "system.monitor", Part,
        "a heartbeat monitor that does not run",
        "It ends workers that fall silent when every other watchdog is off.";
    SYSTEM_SANDBOX, "system.sandbox", NoStart,
        "a file or model below /home, /root, /run/user or /tmp",
        "The unit's sandbox (ProtectHome=, PrivateTmp=) hides these folders from the service.";
    SYSTEM_COLLECTOR, "system.collector", Part,
        "a collector in `traces.otlp_endpoint` that does not answer, or would not take spans",
        "Spans are dropped; jobs go on as if nothing were.";
    SYSTEM_CLOCK, "system.clock", Part,
        "a clock that nothing keeps right",
        "`x-sent-at-ms` counts a job's budget from the caller's clock; a wrong one here lets jobs run out early or late.";
}

/// The rows as a table of Markdown, for docs/operating.md.
pub fn markdown() -> String {
    let mut out = String::from("| id | what it finds | why it matters |\n|---|---|---|\n");
    for check in ALL {
        out.push_str(&format!("| `{}` | {} | {} |\n", check.id, check.finds, check.why));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_in_known_groups_and_in_their_order() {
        let ids: BTreeSet<&str> = ALL.iter().map(|check| check.id).collect();
        assert_eq!(ids.len(), ALL.len());
        let order: Vec<usize> = ALL
            .iter()
            .map(|check| {
                GROUPS
                    .iter()
                    .position(|(group, _)| *group == check.group())
                    .expect("a known group")
            })
            .collect();
        assert!(order.is_sorted(), "rows of a group stand together");
        for check in ALL {
            assert!(
                check.why.ends_with('.') && !check.finds.ends_with('.'),
                "{}",
                check.id
            );
        }
    }
}
