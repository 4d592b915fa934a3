//! `embeddings top` with a real broker and real workers, at a terminal and without one.
//!
//! Goal: who falls silent is shown within one heartbeat interval, who says good-bye is not taken for silent, a broker
//! that is away is blamed in its workers' stead, and the terminal is given back in every case.

use crate::private::{Private, wait_for};
use crate::proxy::Proxy;
use crate::pty::Pty;
use crate::service::{Bench, SOON, Service, bench};
use embeddings::clock::{Clock, Moment};
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

/// `heartbeat_interval_ms` as it is set where nobody sets it.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same, of one that is to be watched more closely.
const SHORT: Duration = Duration::from_secs(1);
/// What drawing, a pseudo-terminal and this test's own looks may add on a busy machine.
const SIGHT: Duration = Duration::from_millis(500);
const WINDOW: (u16, u16) = (120, 24);

fn top(bench: &Bench, url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
    command
        .args(["top", "--config", "/dev/null"])
        .arg("--set")
        .arg(format!("broker.url={url}"))
        .arg("--set")
        .arg(format!("broker.prefix={}", bench.prefix))
        .args(arguments)
        .env_remove("NO_COLOR");
    command
}

fn look(bench: &Bench, arguments: &[&str]) -> Output {
    top(bench, &bench.node.url, arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The row of a worker.
fn row(text: &str, worker: &Service) -> String {
    let pid = format!(" {} ", worker.pid());
    let line = text.lines().find(|line| line.contains(&pid));
    line.unwrap_or_default().to_owned()
}

/// Waits until the worker's row has this word; how long it took.
fn shows(screen: &Pty, worker: &Service, word: &str) -> Duration {
    let what = format!("{word} of {}", worker.pid());
    screen.until(SOON, &what, |text| row(text, worker).contains(word))
}

#[test]
fn a_fleet_is_watched_at_a_terminal() {
    let Some(bench) = bench("top") else { return };
    let first = bench.serve("");
    let (second, third) = (bench.serve("heartbeat_interval_ms = 1000"), bench.serve(""));
    let mut screen = Pty::start(&mut top(&bench, &bench.node.url, &[]), WINDOW);
    screen.until(SOON, "all three", |text| text.contains("● 3 workers, all well"));
    assert!(screen.is_raw());

    first.signal(libc::SIGSTOP);
    let stopped = shows(&screen, &first, "✗ silent");
    first.signal(libc::SIGCONT);
    eprintln!("stopped: shown as silent after {stopped:?}");
    assert!(stopped <= INTERVAL + SIGHT, "{stopped:?}");
    assert!(screen.line("3 workers, 1 silent").is_some() || screen.line("all well").is_some());
    shows(&screen, &first, "● ");

    second.signal(libc::SIGKILL);
    let killed = shows(&screen, &second, "✗ silent");
    eprintln!("killed: shown as silent after {killed:?}");
    assert!(killed <= SHORT + SIGHT, "{killed:?}");

    third.signal(libc::SIGTERM);
    shows(&screen, &third, "◐ draining");
    shows(&screen, &third, "○ stopped");
    screen.until(SOON, "the answer", |text| {
        text.contains("◐ 2 workers, 1 silent, 1 stopped")
    });

    // Filter, detail, order, help, and another size.
    screen.types("/");
    screen.types("SILENT\r");
    screen.until(SOON, "the filter", |text| {
        text.contains("1 shown") && row(text, &first).is_empty() && row(text, &second).contains("silent")
    });
    screen.types("\r");
    screen.until(SOON, "the detail", |text| {
        text.contains(&format!("process {}", second.pid())) && text.contains("promised within 1.0 s")
    });
    screen.types("\r");
    screen.types("?");
    screen.until(SOON, "the help", |text| {
        text.contains("no heartbeat for as long as it promised")
    });
    screen.types("?");
    screen.types("s");
    screen.until(SOON, "the order", |text| text.contains("by host"));
    screen.resize(60, 10);
    screen.until(SOON, "the small window", |text| {
        text.lines().any(|line| line.starts_with("◐ 2 workers")) && text.contains("q end")
    });
    screen.types("q");
    assert_eq!(screen.exit(SOON).code(), Some(0));
    screen.is_given_back();
}

#[test]
fn a_terminal_is_given_back_at_every_end() {
    let Some(bench) = bench("top-ends") else { return };
    let _worker = bench.serve("");
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129)] {
        let mut screen = Pty::start(&mut top(&bench, &bench.node.url, &[]), (80, 24));
        screen.until(SOON, "the worker", |text| text.contains("1 worker, well"));
        assert!(screen.is_raw());
        screen.signal(signal);
        assert_eq!(screen.exit(SOON).code(), Some(code));
        screen.is_given_back();
    }
    let mut screen = Pty::start(top(&bench, &bench.node.url, &[]).env("NO_COLOR", "1"), (80, 24));
    screen.until(SOON, "the worker", |text| text.contains("1 worker, well"));
    screen.types("\u{3}");
    assert_eq!(screen.exit(SOON).code(), Some(0), "Ctrl-C is a key here");
    screen.is_given_back();
    // A dumb terminal gets one look.
    let mut command = top(&bench, &bench.node.url, &["--once"]);
    let mut screen = Pty::start(&mut command, (80, 24));
    assert_eq!(screen.exit(SOON).code(), Some(0));
    assert!(screen.text().contains("1 worker, well"), "{}", screen.text());
}

/// Goal: Ctrl-Z gives the terminal back and `fg` takes it again, with what has become of the workers meanwhile. Where the
/// terminal takes no output, it still ends when it is told to.
#[test]
fn a_terminal_is_given_back_for_a_while() {
    let Some(bench) = bench("top-stops") else { return };
    let worker = bench.serve("");
    let well = |text: &str| text.contains("● 1 worker, well");
    // A shell with job control, which tells when the command has stopped and continues it after a while.
    let (command, wait) = (
        top(&bench, &bench.node.url, &[]),
        (INTERVAL + Duration::from_secs(1)).as_secs(),
    );
    let mut shell = Command::new("bash");
    let script = format!("set -m; \"$@\"; echo 'back in the shell'; sleep {wait}; fg >/dev/null");
    shell.args(["-c", &script, "bash"]).arg(command.get_program());
    shell.args(command.get_args()).env_remove("NO_COLOR");
    let mut screen = Pty::start(&mut shell, WINDOW);
    screen.until(SOON, "the worker", well);
    screen.types("\u{1a}");
    screen.until(SOON, "the shell", |text| text.contains("back in the shell"));
    screen.is_given_back();
    wait_for(SOON, "it goes on", || screen.is_raw());
    screen.until(SOON, "the worker again", |text| {
        assert!(!text.contains("silent"), "it is we who did not listen: {text}");
        well(text) && !row(text, &worker).is_empty()
    });
    screen.types("q");
    assert_eq!(screen.exit(SOON).code(), Some(0));
    screen.is_given_back();

    // With no shell that could continue it, it does not stop.
    let mut screen = Pty::start(&mut top(&bench, &bench.node.url, &[]), WINDOW);
    screen.until(SOON, "the worker", well);
    screen.types("\u{1a}");
    std::thread::sleep(Duration::from_secs(1));
    wait_for(SOON, "it has the terminal", || screen.is_raw());
    screen.types("?");
    screen.until(SOON, "the help", |text| {
        text.contains("no heartbeat for as long as it promised")
    });
    screen.types("?");
    screen.until(SOON, "the table", well);

    screen.hold(true);
    // Time for a drawing that is held up.
    std::thread::sleep(Duration::from_secs(3));
    screen.signal(libc::SIGTERM);
    assert_eq!(screen.exit(SOON).code(), Some(143));
    screen.hold(false);
    assert!(!screen.is_raw());
}

#[test]
fn one_look_has_the_answer_and_an_exit_code() {
    let Some(bench) = bench("top-look") else { return };
    let nobody = look(&bench, &["--json"]);
    assert_eq!(nobody.status.code(), Some(69));
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(error.contains("no service has run"), "{error}");

    let mut worker = bench.serve("heartbeat_interval_ms = 1000");
    let clock = Clock::start();
    let well = look(&bench, &[]);
    let took = clock.now().since(Moment::ZERO);
    let text = said(&well);
    assert_eq!(well.status.code(), Some(0), "{text}");
    assert!(text.starts_with("● 1 worker, well · queue 0 "), "{text}");
    assert!(took < Duration::from_secs(5), "one promise of 1 s: {took:?}");
    assert!(row(&text, &worker).starts_with("● idle"), "{text}");
    assert!(!text.contains('\u{1b}'));

    let document: Value = serde_json::from_slice(&look(&bench, &["--json"]).stdout).unwrap();
    assert_eq!(
        (&document["well"], &document["workers"]),
        (&true.into(), &1.into())
    );
    let row = &document["rows"][0];
    assert_eq!(
        (&row["health"], &row["pid"]),
        (&"idle".into(), &worker.pid().into())
    );
    assert!(row["progress_age_ms"].as_u64() < Some(60_000), "{row}");
    assert_eq!(row["interval_ms"], 1000);
    assert!(
        row["instance"].as_str().unwrap().ends_with("/embeddings"),
        "{row}"
    );

    // One that hangs keeps its place at the broker for a while: it takes jobs, and is not heard.
    worker.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(1));
    let hung = look(&bench, &[]);
    worker.signal(libc::SIGCONT);
    let text = said(&hung);
    assert_eq!(hung.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("◐ no worker, 1 takes jobs and is not heard"),
        "{text}"
    );

    worker.signal(libc::SIGTERM);
    worker.exit(SOON);
    let none = look(&bench, &[]);
    assert_eq!(none.status.code(), Some(3), "{}", said(&none));
    assert!(said(&none).starts_with("○ no worker"), "{}", said(&none));

    let away = top(&bench, "amqp://guest:guest@127.0.0.1:9/%2f", &[])
        .output()
        .unwrap();
    assert_eq!(away.status.code(), Some(69));
}

/// Goal: while the line is cut or frozen nobody is called silent; it says so, and heals by itself.
#[test]
fn a_broker_that_is_away_makes_nobody_silent() {
    let Some(bench) = bench("top-away") else { return };
    let worker = bench.serve("");
    let proxy = Proxy::to(bench.node.address());
    let screen = Pty::start(&mut top(&bench, &bench.node.url_at(proxy.address), &[]), WINDOW);
    let well = |text: &str| text.contains("● 1 worker, well");
    screen.until(SOON, "the worker", well);
    proxy.freeze(true);
    let clock = Clock::start();
    screen.until(SOON, "the silence of the broker", |text| {
        assert!(!text.contains("silent"), "{text}");
        text.contains("nothing comes from the broker") && row(text, &worker).contains("? unknown")
    });
    while clock.now().since(Moment::ZERO) < 2 * INTERVAL {
        assert!(!screen.text().contains("silent"), "{}", screen.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    proxy.freeze(false);
    screen.until(SOON, "the worker again", |text| {
        assert!(!text.contains("silent"), "{text}");
        well(text)
    });
    assert!(
        screen.line(" 0  embeddings").is_some(),
        "no restart was seen: {}",
        screen.text()
    );
    proxy.refuse(true);
    proxy.cut();
    screen.until(SOON, "the cut", |text| text.contains("nothing known of them"));
    proxy.refuse(false);
    screen.until(SOON, "the worker after the cut", |text| {
        assert!(!text.contains("silent"), "{text}");
        well(text)
    });
}

/// Goal: a broker that is killed and started again, and one with an alarm, are told as what they are.
#[test]
fn restarts_and_alarms_of_the_broker_are_told() {
    let Some(bench) = bench("top-restart") else { return };
    let node = Private::start();
    let mut worker = bench.start(&node.url, "disconnect_kill_ms = 60000");
    worker.ready();
    let screen = Pty::start(&mut top(&bench, &node.url, &[]), WINDOW);
    let well = |text: &str| text.contains("● 1 worker, well");
    screen.until(SOON, "the worker", well);

    node.ctl("set_vm_memory_high_watermark 0.0000001");
    screen.until(SOON, "the alarm", |text| {
        assert!(!text.contains("silent"), "{text}");
        text.contains("takes no messages") && row(text, &worker).contains("? unknown")
    });
    let clock = Clock::start();
    while clock.now().since(Moment::ZERO) < INTERVAL + Duration::from_secs(2) {
        assert!(!screen.text().contains("silent"), "{}", screen.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    node.ctl("set_vm_memory_high_watermark 0.6");
    screen.until(SOON, "the end of the alarm", |text| {
        assert!(!text.contains("silent"), "{text}");
        well(text)
    });

    node.kill();
    screen.until(SOON, "the loss", |text| {
        text.contains("nothing known of them for") && row(text, &worker).contains("? unknown")
    });
    node.start_again();
    wait_for(SOON, "the worker is back", || well(&screen.text()));
}
