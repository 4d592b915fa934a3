//! Which trace a job belongs to, as its caller says in `traceparent`, and where in it a span of ours stands.

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

    /// Whether its caller may have kept what it told of the trace (section 3.2.3.1).
    pub fn is_sampled(&self) -> bool {
        self.flags() & SAMPLED != 0
    }

    fn flags(&self) -> u8 {
        u8::from_str_radix(&self.0[53..55], 16).expect("two digits, or it would not have been read")
    }
}

/// The flag that says that a trace is kept.
const SAMPLED: u8 = 1;
/// That and the flag that says that the trace's id is random (Trace Context, level 2): the flags that a version of ours may pass on.
const KNOWN_FLAGS: u8 = 0b11;

/// Where a span of ours stands in a trace that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The trace's id, not 0.
    pub trace: u128,
    /// The span's own id, not 0.
    pub span: u64,
    /// The span of the caller below which it stands; `None` if the trace begins with it.
    pub parent: Option<u64>,
    /// The trace's flags.
    pub flags: u8,
}

impl Place {
    /// Below the caller's span.
    pub fn below(parent: &TraceParent, span: u64) -> Place {
        let hex = "hexadecimal digits, or it would not have been read";
        Place {
            trace: u128::from_str_radix(parent.trace_id(), 16).expect(hex),
            span,
            parent: Some(u64::from_str_radix(&parent.0[36..52], 16).expect(hex)),
            flags: parent.flags() & KNOWN_FLAGS,
        }
    }

    /// At the beginning of a trace of its own.
    pub fn root(trace: u128, span: u64) -> Place {
        Place {
            trace,
            span,
            parent: None,
            flags: SAMPLED,
        }
    }

    /// What is said to those whose spans stand below this one.
    pub fn traceparent(&self) -> TraceParent {
        TraceParent(format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags).into())
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

    /// Goal: what is said of a span of ours is well formed, of the same trace, and kept as the caller keeps it.
    #[test]
    fn a_span_of_ours_stands_below_the_caller_s() {
        let caller = TraceParent::parse(GOOD).unwrap();
        let place = Place::below(&caller, 0xabc);
        assert_eq!(place.parent, Some(0x00f0_67aa_0ba9_02b7));
        let told = place.traceparent();
        assert_eq!(
            told.as_str(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01"
        );
        assert_eq!(TraceParent::parse(told.as_str()), Some(told));
        let later = TraceParent::parse(&format!("01{}f3-more", &GOOD[2..53])).unwrap();
        assert!(later.is_sampled());
        assert!(
            Place::below(&later, 1)
                .traceparent()
                .as_str()
                .ends_with("-0000000000000001-03")
        );
        assert!(
            !TraceParent::parse(&format!("{}02", &GOOD[..53]))
                .unwrap()
                .is_sampled()
        );
        let root = Place::root(7, 9).traceparent();
        assert_eq!(
            root.as_str(),
            "00-00000000000000000000000000000007-0000000000000009-01"
        );
        assert!(root.is_sampled());
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
