//! `embeddings check` on files, models and this machine; the broker's part is tests/broker/check.rs.
//!
//! Goal: each way of being misconfigured is found under its own id, and the commands that are told mend it. Method: the
//! real binary on real files; a shell runs the commands as they stand, and the same check again.

#[path = "support/mended.rs"]
mod mended;
#[path = "support/model.rs"]
mod model;

use embeddings::cli::check::table;
use mended::{Answer, Machine};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Beyond these lines nothing is wrong but the broker, which is not there.
fn machine(lines: &str) -> Machine {
    let machine = Machine::new();
    let text = format!(
        "{lines}\n[models.\"all-MiniLM-L6-v2\"]\npath = {:?}\n",
        model::minilm().display().to_string()
    );
    machine.write("embeddings.toml", text);
    machine.set("http.listen=");
    machine.set("broker.url=amqp://guest:guest@127.0.0.1:1");
    machine
}

/// Files of root's that are given to others: only root can try that.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0);
    if !root {
        eprintln!("skipped: only root can look as another user");
    }
    root
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_well_kept_machine_is_told_so_but_for_the_broker() {
    let answer = machine("").check();
    assert_eq!(answer.code, 1, "{answer:?}");
    assert_eq!(answer.troubled(), ["broker.address"], "{answer:?}");
    assert_eq!(
        answer.said["answer"],
        "1 error, 0 warnings: the service will take no jobs"
    );
    let works = answer
        .well("model.works")
        .expect("the model is tried though the broker is away");
    assert!(
        works["found"].as_str().unwrap().contains("384 dimensions"),
        "{works}"
    );
}

#[test]
fn a_file_that_is_not_toml() {
    let machine = machine("max_queue = = 3");
    let answer = machine.check();
    let found = answer.error("config.syntax");
    assert_eq!(answer.code, 78);
    assert!(
        found.text("found").contains("embeddings.toml:1: not valid TOML"),
        "{found:?}"
    );
    assert!(found.mend()[0].starts_with("nano +1 "), "{found:?}");
    let skipped = answer.said["skipped"].to_string();
    assert!(
        skipped.contains("\"broker\"") && skipped.contains("\"model\""),
        "{skipped}"
    );
    assert!(
        answer.well("system.directories").is_some(),
        "the rest is looked at"
    );
}

#[test]
fn a_file_that_is_not_there() {
    let machine = Machine::new();
    machine.set("http.listen=");
    let found = machine.check().error("config.files");
    assert!(found.text("found").contains("failed to read"), "{found:?}");
    machine.mended_by(&found);
}

/// Goal: keys that do not exist, values out of range, and values that exclude each other. Each is mended by its commands.
#[test]
fn what_is_written_wrongly() {
    for (lines, id, words) in [
        (
            "max_inflihgt = 3",
            "config.key",
            "embeddings.toml:1: unknown key max_inflihgt; did you mean max_inflight?",
        ),
        (
            "[broker]\n prefx = 'x'",
            "config.key",
            ":2: unknown key broker.prefx; did you mean broker.prefix?",
        ),
        ("colour = 'blue'", "config.key", ":1: unknown key colour"),
        (
            "[brokers]\nurl = 'amqp://a'",
            "config.key",
            ":1: unknown key brokers; did you mean [broker]?",
        ),
        (
            "broker = 'amqp://a'",
            "config.value",
            ":1: broker = a string: must be a table [broker]",
        ),
        (
            "max_queue = 0",
            "config.value",
            ":1: max_queue = 0: must be a whole number from 1 to 1000000 (jobs)",
        ),
        (
            "[http]\nlisten = 'localhost'",
            "config.value",
            "http.listen = \"localhost\": must be ADDRESS:PORT",
        ),
        (
            "heartbeat_timeout_ms = 3000",
            "config.combination",
            "must be above heartbeat_interval_ms",
        ),
        (
            "[models.a]\npath = '/x'\naliases = ['all-MiniLM-L6-v2', 'b']",
            "config.combination",
            "is the name of a model",
        ),
        (
            "[broker]\nca_file = '/ca.pem'\nurl = 'amqp://u@h'",
            "config.combination",
            "must be amqps://",
        ),
        (
            "heartbeat_timeout_ms = 25000",
            "config.risk",
            "is below liveness_max_stall_ms",
        ),
        (
            "canary_interval_ms = 40000",
            "config.risk",
            "an idle service is proven more rarely",
        ),
        (
            "max_inflight = 300",
            "config.risk",
            "that many jobs are never admitted",
        ),
        (
            "[engine]\nthreads = 1000",
            "device.threads",
            "engine.threads = 1000, and affinity and cgroup allow",
        ),
    ] {
        let machine = machine(lines);
        // What the file says of the broker must not be hidden by a flag.
        if ["url", "[http]", "broker ="]
            .iter()
            .any(|word| lines.contains(word))
        {
            machine.forget_flags();
        }
        let answer = machine.check();
        let found = answer.troubled_by(id);
        assert!(
            found.text("found").contains(words),
            "{lines}: {words} is not in {found:?}"
        );
        let loading = !["config.risk", "device.threads"].contains(&id);
        assert_eq!(answer.code, if loading { 78 } else { 1 }, "{lines}");
        machine.mended_by(&found);
    }
}

#[test]
fn variables_and_flags_with_a_slip_of_the_pen() {
    let machine = machine("");
    machine.env("EMBED_MAX_QEUE", "7");
    let answer = machine.check();
    let found = answer.error("config.environment");
    assert!(
        found
            .text("found")
            .contains("environment EMBED_MAX_QEUE: unknown key max_qeue"),
        "{found:?}"
    );
    assert_eq!(
        found.mend(),
        ["export EMBED_MAX_QUEUE=\"$EMBED_MAX_QEUE\"; unset EMBED_MAX_QEUE"]
    );
    machine.mended_by(&found);
    machine.set("max_inptus=7");
    let found = machine.check().error("config.key");
    assert!(found.text("note").contains("--set max_inptus=…"), "{found:?}");
}

#[test]
fn a_model_that_this_build_cannot_compute() {
    for (line, id, words) in [
        ("device = 'cuda'", "device.build", "install embeddings-cuda"),
        ("device = 'metal'", "device.build", "no Metal"),
        (
            "device = 'cpu'\nprecision = 'f16'",
            "device.precision",
            "f16 needs a GPU",
        ),
    ] {
        if id == "device.build" && cfg!(feature = "cuda") {
            continue;
        }
        let machine = machine("");
        machine.append("embeddings.toml", line);
        let answer = machine.check();
        let found = answer.error(id);
        assert!(found.text("found").contains(words), "{found:?}");
        assert_eq!(answer.code, 78);
        machine.mended_by(&found);
    }
}

#[test]
fn passwords_that_are_missing_or_too_well_known() {
    let machine = machine("");
    machine.forget_flags();
    machine.set("http.listen=");
    let secret = machine.path("secret");
    let line = format!(
        "broker.url = 'amqp://me@127.0.0.1:1'\nbroker.password_file = {:?}\n",
        secret.display().to_string()
    );
    machine.prepend("embeddings.toml", &line);
    let found = machine.check().error("config.password");
    assert!(found.text("found").contains("failed to read"), "{found:?}");
    machine.types("hunter2\n");
    machine.mended_by(&found);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "hunter2\n");
    assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o640);

    fs::write(&secret, "").unwrap();
    let found = machine.check().error("config.password");
    assert!(
        found.text("found").contains("the first line is empty"),
        "{found:?}"
    );
    machine.mended_by(&found);

    // The way to the file must be open, too, for everybody to read it.
    chmod(machine.dir(), 0o755);
    chmod(&secret, 0o644);
    let found = machine.check().troubled_by("config.secret");
    assert!(
        found
            .text("found")
            .contains("everybody on this machine can read it"),
        "{found:?}"
    );
    machine.mended_by(&found);

    machine.replace("embeddings.toml", "amqp://me@", "amqp://");
    let found = machine.check().error("config.password");
    assert!(
        found.text("found").contains("broker.url names no user"),
        "{found:?}"
    );
}

#[test]
fn http_that_everybody_could_use() {
    let machine = machine("");
    machine.forget_flags();
    machine.prepend("embeddings.toml", "http.listen = '0.0.0.0:0'\n");
    let found = machine.check().error("config.http");
    assert!(found.text("found").contains("needs http.token_file"), "{found:?}");
    machine.mended_by(&found);
    let token = machine.path("http-token");
    assert!(fs::read_to_string(&token).unwrap().len() > 40);

    fs::write(&token, "\n").unwrap();
    let answer = machine.check();
    let found = answer.error("config.http");
    assert!(
        found.text("found").contains("the first line is empty"),
        "{found:?}"
    );
    assert_eq!(answer.code, 78);
    machine.mended_by(&found);
}

/// Goal: root, who can read everything, hears what the service's user cannot. Method: `nobody` in its place.
#[test]
fn what_the_services_user_cannot_read_or_write() {
    if !is_root() {
        return;
    }
    let machine = Machine::new();
    chmod(machine.dir(), 0o755);
    let model = machine.copy(&model::minilm(), "state/models/all-MiniLM-L6-v2");
    machine.write("embeddings.toml", "max_queue = 9\n");
    machine.set("http.listen=");
    machine.flags(&["--user", "nobody"]);
    chmod(&machine.path("state"), 0o755);

    chmod(&machine.path("embeddings.toml"), 0o600);
    let found = machine.check().error("config.user");
    assert!(
        found
            .text("found")
            .contains("the service's user nobody cannot read it"),
        "{found:?}"
    );
    machine.mended_by(&found);

    chmod(&model.join("model.safetensors"), 0o600);
    chmod(&machine.path("state/models"), 0o700);
    let found = machine.check().error("model.user");
    assert!(
        found
            .text("found")
            .contains("all-MiniLM-L6-v2: the service's user nobody cannot read"),
        "{found:?}"
    );
    machine.mended_by(&found);

    let found = machine.check().error("system.directories");
    assert!(found.text("found").contains("the state directory"), "{found:?}");
    machine.mended_by(&found);
}

/// That a start ends as the check does.
fn refused(machine: &Machine, file: &str, for_this: &str) {
    let serve = machine
        .command(&["serve", "--config", file, "--set", "http.listen="])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&serve.stderr).into_owned();
    assert_eq!(serve.status.code(), Some(78), "{said}");
    assert!(said.contains(for_this), "{said}");
}

/// Goal: what only a start can see says who set which key to what, and the check ends as the start. Method: a precision that the
/// CPU has not, and roots that are not there.
#[test]
fn a_start_names_file_key_and_value() {
    let machine = Machine::new();
    machine.set("http.listen=");
    let file = machine.path("embeddings.toml").display().to_string();
    let from = model::minilm();
    machine.write(
        "embeddings.toml",
        format!(
            "[models.'all-MiniLM-L6-v2']\npath = '{}'\nprecision = 'f16'\n",
            from.display()
        ),
    );
    assert_eq!(machine.check().code, 78);
    refused(
        &machine,
        &file,
        &format!(
            "{file}: models.\"all-MiniLM-L6-v2\".precision = \"f16\": precision is f16, cpu computes in "
        ),
    );

    machine.write(
        "embeddings.toml",
        "[broker]\nurl = 'amqps://127.0.0.1:1/%2f'\nca_file = '/absent/ca.pem'\n",
    );
    let answer = machine.check();
    answer.error("broker.ca_file");
    assert_eq!(answer.code, 78);
    refused(
        &machine,
        &file,
        &format!("{file}: broker.ca_file = \"/absent/ca.pem\": failed to read: "),
    );
}

/// Goal: what is wrong with a model is found, and the check ends with 78 where a start does.
#[test]
fn models_that_are_missing_broken_or_unknown() {
    let machine = Machine::new();
    machine.set("http.listen=");
    let from = machine.copy(&model::minilm(), "downloads/all-MiniLM-L6-v2");
    let run = |args: &[&str]| {
        assert!(
            machine.command(args).output().unwrap().status.success(),
            "{args:?}"
        )
    };
    machine.write("embeddings.toml", "default_model = 'all-minilm-l6-v3'\n");
    let file = machine.path("embeddings.toml").display().to_string();
    run(&["model", "add", from.to_str().unwrap(), "--config", &file]);
    let answer = machine.check();
    let found = answer.error("model.missing");
    assert_eq!(answer.code, 78);
    refused(
        &machine,
        &file,
        &format!("{file}: default_model = \"all-minilm-l6-v3\": "),
    );
    assert!(
        found.text("found").contains("did you mean all-MiniLM-L6-v2?"),
        "{found:?}"
    );
    machine.mended_by(&found);

    machine.append(
        "embeddings.toml",
        "[models.\"all-MiniLM-L6-v2\"]\npath = '/srv/absent'",
    );
    let answer = machine.check();
    let found = answer.error("model.missing");
    assert_eq!(answer.code, 78);
    refused(
        &machine,
        &file,
        &format!("{file}: models.\"all-MiniLM-L6-v2\".path = /srv/absent: "),
    );
    assert!(
        found
            .text("found")
            .contains("/srv/absent: no folder with a config.json"),
        "{found:?}"
    );
    machine.mended_by(&found);

    let installed = machine.path("state/models/all-MiniLM-L6-v2");
    let weights = installed.join("model.safetensors");
    let whole = weights.metadata().unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(whole / 2)
        .unwrap();
    let answer = machine.check();
    let found = answer.error("model.files");
    assert_eq!(answer.code, 78);
    assert!(found.text("found").contains("model.safetensors"), "{found:?}");
    assert!(
        found.mend()[0].contains("model add ") && found.mend()[0].contains(" --replace"),
        "{found:?}"
    );
    machine.mended_by(&found);

    fs::write(&weights, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let found = machine.check().error("model.files");
    assert!(found.text("found").contains("Git LFS pointer"), "{found:?}");
    machine.mended_by(&found);

    machine.replace(
        "state/models/all-MiniLM-L6-v2/config.json",
        "\"bert\"",
        "\"llama\"",
    );
    let found = machine.check().error("model.architecture");
    assert!(
        found.text("found").contains("model_type is \"llama\""),
        "{found:?}"
    );
}

/// Goal: a model that cannot fit is told before it is loaded. Method: weights of a tebibyte, all of it a hole in the file.
#[test]
fn a_model_larger_than_the_machine() {
    let machine = Machine::new();
    machine.set("http.listen=");
    let folder = machine.copy(&model::minilm(), "state/models/all-MiniLM-L6-v2");
    let header = format!(
        "{{\"w\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[0,{}]}}}}",
        1u64 << 38,
        1u64 << 40
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let weights = folder.join("model.safetensors");
    fs::write(&weights, &bytes).unwrap();
    let end = bytes.len() as u64 + (1 << 40);
    if fs::OpenOptions::new()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(end)
        .is_err()
    {
        eprintln!("skipped: this file system has no files of a tebibyte");
        return;
    }
    machine.write("embeddings.toml", "");
    let answer = machine.check();
    let found = answer.error("model.memory");
    assert!(found.text("found").contains("models of 1.00 TiB"), "{found:?}");
    assert!(
        answer.well("model.works").is_none() && answer.find("model.works").is_none(),
        "it is not loaded"
    );
}

#[test]
fn a_port_that_another_has_and_an_address_that_nobody_has() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (listen, words) in [
        (format!("127.0.0.1:{port}"), "another program has this port"),
        ("[::1]:65000".to_owned(), "this machine has no such address"),
    ] {
        if listen.starts_with('[') && TcpListener::bind(&listen).is_ok() {
            continue;
        }
        let machine = machine("");
        machine.forget_flags();
        machine.set("broker.url=amqp://guest:guest@127.0.0.1:1");
        machine.prepend("embeddings.toml", &format!("http.listen = '{listen}'\n"));
        let answer = machine.check();
        let found = answer.error("system.port");
        assert!(found.text("found").contains(words), "{found:?}");
        assert_eq!(answer.code, 1);
        machine.mended_by(&found);
    }
}

#[test]
fn a_collector_that_is_away_or_would_rather_not() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = collector.local_addr().unwrap().port();
    let answers = |times: usize, status: &'static str| {
        let collector = collector.try_clone().unwrap();
        std::thread::spawn(move || {
            for _ in 0..times {
                let (mut stream, _) = collector.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                assert!(head.starts_with(b"POST /v1/traces "), "{head:?}");
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        })
    };
    let machine = machine("");
    machine.prepend(
        "embeddings.toml",
        &format!("traces.otlp_endpoint = 'http://127.0.0.1:{port}'\n"),
    );
    let asked = answers(1, "200 OK");
    assert!(machine.check().well("system.collector").is_some());
    asked.join().unwrap();

    let asked = answers(1, "404 Not Found");
    let found = machine.check().troubled_by("system.collector");
    assert_eq!(found.text("level"), "warning");
    assert!(found.text("found").contains("it answers 404"), "{found:?}");
    asked.join().unwrap();

    drop(collector);
    let found = machine.check().troubled_by("system.collector");
    assert!(found.text("found").contains("refused"), "{found:?}");
    machine.mended_by(&found);
}

#[test]
fn a_directory_that_is_none_and_a_process_that_hangs() {
    let machine = machine("");
    machine.write("run", "");
    let found = machine.check().error("system.directories");
    assert!(found.text("found").contains("is no directory"), "{found:?}");
    machine.mended_by(&found);

    fs::create_dir_all(machine.path("run")).unwrap();
    let hangs = std::os::unix::net::UnixListener::bind(machine.path("run/status.sock")).unwrap();
    let found = machine.check().error("system.running");
    assert!(found.text("found").contains("says nothing"), "{found:?}");
    assert_eq!(found.mend(), [format!("kill -KILL {}", std::process::id())]);
    drop(hangs);
    machine.is_mended(&found);
}

/// Goal: the document's table cannot rot. Method: it is made of the code's, and compared.
#[test]
fn the_document_has_every_row() {
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md")).unwrap();
    let table = table::markdown();
    assert!(
        document.contains(&table),
        "docs/operating.md needs this table:\n{table}"
    );
}

/// Goal: what people read is the same as what machines read. Method: both of one trouble.
#[test]
fn people_get_the_answer_the_reason_and_the_command() {
    let machine = machine("max_queue = 0");
    let output = machine.command(&machine.arguments(false)).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("2 errors, 0 warnings: the service will not start\n\nconfiguration\n"),
        "{said}"
    );
    let Answer { said: json, .. } = machine.check();
    let found = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["id"] == "config.value")
        .unwrap();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [&found["found"], &found["why"], &found["mend"][0]] {
        assert!(said.contains(part.as_str().unwrap()), "{part} is not in\n{said}");
    }
    assert!(!said.contains('\x1b'), "colours without a terminal");
}
