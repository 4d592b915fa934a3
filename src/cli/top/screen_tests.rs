//! The screen as text, in windows of several sizes.

use super::*;
use crate::cli::top::plain;
use crate::cli::top::ui::Press;
use crate::job::heartbeat::{Heartbeat, LastKill};
use crate::logic::fleet::ECHO_INTERVAL;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::time::Duration;

const NOW: Moment = Moment::from_millis(600_000);

fn beat(host: &str, pid: u32, state: &str) -> Heartbeat {
    Heartbeat {
        pid,
        host: host.into(),
        connected: true,
        ready: matches!(state, "idle" | "working"),
        queue: 3,
        queue_max: 256,
        inflight: 2,
        inputs_per_second: 812.4,
        sent_ts: 1_724_612_345_678,
        last_progress_ts: 1_724_612_345_278,
        last_job_latency_ms: Some(41),
        avg_job_ms: Some(37),
        state: state.into(),
        model: "all-MiniLM-L6-v2".into(),
        device: "cpu".into(),
        rss_bytes: 180 << 20,
        version: "0.1.0".into(),
        interval_ms: 5000,
        uptime_ms: Some(7_500_000),
        instance: "/run/embeddings".into(),
        ..Heartbeat::default()
    }
}

/// Four workers: one well, one that says why it is not, one that has fallen silent, one that has stopped.
fn fleet() -> Fleet {
    let at = |before: u64| NOW - Duration::from_millis(before);
    let mut fleet = Fleet::new(Duration::from_secs(5), at(20_000));
    fleet.opened(at(20_000));
    let mut gone = beat("gpu-04.example", 99, "draining");
    gone.queue = 0;
    fleet.heard(gone, at(16_000));
    let mut silent = beat("cpu-02.example", 4711, "working");
    silent.last_kill = Some(LastKill {
        reason: "no_progress".into(),
        stage: "computed".into(),
        at_ts: 1_724_612_345_678 - 200_000,
        pid: 4000,
    });
    fleet.heard(silent, at(9000));
    let mut before = NOW - Duration::from_secs(15);
    while before < NOW {
        before = before + ECHO_INTERVAL;
        fleet.echoed(before);
        fleet.tick(before);
    }
    let mut degraded = beat("cpu-03.example", 12, "degraded");
    degraded.not_ready = Some("blocked".into());
    fleet.heard(degraded, at(1200));
    fleet.heard(beat("cpu-01.example", 7, "working"), at(300));
    fleet
}

fn theme(colour: bool) -> Theme {
    Theme {
        colour,
        broker: "amqp://mq:5672/%2f · embeddings".into(),
    }
}

fn text(fleet: &Fleet, ui: &mut Ui, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, fleet, ui, &theme(false), NOW))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| -> String {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn lines(text: &str, expected: &[&str]) {
    let shown: Vec<&str> = text.lines().collect();
    assert_eq!(shown, expected, "\n{text}");
}

const KEYS_LINE: &str = "q end  ? help  / filter  s sort  Enter detail  x forget";

#[test]
fn all_that_is_asked_for_stands_in_eighty_columns() {
    lines(
        &text(&fleet(), &mut Ui::default(), 80, 9),
        &[
            "◐ 3 workers, 1 silent, 1 degraded, 1 stopped · queue 6 · inflight 4 · 1625/s",
            "amqp://mq:5672/%2f · embeddings · by state",
            "STATE      HOST          BROKER QUEUE INFLIGHT RATE/S PROGRESS LAST KILL",
            "✗ silent   cpu-02.examp… yes    3/256        2    812    9.4 s 3 min no_progress",
            "◐ degraded cpu-03.examp… yes    3/256        2    812    1.6 s -",
            "● working  cpu-01.examp… yes    3/256        2    812    0.7 s -",
            "○ stopped  gpu-04.examp… yes    0/256        2    812     16 s -",
            "",
            KEYS_LINE,
        ],
    );
}

#[test]
fn a_wide_window_has_more_columns_and_a_small_one_fewer() {
    let fleet = fleet();
    lines(
        &text(&fleet, &mut Ui::default(), 132, 8)[..],
        &[
            "◐ 3 workers, 1 silent, 1 degraded, 1 stopped · queue 6 · inflight 4 · 1625/s",
            "amqp://mq:5672/%2f · embeddings · by state",
            "STATE       HOST             PID  WHY      BROKER  QUEUE  INFLIGHT  RATE/S  PROGRESS  HEARD  LAST KILL          RESTARTS  INSTANCE",
            "✗ silent    cpu-02.example  4711  -        yes     3/256         2     812     9.4 s  9.0 s  3 min no_progress         0  embeddings",
            "◐ degraded  cpu-03.example    12  blocked  yes     3/256         2     812     1.6 s  1.2 s  -                         0  embeddings",
            "● working   cpu-01.example     7  -        yes     3/256         2     812     0.7 s  0.3 s  -                         0  embeddings",
            "○ stopped   gpu-04.example    99  -        yes     0/256         2     812      16 s   16 s  -                         0  embeddings",
            KEYS_LINE,
        ],
    );
    lines(
        &text(&fleet, &mut Ui::default(), 40, 6),
        &[
            "◐ 3 workers, 1 silent, 1 degraded, 1 sto",
            "amqp://mq:5672/%2f · embeddings · by sta",
            "STATE      HOST           QUEUE INFLIGHT",
            "✗ silent   cpu-02.example 3/256        2",
            "◐ degraded cpu-03.example 3/256        2",
            "q end  ? help  / filter  s sort  Enter d",
        ],
    );
    // No size is too small to be drawn.
    for (width, height) in [(1, 1), (5, 2), (3, 3), (200, 3), (1, 60), (10, 5)] {
        for page in [Page::Table, Page::Detail, Page::Help] {
            let mut ui = Ui {
                page,
                selected: Some(("cpu-02.example".into(), 4711)),
                ..Ui::default()
            };
            let shown = text(&fleet, &mut ui, width, height);
            assert!(shown.starts_with('◐'), "{width}x{height}: {shown}");
        }
    }
}

#[test]
fn one_worker_has_all_its_fields_on_a_page() {
    let fleet = fleet();
    let mut ui = Ui::default();
    let rows = fleet.rows(ui.order, "", NOW);
    let keys: Vec<Key> = rows.iter().map(|view| view.key.clone()).collect();
    ui.press(Press::Enter, &keys);
    lines(
        &text(&fleet, &mut ui, 80, 22),
        &[
            "◐ 3 workers, 1 silent, 1 degraded, 1 stopped · queue 6 · inflight 4 · 1625/s",
            "amqp://mq:5672/%2f · embeddings · by state",
            "state         ✗ silent · its last word: working",
            "host          cpu-02.example · process 4711",
            "instance      /run/embeddings",
            "broker        connected",
            "queue         3 of 256 · inflight 2",
            "rate          812 inputs/s",
            "jobs          last took 41 ms · mean 37 ms",
            "progress      9.4 s ago",
            "heard         9.0 s ago · promised within 5.0 s",
            "last kill     no_progress at computed · 3 min ago · process 4000",
            "restarts      0 seen in 9.0 s",
            "uptime        2 h 5 min",
            "model         all-MiniLM-L6-v2 on cpu",
            "memory        180 MiB · version 0.1.0",
            "",
            "inputs/s, the last 9.0 s, highest 812",
            "█",
            "█",
            "█",
            KEYS_LINE,
        ],
    );
    ui.press(Press::Char('x'), &keys);
    let mut fleet = fleet;
    fleet.forget(&keys[0]);
    ui.press(Press::Enter, &keys[1..]);
    let shown = text(&fleet, &mut ui, 80, 14);
    assert!(
        shown.contains("◐ degraded · blocked") && shown.contains("last kill     none known"),
        "{shown}"
    );
    ui.press(Press::Char('?'), &keys);
    let shown = text(&fleet, &mut ui, 80, 24);
    assert!(shown.lines().all(|line| line.chars().count() < 80), "{shown}");
    for (key, _) in HELP {
        assert!(shown.contains(key), "{key} is not in {shown}");
    }
}

#[test]
fn a_filter_and_an_order_are_told_and_the_chosen_row_stands_out_without_colours() {
    let fleet = fleet();
    let mut ui = Ui {
        filter: "CPU-".into(),
        ..Ui::default()
    };
    ui.press(Press::Char('s'), &[]);
    ui.selected = Some(("cpu-03.example".into(), 12));
    let mut terminal = Terminal::new(TestBackend::new(80, 8)).unwrap();
    let colours = |coloured: bool, terminal: &mut Terminal<TestBackend>, ui: &mut Ui| {
        let drawn = terminal.draw(|frame| draw(frame, &fleet, ui, &theme(coloured), NOW));
        let cells = drawn.unwrap().buffer.content.iter();
        cells.filter(|cell| cell.fg != Color::Reset).count()
    };
    assert_eq!(colours(false, &mut terminal, &mut ui), 0);
    let reversed = |y: u16, terminal: &Terminal<TestBackend>| {
        let buffer = terminal.backend().buffer();
        (0..80).all(|x| buffer[(x, y)].modifier.contains(Modifier::REVERSED))
    };
    assert_eq!(
        (3..7).filter(|&y| reversed(y, &terminal)).collect::<Vec<_>>(),
        [5]
    );
    assert!(colours(true, &mut terminal, &mut ui) > 20);
    let shown = text(&fleet, &mut ui, 80, 8);
    assert!(shown.contains("by host · filter \"CPU-\": 3 shown"), "{shown}");
    assert!(!shown.contains("gpu-04"), "{shown}");
    ui.typing = true;
    assert!(text(&fleet, &mut ui, 80, 8).contains("filter: CPU-▏"));
    ui.filter = "nowhere".into();
    assert!(text(&fleet, &mut ui, 80, 8).contains("no worker has this"));
}

#[test]
fn a_lost_broker_is_the_answer_and_nobody_is_blamed() {
    let mut fleet = fleet();
    fleet.lost("connecting: connection refused", NOW - Duration::from_secs(3));
    let shown = text(&fleet, &mut Ui::default(), 120, 9);
    let first = shown.lines().next().unwrap();
    assert_eq!(
        first,
        "◐ 3 workers, nothing known of them for 3.0 s: connecting: connection refused"
    );
    assert_eq!(shown.matches("? unknown").count(), 3, "{shown}");
    assert!(
        shown.contains("○ stopped") && !shown.contains("silent"),
        "{shown}"
    );
}

#[test]
fn one_look_in_plain_text_and_as_json() {
    let fleet = fleet();
    let look = plain::Look {
        order: crate::logic::fleet::Order::Health,
        words: String::new(),
        broker: "amqp://mq:5672/%2f".into(),
        listened: Duration::from_secs(5),
        unix_ms: 7,
    };
    let plain = plain::people(&fleet, &look, crate::cli::Paint { on: false }, NOW);
    let mut shown = plain.lines();
    assert_eq!(
        shown.next().unwrap(),
        "◐ 3 workers, 1 silent, 1 degraded, 1 stopped · queue 6 · inflight 4 · 1625/s"
    );
    assert!(plain.contains("\n✗ silent    cpu-02.example  4711  "), "{plain}");
    assert!(plain.ends_with("`embeddings status` says why, on cpu-02.example, cpu-03.example\n"));
    assert_eq!(plain::exit_code(&fleet, &fleet.totals(NOW), NOW), 1);
    let document = plain::json(&fleet, &look, NOW);
    assert_eq!(document["health"]["silent"], 1);
    assert_eq!(
        (&document["workers"], &document["well"]),
        (&3.into(), &false.into())
    );
    let row = &document["rows"][0];
    assert_eq!(
        (&row["health"], &row["state"]),
        (&"silent".into(), &"working".into())
    );
    assert_eq!(
        (&row["heard_age_ms"], &row["progress_age_ms"]),
        (&9000.into(), &9400.into())
    );
    assert_eq!(
        (&row["last_kill"]["reason"], &row["last_kill_age_ms"]),
        (&"no_progress".into(), &209_000.into())
    );
}
