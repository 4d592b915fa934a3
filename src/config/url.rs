//! The broker's URL: checked, with the password put in, and shown without it.
//!
//! Follows RabbitMQ's URI specification; refuses what the client library would silently read as something
//! else (an IPv6 literal becomes `localhost` there). Unlike there, it may name several hosts, separated by commas:
//! the nodes of one cluster, of which any will do.

/// One node of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Host name or IPv4 address.
    pub name: String,
    /// Port, the scheme's own if none is written.
    pub port: u16,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// A broker's URL, taken apart. User, password and virtual host are still percent-encoded.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// `amqps` rather than `amqp`.
    pub tls: bool,
    /// User, if there is one.
    user: Option<String>,
    /// Password, if there is one.
    password: Option<String>,
    /// At least one; user, password and virtual host are the same on all.
    pub hosts: Vec<Host>,
    /// Everything from the slash behind the authority, as written.
    pub tail: String,
}

impl BrokerUrl {
    /// Takes a URL apart, or says what is wrong; the message never repeats the password.
    pub fn parse(text: &str) -> Result<BrokerUrl, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("has no scheme, which must be amqp:// or amqps://")?;
        let tls = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => return Err("the scheme must be amqp:// or amqps://".to_owned()),
        };
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("has a blank or a control character in it".to_owned());
        }
        if rest.contains("://") {
            return Err(
                "is more than one URL; several hosts stand behind one amqp://USER@, separated by commas"
                    .to_owned(),
            );
        }
        let cut = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(cut);
        if tail.contains('@') && !authority.contains('@') {
            return Err("user or password must be percent-encoded (/ is %2f, @ is %40, # is %23)".to_owned());
        }
        if tail.contains('#') {
            return Err("must have no fragment (a # in it must be written %23)".to_owned());
        }
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, authority),
        };
        let (user, password) = match user_info.map(|info| info.split_once(':').ok_or(info)) {
            None => (None, None),
            Some(Ok((user, password))) => (Some(user), Some(password)),
            Some(Err(user)) => (Some(user), None),
        };
        for part in [user, password, Some(tail)].into_iter().flatten() {
            well_encoded(part)?;
        }
        if [user, password]
            .into_iter()
            .flatten()
            .any(|part| part.contains('@'))
        {
            return Err("an @ in user or password must be written %40".to_owned());
        }
        if user == Some("") {
            return Err("the user before : or @ is empty".to_owned());
        }
        let hosts = hosts(address, if tls { 5671 } else { 5672 })?;
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(BrokerUrl {
            tls,
            user: owned(user),
            password: owned(password),
            hosts,
            tail: tail.to_owned(),
        })
    }

    /// Puts in a password, percent-encoding it.
    pub fn set_password(&mut self, plain: &str) {
        self.password = Some(encode(plain));
    }

    /// The whole URL, password included: a secret.
    pub fn secret(&self) -> String {
        self.written(self.password.as_deref())
    }

    /// The same URL with this host alone, password included: a secret.
    pub fn secret_of(&self, host: &Host) -> String {
        let alone = BrokerUrl {
            hosts: vec![host.clone()],
            ..self.clone()
        };
        alone.secret()
    }

    /// The URL with `***` for the password.
    pub fn shown(&self) -> String {
        self.written(self.password.as_ref().map(|_| "***"))
    }

    /// Whether there is a password.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// The user, decoded.
    pub fn user(&self) -> Option<String> {
        self.user.as_deref().map(decode)
    }

    /// The virtual host, decoded; `/` if none is written.
    pub fn vhost(&self) -> String {
        let path = self.tail.split('?').next().unwrap_or_default();
        path.strip_prefix('/').map_or_else(|| "/".to_owned(), decode)
    }

    fn written(&self, password: Option<&str>) -> String {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let user = match (&self.user, password) {
            (Some(user), Some(password)) => format!("{user}:{password}@"),
            (Some(user), None) => format!("{user}@"),
            (None, _) => String::new(),
        };
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        format!("{scheme}://{user}{}{}", hosts.join(","), self.tail)
    }
}

impl Default for BrokerUrl {
    /// Where RabbitMQ listens on this machine, without a user.
    fn default() -> BrokerUrl {
        BrokerUrl {
            tls: false,
            user: None,
            password: None,
            hosts: vec![Host {
                name: "localhost".to_owned(),
                port: 5672,
            }],
            tail: String::new(),
        }
    }
}

impl std::fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

/// Hides whatever may be a password in a URL that may be malformed.
pub fn mask(text: &str) -> String {
    if let Ok(url) = BrokerUrl::parse(text) {
        return url.shown();
    }
    let (scheme, rest) = text
        .split_once("://")
        .map_or(("", text), |(scheme, rest)| (scheme, rest));
    let scheme = if scheme.is_empty() {
        String::new()
    } else {
        format!("{scheme}://")
    };
    match (rest.rfind('@'), rest.find(':')) {
        (Some(at), _) => format!("{scheme}***{}", &rest[at..]),
        (None, Some(colon)) => format!("{scheme}{}:***", &rest[..colon]),
        (None, None) => format!("{scheme}{rest}"),
    }
}

fn hosts(addresses: &str, standard: u16) -> Result<Vec<Host>, String> {
    let mut hosts = Vec::new();
    for address in addresses.split(',') {
        let host = host_and_port(address, standard)?;
        if hosts.contains(&host) {
            return Err(format!("names {host} twice"));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn host_and_port(address: &str, standard: u16) -> Result<Host, String> {
    if address.starts_with('[') {
        return Err("an IPv6 address must be given by a host name (in /etc/hosts or DNS)".to_owned());
    }
    let (name, port) = match address.split_once(':') {
        None => (address, standard),
        Some((host, port)) => match port.parse() {
            Ok(port) if port > 0 => (host, port),
            _ => return Err("the port must be a number from 1 to 65535".to_owned()),
        },
    };
    if name.is_empty() {
        return Err("names no host, or an empty one".to_owned());
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Err("the host may hold only letters, digits, '-', '.' and '_'".to_owned());
    }
    let name = name.to_owned();
    Ok(Host { name, port })
}

fn well_encoded(part: &str) -> Result<(), String> {
    let bytes = part.as_bytes();
    let mut escapes = bytes.iter().enumerate().filter(|(_, b)| **b == b'%');
    match escapes.all(|(i, _)| {
        bytes
            .get(i + 1..i + 3)
            .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    }) {
        true => Ok(()),
        false => Err("a % must be followed by two hexadecimal digits (a plain % is %25)".to_owned()),
    }
}

fn encode(plain: &str) -> String {
    let mut out = String::new();
    for byte in plain.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decode(part: &str) -> String {
    let bytes = part.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[i] == b'%' => {
                out.push(byte);
                i += 3;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_url_comes_apart_and_together() {
        let url = BrokerUrl::parse("amqps://worker:p%40ss@mq.example:5999/emb%2fx?heartbeat=5").unwrap();
        assert!(url.tls);
        assert_eq!(url.hosts[0].to_string(), "mq.example:5999");
        assert_eq!(url.vhost(), "emb/x");
        assert_eq!(
            url.secret(),
            "amqps://worker:p%40ss@mq.example:5999/emb%2fx?heartbeat=5"
        );
        assert_eq!(
            url.shown(),
            "amqps://worker:***@mq.example:5999/emb%2fx?heartbeat=5"
        );
        let bare = BrokerUrl::parse("amqp://mq").unwrap();
        assert_eq!((bare.hosts[0].port, bare.vhost().as_str()), (5672, "/"));
    }

    #[test]
    fn the_nodes_of_a_cluster_stand_in_one_url() {
        let url =
            BrokerUrl::parse("amqps://worker:p%2Css@node-a,node-b:5999,node-c/emb?heartbeat=5").unwrap();
        let hosts: Vec<String> = url.hosts.iter().map(Host::to_string).collect();
        assert_eq!(hosts, ["node-a:5671", "node-b:5999", "node-c:5671"]);
        assert_eq!(url.vhost(), "emb");
        assert_eq!(
            url.shown(),
            "amqps://worker:***@node-a:5671,node-b:5999,node-c:5671/emb?heartbeat=5"
        );
        assert_eq!(
            url.secret_of(&url.hosts[1]),
            "amqps://worker:p%2Css@node-b:5999/emb?heartbeat=5"
        );
        assert_eq!(BrokerUrl::parse(&url.secret()).unwrap(), url);
        for (bad, problem) in [
            ("amqp://mq-a,,mq-b/", "an empty one"),
            ("amqp://mq-a,/", "an empty one"),
            ("amqp://mq-a,mq-b:5672,mq-b/", "names mq-b:5672 twice"),
            ("amqp://mq-a,[::1]/", "IPv6"),
            ("amqp://mq-a,mq-b:x/", "the port must be"),
            (
                "amqp://w:hunter2@mq-a,amqp://w:hunter2@mq-b/",
                "more than one URL",
            ),
        ] {
            let said = BrokerUrl::parse(bad).map(|url| url.shown()).unwrap_err();
            assert!(said.contains(problem), "{bad}: {said}");
            assert!(!format!("{said} {}", mask(bad)).contains("ter2"), "{bad}");
        }
    }

    #[test]
    fn what_the_client_would_misread_is_refused_and_never_repeated() {
        for bad in [
            "http://guest:hunter2@mq/",
            "guest:hunter2@mq",
            "amqp://guest:hunter2@/%2f",
            "amqp://guest:hun#ter2@mq/",
            "amqp://guest:hunter2",
            "amqp://guest:hunter2@[::1]:5672/",
            "amqp://guest:hunter2@mq:0/",
            "amqp://guest:hunter2%@mq/",
            "amqp://guest:hun/ter2@mq/",
            "amqp://:hunter2@mq/",
            "amqp://a b:hunter2@mq/",
            "amqp://guest:hunter2@mq@mq/",
        ] {
            let problem = BrokerUrl::parse(bad).map(|url| url.shown()).unwrap_err();
            let masked = mask(bad);
            assert!(
                !format!("{problem} {masked}").contains("ter2"),
                "{bad}: {problem} / {masked}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_password_survives_encoding_and_is_never_shown(plain in "\\PC{4,40}") {
            let mut url = BrokerUrl::parse("amqp://worker@mq.example/%2f").unwrap();
            url.set_password(&plain);
            let again = BrokerUrl::parse(&url.secret()).unwrap();
            prop_assert_eq!(decode(again.password.as_deref().unwrap()), plain);
            prop_assert_eq!(again.shown(), "amqp://worker:***@mq.example:5672/%2f");
        }
    }
}
