//! Fetches files into the cache, several at once and large ones in several pieces at once, each tried again where it
//! was cut off. Every file is checked before it is seen under its name.

use super::board::Board;
use super::part::{Part, Said, Wanted};
use super::patience::{self, ATTEMPTS};
use super::remote::{Remote, verify};
use super::wire::{Fault, Slice, Wire, content_range, header};
use anyhow::{Context, anyhow};
use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Connections at once. More gain little on a fast line and are unfriendly on a slow one.
const CONNECTIONS: usize = 4;
/// Read from a connection at once.
const BUFFER_BYTES: usize = 128 << 10;
/// Who brings so much between two failures gets on; the count of failures begins anew.
const HEADWAY_BYTES: u64 = 1 << 20;

/// A file to fetch.
pub struct Job<'a> {
    /// What it should be.
    pub file: &'a Remote,
    /// Its bytes; [`Remote::size`] may be unknown, this is not.
    pub size: u64,
    /// Where it is on the endpoint.
    pub url: String,
    /// What of it is there.
    pub part: Part,
    /// Where it belongs.
    pub target: PathBuf,
    /// Whether people were told of it.
    begun: AtomicBool,
    /// Whether it has its place.
    placed: AtomicBool,
}

impl<'a> Job<'a> {
    /// A file that is not at its `target` yet.
    pub fn new(file: &'a Remote, size: u64, url: String, part: Part, target: PathBuf) -> Job<'a> {
        Job {
            file,
            size,
            url,
            part,
            target,
            begun: AtomicBool::new(false),
            placed: AtomicBool::new(false),
        }
    }
}

/// Why a piece did not come.
enum Trouble {
    /// See [`Fault`].
    Fault(Fault),
    /// Asking again does not help.
    Final(anyhow::Error),
    /// The file is begun anew, or another piece has failed for good.
    Stale,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Fault(fault)
    }
}

struct Work<'a> {
    wire: &'a Wire,
    board: &'a Board,
    jobs: &'a [Job<'a>],
    /// Pieces that nobody fetches yet: job and piece.
    queue: Mutex<VecDeque<(usize, usize)>>,
    failed: Mutex<Option<anyhow::Error>>,
    stop: AtomicBool,
}

/// Fetches all of them.
///
/// # Errors
/// The first file that cannot be had, and why. What came stays for a later command.
pub fn fetch(wire: &Wire, board: &Board, jobs: &[Job<'_>]) -> anyhow::Result<()> {
    let pieces = |(at, job): (usize, &Job<'_>)| {
        job.part
            .missing()
            .into_iter()
            .map(move |piece| (at, piece))
            .collect::<Vec<_>>()
    };
    let queue: VecDeque<_> = jobs.iter().enumerate().flat_map(pieces).collect();
    let work = Work {
        wire,
        board,
        jobs,
        queue: Mutex::new(queue),
        failed: Mutex::new(None),
        stop: AtomicBool::new(false),
    };
    // What an earlier command left may be all there, and what is empty always is.
    for job in jobs {
        work.settle(job);
    }
    let threads = work.lock(&work.queue).len().min(CONNECTIONS);
    std::thread::scope(|scope| -> std::io::Result<()> {
        for index in 0..threads {
            let name = format!("io-hub-{index}");
            std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, || work.run())?;
        }
        Ok(())
    })
    .context("failed to start a thread")?;
    match work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Work<'_> {
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some((at, piece)) = self.lock(&self.queue).pop_front() else {
                return;
            };
            let job = &self.jobs[at];
            match self.piece(at, piece) {
                Ok(()) => self.settle(job),
                // Whoever began it anew also sees to its pieces.
                Err(Trouble::Stale) => {}
                Err(Trouble::Final(error)) => self.fail(job, error),
                Err(Trouble::Fault(fault)) => self.fail(job, fault.into()),
            }
        }
    }

    /// Gives a file its place once all of it is there.
    fn settle(&self, job: &Job<'_>) {
        if !job.part.missing().is_empty() || job.placed.swap(true, Ordering::Relaxed) {
            return;
        }
        let checked = verify(job.part.path(), job.file);
        if checked.is_err() {
            job.part.discard();
        }
        let placed = checked.and_then(|()| {
            let failed = || format!("failed to put it to {}", job.target.display());
            job.part.publish(&job.target).with_context(failed)
        });
        if let Err(error) = placed {
            self.fail(job, error);
        }
    }

    fn fail(&self, job: &Job<'_>, error: anyhow::Error) {
        let error = error.context(format!("failed to fetch {}", job.file.name));
        self.lock(&self.failed).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fetches what a piece lacks, in as many tries as it takes.
    fn piece(&self, at: usize, piece: usize) -> Result<(), Trouble> {
        let job = &self.jobs[at];
        if !job.begun.swap(true, Ordering::Relaxed) {
            self.board.begin(&job.file.name, job.size, job.part.done());
        }
        let (mut failures, mut moved) = (0, 0);
        while let Some(wanted) = job.part.wanted(piece) {
            let fault = match self.attempt(at, piece, &wanted, &mut moved) {
                Ok(()) => continue,
                Err(Trouble::Fault(fault)) => fault,
                Err(trouble) => {
                    let _ = job.part.save();
                    return Err(trouble);
                }
            };
            // Also for a later command, should this one be ended while it waits.
            let _ = job.part.save();
            failures = if moved >= HEADWAY_BYTES { 1 } else { failures + 1 };
            if moved >= HEADWAY_BYTES {
                moved = 0;
            }
            if !fault.may_pass() || failures >= ATTEMPTS {
                return Err(Trouble::Fault(fault));
            }
            let pause = patience::pause(failures, fault.pause(), rand::random());
            self.board.tell(&format!(
                "{}: {fault}; trying again in {:.1} s",
                job.file.name,
                pause.as_secs_f64()
            ));
            self.wait(pause)?;
        }
        Ok(())
    }

    fn wait(&self, pause: Duration) -> Result<(), Trouble> {
        let step = Duration::from_millis(50);
        let mut left = pause;
        while !left.is_zero() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Trouble::Stale);
            }
            std::thread::sleep(step.min(left));
            left = left.saturating_sub(step);
        }
        Ok(())
    }

    /// One request; `moved` grows by what it brings.
    fn attempt(&self, at: usize, piece: usize, wanted: &Wanted, moved: &mut u64) -> Result<(), Trouble> {
        let job = &self.jobs[at];
        let slice = (!wanted.whole).then(|| Slice {
            bytes: wanted.bytes.clone(),
            // A weak tag does not promise the same bytes.
            unless_changed_from: wanted.etag.clone().filter(|tag| tag.starts_with('"')),
        });
        let mut answer = match self.wire.get(&job.url, slice.as_ref()) {
            // There is no such slice: the file is shorter than it was.
            Err(fault) if fault.status() == Some(416) => {
                return self.restarted(at, job.part.restart(wanted.start, true));
            }
            other => other?,
        };
        let host = || self.wire.endpoint.clone();
        let whole = answer.status().as_u16() == 200;
        let etag = header(answer.headers(), "etag");
        if let (true, Some(_)) = (whole, &slice) {
            // All of the file in place of a slice: it has changed, or its host gives no slices.
            let changed = etag.is_some() && wanted.etag.is_some() && etag != wanted.etag;
            return self.restarted(at, job.part.restart(wanted.start, !changed));
        }
        let size = if whole {
            answer.body().content_length()
        } else {
            let range = content_range(answer.headers());
            let expected = (wanted.bytes.start, wanted.bytes.end - 1);
            match range {
                Some((first, last, total)) if (first, last) == expected => total,
                _ => {
                    let why = format!("asked for bytes {expected:?}, it sends {range:?}");
                    return Err(Fault::Broken { host: host(), why }.into());
                }
            }
        };
        if let Some(size) = size.filter(|size| *size != job.size) {
            let expected = job.size;
            return Err(Trouble::Final(anyhow!(
                "it has {size} bytes, the Hub says {expected}"
            )));
        }
        match job.part.hear(wanted.start, etag) {
            Said::Same => {}
            other => return self.restarted(at, other),
        }
        let mut body = answer.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        let Range { mut start, end } = wanted.bytes;
        while start < end {
            let count = match body.read(&mut buffer) {
                Ok(0) => {
                    let why = format!("broke off {} bytes before the end", end - start);
                    return Err(Fault::Broken { host: host(), why }.into());
                }
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let why = error.to_string();
                    return Err(Fault::Broken { host: host(), why }.into());
                }
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(Trouble::Stale);
            }
            let written = job.part.write(piece, wanted.start, start, &buffer[..count]);
            let failed = || format!("failed to write {}", job.part.path().display());
            match written.with_context(failed).map_err(Trouble::Final)? {
                true => self.board.add(count as u64),
                false => return Err(Trouble::Stale),
            }
            *moved += count as u64;
            start += count as u64;
        }
        Ok(())
    }

    /// Who began a file anew puts its pieces into the queue; who only hears of it goes on to something else.
    fn restarted(&self, at: usize, said: Said) -> Result<(), Trouble> {
        match said {
            Said::Same => Ok(()),
            Said::Stale => Err(Trouble::Stale),
            Said::Unsteady => Err(Trouble::Final(anyhow!(
                "it is another one each time, or its host gives no parts of it and breaks off"
            ))),
            Said::Restarted { lost } => {
                self.board.lose(lost);
                let mut queue = self.lock(&self.queue);
                queue.retain(|(job, _)| *job != at);
                queue.extend(self.jobs[at].part.missing().into_iter().map(|piece| (at, piece)));
                Err(Trouble::Stale)
            }
        }
    }
}
