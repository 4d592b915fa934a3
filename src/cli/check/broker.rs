//! Judges what was seen of the broker: pure, so that each way of being wrong is a small test.

use super::finding::{Finding, Level};
use super::mend::{Hand, path as shell_path, quoted};
use super::{table, topology};
use crate::broker::probe::{Reach, Refused, STEP_MAX, Seen, Speaks};
use crate::config::{BrokerConfig, BrokerUrl, Host, Origin};

/// Oldest version with at-least-once dead-lettering.
const OLDEST: (u32, u32) = (3, 10);

/// What the configuration says of the broker, for the commands that mend.
pub struct Place<'a> {
    /// Who types them.
    pub hand: &'a Hand,
    /// As loaded.
    pub config: &'a BrokerConfig,
    /// As loaded.
    pub url: &'a BrokerUrl,
    /// Who set `broker.url`.
    pub url_from: Origin,
    /// Who set `broker.declare`.
    pub declare_from: Origin,
    /// Who set `broker.ca_file`.
    pub ca_from: Origin,
}

impl Place<'_> {
    /// Who logs in, in plain text.
    pub fn user(&self) -> String {
        self.url.user().unwrap_or_else(|| "guest".to_owned())
    }

    /// All three rights, as the service needs them.
    pub fn grant(&self) -> String {
        let own = self.config.prefix.replace('.', "\\.");
        self.hand.root(format!(
            "rabbitmqctl set_permissions -p {} {} '^{own}\\.' '^({own}\\.|amq\\.default$)' '^{own}\\.'",
            quoted(&self.url.vhost()),
            quoted(&self.user())
        ))
    }

    /// Where commands for the broker have to be typed, if not here.
    pub fn there(&self) -> Option<String> {
        let host = self.url.hosts.iter().find(|host| !is_here(host))?;
        Some(format!("on the broker's machine, {}", host.name))
    }

    /// With the place where its commands have to be typed.
    pub fn on_broker(&self, finding: Finding) -> Finding {
        match self.there() {
            Some(there) => finding.note(there),
            None => finding,
        }
    }

    /// Replaces a part of the URL where it stands.
    fn change_url(&self, from: &str, to: &str) -> Vec<String> {
        match &self.url_from {
            Origin::File(file) => match super::mend::place(file, "broker.url") {
                Some(line) => vec![self.hand.replace(file, line.number, from, to)],
                None => vec![self.hand.edit(file, None)],
            },
            _ => Vec::new(),
        }
    }
}

/// Whether a node is on this machine, as far as its name says so.
pub fn is_here(host: &Host) -> bool {
    host.name == "localhost" || host.name.starts_with("127.")
}

/// What is wrong before anything is asked: the roots, and a password in plain sight.
pub fn before(place: &Place) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(path) = &place.config.ca_file {
        let shown = path.display();
        let read = std::fs::read_to_string(path);
        // The service reads it once before it asks for a connection.
        let refused = read.is_err();
        let problem = match read {
            Err(error) => Some(format!("failed to read: {error}")),
            Ok(text) if !is_pem(&text) => {
                Some("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned())
            }
            Ok(_) => None,
        };
        found.push(match problem {
            None => Finding::ok(&table::BROKER_CA, format!("{shown} holds certificates")),
            Some(problem) => {
                let text = format!("broker.ca_file = \"{shown}\": {problem}");
                let unset = place.hand.unset(&place.ca_from, "broker.ca_file");
                let note = format!(
                    "the system's roots are trusted then; or fetch the roots anew into {}",
                    shell_path(path)
                );
                Finding::error(&table::BROKER_CA, text, unset)
                    .note(note)
                    .refused(refused)
            }
        });
    }
    let away = place.url.hosts.iter().find(|host| !is_here(host));
    if let Some(away) = away.filter(|_| !place.url.tls && place.url.has_password()) {
        let text = format!(
            "broker.url = {}: the password goes to {} without TLS",
            place.url.shown(),
            away.name
        );
        let note = "the broker has to listen for TLS (listeners.ssl.default = 5671); no harm in a network of your own";
        found.push(
            Finding::warning(
                &table::BROKER_PLAINTEXT,
                text,
                place.change_url("amqp:", "amqps:"),
            )
            .note(note),
        );
    }
    found
}

fn is_pem(text: &str) -> bool {
    use base64::Engine;
    let Some((_, rest)) = text.split_once("-----BEGIN CERTIFICATE-----") else {
        return false;
    };
    let Some((body, _)) = rest.split_once("-----END CERTIFICATE-----") else {
        return false;
    };
    let body: String = body.split_whitespace().collect();
    // An X.509 certificate is a sequence in DER.
    let der = base64::engine::general_purpose::STANDARD.decode(body);
    der.is_ok_and(|der| der.first() == Some(&0x30))
}

/// All of what was seen.
pub fn judge(seen: &Seen, place: &Place) -> Vec<Finding> {
    let mut found = Vec::new();
    for (host, reach) in &seen.hosts {
        found.extend(node(host, reach, place));
    }
    // The others do its work meanwhile.
    if seen.hosts.iter().any(|(_, reach)| reach.answers()) && seen.hosts.len() > 1 {
        for finding in found.iter_mut().filter(|it| it.level == Level::Error) {
            finding.level = Level::Warning;
        }
    }
    match &seen.login {
        None => {}
        Some(Ok(())) => {
            let tls = if place.url.tls { ", with TLS" } else { "" };
            found.push(Finding::ok(
                &table::BROKER_LOGIN,
                format!("user {}{tls}", place.user()),
            ));
            found.push(Finding::ok(&table::BROKER_VHOST, place.url.vhost()));
        }
        Some(Err(refused)) => found.extend(login(refused, seen, place)),
    }
    found.extend(alarm(seen, place));
    found.extend(topology::rights(&seen.rights, place));
    found.extend(topology::objects(&seen.objects, place));
    if let Some(odd) = &seen.odd {
        found.push(unexpected(odd, place));
    }
    found
}

fn node(host: &Host, reach: &Reach, place: &Place) -> Vec<Finding> {
    let start = || match is_here(host) {
        true => vec![place.hand.root("systemctl start rabbitmq-server")],
        false => Vec::new(),
    };
    let away = |finding: Finding| match is_here(host) {
        true => finding.note("apt install rabbitmq-server, if there is none; or change broker.url"),
        false => finding.note(format!(
            "start RabbitMQ on {}, open port {} in its firewall, or change broker.url",
            host.name, host.port
        )),
    };
    let address = &table::BROKER_ADDRESS;
    let silent = format!("{host}: no answer within {} s", STEP_MAX.as_secs());
    match reach {
        Reach::Unresolved(why) => {
            let text = format!("{host}: the name does not resolve: {why}");
            let look = format!("getent hosts {}", quoted(&host.name));
            vec![Finding::error(&table::BROKER_NAME, text, vec![look]).note(
                "write the name as DNS or /etc/hosts has it into broker.url; the command shows what they say",
            )]
        }
        Reach::Refused => vec![away(Finding::error(
            address,
            format!("{host}: connection refused, nobody listens there"),
            start(),
        ))],
        Reach::Silent => vec![away(Finding::error(address, silent, start()))],
        Reach::Failed(why) => vec![away(Finding::error(address, format!("{host}: {why}"), start()))],
        Reach::Answers(speaks) => {
            let mut found = vec![Finding::ok(address, format!("{host} answers"))];
            found.extend(language(host, speaks, place));
            found
        }
    }
}

fn language(host: &Host, speaks: &Speaks, place: &Place) -> Option<Finding> {
    match (speaks, place.url.tls) {
        (Speaks::Amqp { .. }, true) => {
            let text = format!("{host}: speaks AMQP without TLS, and broker.url says amqps://");
            let finding = Finding::error(&table::BROKER_TLS, text, place.change_url("amqps:", "amqp:"));
            Some(finding.note(
                "or name its port for TLS; rabbitmq-diagnostics listeners shows them on the broker's machine",
            ))
        }
        (Speaks::Amqp { product, version }, false) => Some(versioned(host, product, version, place)),
        (Speaks::Tls, false) => {
            let text = format!("{host}: speaks TLS, and broker.url says amqp://");
            let finding = Finding::error(&table::BROKER_PROTOCOL, text, place.change_url("amqp:", "amqps:"));
            Some(finding.note("or name its port without TLS, 5672 where none is written"))
        }
        (Speaks::Else, false) => {
            let text = format!("{host}: something listens there that does not speak AMQP 0-9-1");
            let finding = Finding::error(
                &table::BROKER_PROTOCOL,
                text,
                vec![place.hand.root(format!("ss -ltnp 'sport = :{}'", host.port))],
            );
            Some(finding.note("the command shows who listens, on that machine; RabbitMQ's port for AMQP is 5672, for TLS 5671"))
        }
        // The login says more.
        (Speaks::Tls | Speaks::Else, true) => None,
    }
}

fn versioned(host: &Host, product: &str, version: &str, place: &Place) -> Finding {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>());
    let known = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let check = &table::BROKER_VERSION;
    let text = format!("{host}: {product} {version}");
    match known {
        Some(known) if product == "RabbitMQ" && known < OLDEST => {
            let finding = Finding::error(
                check,
                format!("{text} is older than {}.{}", OLDEST.0, OLDEST.1),
                vec![place.hand.root("apt install rabbitmq-server")],
            );
            place.on_broker(finding)
        }
        _ => Finding::ok(check, text),
    }
}

fn login(refused: &Refused, seen: &Seen, place: &Place) -> Option<Finding> {
    let (user, vhost) = (place.user(), place.url.vhost());
    let (user_q, vhost_q) = (quoted(&user), quoted(&vhost));
    let text = format!("user {user}, virtual host {vhost}: {}", refused.text);
    let spoken = |it: &&(Host, Reach)| matches!(it.1, Reach::Answers(Speaks::Amqp { .. }));
    Some(match refused.code {
        Some(403) if user == "guest" && !place.url.hosts.iter().any(is_here) => {
            let add = place.hand.root("rabbitmqctl add_user embeddings");
            let grant = place.grant().replacen(" guest ", " embeddings ", 1);
            let finding = Finding::error(&table::BROKER_GUEST, text, vec![add, grant]);
            finding.note("on the broker's machine; then name that user in broker.url, and its password in broker.password_file")
        }
        // A user who may not enter is refused with 530, a wrong password with 403.
        Some(403) => {
            let change = place.hand.root(format!("rabbitmqctl change_password {user_q}"));
            let finding = Finding::error(&table::BROKER_LOGIN, text, vec![change]);
            finding.note(
                "asks for the password that broker.password_file, the unit's credential or broker.url holds; \
                 for a user that is not there: rabbitmqctl add_user",
            )
        }
        Some(530 | 404) if refused.text.contains("not found") => {
            let add = place.hand.root(format!("rabbitmqctl add_vhost {vhost_q}"));
            place.on_broker(Finding::error(
                &table::BROKER_VHOST,
                text,
                vec![add, place.grant()],
            ))
        }
        Some(530) => place.on_broker(Finding::error(&table::BROKER_VHOST, text, vec![place.grant()])),
        // What stands in the way has been said.
        _ if place.url.tls && seen.hosts.iter().any(|it| spoken(&it)) => return None,
        _ if place.config.ca_file.as_ref().is_some_and(|path| !path.is_file()) => return None,
        _ if place.url.tls => {
            let host = place.url.hosts.first()?;
            let look = format!(
                "openssl s_client -connect {host} -servername {} -showcerts </dev/null",
                host.name
            );
            let finding = Finding::error(&table::BROKER_TLS, text, vec![look]);
            finding.note("shows the broker's certificate: its issuer belongs into broker.ca_file, its name into broker.url")
        }
        _ if !seen.hosts.iter().any(|it| spoken(&it)) => return None,
        _ => {
            let log = place.hand.root("journalctl -u rabbitmq-server -n 50");
            place.on_broker(Finding::error(&table::BROKER_LOGIN, text, vec![log]))
        }
    })
}

fn alarm(seen: &Seen, place: &Place) -> Option<Finding> {
    let check = &table::BROKER_ALARM;
    Some(match seen.blocks? {
        false => Finding::ok(check, "takes messages"),
        true => {
            let look = place.hand.root("rabbitmq-diagnostics alarms");
            let finding = Finding::error(
                check,
                "the broker takes no messages: a memory or disk alarm is on",
                vec![look],
            );
            let note = "shows which: free disk space below its data, or give it memory (rabbitmqctl set_vm_memory_high_watermark 0.4)";
            match place.there() {
                Some(there) => finding.note(format!("{there}: {note}")),
                None => finding.note(note),
            }
        }
    })
}

fn unexpected(odd: &Refused, place: &Place) -> Finding {
    let log = place.hand.root("journalctl -u rabbitmq-server -n 50");
    place.on_broker(Finding::error(
        &table::BROKER_PROTOCOL,
        odd.text.clone(),
        vec![log],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, Reading};

    fn told(url: &str, seen: &Seen) -> Vec<Finding> {
        let inputs = Inputs::from_process(None, vec![format!("broker.url={url}")]);
        let config = crate::config::examine(&inputs).loaded.config.broker;
        let hand = Hand::new(
            &Inputs {
                uid: 0,
                environment: Default::default(),
                ..inputs
            },
            &Reading::default(),
        );
        let url = BrokerUrl::parse(&config.url).unwrap();
        let place = Place {
            hand: &hand,
            config: &config,
            url: &url,
            url_from: Origin::Flag,
            declare_from: Origin::Default,
            ca_from: Origin::Default,
        };
        let mut found = before(&place);
        found.extend(judge(seen, &place));
        found
    }

    fn seen(host: &str, login: Result<(), Refused>) -> Seen {
        let speaks = Speaks::Amqp {
            product: "RabbitMQ".into(),
            version: "4.0.5".into(),
        };
        let host = Host {
            name: host.into(),
            port: 5672,
        };
        Seen {
            hosts: vec![(host, Reach::Answers(speaks))],
            login: Some(login),
            ..Seen::default()
        }
    }

    /// Goal: a refusal that a look at the URL explains is explained so. Method: RabbitMQ's own words; a test cannot come from
    /// another machine.
    #[test]
    fn guest_from_elsewhere_and_a_user_without_a_virtual_host() {
        let refused = |code, text: &str| {
            Err(Refused {
                code: Some(code),
                text: text.into(),
            })
        };
        let of = |found: Vec<Finding>, id: &str| {
            let mut found = found.into_iter().filter(|it| it.check.id == id);
            found.next().unwrap_or_else(|| panic!("no {id}"))
        };
        let denied = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN.";
        let found = told(
            "amqp://guest:guest@mq.example",
            &seen("mq.example", refused(403, denied)),
        );
        let guest = of(found, "broker.guest");
        assert_eq!(guest.mend[0], "rabbitmqctl add_user embeddings");
        assert!(
            guest.mend[1].starts_with("rabbitmqctl set_permissions -p / embeddings "),
            "{guest:?}"
        );
        let found = told(
            "amqp://u:p@localhost/x",
            &seen("localhost", refused(530, "NOT_ALLOWED - vhost x not found")),
        );
        let vhost = of(found, "broker.vhost");
        assert_eq!(vhost.mend[0], "rabbitmqctl add_vhost x");
        let expected = r"rabbitmqctl set_permissions -p x u '^embeddings\.' '^(embeddings\.|amq\.default$)' '^embeddings\.'";
        assert_eq!(vhost.mend[1], expected);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let level = |version: &str| {
            let mut seen = seen("localhost", Ok(()));
            seen.hosts[0].1 = Reach::Answers(Speaks::Amqp {
                product: "RabbitMQ".into(),
                version: version.into(),
            });
            let found = told("amqp://u:p@localhost", &seen);
            found
                .iter()
                .find(|it| it.check.id == "broker.version")
                .unwrap()
                .level
        };
        assert_eq!(level("3.9.29"), Level::Error);
        for well in ["3.10.0", "3.13.7-rc.1", "4.0.5", "unknown"] {
            assert_eq!(level(well), Level::Ok, "{well}");
        }
    }
}
