//! Goal: a bad configuration says file, key, value and range, and never a password.
//! Method: one wrong line at a time over a made-up machine.

mod machine;

use machine::Machine;

#[test]
fn a_bad_value_names_place_key_value_and_range() {
    for (line, parts) in [
        ("max_queue = 0", ["max_queue = 0", "from 1 to 1000000"]),
        ("max_queue = -5", ["max_queue = -5", "from 1 to 1000000"]),
        (
            "max_queue = 99999999999",
            ["max_queue = 99999999999", "from 1 to 1000000"],
        ),
        ("max_queue = 1.5", ["max_queue = 1.5", "a whole number"]),
        ("max_queue = 'many'", ["max_queue = \"many\"", "a whole number"]),
        ("max_queue = true", ["max_queue = true", "a whole number"]),
        ("max_queue = [1]", ["max_queue = [1]", "a whole number"]),
        ("drain_ms = 90000000000", ["drain_ms = 90000000000", "(ms)"]),
        ("broker.declare = 1", ["broker.declare = 1", "true or false"]),
        ("broker.prefix = ''", ["broker.prefix = \"\"", "1 to 100"]),
        ("broker.prefix = 'a b'", ["broker.prefix = \"a b\"", "1 to 100"]),
        ("broker.url = 7", ["broker.url = 7", "must be a string"]),
        ("broker = 'amqp://x'", ["broker = a string", "must be a table"]),
        (
            "http.listen = 'localhost'",
            ["http.listen = \"localhost\"", "ADDRESS:PORT"],
        ),
        (
            "http.listen = '0.0.0.0:8970'",
            ["http.listen = \"0.0.0.0:8970\"", "http.token_file"],
        ),
        (
            "traces.otlp_endpoint = 'http://u:hunter2@otel:4318'",
            ["traces.otlp_endpoint = \"http://***@otel:4318\"", "no user"],
        ),
        (
            "traces.otlp_endpoint = '127.0.0.1:4318'",
            ["traces.otlp_endpoint = \"127.0.0.1:4318\"", "http://HOST[:PORT]"],
        ),
        (
            "traces.sample_percent = 101",
            ["traces.sample_percent = 101", "from 0 to 100 (percent)"],
        ),
        ("log.level = 'inof'", ["log.level = \"inof\"", "trace"]),
        ("log.level = 'warn,embeddings='", ["log.level", "trace"]),
        ("default_model = 'a b'", ["default_model = \"a b\"", "blank"]),
        ("engine.threads = 5000", ["engine.threads = 5000", "0 to 1024"]),
        (
            "heartbeat_timeout_ms = 5000",
            ["heartbeat_timeout_ms = 5000", "heartbeat_interval_ms (5000)"],
        ),
        (
            "heartbeat_interval_ms = 60000",
            ["heartbeat_interval_ms = 60000", "heartbeat_timeout_ms (45000)"],
        ),
        (
            "broker.ca_file = '/ca.pem'",
            ["broker.ca_file = \"/ca.pem\"", "amqps://"],
        ),
        (
            "models.m.device = 'gpu'",
            ["models.\"m\".device = \"gpu\"", "cuda:N"],
        ),
        (
            "models.m.precision = 'fp16'",
            ["models.\"m\".precision = \"fp16\"", "int8"],
        ),
        (
            "models.m = {device = 'cpu', precision = 'f16'}",
            ["models.\"m\".precision = \"f16\"", "GPU"],
        ),
        #[cfg(feature = "cuda")]
        (
            "models.m = {device = 'cuda', precision = 'int8'}",
            ["models.\"m\".precision = \"int8\"", "auto, f32, bf16 or f16"],
        ),
        #[cfg(not(feature = "metal"))]
        (
            "models.m.device = 'metal'",
            ["models.\"m\".device = \"metal\"", "the feature metal"],
        ),
        #[cfg(not(feature = "cuda"))]
        (
            "models.m.device = 'cuda:1'",
            ["models.\"m\".device = \"cuda:1\"", "install embeddings-cuda"],
        ),
        (
            "models.m.aliases = 'x'",
            ["models.\"m\".aliases = \"x\"", "a list"],
        ),
        ("models.m.aliases = ['x', 'x']", ["models.\"m\".aliases", "twice"]),
        ("models.m.max_queue = 0", ["models.\"m\".max_queue = 0", "from 1"]),
        (
            "models = {a = {aliases = ['b']}, b = {}}",
            ["models.\"a\".aliases = \"b\"", "is the name of a model"],
        ),
        (
            "models = {a = {aliases = ['x']}, b = {aliases = ['x']}}",
            ["models.\"b\".aliases = \"x\"", "alias of a"],
        ),
        ("models.m = 5", ["models.\"m\" = 5", "must be a table"]),
        (
            "max_queu = 5",
            ["unknown key max_queu", "did you mean max_queue?"],
        ),
        (
            "broker.uri = 'x'",
            ["unknown key broker.uri", "did you mean broker.url?"],
        ),
        (
            "broker.password = 'x'",
            ["unknown key broker.password", "broker.password_file"],
        ),
        (
            "models.m.alias = ['x']",
            ["unknown key models.\"m\".alias", "did you mean aliases?"],
        ),
        ("sky.colour = 'x'", ["unknown key sky", "`embeddings config`"]),
        ("max_queue = ", ["embeddings.toml:1: not valid TOML", ""]),
        (
            "max_queue = 99999999999999999999 # many",
            [
                "embeddings.toml:1: not valid TOML: max_queue = 99999999999999999999: ",
                "must be a whole number from 1 to 1000000 (jobs)",
            ],
        ),
        (
            "[models.'a.b']\nmax_queue = 99999999999999999999",
            [
                "embeddings.toml:2: not valid TOML: models.\"a.b\".max_queue = 9999",
                "must be a whole number",
            ],
        ),
        (
            "[broker]\nmax_message_bytes = 99_999_999_999_999_999_999",
            ["not valid TOML: broker.max_message_bytes = 99_999", "(bytes)"],
        ),
    ] {
        let machine = Machine::new().file(line);
        let message = machine.bad();
        let named = machine.path("etc/embeddings.toml").display().to_string();
        assert!(message.starts_with(&named), "{line}: {message}");
        assert_eq!(message.lines().count(), 1, "{line}: {message}");
        for part in parts {
            assert!(message.contains(part), "{line}: {message}");
        }
    }
    let message = Machine::new().file("[models.'org/name']").bad();
    assert!(
        message.contains("models.\"org/name\".path = unset") && message.contains("must have a path"),
        "{message}"
    );
}

#[test]
fn variables_and_flags_are_named_as_the_culprit() {
    let message = Machine::new().env("EMBED_MAX_QUEUE", "lots").bad();
    let expected =
        "environment EMBED_MAX_QUEUE: max_queue = \"lots\": must be a whole number from 1 to 1000000 (jobs)";
    assert_eq!(message, expected);
    let message = Machine::new().env("HEARTBEAT_TIMEOUT", "soon").bad();
    assert!(
        message.starts_with("environment HEARTBEAT_TIMEOUT: heartbeat_timeout_ms = \"soon\""),
        "{message}"
    );
    let message = Machine::new().env("EMBED_MAX_QEUE", "3").bad();
    assert_eq!(
        message,
        "environment EMBED_MAX_QEUE: unknown key max_qeue; did you mean max_queue?"
    );
    let message = Machine::new().set("max_queue=0").bad();
    assert!(
        message.starts_with("flag --set: max_queue = 0: must be"),
        "{message}"
    );
    let message = Machine::new().set("max_queue").bad();
    assert!(
        message.starts_with("flag --set max_queue: must be KEY=VALUE"),
        "{message}"
    );
}

#[test]
fn the_password_comes_from_the_credential_then_the_file_then_the_url() {
    let machine = Machine::new()
        .file("[broker]\nurl = 'amqp://worker:url-secret@mq.example/%2f'\n")
        .write("file/secret", "file/secret@1\n")
        .write("credentials/broker-password", "credential secret#1\nsecond line");
    assert!(machine.good().config.broker.url.contains("url-secret"));
    let path = machine.path("file/secret").display().to_string();
    let with_file = machine.set(&format!("broker.password_file={path}"));
    let loaded = with_file.good();
    assert_eq!(
        loaded.config.broker.url,
        "amqp://worker:file%2Fsecret%401@mq.example:5672/%2f"
    );
    assert!(
        loaded.warnings[0].contains("the password in broker.url is not used"),
        "{:?}",
        loaded.warnings
    );
    let credentials = with_file.path("credentials").display().to_string();
    let with_both = with_file.env("CREDENTIALS_DIRECTORY", &credentials);
    let loaded = with_both.good();
    assert_eq!(
        loaded.config.broker.url,
        "amqp://worker:credential%20secret%231@mq.example:5672/%2f"
    );
    assert_eq!(
        loaded.config.broker.shown(),
        "amqp://worker:***@mq.example:5672/%2f"
    );
    let everything = format!("{loaded:?}");
    for secret in [
        "url-secret",
        "file/secret@1",
        "file%2Fsecret",
        "credential secret",
        "credential%20secret",
    ] {
        assert!(!everything.contains(secret), "{secret} is shown in {everything}");
    }
}

#[test]
fn a_password_that_cannot_be_had_is_an_error() {
    let message = Machine::new().set("broker.password_file=/absent/secret").bad();
    assert!(
        message.contains("broker.password_file = \"/absent/secret\": failed to read"),
        "{message}"
    );
    let machine = Machine::new().write("empty", "\n");
    let path = machine.path("empty").display().to_string();
    let message = machine.set(&format!("broker.password_file={path}")).bad();
    assert!(message.contains("the first line is empty"), "{message}");
    let machine = Machine::new()
        .write("secret", "hunter2\n")
        .set("broker.url=amqp://mq.example");
    let path = machine.path("secret").display().to_string();
    let message = machine.set(&format!("broker.password_file={path}")).bad();
    assert!(message.contains("names no user"), "{message}");
}

#[test]
fn no_error_ever_repeats_a_password() {
    for line in [
        "broker.url = 'amqp://guest:hunter2@'",
        "broker.url = 'guest:hunter2@mq'",
        "broker.url = 'amqp://guest:hunter2'",
        "broker.url = ['amqp://guest:hunter2@mq']",
        "broker.url = {a = 'amqp://guest:hunter2@mq'}",
        "broker = 'amqp://guest:hunter2@mq'",
        "broker.urls = 'amqp://guest:hunter2@mq'",
        "broker.password = 'hunter2'",
        "broker.url = 'amqp://guest:hunter2@mq' oops",
        "broker.url = \"amqp://guest:hunter2@mq",
        "broker.url = amqp://guest:hunter2@mq",
        "amqp://guest:hunter2@mq",
        "\"amqp://guest:hunter2@mq\" = 1",
    ] {
        let errors = Machine::new().file(line).load().unwrap_err();
        assert!(!errors.to_string().contains("hunter2"), "{line}: {errors}");
        assert!(!format!("{errors:?}").contains("hunter2"), "{line}: {errors:?}");
    }
    for flag in [
        "broker.url=guest:hunter2@mq",
        "broker.password=hunter2",
        "=hunter2",
        "broker.url.x=amqp://a:hunter2@h",
        "amqp://guest:hunter2@mq",
        "amqp://guest:hunter2@mq?heartbeat=5",
    ] {
        let machine = Machine::new().set(flag);
        let message = machine.bad();
        assert!(!message.contains("hunter2"), "{flag}: {message}");
        assert!(!format!("{:?}", machine.inputs).contains("hunter2"), "{flag}");
    }
    let message = Machine::new()
        .env("EMBED_BROKER__URL", "http://guest:hunter2@mq")
        .bad();
    assert!(
        message.contains("http://***@mq") && !message.contains("hunter2"),
        "{message}"
    );
}
