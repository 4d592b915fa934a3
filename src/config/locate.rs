//! Where a key stands in a file: its line, for commands that change just that line.
//!
//! Reads no more of TOML than headers of tables and the keys of lines. A key whose place is in doubt has none: a
//! command that changes the wrong line is worse than none.

/// A line of a file that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// The key as the line writes it, without what stands around it.
    pub written: String,
}

/// The one line that sets `key` (such as `broker.url`, or `models."NAME".path`).
pub fn locate(text: &str, key: &str) -> Option<Line> {
    let wanted = parts(key)?;
    let mut found = lines(text).filter(|(path, _)| *path == wanted);
    match (found.next(), found.next()) {
        (Some((_, line)), None) => Some(line),
        _ => None,
    }
}

/// Every key that a file sets, in the spelling of [`locate`], and its line.
pub fn keys_of(text: &str) -> Vec<(String, Line)> {
    let named = lines(text).map(|(path, line)| {
        let parts: Vec<String> = path
            .iter()
            .enumerate()
            .map(|(at, part)| spelt(&path, at, part))
            .collect();
        (parts.join("."), line)
    });
    named.collect()
}

/// A model's name is quoted, whatever it is, as in all messages.
fn spelt(path: &[String], at: usize, part: &str) -> String {
    if at == 1 && path[0] == "models" {
        format!("{part:?}")
    } else {
        part.to_owned()
    }
}

fn lines(text: &str) -> impl Iterator<Item = (Vec<String>, Line)> {
    let mut table: Option<Vec<String>> = Some(Vec::new());
    let mut inside: Option<&str> = None;
    let found = move |(at, line): (usize, &str)| {
        // Inside a string of several lines nothing is a key.
        let odd = |quotes: &str| line.matches(quotes).count() % 2 == 1;
        if let Some(open) = inside {
            if odd(open) {
                inside = None;
            }
            return None;
        }
        inside = ["\"\"\"", "'''"].into_iter().find(|quotes| odd(quotes));
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[') {
            table = header.split_once(']').and_then(|(name, _)| parts(name));
            return None;
        }
        if trimmed.starts_with('#') {
            return None;
        }
        let written = trimmed.split_once('=')?.0.trim_end();
        let mut path = table.clone()?;
        path.extend(parts(written)?);
        let written = written.to_owned();
        Some((
            path,
            Line {
                number: at + 1,
                written,
            },
        ))
    };
    text.lines().enumerate().filter_map(found)
}

/// `models."a.b".path` to its parts; none where a quote stays open or a part is empty.
fn parts(key: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quote = None;
    for c in key.trim().chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '.') => parts.push(String::new()),
            (None, c) if c.is_whitespace() => {}
            (_, c) => parts.last_mut()?.push(c),
        }
    }
    (quote.is_none() && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "max_queue = 3 # [broker]\n#max_inputs = 5\n\n[broker] # ours\n  url = \"amqp://a=b@c\"\n\
                        [models.\"a.b\"]\npath = '''\nurl = 7\n'''\ndevice='cpu'\n[broker]\nprefix = 'a'\n";

    #[test]
    fn a_key_is_found_in_its_table() {
        let line = |key| locate(FILE, key).map(|line| line.number);
        assert_eq!(line("max_queue"), Some(1));
        assert_eq!(line("broker.url"), Some(5));
        assert_eq!(line("models.\"a.b\".path"), Some(7));
        assert_eq!(line("models.\"a.b\".device"), Some(10));
        assert_eq!(line("broker.prefix"), Some(12));
        for absent in ["max_inputs", "url", "models.\"a.b\".url", "broker.max_queue", ""] {
            assert_eq!(line(absent), None, "{absent}");
        }
        assert_eq!(locate(FILE, "broker.url").unwrap().written, "url");
        let keys: Vec<String> = keys_of(FILE).into_iter().map(|(key, _)| key).collect();
        assert!(keys.contains(&"models.\"a.b\".device".to_owned()), "{keys:?}");
    }

    #[test]
    fn a_key_that_stands_twice_has_no_place() {
        assert_eq!(locate("a = 1\na = 2\n", "a"), None);
    }
}
