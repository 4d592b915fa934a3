//! Which trace a job belongs to, as its caller says in `traceparent`.

use std::fmt;

/// Name of the header, of a message and of a request by HTTP.
pub const HEADER_TRACEPARENT: &str = "traceparent";

/// A caller's place in a trace, in the words of W3C Trace Context, section 3.2: version, trace id, parent id and flags, such as
/// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`. It is carried into the log and back with every answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(Box<str>);

impl TraceParent {
    /// Reads one. What is not well formed is none, and no error: the recommendation wants it ignored (section 4.3).
    pub fn parse(text: &str) -> Option<TraceParent> {
        let hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let some = |id: &str| id.bytes().any(|b| b != b'0');
        let mut parts = text.splitn(5, '-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let known = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
        // Later versions may say more behind what this one says; nothing is carried without a bound.
        let ends = parts.next().is_none() || (version != "00" && text.len() <= 128 && text.is_ascii());
        (known && ends && some(trace) && some(parent)).then(|| TraceParent(text.into()))
    }

    /// As it came.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trace's id, 32 digits.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_well_formed_is_carried_as_it_is() {
        let parent = TraceParent::parse(GOOD).unwrap();
        assert_eq!(parent.as_str(), GOOD);
        assert_eq!(parent.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let later = format!("01{}-more", &GOOD[2..]);
        assert_eq!(TraceParent::parse(&later).unwrap().to_string(), later);
    }

    #[test]
    fn anything_else_is_ignored() {
        let long = format!("01{}-{}", &GOOD[2..], "x".repeat(100));
        for wrong in [
            "",
            "00",
            &GOOD[1..],
            &GOOD.to_uppercase(),
            &format!("{GOOD}-more"),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace(
                "4bf92f3577b34da6a3ce929d0e0e4736",
                "00000000000000000000000000000000",
            ),
            &format!("01{}-ä", &GOOD[2..]),
            &long,
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
