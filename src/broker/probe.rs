//! Looks at the broker from outside, step by step, and says what to mend: for `embeddings check`.
//!
//! ```text
//!   address --> login, virtual host --> topology --> permissions (a round trip through a queue of our own)
//! ```
//!
//! Of a cluster each node must have an address that answers; what follows is asked of one of them. A step is taken only if the one before it was good. Nothing stays behind: queues and exchange are looked
//! for passively, and declared only when all of them are there already, which changes nothing and finds
//! objects of the wrong kind. Every wait has a limit.

use super::session::{channel, connect};
use super::{BrokerError, topology, within};
use crate::config::{BrokerConfig, BrokerUrl, Host};
use crate::job::Names;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ErrorKind, ExchangeKind};
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest time for one step: as long as RabbitMQ's own handshake takes at most, and a little less.
const STEP_MAX: Duration = Duration::from_secs(8);
/// Pauses between looks at a queue into which a confirmed message must have come.
const LOOKS_MS: [u64; 5] = [0, 10, 50, 200, 1000];

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and deserves a look.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// What was looked at, in a word or two.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do about it: a command, or a key to change.
    pub mend: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding {
            level: Level::Ok,
            what: what.into(),
            found: found.into(),
            mend: None,
        }
    }

    /// Works, and deserves a look.
    pub fn warn(what: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding {
            level: Level::Warn,
            what: what.into(),
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    /// Does not work.
    pub fn fail(what: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding {
            level: Level::Fail,
            what: what.into(),
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Who asks, in the broker's own words; for the commands that mend.
struct Place {
    user: String,
    vhost: String,
    prefix: String,
}

impl Place {
    fn grant(&self) -> String {
        let Place {
            user, vhost, prefix, ..
        } = self;
        let own = prefix.replace('.', "\\.");
        format!(
            "rabbitmqctl set_permissions -p {} {} '^{own}\\.' '^({own}\\.|amq\\.default$)' '^{own}\\.'",
            quoted(vhost),
            quoted(user)
        )
    }
}

/// Looks at everything, in order, and stops where going on makes no sense.
pub async fn probe(config: &BrokerConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let url = match BrokerUrl::parse(&config.url) {
        Ok(url) => url,
        Err(problem) => return vec![Finding::fail("broker url", problem, "change broker.url")],
    };
    let place = Place {
        user: url.user().unwrap_or_else(|| "guest".to_owned()),
        vhost: url.vhost(),
        prefix: config.prefix.clone(),
    };
    let alone = url.hosts.len() == 1;
    let mut reached = false;
    for host in &url.hosts {
        let finding = address(host).await;
        reached |= finding.level == Level::Ok;
        findings.push(finding);
    }
    if !reached {
        return findings;
    }
    // The others do its work meanwhile.
    for finding in findings
        .iter_mut()
        .filter(|finding| !alone && finding.level == Level::Fail)
    {
        finding.level = Level::Warn;
    }
    let Some(connection) = login(config, &url, &place, &mut findings).await else {
        return findings;
    };
    if look(&connection, config, &place, &mut findings).await {
        permissions(&connection, &place, &mut findings).await;
    }
    // A broker that does not answer is left behind without a good-bye.
    let _ = tokio::time::timeout(STEP_MAX, connection.close(200, "bye".into())).await;
    findings
}

async fn address(host: &Host) -> Finding {
    let name = host.name.as_str();
    let mend = if matches!(name, "localhost" | "127.0.0.1") {
        "systemctl start rabbitmq-server (apt install rabbitmq-server), or change broker.url".to_owned()
    } else {
        format!(
            "start RabbitMQ on {name}, open port {} in its firewall, or change broker.url",
            host.port
        )
    };
    let problem = match tokio::time::timeout(STEP_MAX, TcpStream::connect((name, host.port))).await {
        Ok(Ok(_)) => return Finding::ok("broker address", format!("{host} answers")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", STEP_MAX.as_secs()),
    };
    Finding::fail("broker address", format!("{host}: {problem}"), mend)
}

async fn login(
    config: &BrokerConfig,
    url: &BrokerUrl,
    place: &Place,
    findings: &mut Vec<Finding>,
) -> Option<Connection> {
    let Place { user, vhost, .. } = place;
    let error = match connect(config, "embeddings check").await {
        Ok(connection) => {
            let tls = if url.tls { ", with TLS" } else { "" };
            findings.push(Finding::ok(
                "broker login",
                format!("user {user}, virtual host {vhost}{tls}"),
            ));
            return Some(connection);
        }
        Err(error) => error,
    };
    let (code, text) = reason(&error);
    let (vhost_q, user_q) = (quoted(vhost), quoted(user));
    let mend = match code {
        Some(403) if user == "guest" && !url.hosts.iter().any(is_here) => {
            "guest may only come from the broker's own machine: rabbitmqctl add_user embeddings, and name that user in broker.url".to_owned()
        }
        Some(403) => format!(
            "rabbitmqctl change_password {user_q} (or add_user), then put the password into broker.password_file"
        ),
        Some(530 | 404) if text.contains("not found") => format!("rabbitmqctl add_vhost {vhost_q} && {}", place.grant()),
        Some(530) => place.grant(),
        _ if url.tls => {
            "compare broker.url with the listeners of `rabbitmq-diagnostics listeners`, and broker.ca_file with the broker's certificate".to_owned()
        }
        _ => "look into the broker's log: journalctl -u rabbitmq-server".to_owned(),
    };
    findings.push(Finding::fail(
        "broker login",
        format!("user {user}, virtual host {vhost}: {text}"),
        mend,
    ));
    None
}

fn is_here(host: &Host) -> bool {
    host.name == "localhost" || host.name.starts_with("127.")
}

/// Looks for queues and exchange. True if it makes sense to go on.
async fn look(
    connection: &Connection,
    config: &BrokerConfig,
    place: &Place,
    findings: &mut Vec<Finding>,
) -> bool {
    let names = Names::new(&config.prefix);
    let mut all_there = true;
    for queue in [&names.interactive, &names.bulk, &names.dead] {
        let passive = QueueDeclareOptions::durable().passive();
        // A refusal closes the channel, so each question has its own.
        let answer = async {
            let channel = channel(connection).await?;
            let asked = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
            within("looking for a queue", STEP_MAX, asked).await
        };
        let what = format!("queue {queue}");
        match answer.await {
            Ok(state) => {
                let (messages, consumers) = (state.message_count(), state.consumer_count());
                findings.push(Finding::ok(
                    what,
                    format!("{messages} messages, {consumers} consumers"),
                ));
            }
            Err(error) => {
                all_there = false;
                findings.push(absent(what, &error, config.declare, place));
            }
        }
    }
    let answer = async {
        let channel = channel(connection).await?;
        let passive = ExchangeDeclareOptions {
            passive: true,
            durable: true,
            ..Default::default()
        };
        let asked = channel.exchange_declare(
            names.events.as_str().into(),
            ExchangeKind::Topic,
            passive,
            FieldTable::default(),
        );
        within("looking for an exchange", STEP_MAX, asked).await
    };
    let what = format!("exchange {}", names.events);
    match answer.await {
        Ok(()) => findings.push(Finding::ok(what, "there")),
        Err(error) => {
            all_there = false;
            findings.push(absent(what, &error, config.declare, place));
        }
    }
    if all_there && config.declare {
        agree(connection, &names, place, findings).await;
    }
    findings.iter().all(|finding| finding.level != Level::Fail)
}

fn absent(what: String, error: &BrokerError, declare: bool, place: &Place) -> Finding {
    let (code, text) = reason(error);
    match code {
        Some(404) if declare => Finding::warn(
            what,
            "not there yet",
            "nothing: the service declares it when it starts",
        ),
        Some(404) => Finding::fail(
            what,
            "not there, and broker.declare is false",
            "set broker.declare = true for one start, or declare it yourself",
        ),
        Some(403) => Finding::fail(what, text, place.grant()),
        _ => Finding::fail(
            what,
            text,
            "look into the broker's log: journalctl -u rabbitmq-server",
        ),
    }
}

/// What is there must be what the service would declare; otherwise the broker refuses it at every start.
async fn agree(connection: &Connection, names: &Names, place: &Place, findings: &mut Vec<Finding>) {
    let declared = async {
        let channel = channel(connection).await?;
        topology::ensure(&channel, names, true).await
    };
    let finding = match declared.await {
        Ok(()) => Finding::ok("broker topology", "as the service declares it"),
        Err(error) => {
            let (code, text) = reason(&error);
            let mend = match code {
                Some(403) => place.grant(),
                _ => format!(
                    "empty that queue, then rabbitmqctl delete_queue -p {} NAME, or set broker.declare = false",
                    quoted(&place.vhost)
                ),
            };
            Finding::fail("broker topology", text, mend)
        }
    };
    findings.push(finding);
}

/// Sends a message through a queue of our own and takes it out again, as a canary does.
async fn permissions(connection: &Connection, place: &Place, findings: &mut Vec<Finding>) {
    let queue = format!(
        "{}.probe.check.{}.{:08x}",
        place.prefix,
        std::process::id(),
        rand::random::<u32>()
    );
    let finding = match round_trip(connection, &queue).await {
        Ok(true) => Finding::ok(
            "broker permissions",
            format!("configure, write and read {}.*", place.prefix),
        ),
        Ok(false) => Finding::fail(
            "broker permissions",
            "a confirmed message did not come into its queue",
            "look for memory or disk alarms: rabbitmq-diagnostics alarms",
        ),
        Err(error) => {
            let (code, text) = reason(&error);
            let mend = match (code, &error) {
                (Some(403), _) => place.grant(),
                (None, BrokerError::Timeout { .. }) => {
                    "look for memory or disk alarms: rabbitmq-diagnostics alarms".to_owned()
                }
                _ => "look into the broker's log: journalctl -u rabbitmq-server".to_owned(),
            };
            Finding::fail("broker permissions", text, mend)
        }
    };
    findings.push(finding);
}

async fn round_trip(connection: &Connection, queue: &str) -> Result<bool, BrokerError> {
    let channel = channel(connection).await?;
    topology::probe_queue(&channel, queue).await?;
    within(
        "selecting confirms",
        STEP_MAX,
        channel.confirm_select(ConfirmSelectOptions::default()),
    )
    .await?;
    let published = async {
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        channel
            .basic_publish(
                "".into(),
                queue.into(),
                options,
                b"check",
                BasicProperties::default(),
            )
            .await?
            .await
    };
    within("publishing", STEP_MAX, published).await?;
    for pause_ms in LOOKS_MS {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
        if within("reading", STEP_MAX, got).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The broker's reply code, if it was the broker that refused, and its words.
fn reason(error: &BrokerError) -> (Option<u16>, String) {
    if let BrokerError::Lapin { source, .. } = error
        && let ErrorKind::ProtocolError(refusal) = source.kind()
    {
        return (Some(refusal.get_id()), refusal.get_message().to_string());
    }
    (None, error.to_string())
}

/// For a shell: as it is where that is plain, else in quotes.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_mends_can_be_pasted_into_a_shell() {
        let place = Place {
            user: "o'neil".into(),
            vhost: "/".into(),
            prefix: "emb.test".into(),
        };
        let expected = r"rabbitmqctl set_permissions -p / 'o'\''neil' '^emb\.test\.' '^(emb\.test\.|amq\.default$)' '^emb\.test\.'";
        assert_eq!(place.grant(), expected);
    }
}
