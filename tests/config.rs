//! Goal: what operators may rely on in the configuration: precedence, refusals that say everything, secrets
//! that stay secret. Method: whole loads over made-up folders and environments; nothing global is read.

mod machine;

use embeddings::config::{self, Device, KEYS, Kind, Limits, Loaded, MODEL_KEYS, Origin, Precision, Preset};
use machine::Machine;
use proptest::prelude::*;
use std::path::Path;
use std::time::Duration;

fn origin(loaded: &Loaded, key: &str) -> Origin {
    loaded
        .sources
        .iter()
        .find(|setting| setting.key == key)
        .unwrap()
        .origin
        .clone()
}

#[test]
fn an_empty_machine_gives_the_contract_s_defaults() {
    let loaded = Machine::new().good();
    let (limits, config) = (loaded.config.limits, &loaded.config);
    assert_eq!(limits, Limits::default());
    assert_eq!((limits.max_inflight, limits.max_queue), (8, 256));
    assert_eq!(
        (limits.max_attempts, limits.max_inputs, limits.batch_inputs),
        (5, 2048, 32)
    );
    assert_eq!(
        (limits.max_stream_inputs, limits.max_queue_bytes),
        (100_000, 256 << 20)
    );
    let ms = Duration::from_millis;
    assert_eq!(
        (limits.liveness_max_stall, limits.disconnect_kill),
        (ms(30_000), ms(10_000))
    );
    assert_eq!((limits.watchdog_interval, limits.drain), (ms(1000), ms(5000)));
    assert_eq!(
        (limits.heartbeat_interval, limits.heartbeat_timeout),
        (ms(5000), ms(45_000))
    );
    assert_eq!(
        (limits.slam_limit, limits.canary_interval, limits.idle_unload),
        (ms(20_000), ms(5000), ms(0))
    );
    assert_eq!(config.default_model, "all-MiniLM-L6-v2");
    assert_eq!(config.models["all-MiniLM-L6-v2"].device, Device::Auto);
    assert_eq!(config.broker.url, "amqp://guest:guest@127.0.0.1:5672/%2f");
    assert_eq!(
        (config.broker.prefix.as_str(), config.broker.declare),
        ("embeddings", true)
    );
    assert_eq!(config.broker.max_message_bytes, 16_777_216);
    assert_eq!((config.engine.threads, config.engine.batch_tokens), (0, 512));
    assert_eq!(config.http.listen.unwrap().to_string(), "127.0.0.1:8970");
    assert_eq!(
        (&config.traces.otlp_endpoint, config.traces.sample_percent),
        (&None, 0)
    );
    assert_eq!(config.log.level, "info");
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert!(
        loaded
            .sources
            .iter()
            .all(|setting| setting.origin != Origin::Flag)
    );
}

#[test]
fn each_layer_wins_over_the_one_before_and_every_value_knows_its_own() {
    let machine = Machine::new()
        .file("max_queue = 1\nmax_inputs = 1\nmax_attempts = 1\nbatch_inputs = 1\n[broker]\nprefix = 'one'\n")
        .write(
            "etc/conf.d/20-b.toml",
            "max_inputs = 3\nmax_attempts = 3\nbatch_inputs = 3\n",
        )
        .write(
            "etc/conf.d/10-a.toml",
            "max_inputs = 2\n[broker]\ndeclare = false\n",
        )
        .write("etc/conf.d/30-not-toml.bak", "max_queue = 99\n")
        .env("EMBED_MAX_ATTEMPTS", "4")
        .env("EMBED_BATCH_INPUTS", "4")
        .env("EMBED_BROKER__URL", "amqp://mq.example")
        .set("batch_inputs=5")
        .set("max_inflight = 1");
    let loaded = machine.good();
    let limits = loaded.config.limits;
    assert_eq!(
        (
            limits.max_queue,
            limits.max_inputs,
            limits.max_attempts,
            limits.batch_inputs
        ),
        (1, 3, 4, 5)
    );
    assert_eq!(
        (loaded.config.broker.prefix.as_str(), loaded.config.broker.declare),
        ("one", false)
    );
    assert_eq!(
        origin(&loaded, "max_queue"),
        Origin::File(machine.path("etc/embeddings.toml"))
    );
    assert_eq!(
        origin(&loaded, "max_inputs"),
        Origin::File(machine.path("etc/conf.d/20-b.toml"))
    );
    assert_eq!(
        origin(&loaded, "broker.declare"),
        Origin::File(machine.path("etc/conf.d/10-a.toml"))
    );
    assert_eq!(
        origin(&loaded, "max_attempts"),
        Origin::Env("EMBED_MAX_ATTEMPTS".to_owned())
    );
    assert_eq!(
        origin(&loaded, "broker.url"),
        Origin::Env("EMBED_BROKER__URL".to_owned())
    );
    assert_eq!(origin(&loaded, "batch_inputs"), Origin::Flag);
    assert_eq!(origin(&loaded, "max_inflight"), Origin::Flag);
    assert_eq!(origin(&loaded, "max_queue_bytes"), Origin::Default);
}

#[test]
fn the_seven_names_of_the_environment_work_as_they_are() {
    let loaded = Machine::new()
        .env("EMBED_MAX_INFLIGHT", "3")
        .env("EMBED_MAX_QUEUE", "64")
        .env("EMBED_LIVENESS_MAX_STALL_MS", "8000")
        .env("EMBED_DISCONNECT_KILL_MS", "4000")
        .env("EMBED_WATCHDOG_INTERVAL_MS", "250")
        .env("EMBED_DRAIN_MS", "0")
        .env("HEARTBEAT_TIMEOUT", "9000")
        .good();
    let (limits, ms) = (loaded.config.limits, Duration::from_millis);
    assert_eq!((limits.max_inflight, limits.max_queue), (3, 64));
    assert_eq!(
        (limits.liveness_max_stall, limits.disconnect_kill),
        (ms(8000), ms(4000))
    );
    assert_eq!((limits.watchdog_interval, limits.drain), (ms(250), ms(0)));
    assert_eq!(limits.heartbeat_timeout, ms(9000));
    assert_eq!(
        origin(&loaded, "heartbeat_timeout_ms"),
        Origin::Env("HEARTBEAT_TIMEOUT".to_owned())
    );
    let both = Machine::new()
        .env("HEARTBEAT_TIMEOUT", "9000")
        .env("EMBED_HEARTBEAT_TIMEOUT_MS", "8000")
        .good();
    assert_eq!(both.config.limits.heartbeat_timeout, ms(8000));
}

#[test]
fn config_reads_one_file_only_and_it_must_be_there() {
    let mut machine = Machine::new()
        .file("max_queue = 1")
        .write("own.toml", "max_inputs = 7");
    machine.inputs.file = Some(machine.path("own.toml"));
    let loaded = machine.good();
    assert_eq!(
        (loaded.config.limits.max_queue, loaded.config.limits.max_inputs),
        (256, 7)
    );
    machine.inputs.file = Some(machine.path("absent.toml"));
    let message = machine.bad();
    assert!(message.contains("absent.toml: failed to read"), "{message}");
}

#[test]
fn models_have_sections_aliases_and_limits_of_their_own() {
    let machine = Machine::new()
        .file(
            "default_model = 'minilm'\nmax_queue = 100\n[models.all-MiniLM-L6-v2]\naliases = ['minilm']\n\
             [models.\"bge-small-en-v1.5\"]\npath = 'bge'\ndevice = 'cpu'\nprecision = 'bf16'\nmax_queue = 9\n",
        )
        .env("EMBED_MODELS__BGE_SMALL_EN_V1_5__MAX_INPUTS", "11")
        .set("models.\"bge-small-en-v1.5\".aliases=[\"bge\", small]");
    let config = machine.good().config;
    assert_eq!(config.default_model, "all-MiniLM-L6-v2");
    assert_eq!(config.models.len(), 2);
    let bge = &config.models["bge-small-en-v1.5"];
    assert_eq!((bge.device, bge.precision), (Device::Cpu, Precision::Bf16));
    assert_eq!(bge.aliases, ["bge", "small"]);
    // A path in a file is relative to that file.
    assert_eq!(bge.path.as_deref(), Some(machine.path("etc/bge").as_path()));
    assert_eq!(config.model_name("small"), Some("bge-small-en-v1.5"));
    assert_eq!(config.model_name("nobody"), None);
    let own = config.limits_of("bge-small-en-v1.5");
    assert_eq!((own.max_queue, own.max_inputs, own.max_inflight), (9, 11, 8));
    assert_eq!(config.limits_of("all-MiniLM-L6-v2").max_queue, 100);
}

#[test]
fn all_errors_are_listed_at_once() {
    let message = Machine::new()
        .file("max_queue = 0\nnonsense = 1\nhttp.listen = '0.0.0.0:80'\n")
        .write("etc/conf.d/broken.toml", "= =")
        .env("EMBED_DRAIN_MS", "x")
        .set("engine.batch_tokens=1")
        .bad();
    let expected = [
        "max_queue = 0",
        "nonsense",
        "http.listen",
        "broken.toml:1",
        "EMBED_DRAIN_MS",
        "engine.batch_tokens = 1",
    ];
    for part in expected {
        assert!(message.contains(part), "{part} is not in:\n{message}");
    }
    assert_eq!(message.lines().count(), expected.len(), "{message}");
}

#[test]
fn risky_combinations_are_warnings() {
    for (machine, part) in [
        (
            Machine::new().set("heartbeat_timeout_ms=20000"),
            "20000 is below liveness_max_stall_ms",
        ),
        (
            Machine::new().set("canary_interval_ms=40000"),
            "40000 is above liveness_max_stall_ms",
        ),
        (
            Machine::new().set("watchdog_interval_ms=20000"),
            "watchdog_interval_ms = 20000 is above",
        ),
        (
            Machine::new().set("max_queue=4"),
            "max_inflight = 8 is above max_queue = 4",
        ),
        (
            Machine::new().set("models.m.max_queue=257"),
            "models.\"m\".max_queue = 257 is above max_queue = 256 of all models together",
        ),
        (
            Machine::new().file("[models.m]\nmax_inflight = 9\n"),
            "models.\"m\".max_inflight = 9 is above max_inflight = 8",
        ),
        (
            Machine::new().set("max_queue_bytes=1048576"),
            "max_queue_bytes = 1048576 is below",
        ),
        (
            Machine::new().set("idle_unload_ms=100"),
            "idle_unload_ms = 100 is short",
        ),
        (
            Machine::new().set("traces.sample_percent=5"),
            "traces.otlp_endpoint is off",
        ),
        (
            Machine::new().set("http.listen=").set("http.token_file=/t"),
            "nothing reads it",
        ),
        (
            Machine::new()
                .env("WATCHDOG_USEC", "8000000")
                .set("disconnect_kill_ms=6000")
                .set("liveness_max_stall_ms=6000"),
            "over half of systemd's",
        ),
        (
            Machine::new().env("WATCHDOG_USEC", "31000000"),
            "liveness_max_stall_ms + watchdog_interval_ms = 31000 is not below systemd's WatchdogSec (31000 ms)",
        ),
        (
            Machine::new()
                .env("WATCHDOG_USEC", "40000000")
                .set("disconnect_kill_ms=40000"),
            "disconnect_kill_ms = 40000 is not below systemd's WatchdogSec (40000 ms)",
        ),
        (
            Machine::new().env("WATCHDOG_USEC", "60000000"),
            "is not above systemd's WatchdogSec (60000 ms)",
        ),
    ] {
        let warnings = machine.good().warnings;
        assert_eq!(warnings.len(), 1, "{part}: {warnings:?}");
        assert!(warnings[0].contains(part), "{part}: {warnings:?}");
    }
    let shipped = Machine::new().env("WATCHDOG_USEC", "40000000").good();
    assert_eq!(shipped.warnings, Vec::<String>::new());
}

#[test]
fn directories_come_from_systemd_else_for_root_from_the_service_else_from_xdg() {
    let dirs = |machine: &Machine| {
        let dirs = machine.good().config.dirs;
        [dirs.runtime, dirs.state, dirs.cache].map(|dir| dir.display().to_string())
    };
    let home = [
        "/tmp/embeddings-1000",
        "/home/someone/.local/state/embeddings",
        "/home/someone/.cache/embeddings",
    ];
    assert_eq!(dirs(&Machine::new()), home);
    let xdg = Machine::new()
        .env("XDG_RUNTIME_DIR", "/run/user/1000")
        .env("XDG_STATE_HOME", "/s")
        .env("XDG_CACHE_HOME", "relative/is/ignored");
    assert_eq!(
        dirs(&xdg),
        [
            "/run/user/1000/embeddings",
            "/s/embeddings",
            "/home/someone/.cache/embeddings"
        ]
    );
    let systemd = xdg
        .env("RUNTIME_DIRECTORY", "/run/embeddings:/run/other")
        .env("STATE_DIRECTORY", "/var/lib/private/embeddings")
        .env("CACHE_DIRECTORY", "/var/cache/embeddings");
    assert_eq!(
        dirs(&systemd),
        [
            "/run/embeddings",
            "/var/lib/private/embeddings",
            "/var/cache/embeddings"
        ]
    );
    let mut root = Machine::new().write("lib/models/.keep", "");
    root.inputs.uid = 0;
    assert_eq!(dirs(&root)[1], home[1]);
    root.inputs.system_state = root.path("lib");
    assert_eq!(
        dirs(&root),
        [
            "/run/embeddings",
            &root.path("lib").display().to_string(),
            "/var/cache/embeddings"
        ]
    );
}

/// An instance has files, folders and a name of its own, and the models of the service.
#[test]
fn an_instance_reads_its_own_files_and_has_its_own_folders() {
    let machine = Machine::new()
        .file("max_queue = 1\n")
        .write("etc/instances/gpu0/embeddings.toml", "max_queue = 2\n")
        .write("etc/instances/gpu0/conf.d/a.toml", "max_inputs = 3\n")
        .write("lib/embeddings/models/shared/config.json", "{}");
    let of = |name: &str, uid: u32| {
        let mut inputs = machine.inputs.clone().of_instance(Some(name.to_owned()));
        inputs.uid = uid;
        inputs.system_state = machine.path("lib/embeddings");
        inputs
    };
    let loaded = config::load(&of("gpu0", 0)).unwrap();
    let (limits, dirs) = (loaded.config.limits, &loaded.config.dirs);
    assert_eq!((limits.max_queue, limits.max_inputs), (2, 3));
    assert_eq!(dirs.unit, "embeddings@gpu0");
    assert_eq!(dirs.runtime, Path::new("/run/embeddings@gpu0"));
    assert_eq!(dirs.state, machine.path("lib/embeddings@gpu0"));
    assert_eq!(dirs.cache, Path::new("/var/cache/embeddings@gpu0"));
    assert_eq!(dirs.monitor(), Path::new("/run/embeddings-monitor"));
    assert_eq!(
        loaded.config.installed_dir("shared").unwrap(),
        machine.path("lib/embeddings/models/shared")
    );
    let own = config::load(&of("gpu0", 1000)).unwrap().config.dirs;
    assert_eq!(own.state, Path::new("/home/someone/.local/state/embeddings@gpu0"));
    let nobody = config::load(&of("gpu1", 0)).unwrap_err().to_string();
    assert!(
        nobody.contains("instances/gpu1/embeddings.toml: failed to read"),
        "{nobody}"
    );
    assert_eq!(config::instance_of(&dirs.unit), Some("gpu0"));
    for unit in ["embeddings", "embeddings@", "embeddings@../x", "other@gpu0"] {
        assert_eq!(config::instance_of(unit), None, "{unit}");
    }
}

#[test]
fn a_model_is_found_by_its_path_else_in_state_else_in_share() {
    let machine = Machine::new()
        .write("share/models/all-MiniLM-L6-v2/config.json", "{}")
        .write("own/modules.json", "[]")
        .file("[models.own]\npath = '../own'\naliases = ['mine']\n[models.lost]\npath = '/lost'\n");
    let state = machine.path("state").display().to_string();
    let machine = machine.env("STATE_DIRECTORY", &state);
    let config = machine.good().config;
    let found = |name: &str| config.model_dir(name);
    assert_eq!(
        found("all-MiniLM-L6-v2").unwrap(),
        machine.path("share/models/all-MiniLM-L6-v2")
    );
    let machine = machine.write("state/models/all-MiniLM-L6-v2/config.json", "{}");
    assert_eq!(
        found("all-MiniLM-L6-v2").unwrap(),
        machine.path("state/models/all-MiniLM-L6-v2")
    );
    assert!(found("mine").unwrap().join("modules.json").exists());
    assert!(found("lost").unwrap_err().to_string().contains("path = /lost"));
    assert!(
        found("nobody")
            .unwrap_err()
            .to_string()
            .contains("not configured")
    );
    assert!(config.installed_dir("../own").is_err());
    assert!(
        config
            .installed_dir("absent")
            .unwrap_err()
            .to_string()
            .contains(&state)
    );
}

/// A file with every line that only shows a default taken at its word: `#key = value`, not `# text`.
fn offered(text: &str) -> String {
    let bare = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| !rest.starts_with([' ', '#']))
            .map(str::to_owned)
    };
    text.lines()
        .map(|line| bare(line).unwrap_or_else(|| line.to_owned()) + "\n")
        .collect()
}

/// A file that shows every key at its default, commented out or not, and no other.
fn shows_the_table(text: &str) {
    let (as_is, taken, bare) = (
        Machine::new().file(text).good(),
        Machine::new().file(&offered(text)).good(),
        Machine::new().good(),
    );
    for loaded in [&as_is, &taken] {
        assert_eq!(loaded.config.limits, bare.config.limits);
        assert_eq!(
            (&loaded.config.broker, &loaded.config.http),
            (&bare.config.broker, &bare.config.http)
        );
        assert_eq!(
            (&loaded.config.engine, &loaded.config.log),
            (&bare.config.engine, &bare.config.log)
        );
        assert_eq!(loaded.config.default_model, bare.config.default_model);
        assert_eq!(loaded.warnings, bare.warnings);
    }
    for key in KEYS {
        assert_ne!(
            origin(&taken, key.name),
            Origin::Default,
            "{} is not in the file",
            key.name
        );
    }
}

#[test]
fn the_default_file_and_the_manual_show_every_key() {
    shows_the_table(&config::default_file());
    let manual = config::manual();
    for key in KEYS.iter().chain(MODEL_KEYS) {
        assert!(
            manual.contains(&format!(".B {}\n", key.name)),
            "{} is missing in embeddings.toml(5)",
            key.name
        );
    }
}

#[test]
fn the_shipped_file_shows_every_key_at_its_default() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/embeddings.toml");
    shows_the_table(&std::fs::read_to_string(shipped).unwrap());
}

/// Every number of the table, with a value in its range.
fn numbers() -> impl Strategy<Value = (&'static str, u64, u64, u64)> {
    let keys: Vec<_> = KEYS
        .iter()
        .filter_map(|key| match (key.kind, key.default) {
            (Kind::Int { min, max, .. }, Preset::Int(_)) => Some((key.name, min, max)),
            _ => None,
        })
        .collect();
    proptest::sample::select(keys)
        .prop_flat_map(|(name, min, max)| (Just(name), Just(min), Just(max), min..=max))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the key and the layers that set it, the last layer's value is the one in force.
    #[test]
    fn the_last_layer_wins((name, min, _, value) in numbers(), layers in 1usize..16) {
        let mut machine = Machine::new();
        let (mut expected, mut shown) = (Origin::Default, None);
        if layers & 1 != 0 {
            machine = machine.file(&format!("{name} = {min}"));
            (expected, shown) = (Origin::File(machine.path("etc/embeddings.toml")), Some(min));
        }
        if layers & 2 != 0 {
            machine = machine.write("etc/conf.d/a.toml", &format!("{name} = {value}"));
            (expected, shown) = (Origin::File(machine.path("etc/conf.d/a.toml")), Some(value));
        }
        if layers & 4 != 0 {
            let variable = format!("EMBED_{}", name.to_uppercase().replace('.', "__"));
            machine = machine.env(&variable, &value.to_string());
            (expected, shown) = (Origin::Env(variable), Some(value));
        }
        if layers & 8 != 0 {
            machine = machine.set(&format!("{name}={value}"));
            (expected, shown) = (Origin::Flag, Some(value));
        }
        // In range, a value can still be refused for a neighbour's; then the message must name the key.
        match machine.load() {
            Ok(loaded) => {
                let setting = loaded.sources.iter().find(|setting| setting.key == name).unwrap();
                prop_assert_eq!(&setting.origin, &expected);
                prop_assert_eq!(setting.value.as_u64(), shown);
            }
            Err(errors) => prop_assert!(name.starts_with("heartbeat") && errors.to_string().contains(name)),
        }
    }

    /// One below the range and one above it are refused, and the message names both bounds.
    #[test]
    fn beyond_the_range_is_refused((name, min, max, _) in numbers()) {
        for wrong in [i128::from(min) - 1, i128::from(max) + 1] {
            let message = Machine::new().set(&format!("{name}={wrong}")).bad();
            let start = format!("flag --set: {name} = {wrong}: must be a whole number from {min} to {max}");
            prop_assert!(message.contains(&start), "{}", message);
        }
    }

    /// No text whatever makes loading panic.
    #[test]
    fn any_text_is_an_answer_not_a_panic(text in "\\PC{0,60}", key in "[a-z_.\"]{0,20}") {
        let _ = Machine::new().file(&text).load();
        let _ = Machine::new().set(&format!("{key}={text}")).load();
        let _ = Machine::new().env(&format!("EMBED_{}", key.to_uppercase()), &text).load();
    }
}
