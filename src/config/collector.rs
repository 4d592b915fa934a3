//! The collector's URL: checked, so that what is wrong is said at the start and not by spans that never come.

/// Whether a URL is one of a collector, to which the path of the signal is added; an error is what is wrong. It never repeats
/// what may be a password.
pub(super) fn check(text: &str) -> Result<(), String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .ok_or("the scheme must be http:// or https://")?;
    // Those three are no part of a URL, and stand in placeholders that somebody forgot.
    if !text.bytes().all(|b| b.is_ascii_graphic() && !b"<>`".contains(&b)) {
        return Err("has a blank or a character in it that must be percent-encoded".to_owned());
    }
    if rest.contains('@') {
        return Err("must have no user and no password".to_owned());
    }
    if rest.contains(['?', '#']) {
        return Err("must have no query and no fragment".to_owned());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.trim_end_matches('/').ends_with("/v1/traces") {
        return Err("/v1/traces is added to it, and must not stand in it".to_owned());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let (address, behind) = literal.split_once(']').ok_or("a [ in it has no ]")?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("what stands between [ and ] must be an IPv6 address".to_owned());
            }
            (
                address,
                behind.strip_prefix(':').or((!behind.is_empty()).then_some("")),
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if !host.bytes().all(plain) {
        return Err("the host may hold only letters, digits, '-', '.' and '_'".to_owned());
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("the port must be a number from 1 to 65535".to_owned());
    }
    Ok(())
}

/// Hides whatever may be a password in a URL that may be malformed.
pub(super) fn mask(text: &str) -> String {
    // A key may stand in the query as well.
    let (text, hidden) = match text.find(['?', '#']) {
        Some(at) => (&text[..=at], "***"),
        None => (text, ""),
    };
    let shown = match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}***{}", &text[..scheme + 3], &text[at..]),
        (_, Some(at)) => format!("***{}", &text[at..]),
        (_, None) => text.to_owned(),
    };
    shown + hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_have_a_scheme_and_a_host() {
        for good in [
            "http://127.0.0.1:4318",
            "http://[::1]:4318/",
            "https://otel.example.org/tenants/a",
            "http://collector",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, said) in [
            ("127.0.0.1:4318", "scheme"),
            ("grpc://a:4317", "scheme"),
            ("http://", "no host"),
            ("http://:4318", "no host"),
            ("http://a:0", "port"),
            ("http://a:4318x", "port"),
            ("http://[::1]4318", "port"),
            ("http://[::1", "no ]"),
            ("http://[a]:1", "IPv6"),
            ("http://a b", "blank"),
            ("http://ä", "percent-encoded"),
            ("http://a%b", "the host"),
            ("http://u:hunter2@a", "no user"),
            ("http://a/?key=hunter2", "no query"),
            ("http://a/#hunter2@b", "no user"),
            ("http://a/<tenant>", "percent-encoded"),
            ("http://a:4318/v1/traces", "is added"),
        ] {
            let problem = check(bad).expect_err(bad);
            assert!(problem.contains(said), "{bad}: {problem}");
            assert!(!format!("{problem}{}", mask(bad)).contains("hunter2"));
        }
        assert_eq!(mask("http://u:p@a:1"), "http://***@a:1");
        assert_eq!(mask("u:p@a:1"), "***@a:1");
        assert_eq!(mask("http://a:1"), "http://a:1");
        assert_eq!(mask("http://a/v1?key=x"), "http://a/v1?***");
    }
}
