//! The commands, one small file each: arguments in, an exit code out.
//!
//! All of them speak alike: the first line is the answer, tables are aligned, `--json` is for machines and prints one object
//! in every case, colour is for terminals only and never with `NO_COLOR`, errors go to stderr.

pub mod alarm;
mod ask;
pub mod bench;
pub mod check;
pub mod config;
pub mod dead;
pub mod embed;
pub mod model;
#[cfg(target_os = "linux")]
pub mod monitor;
pub mod postmortem;
pub mod status;
pub mod submit;
pub mod top;

use crate::args::ConfigFlags;
use crate::config::{ConfigErrors, Inputs, Loaded};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use unicode_width::UnicodeWidthStr;

/// Loads the configuration that the flags choose, from this process's environment.
///
/// # Errors
/// Everything that is wrong with it; the process then ends with [`crate::config::EXIT_CONFIG`].
pub fn configuration(flags: &ConfigFlags) -> Result<Loaded, ConfigErrors> {
    crate::config::load(&inputs(flags))
}

/// What the flags choose, with this process's environment.
pub fn inputs(flags: &ConfigFlags) -> Inputs {
    Inputs::from_process(flags.config.clone(), flags.set.clone()).of_instance(flags.instance.clone())
}

/// Writes to stdout. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// Whatever else the system says.
pub fn print(text: &str) -> std::io::Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes to stdout what need not be text.
fn print_bytes(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says why a command has come to nothing: on stderr to people, and where JSON was asked for on stdout, too, so that whoever
/// reads that gets one object in every case. Its exit code.
pub fn failed(json: bool, errors: &[String], code: u8) -> ExitCode {
    failed_with(json, errors, code, Value::Null)
}

/// The same, with what this command's JSON has otherwise, as far as it is known.
fn failed_with(json: bool, errors: &[String], code: u8, known: Value) -> ExitCode {
    for error in errors {
        tell!("error: {error}");
    }
    if json {
        let mut said = match known {
            Value::Object(known) => known,
            _ => serde_json::Map::new(),
        };
        said.insert("error".into(), errors.join("\n").into());
        said.insert("exit".into(), code.into());
        // The exit code stands, whether or not anybody can read this.
        let _ = print(&format!("{:#}\n", Value::Object(said)));
    }
    ExitCode::from(code)
}

/// A colour of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
    /// Less important.
    Dim,
}

/// Colours text, or leaves it alone.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout: on if it is a terminal that knows colours and nobody asked for none (no-color.org).
    pub fn stdout() -> Paint {
        Paint { on: is_coloured() }
    }

    /// For what is read by no terminal.
    pub fn off() -> Paint {
        Paint { on: false }
    }

    /// The text in the colour.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
            Colour::Dim => 2,
        };
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Whether stdout is a terminal that knows colours, and nobody asked for none (no-color.org).
fn is_coloured() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let dumb = set("TERM").is_none_or(|term| term == "dumb");
    set("NO_COLOR").is_none() && !dumb && std::io::stdout().is_terminal()
}

/// Rows with aligned columns, two blanks between them, none at the end of a line.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.width()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.width())))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A number of things: `1 model`, `2 models`.
pub fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(
            table(&[row("a", "1"), row("ämter", ""), row("bb", "22")]),
            "a      1\nämter\nbb     22\n"
        );
        assert_eq!(
            table(&[row("日本", "1"), row("e\u{301}x", "2")]),
            "日本  1\ne\u{301}x    2\n"
        );
        assert_eq!(Paint { on: true }.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint { on: false }.paint(Colour::Red, "x"), "x");
    }
}
