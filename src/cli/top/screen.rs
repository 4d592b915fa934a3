//! Draws: the answer, the table or one worker or the keys, and what can be pressed. Whatever the size of the window.

use super::ui::{Page, Ui};
use super::words::{self, Column};
use crate::cli::Colour;
use crate::clock::Moment;
use crate::logic::fleet::{Fleet, Health, Key, View};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

/// From this width on two blanks part the columns.
const WIDE: u16 = 110;
/// Lines above and below the rows: answer, broker, titles, keys.
const FRAME_LINES: u16 = 4;
/// Width of the names in the detail.
const NAME_WIDTH: usize = 14;
/// Lines of the chart of rates, where they are not needed for words.
const CHART_LINES: u16 = 4;

const KEYS: &str = "q end  ? help  / filter  s sort  Enter detail  x forget";
const HELP: [(&str, &str); 12] = [
    ("↑ ↓  k j", "choose a worker; PgUp, PgDn, Home, End"),
    ("Enter", "all that is known of it; again: back"),
    ("s", "order by state, host, queue, inflight, rate, progress, kill"),
    ("/", "filter; Enter keeps it, Esc drops it"),
    ("x", "take the chosen one out of the list, until it is heard"),
    ("q  Ctrl-C", "end"),
    ("● idle, working", "ready"),
    (
        "◐ degraded",
        "takes no new work; starting, draining, stalled likewise",
    ),
    ("✗ silent", "no heartbeat for as long as it promised at most"),
    ("? unknown", "this side cannot hear, so nobody is to blame"),
    ("○ stopped", "has said good-bye"),
    (
        "PROGRESS HEARD",
        "since it got on with any work; since its last heartbeat",
    ),
];

/// What the whole is drawn with.
#[derive(Debug, Clone)]
pub struct Theme {
    /// Colours; shapes and words say the same.
    pub colour: bool,
    /// The broker and the prefix, for people.
    pub broker: String,
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, fleet: &Fleet, ui: &mut Ui, theme: &Theme, now: Moment) {
    let area = frame.area();
    let totals = fleet.totals(now);
    let (colour, answer) = words::answer(fleet, &totals, now);
    let remarks = words::remarks(fleet, &totals);
    let mut lines = vec![
        Line::styled(answer, theme.style(colour).add_modifier(Modifier::BOLD)),
        Line::styled(info(fleet, ui, theme, now), theme.style(Colour::Dim)),
    ];
    let room = area.height.saturating_sub(FRAME_LINES);
    let said = remarks.into_iter().take(usize::from(room / 4));
    lines.extend(said.map(|remark| Line::styled(remark, theme.style(Colour::Yellow))));
    let used = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(area.height);
    put(frame, lines, rect(area, 0, used));
    let body = rect(area, used, area.height.saturating_sub(used + 1));
    match ui.page {
        Page::Table => table(frame, fleet, ui, theme, body, now),
        Page::Detail => match ui.selected.clone().and_then(|key| fleet.row(&key, now)) {
            Some(view) => detail(frame, &view, theme, body),
            None => put(frame, vec![Line::raw("it is no longer in the list")], body),
        },
        Page::Help => {
            let line = |(key, what): &(&str, &str)| Line::raw(format!("{key:<17} {what}"));
            put(frame, HELP.iter().map(line).collect(), body);
        }
    }
    if area.height > used {
        let bottom = rect(area, area.height - 1, 1);
        let typed = format!("filter: {}▏ Enter keeps it, Esc drops it", ui.filter);
        let keys = if ui.typing { typed } else { KEYS.to_owned() };
        put(frame, vec![Line::styled(keys, theme.style(Colour::Dim))], bottom);
    }
}

impl Theme {
    fn style(&self, colour: Colour) -> Style {
        if !self.colour {
            return Style::new();
        }
        match colour {
            Colour::Green => Style::new().fg(Color::Green),
            Colour::Yellow => Style::new().fg(Color::Yellow),
            Colour::Red => Style::new().fg(Color::Red),
            Colour::Dim => Style::new().add_modifier(Modifier::DIM),
        }
    }
}

fn info(fleet: &Fleet, ui: &Ui, theme: &Theme, now: Moment) -> String {
    let mut line = format!("{} · by {}", theme.broker, ui.order.name());
    if !ui.filter.is_empty() {
        let shown = fleet.rows(ui.order, &ui.filter, now).len();
        line.push_str(&format!(" · filter {:?}: {shown} shown", ui.filter));
    }
    line
}

fn table(frame: &mut Frame<'_>, fleet: &Fleet, ui: &mut Ui, theme: &Theme, area: Rect, now: Moment) {
    let rows = fleet.rows(ui.order, &ui.filter, now);
    let keys: Vec<Key> = rows.iter().map(|view| view.key.clone()).collect();
    let fit = usize::from(area.height.saturating_sub(1));
    ui.fits(fit, &keys);
    let shown = &rows[ui.first..rows.len().min(ui.first + fit)];
    let gap = if area.width >= WIDE { "  " } else { " " };
    let columns = fitting(shown, usize::from(area.width), gap.len());
    let title = |&(column, width): &(Column, usize)| cell(column, column.title(), width);
    let titles = columns.iter().map(title).collect::<Vec<_>>().join(gap);
    let mut lines = vec![Line::styled(titles, Style::new().add_modifier(Modifier::BOLD))];
    for view in shown {
        let is_selected = ui.selected.as_ref() == Some(view.key);
        let mut spans = Vec::new();
        for &(column, width) in &columns {
            let style = match column {
                Column::State => theme.style(words::colour(view.health)),
                Column::Broker if !view.beat.connected => theme.style(Colour::Red),
                _ if view.health == Health::Stopped => theme.style(Colour::Dim),
                _ => Style::new(),
            };
            spans.push(Span::styled(cell(column, &column.cell(view), width), style));
            spans.push(Span::raw(gap));
        }
        let mut line = Line::from(spans);
        if is_selected {
            // Reversed to the edge, so that the row is found without colours.
            let rest = usize::from(area.width).saturating_sub(line.width());
            line.push_span(Span::raw(" ".repeat(rest)));
            line = line.patch_style(Style::new().add_modifier(Modifier::REVERSED));
        }
        lines.push(line);
    }
    if rows.is_empty() && area.height > 1 {
        let line = match ui.filter.is_empty() {
            true if fleet.has_listened(now) => "no worker has been heard here",
            true => "listening…",
            false => "no worker has this; Esc drops the filter",
        };
        lines.push(Line::raw(line));
    }
    put(frame, lines, area);
}

/// The columns that fit, each with its width: by their rank, none left out for one of less weight.
fn fitting(rows: &[View<'_>], width: usize, gap: usize) -> Vec<(Column, usize)> {
    let natural = |column: Column| {
        let cells = rows.iter().map(|view| Span::raw(column.cell(view)).width());
        cells.max().unwrap_or(0).max(column.title().len())
    };
    let mut ranked = Column::ALL;
    ranked.sort_by_key(|column| column.rank());
    let mut chosen: Vec<(Column, usize, usize)> = Vec::new();
    let mut used = 0;
    for column in ranked {
        let natural = natural(column);
        let least = match column {
            Column::Host => natural.min(12),
            Column::Kill => natural.min(17),
            Column::Model | Column::Instance => natural.min(16),
            _ => natural,
        };
        let more = least + if chosen.is_empty() { 0 } else { gap };
        if used + more > width {
            break;
        }
        used += more;
        chosen.push((column, least, natural));
    }
    // What is left goes to those that were cut, the weightiest first.
    for (_, has, wants) in &mut chosen {
        let more = (*wants - *has).min(width - used);
        *has += more;
        used += more;
    }
    let placed = |column: Column| {
        let found = chosen.iter().find(|(other, ..)| *other == column);
        found.map(|&(column, width, _)| (column, width))
    };
    Column::ALL.into_iter().filter_map(placed).collect()
}

/// Text in a column: aligned, and cut where it is too long.
fn cell(column: Column, text: &str, width: usize) -> String {
    let mut text = text.to_owned();
    if Span::raw(text.as_str()).width() > width {
        while Span::raw(text.as_str()).width() + 1 > width && text.pop().is_some() {}
        if width > 0 {
            text.push('…');
        }
    }
    let blanks = " ".repeat(width.saturating_sub(Span::raw(text.as_str()).width()));
    if column.is_number() {
        format!("{blanks}{text}")
    } else {
        format!("{text}{blanks}")
    }
}

fn detail(frame: &mut Frame<'_>, view: &View<'_>, theme: &Theme, area: Rect) {
    let fields = fields(view);
    // Words before pictures.
    let wanted = u16::try_from(fields.len()).unwrap_or(u16::MAX);
    let chart = area.height.saturating_sub(wanted).min(CHART_LINES);
    let above = area.height - chart;
    let line = |(at, (name, value)): (usize, &(&str, String))| {
        let style = match at {
            0 => theme
                .style(words::colour(view.health))
                .add_modifier(Modifier::BOLD),
            _ => Style::new(),
        };
        let name = Span::styled(format!("{name:<NAME_WIDTH$}"), theme.style(Colour::Dim));
        Line::from(vec![name, Span::styled(value.clone(), style)])
    };
    put(
        frame,
        fields.iter().enumerate().map(line).collect(),
        rect(area, 0, above),
    );
    if chart < 2 {
        return;
    }
    let rates: Vec<u64> = view.rates().map(|rate| (rate * 10.0) as u64).collect();
    let newest = &rates[rates.len().saturating_sub(usize::from(area.width))..];
    let highest = newest.iter().copied().max().unwrap_or(0);
    let title = format!(
        "inputs/s, the last {}, highest {}",
        words::age(view.known.min(std::time::Duration::from_secs(600))),
        words::rate(highest as f64 / 10.0)
    );
    put(
        frame,
        vec![Line::styled(title, theme.style(Colour::Dim))],
        rect(area, above, 1),
    );
    let bars = Sparkline::default()
        .data(newest)
        .max(highest.max(1))
        .style(theme.style(Colour::Green));
    frame.render_widget(bars, rect(area, above + 1, chart - 1));
}

/// All that is known of a worker.
fn fields(view: &View<'_>) -> Vec<(&'static str, String)> {
    let beat = view.beat;
    let ago = |age: Option<std::time::Duration>| {
        age.map_or("?".to_owned(), |age| format!("{} ago", words::age(age)))
    };
    let ms = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let mut state = format!("{} {}", words::sign(view.health), view.health.name());
    if let Some(stage) = &beat.stalled_stage {
        state.push_str(&format!(" at {stage}"));
    }
    if let Some(why) = beat.not_ready.as_ref().filter(|why| **why != beat.state) {
        state.push_str(&format!(" · {why}"));
    }
    if view.health.name() != beat.state {
        state.push_str(&format!(" · its last word: {}", beat.state));
    }
    let kill = beat.last_kill.as_ref().map_or("none known".to_owned(), |kill| {
        let stage = match kill.stage.as_str() {
            "" => String::new(),
            stage => format!(" at {stage}"),
        };
        format!(
            "{}{stage} · {} · process {}",
            kill.reason,
            ago(view.kill_age),
            kill.pid
        )
    });
    let queue = match beat.queue_max {
        0 => beat.queue.to_string(),
        bound => format!("{} of {bound}", beat.queue),
    };
    vec![
        ("state", state),
        ("host", format!("{} · process {}", beat.host, beat.pid)),
        (
            "instance",
            if beat.instance.is_empty() {
                "?".into()
            } else {
                beat.instance.clone()
            },
        ),
        (
            "broker",
            if beat.connected {
                "connected"
            } else {
                "not connected"
            }
            .into(),
        ),
        ("queue", format!("{queue} · inflight {}", beat.inflight)),
        (
            "rate",
            format!("{} inputs/s", words::rate(beat.inputs_per_second)),
        ),
        (
            "jobs",
            format!(
                "last took {} · mean {}",
                ms(beat.last_job_latency_ms),
                ms(beat.avg_job_ms)
            ),
        ),
        ("progress", ago(view.progress_age)),
        (
            "heard",
            format!(
                "{} ago · promised within {}",
                words::age(view.age),
                words::age(view.promise)
            ),
        ),
        ("last kill", kill),
        (
            "restarts",
            format!("{} seen in {}", view.restarts, words::age(view.known)),
        ),
        ("uptime", view.uptime.map_or("?".into(), words::age)),
        ("model", format!("{} on {}", beat.model, beat.device)),
        (
            "memory",
            format!("{} · version {}", words::mebibytes(beat.rss_bytes), beat.version),
        ),
    ]
}

fn put(frame: &mut Frame<'_>, lines: Vec<Line<'_>>, area: Rect) {
    frame.render_widget(Paragraph::new(lines), area);
}

/// Lines of an area from one on, as far as there are any.
fn rect(area: Rect, from: u16, lines: u16) -> Rect {
    let from = from.min(area.height);
    Rect {
        y: area.y + from,
        height: lines.min(area.height - from),
        ..area
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
