//! Fields of log lines on stderr, so that one event is one line whatever stands in it.
//!
//! Ids come from senders, and errors quote what somebody sent: with a line break in it, such a text would be a second line
//! that looks like one of ours, and with an escape sequence it would rule the terminal. The journal's records have a length
//! for each field and need none of this.

use std::fmt::{self, Write};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Writes fields as the library does, names in italics on a terminal, and control characters of names and values escaped.
pub(super) fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(|writer: &mut Writer<'_>, field, value| {
        if field.name() == "message" {
            return write!(Printable(writer), "{value:?}");
        }
        let (italic, dim, plain) = match writer.has_ansi_escapes() {
            true => ("\u{1b}[3m", "\u{1b}[2m", "\u{1b}[0m"),
            false => ("", "", ""),
        };
        write!(writer, "{italic}{}{plain}{dim}={plain}", field.name())?;
        write!(Printable(writer), "{value:?}")
    })
    .delimited(" ")
}

/// Passes on all but control characters (C0, DEL, C1), which are escaped as in Rust.
struct Printable<'a, W>(&'a mut W);

impl<W: Write> Write for Printable<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    self.0.write_str(&part[..at])?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(ansi: bool, log: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber =
            super::super::on_stderr(tracing_subscriber::registry(), ansi, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// Goal: what somebody sent is neither a line of its own nor a word to the terminal, in a field or in the message.
    /// Method: every control character that there is.
    #[test]
    fn an_event_is_one_line_of_printable_characters() {
        for control in ('\0'..='\u{ff}').filter(|c| c.is_control()) {
            let id = format!("a{control}2026-01-01T00:00:00Z ERROR forged{control}");
            let lines = logged(false, || tracing::warn!(job = %id, bare = id, "refused {id}"));
            let line = lines.strip_suffix('\n').unwrap();
            assert!(!line.contains(char::is_control), "{line:?}");
            assert_eq!(line.matches("forged").count(), 3, "{line}");
        }
    }

    /// Goal: all else looks as it did. Method: texts without control characters, and the colours of a terminal.
    #[test]
    fn all_else_stays_as_it_is() {
        let log =
            || tracing::info!(job = %"größer 北京 👩‍👩‍👧‍👦", n = 3, quoted = "a \"b\" \\", "well: \"done\" \\");
        let line = logged(false, log);
        let rest = r#" INFO well: "done" \ job=größer 北京 👩‍👩‍👧‍👦 n=3 quoted="a \"b\" \\""#;
        assert!(line.trim_end_matches('\n').ends_with(rest), "{line}");
        let coloured = logged(true, || tracing::info!(n = 3, job = %"\u{1b}[31m", "well"));
        let rest = "well \u{1b}[3mn\u{1b}[0m\u{1b}[2m=\u{1b}[0m3 \u{1b}[3mjob\u{1b}[0m\u{1b}[2m=\u{1b}[0m\\u{1b}[31m\n";
        assert!(coloured.ends_with(rest), "{coloured:?}");
    }
}
