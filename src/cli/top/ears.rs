//! Keeps the ears of `embeddings top` open: a lost connection is opened again, with pauses that grow.

use crate::broker::hear::{Ears, Heard};
use crate::clock::{Clock, Moment};
use crate::config::BrokerConfig;
use crate::job::heartbeat::Heartbeat;
use crate::logic::fleet::{ECHO_INTERVAL, Fleet};
use rand::Rng;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// How we call ourselves at the broker.
const NAME: &str = "embeddings top";
/// What is listened to.
const KEYS: [&str; 1] = ["heartbeat.#"];
/// First pause after a lost connection; doubles up to [`PAUSE_MAX`], and the real one is drawn from half of it on.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// News that wait to be looked at; who brings more waits.
const NEWS: usize = 256;
/// News taken before a judgement, so that a flood cannot put it off for ever.
const NEWS_PER_JUDGEMENT: usize = 4096;

/// What the broker's side has to tell.
#[derive(Debug)]
pub enum News {
    /// There is a connection.
    Opened,
    /// Something was heard on it.
    Heard(Heard),
}

/// The open line.
pub struct Line {
    /// What comes.
    pub news: mpsc::Receiver<News>,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Line {
    /// Connects. Here nobody is waited for: a wrong address should be told at once.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn open(broker: &BrokerConfig) -> Result<Line, String> {
        let opened = open(broker).await?;
        let (sender, news) = mpsc::channel(NEWS);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(broker.clone(), opened, sender, stopped));
        Ok(Line {
            news,
            stop: Some(stop),
            task,
        })
    }

    /// Takes what has come, without waiting for more: all of it is to be known before anyone is judged.
    pub fn hear(&mut self, fleet: &mut Fleet, clock: Clock) {
        for _ in 0..NEWS_PER_JUDGEMENT {
            let Ok(news) = self.news.try_recv() else { return };
            learn(fleet, news, clock.now());
        }
    }

    /// Says good-bye, within a second.
    pub async fn close(mut self) {
        // Whoever brings news must not wait for us to take them.
        self.news.close();
        drop(self.stop.take());
        let _ = tokio::time::timeout(Duration::from_secs(1), self.task).await;
    }
}

/// What is heard changes what is known.
pub fn learn(fleet: &mut Fleet, news: News, now: Moment) {
    match news {
        News::Opened => fleet.opened(now),
        News::Heard(Heard::Message { key, body }) => {
            if key.starts_with("heartbeat.")
                && let Ok(beat) = serde_json::from_slice::<Heartbeat>(&body)
            {
                fleet.heard(beat, now);
            }
        }
        News::Heard(Heard::Echo) => fleet.echoed(now),
        News::Heard(Heard::Mute) => fleet.muted(),
        News::Heard(Heard::Blocked(on)) => fleet.blocked(on, now),
        News::Heard(Heard::Consumers(consumers)) => fleet.counted(consumers),
        News::Heard(Heard::Lost(cause)) => fleet.lost(&cause, now),
    }
}

type Opened = (Ears, mpsc::Receiver<Heard>);

async fn open(broker: &BrokerConfig) -> Result<Opened, String> {
    let opened = Ears::open(broker, NAME, &KEYS, ECHO_INTERVAL).await;
    opened.map_err(|error| error.to_string())
}

async fn keep(
    broker: BrokerConfig,
    first: Opened,
    news: mpsc::Sender<News>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut opened = Some(first);
    let mut pause = PAUSE_FIRST;
    loop {
        if let Some((ears, mut heard)) = opened.take() {
            tokio::select! {
                _ = &mut stopped => {
                    ears.close().await;
                    return;
                }
                listened = listen(&mut heard, &news) => pause = if listened { PAUSE_FIRST } else { pause },
            }
            ears.close().await;
        }
        let drawn = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        pause = (pause * 2).min(PAUSE_MAX);
        let again = async {
            sleep(drawn).await;
            open(&broker).await
        };
        tokio::select! {
            _ = &mut stopped => return,
            result = again => match result {
                Ok(ears) => opened = Some(ears),
                Err(cause) => if news.send(News::Heard(Heard::Lost(cause))).await.is_err() {
                    return;
                },
            },
        }
    }
}

/// Hands on what is heard until the connection is lost. Whether anything had been heard.
async fn listen(heard: &mut mpsc::Receiver<Heard>, news: &mpsc::Sender<News>) -> bool {
    let mut any = false;
    if news.send(News::Opened).await.is_err() {
        return any;
    }
    while let Some(note) = heard.recv().await {
        let lost = matches!(note, Heard::Lost(_));
        any |= matches!(note, Heard::Echo | Heard::Message { .. });
        if news.send(News::Heard(note)).await.is_err() || lost {
            break;
        }
    }
    any
}
