//! What people see: the answer in a line, then tables.

use super::compare::{Compared, Comparison, Verdict};
use super::report::{Measure, Report};
use crate::cli::{Colour, Paint, count, table};

/// What a measure is called in the table, by its name.
const LABELS: [(&str, &str); 10] = [
    ("engine.short", "engine alone, short texts"),
    ("engine.mixed", "engine alone, mixed texts"),
    ("engine.long", "engine alone, long texts"),
    ("engine.own", "engine alone, own texts"),
    ("engine.single.p50", "engine alone, one text at a time, p50"),
    ("engine.single.p99", "engine alone, one text at a time, p99"),
    ("broker.bulk", "through the broker, bulk jobs"),
    ("broker.bulk.of_engine", "through the broker, of the engine alone"),
    ("broker.single.p50", "through the broker, one text at a time, p50"),
    ("broker.single.p99", "through the broker, one text at a time, p99"),
];

/// All of it.
pub fn people(report: &Report, comparison: Option<&Comparison>, paint: Paint) -> String {
    let mut out = String::new();
    if let Some(comparison) = comparison {
        out.push_str(&format!("{}\n", changed(comparison, paint)));
    }
    out.push_str(&format!("{}\n", headline(report)));
    let (quality, speed): (Vec<&Measure>, Vec<&Measure>) = report
        .measures
        .iter()
        .partition(|measure| measure.name.starts_with("quality."));
    out.push_str(&format!(
        "{}\n",
        paint.paint(Colour::Dim, &about(report, !speed.is_empty()))
    ));
    if !speed.is_empty() {
        out.push_str(&format!("\n{}", speeds(&speed, comparison, paint)));
    }
    if !quality.is_empty() {
        out.push_str(&format!("\n{}", qualities(report)));
    }
    if let Some(comparison) = comparison {
        // Those have no row in the first table.
        let of_quality = |one: &&Compared| one.name.starts_with("quality.") && one.verdict != Verdict::Same;
        for one in comparison.measures.iter().filter(of_quality) {
            let (before, now) = (exact(one.before, &one.unit), exact(one.now, &one.unit));
            let what = format!("{} in {}: {before} before, {now} now", one.name, one.precision);
            out.push_str(&format!("{what}  {}\n", mark(one.verdict, paint)));
        }
        for what in &comparison.missing {
            out.push_str(&format!("not measured now: {what}\n"));
        }
        for what in &comparison.differs {
            out.push_str(&format!("{} {what}\n", paint.paint(Colour::Yellow, "differs:")));
        }
    }
    for note in &report.notes {
        out.push_str(&format!("{} {note}\n", paint.paint(Colour::Yellow, "note:")));
    }
    out
}

/// Where and on what it was measured.
fn about(report: &Report, speed: bool) -> String {
    let (machine, settings) = (&report.machine, &report.settings);
    let texts = match settings.texts.as_str() {
        "built-in" => format!("{} built-in texts", settings.texts_count),
        file => format!("{} of {file}", count(settings.texts_count, "text")),
    };
    let threads = count(settings.threads, "thread");
    let mut about = format!(
        "{}, {threads} on {} · {texts}",
        machine.cpu,
        count(machine.cores, "core")
    );
    if speed {
        let rounds = count(settings.rounds, "round");
        about.push_str(&format!(
            " · median of {rounds}, the least and the most in brackets"
        ));
    }
    about
}

/// The answer to "how fast is it".
fn headline(report: &Report) -> String {
    let (name, threads) = (&report.model.name, count(report.settings.threads, "thread"));
    let mut parts = Vec::new();
    let first = |names: &[&str]| {
        let named = |measure: &&Measure| names.contains(&measure.name.as_str());
        report.measures.iter().find(named)
    };
    if let Some(rate) = first(&["engine.mixed", "engine.own"]) {
        let device = &report.model.device;
        let mut part = format!(
            "{} on {device}, {threads}: {} tokens/s, {} texts/s",
            rate.precision,
            short(rate.median),
            short(per_input(rate))
        );
        if let Some(time) = first(&["engine.single.p50"]) {
            part.push_str(&format!(", one text in {} ms", short(time.median)));
        }
        parts.push(part);
    }
    if let Some(rate) = first(&["broker.bulk"]) {
        let mut part = format!("through the broker {} texts/s", short(rate.median));
        if let Some(ratio) = first(&["broker.bulk.of_engine"]) {
            part.push_str(&format!(" ({:.2} of the engine alone)", ratio.median));
        }
        if let Some(time) = first(&["broker.single.p50"]) {
            part.push_str(&format!(", one text in {} ms", short(time.median)));
        }
        parts.push(part);
    }
    let lesser = report
        .measures
        .iter()
        .filter(|measure| measure.name == "quality.nearest_10");
    let kept: Vec<String> = lesser
        .filter(|measure| measure.precision != "f32")
        .map(|measure| format!("{} finds {:.1} %", measure.precision, 100.0 * measure.median))
        .collect();
    if !kept.is_empty() {
        parts.push(format!("of the ten nearest texts in f32 {}", kept.join(", ")));
    }
    format!("{name}: {}", parts.join("; "))
}

fn changed(comparison: &Comparison, paint: Paint) -> String {
    let (worse, better) = (
        comparison.count(Verdict::Worse),
        comparison.count(Verdict::Better),
    );
    let all = count(comparison.measures.len(), "measure");
    let told = match (worse, better) {
        (0, 0) => paint.paint(Colour::Green, &format!("as before: {all} within the spread")),
        (0, _) => paint.paint(
            Colour::Green,
            &format!("better in {better} of {all}, worse in none"),
        ),
        (_, 0) => paint.paint(Colour::Red, &format!("worse in {worse} of {all}")),
        _ => paint.paint(
            Colour::Red,
            &format!("worse in {worse} of {all}, better in {better}"),
        ),
    };
    format!(
        "{told}, beside {} of {} (version {})",
        comparison.file, comparison.date, comparison.version
    )
}

fn speeds(measures: &[&Measure], comparison: Option<&Comparison>, paint: Paint) -> String {
    let mut head: Vec<String> = ["", "precision", "median", "spread", "", ""]
        .map(str::to_owned)
        .to_vec();
    if comparison.is_some() {
        head.extend(["before", "ratio", ""].map(str::to_owned));
    }
    let mut rows = vec![head];
    for measure in measures {
        let label = LABELS.iter().find(|(name, _)| *name == measure.name);
        let length = measure.tokens_per_input.unwrap_or(0.0);
        let per_text = match measure.unit.as_str() {
            "tokens/s" => format!("{} texts/s of {length:.0} tokens", short(per_input(measure))),
            "inputs/s" => format!("{} tokens/s, {length:.0} a text", short(measure.median * length)),
            _ => String::new(),
        };
        let mut row = vec![
            label.map_or(measure.name.as_str(), |(_, label)| label).to_owned(),
            measure.precision.clone(),
            short(measure.median),
            format!("({}–{})", short(measure.min), short(measure.max)),
            if measure.unit == "ratio" {
                String::new()
            } else {
                measure.unit.clone()
            },
            per_text,
        ];
        if let Some(comparison) = comparison {
            let own = |one: &&Compared| one.name == measure.name && one.precision == measure.precision;
            match comparison.measures.iter().find(own) {
                Some(one) => row.extend([
                    short(one.before),
                    one.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
                    mark(one.verdict, paint),
                ]),
                None => row.extend(["new", "", ""].map(str::to_owned)),
            }
        }
        rows.push(row);
    }
    right(&mut rows, &[2, 6, 7]);
    table(&rows)
}

fn qualities(report: &Report) -> String {
    let head = [
        "precision",
        "tokens/s",
        "of f32",
        "least cosine",
        "mean cosine",
        "ten nearest",
        "load",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let f32_speed = report
        .measure("quality.speed", "f32")
        .map(|measure| measure.median);
    for speed in report
        .measures
        .iter()
        .filter(|measure| measure.name == "quality.speed")
    {
        let cell = |name: &str| {
            let measure = report.measure(name, &speed.precision);
            measure
                .map(|measure| exact(measure.median, &measure.unit))
                .unwrap_or_default()
        };
        let of = f32_speed
            .filter(|of| *of > 0.0)
            .map(|of| format!("{:.2}", speed.median / of));
        rows.push(vec![
            speed.precision.clone(),
            short(speed.median),
            of.unwrap_or_default(),
            cell("quality.cosine_min"),
            cell("quality.cosine_mean"),
            cell("quality.nearest_10"),
            cell("quality.load"),
        ]);
    }
    right(&mut rows, &[1, 2, 3, 4, 5, 6]);
    table(&rows)
}

fn mark(verdict: Verdict, paint: Paint) -> String {
    match verdict {
        Verdict::Better => paint.paint(Colour::Green, "better"),
        Verdict::Same => String::new(),
        Verdict::Worse => paint.paint(Colour::Red, "WORSE"),
    }
}

/// Texts a second of a rate in tokens.
fn per_input(measure: &Measure) -> f64 {
    measure.median / measure.tokens_per_input.unwrap_or(1.0).max(1e-9)
}

/// As many digits as count for its unit.
fn exact(value: f64, unit: &str) -> String {
    match unit {
        "cosine" => format!("{value:.6}"),
        "share" => format!("{:.2} %", 100.0 * value),
        "ms" => format!("{} ms", short(value)),
        _ => short(value),
    }
}

/// A number with three digits that count, or all before the point.
fn short(value: f64) -> String {
    let places = match value.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

/// Moves the cells of these columns to the right.
fn right(rows: &mut [Vec<String>], columns: &[usize]) {
    for &column in columns {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let width = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(column)) {
            *cell = format!("{cell:>width$}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::compare;
    use super::super::report::Tape;
    use super::*;

    fn report(rate: f64) -> Report {
        let mut tape = Tape::default();
        for noise in [0.99, 1.0, 1.02] {
            tape.add_rate("engine.mixed", "bf16", "tokens/s", rate * noise, 60.0);
            tape.add("engine.single.p50", "bf16", "ms", 1.5 / noise);
            tape.add_rate("broker.bulk", "bf16", "inputs/s", rate * noise / 62.0, 60.0);
        }
        let mut report = Report {
            measures: tape.measures(),
            notes: vec!["something".to_owned()],
            ..Report::default()
        };
        report.model.name = "mini".to_owned();
        report.model.device = "cpu".to_owned();
        report.settings.threads = 2;
        report
    }

    #[test]
    fn the_first_line_is_the_answer_and_the_table_is_aligned() {
        let text = people(&report(50_000.0), None, Paint { on: false });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "mini: bf16 on cpu, 2 threads: 50000 tokens/s, 833 texts/s, one text in 1.50 ms; \
             through the broker 806 texts/s"
        );
        let rows: Vec<&&str> = lines
            .iter()
            .filter(|line| line.contains(" bf16 "))
            .skip(1)
            .collect();
        assert_eq!(rows.len(), 3, "{text}");
        let place = |row: &str| row.chars().position(|c| c == '(');
        assert!(rows.iter().all(|row| place(row) == place(rows[0])), "{text}");
        assert_eq!(lines.last(), Some(&"note: something"));
    }

    #[test]
    fn with_an_earlier_run_the_first_line_says_what_has_changed() {
        let (before, now) = (report(50_000.0), report(40_000.0));
        let comparison = compare("before.json", &before, &now);
        let text = people(&now, Some(&comparison), Paint { on: false });
        assert!(
            text.starts_with("worse in 2 of 3 measures, beside before.json"),
            "{text}"
        );
        assert_eq!(text.matches("WORSE").count(), 2, "{text}");
        let same = compare("before.json", &before, &before);
        let text = people(&before, Some(&same), Paint { on: false });
        assert!(
            text.starts_with("as before: 3 measures within the spread"),
            "{text}"
        );
    }

    #[test]
    fn quality_has_a_table_of_its_own() {
        let mut tape = Tape::default();
        for (precision, speed, cosine) in [("f32", 100.0, 1.0), ("int8", 300.0, 0.9981)] {
            tape.add_rate("quality.speed", precision, "tokens/s", speed, 30.0);
            tape.add("quality.cosine_min", precision, "cosine", cosine);
            tape.add("quality.nearest_10", precision, "share", cosine - 0.01);
        }
        let mut own = report(1.0);
        own.measures = tape.measures();
        let text = people(&own, None, Paint { on: false });
        assert!(
            text.starts_with("mini: of the ten nearest texts in f32 int8 finds 98.8 %\n"),
            "{text}"
        );
        let row = text.lines().find(|line| line.starts_with("int8")).unwrap();
        assert!(
            row.contains("3.00") && row.contains("0.998100") && row.contains("98.81 %"),
            "{row}"
        );
    }

    #[test]
    fn three_digits_count() {
        let shown: Vec<String> = [0.0, 0.1234, 1.234, 9.996, 12.34, 99.96, 123.4, 56789.4]
            .iter()
            .map(|value| short(*value))
            .collect();
        assert_eq!(
            shown,
            ["0.000", "0.123", "1.23", "10.0", "12.3", "100", "123", "56789"]
        );
    }
}
