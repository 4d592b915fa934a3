//! One value against its key's kind, and values against each other.

use super::error::Origin;
use super::keys::{Kind, Rule};
use super::url::{self, BrokerUrl};
use super::{Device, Precision, collector};
use figment::value::Value;

/// A value that fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// For [`Kind::Int`].
    Int(u64),
    /// For [`Kind::Bool`].
    Bool(bool),
    /// For [`Kind::Text`].
    Text(String),
    /// For [`Kind::List`].
    List(Vec<String>),
}

/// A value that was set: itself and who set it.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub value: Parsed,
    pub origin: Origin,
}

/// Checks one value; an error is what is wrong, with the allowed range.
pub(super) fn check(kind: Kind, value: &Value) -> Result<Parsed, String> {
    let must = || format!("must be {}", kind.range());
    match kind {
        Kind::Int { min, max, .. } => {
            let number = match value {
                Value::Num(_, _) => value
                    .to_i128()
                    .or_else(|| value.to_u128().and_then(|n| i128::try_from(n).ok())),
                _ => None,
            };
            match number.and_then(|number| u64::try_from(number).ok()) {
                Some(number) if (min..=max).contains(&number) => Ok(Parsed::Int(number)),
                _ => Err(must()),
            }
        }
        Kind::Bool => value.to_bool().map(Parsed::Bool).ok_or_else(must),
        Kind::Text(rule) => match value.as_str() {
            Some(text) => follow(rule, text).map(|()| Parsed::Text(text.to_owned())),
            None => Err(format!("must be a string: {}", rule.range())),
        },
        Kind::List(rule) => {
            let items = value.as_array().ok_or_else(must)?;
            let mut list = Vec::new();
            for item in items {
                let text = item.as_str().ok_or_else(must)?;
                follow(rule, text)?;
                if list.iter().any(|earlier| earlier == text) {
                    return Err(format!("{text} stands in it twice; must be {}", kind.range()));
                }
                list.push(text.to_owned());
            }
            Ok(Parsed::List(list))
        }
    }
}

/// Checks a string against its rule.
pub(super) fn follow(rule: Rule, text: &str) -> Result<(), String> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    let fits = match rule {
        Rule::ModelName => (1..=200).contains(&text.chars().count()) && text.chars().all(plain),
        Rule::Prefix => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            (1..=100).contains(&text.len()) && text.bytes().all(allowed)
        }
        Rule::BrokerUrl => match BrokerUrl::parse(text) {
            Ok(_) => true,
            Err(problem) => return Err(format!("{problem}; must be {}", rule.range())),
        },
        Rule::Path => !text.contains('\0'),
        Rule::Listen => text.is_empty() || text.parse::<std::net::SocketAddr>().is_ok(),
        Rule::CollectorUrl if text.is_empty() => true,
        Rule::CollectorUrl => match collector::check(text) {
            Ok(()) => true,
            Err(problem) => return Err(format!("{problem}; must be {}", rule.range())),
        },
        Rule::LogLevel => log_filter(text),
        Rule::Device => text.parse::<Device>().is_ok(),
        Rule::Precision => text.parse::<Precision>().is_ok(),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("must be {}", rule.range()))
    }
}

/// Stricter than the filter's own parser, which takes a misspelt level for the name of a crate.
fn log_filter(text: &str) -> bool {
    let level = |word: &str| {
        let word = word.to_ascii_lowercase();
        matches!(
            word.as_str(),
            "off" | "error" | "warn" | "info" | "debug" | "trace"
        )
    };
    let spans = text.contains('[');
    let directive = |part: &str| match part.rsplit_once('=') {
        Some((target, wanted)) => !target.trim().is_empty() && level(wanted.trim()),
        None => level(part.trim()),
    };
    let shaped = spans || text.split(',').all(directive);
    shaped && !text.trim().is_empty() && tracing_subscriber::EnvFilter::builder().parse(text).is_ok()
}

/// A value as messages may show it: short, and without a password.
pub(super) fn shown(kind: Option<Kind>, value: &Value) -> String {
    let text = match value {
        Value::String(_, text) if kind == Some(Kind::Text(Rule::BrokerUrl)) => {
            format!("{:?}", url::mask(text))
        }
        Value::String(_, text) if kind == Some(Kind::Text(Rule::CollectorUrl)) => {
            format!("{:?}", collector::mask(text))
        }
        Value::String(_, text) => format!("{text:?}"),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => {
            let whole = number.to_u128_lossy().map(|n| n.to_string());
            let signed = value.to_i128().map(|n| n.to_string());
            signed
                .or_else(|| number.to_f64().map(|n| format!("{n:?}")))
                .or(whole)
                .unwrap_or_default()
        }
        Value::Array(_, items) => {
            let items: Vec<String> = items.iter().map(|item| shown(kind, item)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(_, _) => "a table".to_owned(),
        other => format!("{:?}", other.to_actual()),
    };
    let short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        format!("{short}…")
    } else {
        text
    }
}
