//! One session with the broker: two connections and all that runs on them, from opening to the first fault.

use super::announce::{self, Notice};
use super::blocked::Blocked;
use super::connect::Nodes;
pub(super) use super::connect::connect;
use super::farewell::{self, Consumers, Seen};
use super::intake::{self, Origin, Receipt};
use super::look::{self, Look};
use super::publish::{self, Press};
use super::ways::Ways;
use super::{
    ACK_MAX, BrokerError, BrokerEvent, CONSUMER_PREFETCH_MAX, Command, Published, Setup, Span, topology,
    within,
};
use crate::job::{JobKey, Lane, Names};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

/// Longest time for one step of opening a session.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Longest time for saying good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Longest time for publishing the notices that are left when the session ends.
const LAST_WORDS_MAX: Duration = Duration::from_millis(250);
/// Longest wait for the broker to answer that a connection is closed that was given up: it may be busy with what was
/// asked before. The close itself is on its way at once.
const GIVE_UP_MAX: Duration = Duration::from_secs(30);
/// Publications that wait for the publisher; each belongs to an unacknowledged delivery.
const PUBLISH_QUEUE: usize = 16_384;

/// An open session.
pub(super) struct Session {
    number: u64,
    consuming: Connection,
    publishing: Arc<Connection>,
    control: Channel,
    /// For canaries and their answers.
    own: Channel,
    /// For notices. Held here too, or dropping it while the connection closes would be an error in the log.
    announcer: Channel,
    consumers: Vec<Subscription>,
    /// Whether the broker has the queues for jobs that go on.
    pub(super) resumable: bool,
    /// Deliveries that may be unacknowledged, per lane.
    pub(super) prefetch: [u16; Lane::COUNT],
    names: Names,
    probe_queue: String,
    /// Message id of the session's canaries.
    canary: Arc<str>,
    setup: Setup,
    blocked: Blocked,
}

/// Connects twice, ensures the topology, and subscribes. The caller sets the deadline for all of it.
pub(super) async fn open(setup: &Setup, number: u64, nodes: &mut Nodes) -> Result<Session, BrokerError> {
    let names = Names::new(&setup.config.prefix);
    let consuming = nodes
        .connect(&setup.config, &format!("{} consume", setup.name))
        .await?;
    let consuming = Unless::taken_over(consuming);
    // To the same node: with two of them, the death of either would end the session.
    let publishing = nodes
        .again(&setup.config, &format!("{} publish", setup.name))
        .await?;
    let publishing = Unless::taken_over(publishing);
    let control = channel(&consuming).await?;
    topology::ensure(&control, &names, setup.config.declare).await?;
    let asking = channel(&consuming).await?;
    let resumable = topology::resuming(&asking, &names, setup.config.declare).await?;
    if !resumable {
        warn!(
            queue = names.resumed,
            "there is none: no job is tried again but after the death of a process, and a streamed one makes no checkpoints"
        );
    }
    let probe_queue = format!("{}.probe.{}.{number}", setup.config.prefix, setup.name);
    topology::probe_queue(&control, &probe_queue).await?;
    let own = confirming(&publishing).await?;
    let announcer = channel(&publishing).await?;
    let mut consumers = Vec::new();
    let prefetch = setup.prefetch.get();
    let resumes = resumable && setup.resume.load(Ordering::Relaxed);
    for lane in Lane::ALL {
        let queue = match lane {
            Lane::Probe => probe_queue.as_str(),
            Lane::Interactive => names.interactive.as_str(),
            Lane::Bulk => names.bulk.as_str(),
            Lane::Resumed if !resumes => continue,
            Lane::Resumed => names.resumed.as_str(),
        };
        for share in shares(prefetch[lane as usize]) {
            consumers.push(subscribe(&consuming, lane, queue, share).await?);
        }
    }
    let (setup, blocked) = (setup.clone(), Blocked::default());
    Ok(Session {
        number,
        consuming: consuming.take_over(),
        publishing: Arc::new(publishing.take_over()),
        control,
        own,
        announcer,
        consumers,
        resumable,
        prefetch,
        names,
        probe_queue,
        canary: Arc::from(format!("canary-{:032x}", rand::random::<u128>())),
        setup,
        blocked,
    })
}

/// A lane's prefetch, shared out among as few consumers as the queue honours it of.
fn shares(prefetch: u16) -> impl Iterator<Item = u16> {
    let consumers = usize::from(prefetch).div_ceil(CONSUMER_PREFETCH_MAX) as u16;
    (0..consumers).map(move |nth| prefetch / consumers + u16::from(nth < prefetch % consumers))
}

/// A consumer of ours.
struct Subscription {
    lane: Lane,
    queue: Arc<str>,
    channel: Arc<Channel>,
    consumer: Consumer,
}

/// Consumes a queue, on a channel of its own.
async fn subscribe(
    consuming: &Connection,
    lane: Lane,
    queue: &str,
    prefetch: u16,
) -> Result<Subscription, BrokerError> {
    let channel = channel(consuming).await?;
    // The prefetch is set before consuming: lapin hands deliveries on without a bound of its own.
    let set = channel.basic_qos(prefetch, BasicQosOptions::default());
    within("setting the prefetch", STEP_MAX, set).await?;
    let subscribed = channel.basic_consume(
        queue.into(),
        lane.name().into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = within("subscribing", STEP_MAX, subscribed).await?;
    Ok(Subscription {
        lane,
        queue: Arc::from(queue),
        channel: Arc::new(channel),
        consumer,
    })
}

/// Closes a connection that no session takes over. Dropping one does not: while the broker owes an answer on one of its
/// channels, the client library keeps it, heartbeats and all. A subscription that is answered later would then be
/// delivered to where nobody reads, and hold up to a prefetch of jobs for ever.
pub(super) struct Unless(Option<Connection>);

impl Unless {
    pub(super) fn taken_over(connection: Connection) -> Unless {
        Unless(Some(connection))
    }

    pub(super) fn take_over(mut self) -> Connection {
        self.0.take().expect("taken once, by value")
    }
}

impl std::ops::Deref for Unless {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("there until it is taken, by value")
    }
}

impl Drop for Unless {
    fn drop(&mut self) {
        let (Some(connection), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            let closed = connection.close(200, "given up".into());
            let _ = tokio::time::timeout(GIVE_UP_MAX, closed).await;
        });
    }
}

/// Opens a channel, within a deadline.
pub(super) async fn channel(connection: &Connection) -> Result<Channel, BrokerError> {
    within("opening a channel", STEP_MAX, connection.create_channel()).await
}

/// Opens a channel on which the broker confirms what is published.
pub(super) async fn confirming(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = channel(connection).await?;
    let selected = channel.confirm_select(ConfirmSelectOptions::default());
    within("selecting confirms", STEP_MAX, selected).await?;
    Ok(channel)
}

impl Session {
    /// Runs until a fault (`Err`), or until `commands` is closed (`Ok`). When it returns, nothing of this
    /// session runs any more and no event of it follows.
    pub(super) async fn run(
        mut self,
        events: &mpsc::Sender<BrokerEvent>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<(), BrokerError> {
        let mut tasks: JoinSet<Result<(), BrokerError>> = JoinSet::new();
        let stopping = Arc::new(AtomicBool::new(false));
        let mut ours = Vec::<Consumers>::new();
        let (number, canary, limits) = (self.number, self.canary.clone(), self.setup.request);
        let hasher = self.setup.hasher.clone();
        let (asked_to_look, looks) = mpsc::channel(1);
        let mut looks = Some(looks);
        let seen: [Seen; Lane::COUNT] = Default::default();
        // Starts taking from a queue, by one more consumer.
        let mut consume = |subscription: Subscription, ours: &mut Vec<Consumers>, tasks: &mut JoinSet<_>| {
            let Subscription {
                lane,
                queue,
                channel,
                consumer,
            } = subscription;
            if ours.last().is_none_or(|last| last.lane != lane) {
                ours.push(Consumers::of(lane, queue.clone(), seen[lane as usize].clone()));
            }
            let own = ours.last_mut().expect("there is one now");
            own.add(channel.clone());
            let origin = Origin {
                lane,
                queue,
                session: number,
                canary: canary.clone(),
                limits,
                hasher: hasher.clone(),
                channel: Arc::downgrade(&channel),
                passing: own.passing(),
            };
            if let Some(looks) = looks.take_if(|_| lane == Lane::Bulk) {
                tasks.spawn(look::run(origin.clone(), stopping.clone(), looks, events.clone()));
            }
            tasks.spawn(intake::consume(
                consumer,
                origin,
                stopping.clone(),
                events.clone(),
            ));
        };
        for subscription in std::mem::take(&mut self.consumers) {
            consume(subscription, &mut ours, &mut tasks);
        }
        let takes_resumed = |ours: &[Consumers]| ours.iter().any(|it| it.lane == Lane::Resumed);
        let passing = ours.iter().find(|it| it.lane == Lane::Bulk);
        let passing = passing.map(Consumers::passing).unwrap_or_default();
        // A queue without a consumer of ours says nothing of our session.
        let resumes = Arc::new(AtomicBool::new(takes_resumed(&ours)));
        let (publications, queue) = mpsc::channel(PUBLISH_QUEUE);
        // Held here too, for the same reason as the announcer's channel.
        let ways = Arc::new(Ways::on(self.publishing.clone(), self.blocked.clone()));
        let press = Press {
            own: self.own.clone(),
            ways: ways.clone(),
            dead: Arc::from(self.names.dead.as_str()),
            blocked: self.blocked.clone(),
            full: publish::Full::default(),
            setup: self.setup.clone(),
        };
        tasks.spawn(publish::run(press, queue, events.clone()));
        let (notices, queue) = mpsc::channel(announce::NOTICES);
        let announcing = tasks.spawn(announce::run(
            self.announcer.clone(),
            self.publishing.clone(),
            self.names.clone(),
            self.setup.config.declare,
            self.blocked.clone(),
            queue,
        ));
        let resumed = self
            .resumable
            .then(|| (Lane::Resumed, self.names.resumed.clone()));
        let queues = [
            (Lane::Bulk, self.names.bulk.clone()),
            (Lane::Interactive, self.names.interactive.clone()),
            (Lane::Probe, self.probe_queue.clone()),
        ];
        tasks.spawn(probe(
            self.control.clone(),
            queues.into_iter().chain(resumed).collect(),
            resumes.clone(),
            (passing, seen.clone()),
            self.setup.disconnect_kill.clone(),
            events.clone(),
        ));
        // A channel that the broker closes here is missed by those who publish on it, and one of them only
        // publishes notices.
        let of_the_connection = |event: &Event| {
            let soft = matches!(event, Event::Error(error) if error.is_amqp_soft_error());
            futures_util::future::ready(!soft)
        };
        tasks.spawn(watch(
            self.publishing.events_listener().filter(of_the_connection),
            self.blocked.clone(),
            events.clone(),
        ));
        tasks.spawn(watch(
            self.consuming.events_listener(),
            self.blocked.clone(),
            events.clone(),
        ));

        // Many at a time: each is done when it is written, and the next must not wait for that, nor a publication behind
        // it. Bounded by the prefetch, as each belongs to an unacknowledged delivery.
        let mut settling = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => break Ok(()),
                    Some(Command::Ack { job, receipt }) if receipt.session == self.number => {
                        settling.push(settle(Some(job), receipt));
                    }
                    Some(Command::Requeue { receipt }) if receipt.session == self.number => {
                        settling.push(settle(None, receipt));
                    }
                    Some(Command::Resume)
                        if self.resumable && !takes_resumed(&ours) && !stopping.load(Ordering::Relaxed) =>
                    {
                        // A round trip or three, each with its deadline, once in the life of a process.
                        let (queue, prefetch) = (&self.names.resumed, self.prefetch[Lane::Resumed as usize]);
                        match subscribe(&self.consuming, Lane::Resumed, queue, prefetch).await {
                            Ok(subscription) => {
                                consume(subscription, &mut ours, &mut tasks);
                                resumes.store(true, Ordering::Relaxed);
                            }
                            Err(fault) => break Err(fault),
                        }
                    }
                    Some(Command::LookAhead { session, jobs, one_in, memory }) if session == self.number => {
                        // One at a time, so there is room for it.
                        let _ = asked_to_look.try_send(Look { jobs, one_in, memory });
                    }
                    Some(Command::StopIntake) => {
                        stopping.store(true, Ordering::Relaxed);
                        // Round trips, each with its deadline, at the end of a session.
                        if let Err(fault) = farewell::stop(&mut ours).await {
                            break Err(fault);
                        }
                    }
                    Some(Command::Reconnect { session, lane }) if session == self.number => {
                        break Err(BrokerError::ConsumerMissing(lane.name()));
                    }
                    Some(Command::SendCanary { body }) => {
                        let (queue, id) = (self.probe_queue.clone(), self.canary.clone());
                        tasks.spawn(send_canary(self.own.clone(), self.blocked.clone(), queue, id, body));
                    }
                    Some(Command::Event { kind, routing_key, body }) => {
                        // One too many is dropped: the next says more.
                        let _ = notices.try_send(Notice { kind, routing_key, body });
                    }
                    Some(Command::Publish(publication)) if publication.receipt.session == self.number => {
                        // The channel holds more than the prefetch allows to be under way, so this never waits long.
                        let _ = publications.send(publication).await;
                    }
                    // Whatever else comes belongs to a session that is gone: the broker delivers it again.
                    Some(_) => {}
                },
                Some(settled) = settling.next(), if !settling.is_empty() => match settled {
                    Ok(Some(job)) => if events.send(BrokerEvent::Acked { job }).await.is_err() {
                        break Ok(());
                    },
                    Ok(None) => {}
                    Err(fault) => break Err(fault),
                },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(fault)) => break Err(fault),
                    Err(stopped) if stopped.is_cancelled() => {}
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                },
            }
        };
        if end.is_ok() {
            // Each has its own deadline.
            while settling.next().await.is_some() {}
            if stopping.load(Ordering::Relaxed) {
                farewell::settled(&ours).await;
            }
            // What was said last says that this is a good-bye.
            drop(notices);
            let last_words =
                async { while !announcing.is_finished() && tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_WORDS_MAX, last_words).await;
        }
        tasks.shutdown().await;
        let farewell = async {
            let _ = self.publishing.close(200, "bye".into()).await;
            let _ = self.consuming.close(200, "bye".into()).await;
        };
        // A broker that does not answer is left behind without a good-bye.
        let _ = tokio::time::timeout(CLOSE_MAX, farewell).await;
        drop(ways);
        end
    }
}

/// Acknowledges a delivery of this job, or gives it back where there is none. The job, once that is written; not
/// written means that the channel is gone, and its consumer reports the fault.
pub(super) async fn settle(job: Option<JobKey>, receipt: Receipt) -> Result<Option<JobKey>, BrokerError> {
    let written = match job {
        Some(_) => within("acknowledging", ACK_MAX, receipt.ack()).await?,
        None => within("giving back a delivery", ACK_MAX, receipt.requeue()).await?,
    };
    Ok(job.filter(|_| written))
}

/// Asks the broker over and over how our queues stand, at once and then one after the other, on the consuming connection, so
/// that its silence is noticed even when there is no work. Any answer is a proof.
async fn probe(
    control: Channel,
    queues: Vec<(Lane, String)>,
    resumes: Arc<AtomicBool>,
    (passing, seen): (Arc<AtomicUsize>, [Seen; Lane::COUNT]),
    disconnect_kill: Span,
    events: mpsc::Sender<BrokerEvent>,
) -> Result<(), BrokerError> {
    for (lane, queue) in queues.into_iter().cycle() {
        if lane == Lane::Resumed && !resumes.load(Ordering::Relaxed) {
            continue;
        }
        let bound = disconnect_kill.get();
        let interval = (bound / 10).clamp(Duration::from_millis(100), Duration::from_secs(2));
        let patience = (bound / 3).max(Duration::from_millis(200));
        let passive = QueueDeclareOptions::default().passive();
        let answer = control.queue_declare(queue.as_str().into(), passive, FieldTable::default());
        let state = within("asking for a proof", patience, answer).await?;
        let counted = state.consumer_count() as usize;
        let passing = if lane == Lane::Bulk {
            passing.load(Ordering::Relaxed)
        } else {
            0
        };
        let consumers = counted.saturating_sub(passing).max(counted.min(1));
        seen[lane as usize].set(consumers);
        let event = BrokerEvent::QueueSeen {
            lane,
            ready: state.message_count() as usize,
            consumers,
        };
        if events.send(event).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(interval).await;
    }
    Ok(())
}

/// Passes on what the client library says of a connection; an error ends the session.
async fn watch(
    listener: impl futures_util::Stream<Item = Event>,
    blocked: Blocked,
    events: mpsc::Sender<BrokerEvent>,
) -> Result<(), BrokerError> {
    tokio::pin!(listener);
    while let Some(event) = listener.next().await {
        let event = match event {
            Event::ConnectionBlocked(reason) => {
                blocked.set(true);
                BrokerEvent::Blocked { reason }
            }
            Event::ConnectionUnblocked => {
                blocked.set(false);
                BrokerEvent::Unblocked
            }
            Event::Error(error) => return Err(BrokerError::lapin("connection")(error)),
            _ => continue,
        };
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn send_canary(
    channel: Channel,
    blocked: Blocked,
    queue: String,
    id: Arc<str>,
    body: Vec<u8>,
) -> Result<(), BrokerError> {
    let properties = BasicProperties::default()
        .with_reply_to(queue.as_str().into())
        .with_message_id(id.as_ref().into())
        .with_content_type("application/json".into());
    match publish::send(
        &channel,
        &blocked,
        &queue,
        &body,
        properties,
        Some(publish::CONFIRM_MAX),
    )
    .await?
    {
        // One that the broker does not confirm is missed where canaries are awaited.
        Published::Routed | Published::Unconfirmed => Ok(()),
        Published::Returned | Published::Rejected => Err(BrokerError::QueueGone(queue)),
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn a_prefetch_is_shared_out_whole() {
        let all = |prefetch| shares(prefetch).collect::<Vec<_>>();
        assert_eq!(all(1), [1]);
        assert_eq!(all(2000), [2000]);
        assert_eq!(all(2001), [1001, 1000]);
        assert_eq!(all(6001), [1501, 1500, 1500, 1500]);
        assert_eq!(all(10_000), [2000; 5]);
    }
}
