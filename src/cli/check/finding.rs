//! What was found, and how it is told: to people by group, to machines as JSON.

use super::super::{Colour, Paint, count};
use super::table::{Check, Effect, GROUPS};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

/// Width of reasons and notes, behind their indentation.
const COLUMNS: usize = 88;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and deserves a look.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Its row of the table.
    pub check: &'static Check,
    /// How good it is.
    pub level: Level,
    /// What was found, in a line: file, key, value and range, or the like.
    pub found: String,
    /// The commands that mend it, one after the other.
    pub mend: Vec<String>,
    /// Where the commands have to be run, or what else would do.
    pub note: Option<String>,
    /// Whether the service refuses to start for it: it ends with 78, and is not started again.
    pub refused: bool,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static Check, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, found.into(), Vec::new())
    }

    /// Works, and deserves a look.
    pub fn warning(check: &'static Check, found: impl Into<String>, mend: Vec<String>) -> Finding {
        Finding::new(check, Level::Warning, found.into(), mend)
    }

    /// Does not work.
    pub fn error(check: &'static Check, found: impl Into<String>, mend: Vec<String>) -> Finding {
        Finding::new(check, Level::Error, found.into(), mend)
    }

    fn new(check: &'static Check, level: Level, found: String, mend: Vec<String>) -> Finding {
        Finding {
            check,
            level,
            found,
            mend,
            note: None,
            refused: level == Level::Error && check.group() == "config",
        }
    }

    /// An error of which the service's own start says whether it refuses it.
    pub fn refused(mut self, refused: bool) -> Finding {
        self.refused = refused;
        self
    }

    /// With a word beside the commands.
    pub fn note(mut self, note: impl Into<String>) -> Finding {
        self.note = Some(note.into());
        self
    }
}

/// Something that could not be looked at, and what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// A group, by the word in its ids.
    pub group: &'static str,
    /// What has to be mended first.
    pub because: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// In the order of the table.
    pub all: Vec<Finding>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

impl Findings {
    fn number(&self, level: Level) -> usize {
        self.all.iter().filter(|finding| finding.level == level).count()
    }

    /// Whether an error is among them.
    pub fn fail(&self) -> bool {
        self.number(Level::Error) > 0
    }

    /// Whether one is among them for which the service refuses to start.
    pub fn refuse(&self) -> bool {
        self.all.iter().any(|finding| finding.refused)
    }

    /// The answer in a line.
    pub fn answer(&self) -> String {
        let warnings = count(self.number(Level::Warning), "warning");
        let errors = self.all.iter().filter(|finding| finding.level == Level::Error);
        let worst = errors.map(|finding| finding.check.effect).max();
        let end = match worst {
            None if self.number(Level::Warning) == 0 => {
                return format!("everything is well: {}", count(self.all.len(), "check"));
            }
            None => return format!("no error, {warnings}: the service works"),
            Some(Effect::NoStart) => "the service will not start",
            Some(Effect::NoWork) => "the service will take no jobs",
            Some(Effect::Part) => "the service runs, and a part of it does not work",
        };
        format!("{}, {warnings}: {end}", count(self.number(Level::Error), "error"))
    }

    /// For people.
    pub fn people(&self, paint: Paint) -> String {
        let worst = self.all.iter().map(|finding| finding.level).max();
        let mut out = paint.paint(colour(worst.unwrap_or(Level::Ok)), &self.answer());
        out.push('\n');
        let width = self
            .all
            .iter()
            .map(|finding| finding.check.id.len())
            .max()
            .unwrap_or(0);
        for (group, name) in GROUPS {
            let own: Vec<&Finding> = self.all.iter().filter(|it| it.check.group() == group).collect();
            let skipped: Vec<&Skipped> = self.skipped.iter().filter(|it| it.group == group).collect();
            if own.is_empty() && skipped.is_empty() {
                continue;
            }
            out.push_str(&format!("\n{name}\n"));
            for finding in own {
                push(&mut out, finding, width, paint);
            }
            for Skipped { because, .. } in skipped {
                let line = format!("  {:<7}  {because}\n", "not yet");
                out.push_str(&paint.paint(Colour::Dim, &line));
            }
        }
        out
    }

    /// For machines; docs/operating.md describes it.
    pub fn machine(&self) -> Value {
        let checks: Vec<Value> = self.all.iter().map(machine).collect();
        let skipped: Vec<Value> = self
            .skipped
            .iter()
            .map(|it| json!({"group": it.group, "because": it.because}))
            .collect();
        json!({
            "ok": self.number(Level::Error) == 0,
            "answer": self.answer(),
            "errors": self.number(Level::Error),
            "warnings": self.number(Level::Warning),
            "checks": checks,
            "skipped": skipped,
        })
    }
}

fn colour(level: Level) -> Colour {
    match level {
        Level::Ok => Colour::Green,
        Level::Warning => Colour::Yellow,
        Level::Error => Colour::Red,
    }
}

/// What is well takes a line; what is not says why it matters, and what to type.
fn push(out: &mut String, finding: &Finding, width: usize, paint: Paint) {
    let level = format!("{:<7}", finding.level.word());
    let level = paint.paint(colour(finding.level), &level);
    let found = plain(&finding.found);
    out.push_str(&format!("  {level}  {:<width$}  {found}\n", finding.check.id));
    if finding.level == Level::Ok {
        return;
    }
    for line in wrapped(finding.check.why) {
        out.push_str(&format!("           {}\n", paint.paint(Colour::Dim, &line)));
    }
    for line in finding.note.iter().flat_map(|note| wrapped(note)) {
        out.push_str(&format!("           {line}\n"));
    }
    for command in &finding.mend {
        out.push_str(&format!("         $ {command}\n"));
    }
}

/// Text from elsewhere for a terminal: what steers it is left out.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Words in lines; what is there to be copied is never broken.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one from the beginning");
        if !last.is_empty() && last.width() + 1 + word.width() > COLUMNS {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

fn machine(finding: &Finding) -> Value {
    let troubled = finding.level != Level::Ok;
    json!({
        "id": finding.check.id,
        "group": finding.check.group(),
        "level": finding.level.word(),
        "found": finding.found,
        "why": troubled.then_some(finding.check.why),
        "mend": finding.mend,
        "note": finding.note,
    })
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn the_first_line_is_the_answer() {
        let mut findings = Findings::default();
        findings.all.push(Finding::ok(&table::BROKER_LOGIN, "user x"));
        assert_eq!(findings.answer(), "everything is well: 1 check");
        findings
            .all
            .push(Finding::warning(&table::CONFIG_RISK, "a", Vec::new()));
        assert_eq!(findings.answer(), "no error, 1 warning: the service works");
        let mend = vec!["true".to_owned()];
        findings
            .all
            .push(Finding::error(&table::SYSTEM_PORT, "b", mend.clone()));
        assert!(
            findings
                .answer()
                .ends_with("1 warning: the service runs, and a part of it does not work")
        );
        findings
            .all
            .push(Finding::error(&table::BROKER_ADDRESS, "b", mend.clone()));
        assert!(findings.answer().ends_with("the service will take no jobs"));
        assert!(findings.fail() && !findings.refuse());
        findings.all.push(Finding::error(&table::CONFIG_KEY, "c", mend));
        assert_eq!(
            findings.answer(),
            "3 errors, 1 warning: the service will not start"
        );
        let said = findings.people(Paint::off());
        assert!(
            said.starts_with("3 errors") && said.contains("\n         $ true\n"),
            "{said}"
        );
        assert_eq!(
            wrapped(&"ab ".repeat(60)).len(),
            3,
            "{:?}",
            wrapped(&"ab ".repeat(60))
        );
        assert!(findings.fail() && findings.refuse());
        assert_eq!(findings.machine()["checks"][0]["why"], Value::Null);
    }
}
