//! Where an answer goes: which names may be published to.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What the names of RabbitMQ's direct reply-to begin with.
pub const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// Why nothing may be published to a request's `reply_to`, if so.
pub fn fault(reply_to: Option<&str>) -> Option<&'static str> {
    let Some(name) = reply_to else {
        return Some("reply_to is missing, there is no place for an answer");
    };
    let direct = name.strip_prefix(DIRECT_REPLY_TO);
    direct
        .filter(|token| !is_direct_token(token))
        .map(|_| "reply_to looks like a direct reply-to, and is none that RabbitMQ gives out")
}

/// Whether RabbitMQ can read what follows [`DIRECT_REPLY_TO`]: whoever publishes to a name that it cannot read loses the
/// connection (seen on 3.10.8), and every other job's session with it. One of another cluster's node looks like one of its
/// own. It is `PID.KEY`, the first in base64: a process in Erlang's external term format (NEW_PID_EXT), its node named
/// `reply@NUMBER` (`pid_recomposition.erl`).
fn is_direct_token(token: &str) -> bool {
    const IDS_BYTES: usize = 12;
    let Some((pid, key)) = token.split_once('.') else {
        return false;
    };
    let pid = STANDARD.decode(pid).unwrap_or_default();
    let (len, rest) = match pid.as_slice() {
        [131, 88, 118, high, low, rest @ ..] => (u16::from_be_bytes([*high, *low]).into(), rest),
        [131, 88, 119, len, rest @ ..] => (usize::from(*len), rest),
        _ => return false,
    };
    let node = rest.get(..len).and_then(|node| std::str::from_utf8(node).ok());
    let number = node
        .and_then(|node| node.split_once('@'))
        .map(|(_, number)| number);
    let is_number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    rest.len() == len + IDS_BYTES && number.is_some_and(is_number) && !key.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nothing is published where it costs the connection. Method: the token that RabbitMQ 3.10.8 makes, and what
    /// becomes of it when each part is bent.
    #[test]
    fn a_direct_reply_to_is_one_that_the_broker_can_read() {
        let fault = |name: String| fault(Some(&name)).is_some();
        let token = |pid: &[u8], key: &str| format!("{DIRECT_REPLY_TO}{}.{key}", STANDARD.encode(pid));
        let pid =
            |tag: &[u8], node: &str, ids: usize| [&[131, 88], tag, node.as_bytes(), &vec![7; ids]].concat();
        assert!(!fault(format!(
            "{DIRECT_REPLY_TO}g1h2AA5yZXBseUA4NDQ2MDcxMgAAAAkAAAAAaxBIOQ==.abc=="
        )));
        assert!(!fault(token(&pid(&[118, 0, 7], "reply@7", 12), "k")));
        assert!(!fault(token(&pid(&[119, 7], "reply@7", 12), "k")));
        for bent in [
            token(&pid(&[118, 0, 7], "reply@7", 12), ""),
            token(&pid(&[118, 0, 7], "reply@7", 11), "k"),
            token(&pid(&[118, 9, 7], "reply@7", 12), "k"),
            token(&pid(&[118, 0, 7], "reply@x", 12), "k"),
            token(&pid(&[118, 0, 6], "reply@", 12), "k"),
            token(&pid(&[100, 0, 7], "rabbit1", 12), "k"),
            token(&[], "k"),
            format!("{DIRECT_REPLY_TO}a.b"),
            format!("{DIRECT_REPLY_TO}garbage"),
            DIRECT_REPLY_TO.to_owned(),
        ] {
            assert!(fault(bent.clone()), "{bent}");
        }
        assert!(!fault("amq.gen-x.y".to_owned()));
    }
}
