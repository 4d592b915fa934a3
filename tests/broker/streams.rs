//! Contract 3.3 and 3.4: long jobs in chunks, which survive the death of any worker, and jobs that are tried again.

use crate::caller::{Caller, Reply, cosine, header};
use crate::frozen::Frozen;
use crate::private::{Private, wait_for};
use crate::service::{Bench, SOON, Service, bench};
use embeddings::clock::{Clock, Moment};
use embeddings::job::received::{self, Heard, Item};
use embeddings::job::reply::TYPE_CHUNK;
use lapin::options::QueueDeleteOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What has come of a streamed job.
#[derive(Default)]
struct Stream {
    vectors: BTreeMap<usize, Vec<f32>>,
    repeats: usize,
    progress: usize,
    /// The counter of attempts that was told last.
    attempts: u64,
    end: Option<Reply>,
}

impl Stream {
    fn take(&mut self, reply: Reply, chunk_max: usize) {
        let attempts = reply.header("x-attempt").unwrap().parse().unwrap();
        assert!(attempts >= self.attempts.max(1), "the counter falls");
        self.attempts = attempts;
        match reply.kind() {
            Some("embeddings.chunk") => {
                assert!(reply.header("x-model-fingerprint").is_some());
                let Some(Ok(Heard::Chunk(read))) =
                    received::read(TYPE_CHUNK, reply.json.to_string().as_bytes())
                else {
                    panic!("a chunk has the shape of a result")
                };
                assert!(read.data.len() <= chunk_max);
                for Item { index, embedding } in read.data {
                    if let Some(before) = self.vectors.insert(index, embedding) {
                        assert!(cosine(&before, &self.vectors[&index]) > 0.99999);
                        self.repeats += 1;
                    }
                }
            }
            Some("embeddings.progress") => {
                let told = &reply.json;
                assert!(told["done"].as_u64() <= told["total"].as_u64());
                assert!(told["rate"].is_number() && told["rss_bytes"].as_u64() > Some(1 << 20));
                assert_eq!(told["attempt"], attempts);
                self.progress += 1;
            }
            Some("embeddings.done" | "embeddings.error") => self.end = Some(reply),
            other => panic!("{other:?}"),
        }
    }

    /// Takes what comes until so many vectors are there, or the job has ended.
    async fn until(&mut self, caller: &mut Caller, vectors: usize) {
        while self.vectors.len() < vectors && self.end.is_none() {
            let reply = caller.reply().await;
            self.take(reply, 32);
        }
    }

    /// Takes what comes until the job has ended, and sees that nothing is missing.
    async fn whole(&mut self, caller: &mut Caller, inputs: usize) {
        self.until(caller, usize::MAX).await;
        let end = self.end.as_ref().unwrap();
        assert_eq!(end.kind(), Some("embeddings.done"), "{}", end.json);
        assert_eq!(end.json["total"].as_u64(), Some(inputs as u64));
        assert_eq!(end.json["attempts"], self.attempts);
        assert!(self.vectors.keys().copied().eq(0..inputs), "each index is there");
    }
}

fn texts(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("text number {n} is about {}", n * 7919 % 1000))
        .collect()
}

/// Goal: each chunk is out as soon as it is computed, with indices of the whole job and the same vectors as a plain
/// job has; then the end says what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_job_comes_in_chunks() {
    const INPUTS: usize = 700;
    let Some(bench) = bench("chunks") else { return };
    let _service = bench.serve("max_inputs = 64");
    let mut caller = Caller::connect(&bench).await;
    for queue in [caller.names.interactive.clone(), caller.names.bulk.clone()] {
        let (properties, id) = caller.properties();
        let body = json!({"input": texts(INPUTS), "stream": true, "encoding_format": "base64"});
        caller
            .publish(&queue, body.to_string().as_bytes(), properties)
            .await;
        let mut stream = Stream::default();
        stream.whole(&mut caller, INPUTS).await;
        assert_eq!(stream.repeats, 0);
        let end = stream.end.unwrap();
        assert_eq!(
            (end.correlation_id(), end.message_id()),
            (Some(id.as_str()), Some(id.as_str()))
        );
        assert_eq!(end.header("x-attempt").as_deref(), Some("1"));
        assert_eq!(end.json["attempts"], 1);
        assert!(end.json["usage"]["total_tokens"].as_u64() > Some(INPUTS as u64 * 5));
        let plain = caller.ask(&json!({"input": texts(64)})).await.vectors();
        for (index, vector) in plain.iter().enumerate() {
            assert!(cosine(vector, &stream.vectors[&index]) > 0.99999, "{index}");
        }
        caller.settles_at(&queue, (0, 1)).await;
    }
    let resumed = caller.names.resumed.clone();
    caller.settles_at(&resumed, (0, 1)).await;
    // One text is a stream too.
    caller.send(&json!({"input": "alone", "stream": true})).await;
    Stream::default().whole(&mut caller, 1).await;
}

/// Goal: a text that is refused is named by its place in the whole job, as its chunks are, and costs none of those before its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_text_is_named_by_its_place_in_the_whole_job() {
    const BAD: usize = 650;
    let Some(bench) = bench("badtext") else { return };
    let _service = bench.serve("batch_inputs = 32");
    let mut caller = Caller::connect(&bench).await;
    let mut input = texts(700);
    input[BAD] = "many words ".repeat(1000);
    let body = json!({"input": input, "stream": true, "truncate": false});
    caller.send(&body).await;
    let mut stream = Stream::default();
    stream.until(&mut caller, usize::MAX).await;
    let end = stream.end.unwrap();
    assert_eq!(end.error(), ("input_too_long", 413, Some("input")));
    let message = end.json["error"]["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("input[{BAD}]: ")), "{message}");
    assert!(
        stream.vectors.keys().copied().eq(0..BAD / 32 * 32),
        "the slice before is out, and the chunks before this one"
    );
}

/// Goal: a job of which two copies lie in the broker, since a process died between the confirm of a slice and the
/// acknowledgement of the one before, is computed once. Method: what such a death leaves, put there by hand. A copy that no
/// slice has followed is never taken for one: nothing is lost that way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_slice_are_one_job() {
    const DONE: usize = 512;
    const INPUTS: usize = 1700;
    let Some(bench) = bench("copies") else { return };
    let service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let body = json!({"input": &texts(INPUTS)[DONE..], "stream": true}).to_string();
    let checkpoint = json!({"done": DONE, "total": INPUTS, "attempt": 1, "lineage": 77}).to_string();
    let resumed = caller.names.resumed.clone();
    let mut headers = FieldTable::default();
    headers.insert("x-checkpoint".into(), AMQPValue::LongString(checkpoint.into()));
    let (properties, _) = caller.properties();
    let properties = properties.with_headers(headers);
    for _ in 0..2 {
        caller
            .publish(&resumed, body.as_bytes(), properties.clone())
            .await;
    }
    let mut stream = Stream::default();
    stream.until(&mut caller, usize::MAX).await;
    assert_eq!(stream.end.take().unwrap().kind(), Some("embeddings.done"));
    assert!(
        stream.vectors.keys().copied().eq(DONE..INPUTS),
        "each index is there"
    );
    caller.settles_at(&resumed, (0, 1)).await;
    // Whatever else was computed would have come before the copies were acknowledged.
    assert!(caller.reply_within(Duration::from_millis(300)).await.is_none());
    assert_eq!(stream.repeats, 0);
    let known = |log: &str| log.matches("a copy of a slice").count();
    assert_eq!(known(&service.log()), 1, "{}", service.log());
}

/// Goal: whenever its worker is killed, a streamed job goes on behind its last checkpoint, on whatever worker there is;
/// no index is missing, and little is computed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_job_survives_its_workers() {
    const INPUTS: usize = 3000;
    /// A checkpoint's interval, and what lay in engines.
    const AGAIN_MAX: usize = 700;
    let Some(bench) = bench("survives") else { return };
    let mut service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let (properties, _) = caller.properties();
    // Long enough that a slice takes much longer than its confirm and its acknowledgement.
    let long: Vec<String> = texts(INPUTS)
        .iter()
        .map(|text| [text.as_str(); 12].join(" "))
        .collect();
    let body = json!({"input": long, "stream": true, "encoding_format": "base64"});
    let queue = caller.names.bulk.clone();
    caller
        .publish(&queue, body.to_string().as_bytes(), properties)
        .await;
    let mut stream = Stream::default();
    // Well inside a slice of 512: where one dies between the confirm of a slice and its acknowledgement, two copies go on for a
    // while, and the one that is ahead has a lower counter.
    let deaths = [600, 1150, 2150];
    for death in deaths {
        stream.until(&mut caller, death).await;
        assert!(stream.end.is_none(), "killed in the midst of it");
        service.signal(libc::SIGKILL);
        service = bench.serve("");
    }
    stream.whole(&mut caller, INPUTS).await;
    assert!(stream.progress > 0, "its sender was told how far it is");
    assert!(stream.repeats <= deaths.len() * AGAIN_MAX, "{}", stream.repeats);
    let attempts = stream.end.unwrap().json["attempts"].as_u64().unwrap();
    assert!((1..=4).contains(&attempts), "{attempts}");
    for queue in [&queue, &caller.names.resumed] {
        caller.settles_at(queue, (0, 1)).await;
    }
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: where the queues for it are not there and may not be made, a streamed job is worked off in one go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_queue_a_stream_makes_no_checkpoints() {
    const INPUTS: usize = 600;
    let Some(bench) = bench("plain") else { return };
    let mut maker = bench.serve("");
    maker.signal(libc::SIGTERM);
    maker.exit(SOON);
    let mut caller = Caller::connect(&bench).await;
    let resumed = caller.names.resumed.clone();
    let deleted = caller
        .channel
        .queue_delete(resumed.as_str().into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    let service = bench.serve("broker.declare = false");
    assert!(service.log().contains("makes no checkpoints"));
    caller
        .send(&json!({"input": texts(INPUTS), "stream": true}))
        .await;
    Stream::default().whole(&mut caller, INPUTS).await;
}

/// Kills the service once this job is at work, and no other.
async fn kill_at_work(service: &mut Service, job: &str) {
    at_work(service, job).await;
    service.signal(libc::SIGKILL);
    service.exit(SOON);
}

/// Waits until the job, and no other, is at work.
async fn at_work(service: &Service, job: &str) {
    let clock = Clock::start();
    loop {
        let suspects = service.black_box().suspects.ids;
        if suspects == [job] && service.black_box().figures.inflight.unwrap_or(0) > 0 {
            break;
        }
        assert!(clock.now().since(Moment::ZERO) < SOON, "{job} is not at work");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Goal: a job that is at work whenever its process dies is given up after `max_attempts` deaths, and its sender is told;
/// those that only waited are answered, however many died over them. Who watches sees which attempt ended with its process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_are_charged_to_what_was_at_work() {
    const ATTEMPTS: usize = 3;
    let Some(bench) = bench("deadly") else { return };
    let settings = "max_attempts = 3\nmax_inflight = 1";
    let start = |bench: &Bench| bench.serve(settings);
    let mut service = start(&bench);
    let mut caller = Caller::connect(&bench).await;
    let text = "one two three four five six seven eight nine ten ".repeat(30);
    let deadly = caller.send(&json!({"input": vec![text.as_str(); 400]})).await;
    let mut waiting = BTreeSet::new();
    for n in 0..6 {
        waiting.insert(caller.send(&json!({"input": format!("waits {n}")})).await);
    }
    let events = caller.listen("progress.#").await;
    for death in 1..=ATTEMPTS {
        kill_at_work(&mut service, &deadly).await;
        service = start(&bench);
        if death == 2 {
            at_work(&service, &deadly).await;
            let told: Value = serde_json::from_slice(&caller.take(&events).await.data).unwrap();
            let status: Value = serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap();
            let retrying = &status["retrying"][0];
            for told in [&told, retrying] {
                assert_eq!(
                    (&told["job"], &told["attempt"]),
                    (&json!(deadly), &json!(3)),
                    "{told}"
                );
                assert!(
                    told["last_error"].as_str().unwrap().contains("at work ended"),
                    "{told}"
                );
            }
            assert_eq!(service.log().matches("failed, tried again").count(), 1);
        }
    }
    let mut given_up = None;
    while !waiting.is_empty() || given_up.is_none() {
        let reply = caller.reply().await;
        let id = reply.correlation_id().unwrap().to_owned();
        if id == deadly {
            assert_eq!(reply.error(), ("internal", 500, None));
            let message = reply.json["error"]["message"].as_str().unwrap();
            assert!(
                message.starts_with("3 attempts were begun, of 3 at most"),
                "{message}"
            );
            assert_eq!(reply.header("x-attempt").as_deref(), Some("3"));
            given_up = Some(reply);
        } else {
            reply.vectors();
            waiting.remove(&id);
        }
    }
    let dead = caller.take(&caller.names.dead).await;
    assert_eq!(
        dead.properties.correlation_id().as_ref().unwrap().as_str(),
        deadly
    );
    assert_eq!(
        header(&dead.properties, "x-error-type").as_deref(),
        Some("internal")
    );
    assert_eq!(header(&dead.properties, "x-attempt").as_deref(), Some("3"));
    let lane = Some(caller.names.interactive.clone());
    assert_eq!(header(&dead.properties, "x-original-queue"), lane);
    for queue in [&caller.names.interactive, &caller.names.resumed] {
        caller.settles_at(queue, (0, 1)).await;
    }
}

/// Goal: a job that ends each process is given up as well where it cannot go on in a message of its own. Method: the queue for that is
/// deleted, and the process killed whenever the job is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_queue_a_deadly_job_is_given_up() {
    let Some(bench) = bench("grim") else { return };
    let mut maker = bench.serve("");
    maker.signal(libc::SIGTERM);
    maker.exit(SOON);
    let mut caller = Caller::connect(&bench).await;
    let resumed = caller.names.resumed.clone();
    let deleted = caller
        .channel
        .queue_delete(resumed.as_str().into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    let mut service = bench.serve("max_attempts = 2\nmax_inflight = 1\nbroker.declare = false");
    let text = "one two three four five six seven eight nine ten ".repeat(30);
    let deadly = caller.send(&json!({"input": vec![text.as_str(); 400]})).await;
    let waiting = caller.send(&json!({"input": "waits"})).await;
    for _ in 0..2 {
        kill_at_work(&mut service, &deadly).await;
        service.again();
        service.ready();
    }
    for _ in 0..2 {
        let reply = caller.reply().await;
        if reply.correlation_id() == Some(waiting.as_str()) {
            reply.vectors();
            continue;
        }
        assert_eq!(reply.error(), ("internal", 500, None));
        let message = reply.json["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("2 attempts were begun, of 2 at most"),
            "{message}"
        );
    }
    let dead = caller.take(&caller.names.dead).await;
    assert_eq!(header(&dead.properties, "x-attempt").as_deref(), Some("2"));
}

/// Goal: that a job merely waited when a process died takes none of its attempts. Method: with two attempts, a job waits behind
/// another at the first death and is itself at work at the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_costs_those_that_waited_nothing() {
    let Some(bench) = bench("waited") else { return };
    let mut service = bench.serve("max_attempts = 2\nmax_inflight = 1");
    let mut caller = Caller::connect(&bench).await;
    let text = "one two three four five six seven eight nine ten ".repeat(30);
    let long = json!({"input": vec![text.as_str(); 250]});
    let first = caller.send(&long).await;
    let second = caller.send(&long).await;
    kill_at_work(&mut service, &first).await;
    service.again();
    service.ready();
    kill_at_work(&mut service, &second).await;
    service.again();
    service.ready();
    for _ in 0..2 {
        let reply = caller.reply().await;
        reply.vectors();
        assert_eq!(reply.header("x-attempt").as_deref(), Some("2"));
    }
}

/// Goal: a broker that lets no delivery be held for long is learned from: what it says when it ends a session is the limit
/// from then on, slices end before, and the job comes to its end; a plain one, which has no slices, is told so in time and
/// once. Method: a limit of some seconds, which it looks at twice a second, and an engine that stands still for longer than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_s_short_patience_is_learned() {
    const INPUTS: usize = 600;
    let Some(mut bench) = bench("patience") else {
        return;
    };
    let node = Private::start();
    node.ctl(
        "eval 'application:set_env(rabbit, consumer_timeout, 20000), application:set_env(rabbit, channel_tick_interval, 500).'",
    );
    bench.node.url.clone_from(&node.url);
    let limits = "liveness_max_stall_ms = 60000\nheartbeat_timeout_ms = 90000\n[engine]\nthreads = 1";
    let service = bench.serve(limits);
    let mut caller = Caller::connect(&bench).await;
    let frozen = Frozen::threads(service.pid(), "engine-");
    // A slice is 512 of them, which take longer than a thirtieth of the limit.
    let text = "many words make long work, and more of them make more ".repeat(5);
    caller
        .send(&json!({"input": vec![&text; INPUTS], "stream": true}))
        .await;
    wait_for(SOON, "the broker ends the session", || {
        service.log().contains("lets no delivery be held")
    });
    drop(frozen);
    let mut stream = Stream::default();
    stream.whole(&mut caller, INPUTS).await;
    let log = service.log();
    assert!(log.contains("a slice ends early"), "{log}");

    let frozen = Frozen::threads(service.pid(), "engine-");
    let plain = json!({"input": vec![&text; 600]});
    let reply = caller.ask(&plain).await;
    assert_eq!(reply.error(), ("too_many_inputs", 413, Some("input")));
    drop(frozen);
    // What comes out of the engine is nobody's any more, and no session was lost for it.
    let reply = caller.ask(&json!({"input": "a text"})).await;
    assert_eq!(reply.vectors().len(), 1);
    let log = service.log();
    assert_eq!(log.matches("lets no delivery be held").count(), 1, "{log}");
}

/// Goal: a stop amid a chunk that takes longer than the time to drain costs its job no attempt, and nothing is computed twice: what is
/// begun is sent, and the next worker goes on behind it. Method: one chunk for all of a job, on one thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_amid_a_long_chunk_is_no_attempt() {
    const INPUTS: usize = 2048;
    let Some(bench) = bench("stopped") else { return };
    let mut service = bench.serve("batch_inputs = 2048\ndrain_ms = 4000\n[engine]\nthreads = 1");
    let mut caller = Caller::connect(&bench).await;
    let text = "many words make long work, and more of them make more ".repeat(20);
    let job = caller
        .send(&json!({"input": vec![&text; INPUTS], "stream": true}))
        .await;
    at_work(&service, &job).await;
    service.signal(libc::SIGTERM);
    assert_eq!(service.exit(SOON).0, Some(0));
    let log = service.log();
    assert!(!log.contains("drain_timeout"), "{log}");
    let mut stream = Stream::default();
    while stream.vectors.is_empty() {
        stream.take(caller.reply().await, INPUTS - 1);
    }
    service.again();
    while stream.end.is_none() {
        stream.take(caller.reply().await, INPUTS - 1);
    }
    stream.whole(&mut caller, INPUTS).await;
    assert_eq!((stream.repeats, stream.attempts), (0, 1));
}
