//! The Hugging Face Hub as `pull` needs it: what a model's files are at a revision, and each of them in the cache.

use super::board::Board;
use super::cache::{Cache, Listing, is_commit};
use super::download::{Job, fetch};
use super::part::Part;
use super::patience::{self, ATTEMPTS};
use super::remote::{Remote, verify};
use super::room::Room;
use super::wire::{Fault, Slice, Wire, content_range, escaped};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

/// Longest listing that is read: one of a hundred thousand files has half of it.
const LISTING_BYTES_MAX: u64 = 64 << 20;
/// Tries of a question before it is given up; each costs the patience of someone who waits.
const QUESTIONS: u32 = 4;
/// Bytes of a block as stat(2) counts them.
const BLOCK_BYTES: u64 = 512;

/// One model on the Hub, at one revision.
pub struct Hub {
    wire: Wire,
    /// The model's files here.
    pub cache: Cache,
    id: String,
    revision: String,
}

impl Hub {
    /// Prepares; nothing is asked yet.
    ///
    /// # Errors
    /// A cache that cannot be made, or an endpoint that is no URL.
    pub fn new(cache: &Path, id: &str, revision: &str) -> anyhow::Result<Hub> {
        // As the Hub's own tools leave it beside the cache after a login.
        let token = fs::read_to_string(cache.join("token")).ok();
        let token = token.filter(|token| !token.trim().is_empty());
        Ok(Hub {
            wire: Wire::new(token)?,
            cache: Cache::open(cache, id)?,
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }

    /// Whether the environment forbids all requests.
    pub fn is_offline() -> bool {
        let off = |value: String| {
            let value = value.trim().to_lowercase();
            matches!(value.as_str(), "" | "0" | "false" | "no" | "off")
        };
        std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !off(value))
    }

    /// Asks for the files of the revision.
    ///
    /// # Errors
    /// The Hub does not answer, or not so that anything can be done with it.
    pub fn listing(&self) -> anyhow::Result<Listing> {
        let revision = self.revision.replace('/', "%2F");
        let path = format!("/api/models/{}/revision/{revision}?blobs=true", self.id);
        let answer: serde_json::Value = self.question(|| {
            let mut answer = self.wire.get(&path, None)?;
            let body = answer.body_mut().with_config().limit(LISTING_BYTES_MAX);
            let broken = |why: String| Fault::Broken {
                host: self.wire.endpoint.clone(),
                why,
            };
            let text = body.read_to_vec().map_err(|error| broken(error.to_string()))?;
            serde_json::from_slice(&text).map_err(|error| broken(format!("its listing is no JSON: {error}")))
        })?;
        let commit = answer["sha"].as_str().context("the Hub names no commit")?;
        ensure!(
            !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric()),
            "the Hub names the commit {commit:?}"
        );
        ensure!(
            !self.is_pinned() || commit == self.revision,
            "the Hub names the commit {commit}, {} was asked for",
            self.revision
        );
        let entries = answer["siblings"].as_array().context("the Hub lists no files")?;
        let hex = |value: &serde_json::Value, digits: usize| {
            let text = value.as_str()?.to_lowercase();
            (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())).then_some(text)
        };
        let file = |entry: &serde_json::Value| {
            let large = entry["lfs"].is_object();
            Some(Remote {
                name: entry["rfilename"].as_str()?.to_owned(),
                size: entry["lfs"]["size"].as_u64().or_else(|| entry["size"].as_u64()),
                sha256: hex(&entry["lfs"]["sha256"], 64),
                // Of a large file Git has but a pointer to it.
                git_sha1: hex(&entry["blobId"], 40).filter(|_| !large),
            })
        };
        // A name is joined to a path later; one that could lead elsewhere is no file of ours.
        let inside = |file: &Remote| {
            Path::new(&file.name)
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        Ok(Listing {
            commit: commit.to_owned(),
            files: entries.iter().filter_map(file).filter(inside).collect(),
        })
    }

    /// Asks until there is an answer, a reason that does not pass, or no patience any more.
    fn question<T>(&self, ask: impl Fn() -> Result<T, Fault>) -> anyhow::Result<T> {
        let mut failures = 0;
        loop {
            let fault = match ask() {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            failures += 1;
            // Who is not there at all is not there in a second either.
            let hopeless = !fault.may_pass() || matches!(fault, Fault::Unreachable { .. });
            if hopeless || failures >= QUESTIONS.min(ATTEMPTS) {
                return Err(self.explain(fault));
            }
            let pause = patience::pause(failures, fault.pause(), rand::random());
            tell!("{fault}; asking again in {:.1} s", pause.as_secs_f64());
            std::thread::sleep(pause);
        }
    }

    /// What is wrong, in the words of someone who pulls a model. The fault itself can be asked for by its type.
    fn explain(&self, fault: Fault) -> anyhow::Error {
        let (id, revision, endpoint) = (&self.id, &self.revision, &self.wire.endpoint);
        let token = match self.wire.has_token() {
            true => "or it is private and HF_TOKEN does not open it",
            false => "or it is private: set HF_TOKEN",
        };
        let words = match fault.status() {
            Some(401 | 404) => format!("{endpoint} has no model {id} at revision {revision} ({token})"),
            Some(403) => {
                format!("{endpoint} does not give {id} to you: accept its terms there and set HF_TOKEN")
            }
            Some(429) => format!("{endpoint} asks for a pause (429); try again later"),
            _ => return anyhow::Error::new(fault),
        };
        anyhow::Error::new(fault).context(words)
    }

    /// Learns sizes that the listing lacks; a mirror may leave them out.
    fn size(&self, commit: &str, file: &Remote) -> anyhow::Result<u64> {
        if let Some(size) = file.size {
            return Ok(size);
        }
        let slice = Slice {
            bytes: 0..1,
            unless_changed_from: None,
        };
        let size = self.question(|| {
            let answer = match self.wire.get(&self.url(commit, file), Some(&slice)) {
                Err(fault) if fault.status() == Some(416) => return Ok(Some(0)),
                other => other?,
            };
            Ok(match content_range(answer.headers()) {
                Some((_, _, total)) => total,
                None => answer.body().content_length(),
            })
        })?;
        size.with_context(|| format!("the Hub does not say how large {} is", file.name))
    }

    fn url(&self, commit: &str, file: &Remote) -> String {
        format!("/{}/resolve/{commit}/{}", self.id, escaped(&file.name))
    }

    /// Brings files of a commit into the cache, where they are not there and sound already, and completes what the
    /// listing says of them.
    ///
    /// # Errors
    /// The first file that cannot be had, and why. What came so far stays, and a later command goes on behind it.
    pub fn fetch(&self, commit: &str, files: &mut [Remote], room: Room<'_>) -> anyhow::Result<()> {
        let (mut total, mut done, mut lacking) = (0, 0, 0);
        let mut absent = Vec::new();
        for file in files.iter_mut() {
            let size = self.size(commit, file)?;
            file.size = Some(size);
            total += size;
            let blob = self.cache.blob(commit, file);
            if blob.exists() {
                match verify(&blob, file) {
                    Ok(()) => {
                        done += size;
                        continue;
                    }
                    Err(_) => {
                        let _ = fs::remove_file(&blob);
                    }
                }
            }
            // What it takes on the disk: its pieces are written at once, so that most of it may be a hole.
            let there = fs::metadata(self.cache.part_path(commit, file));
            let there = there.map_or(0, |of| (of.blocks() * BLOCK_BYTES).min(size));
            lacking += size - there;
            absent.push(&*file);
        }
        room(lacking)?;
        let mut jobs = Vec::new();
        let mut seen = BTreeSet::new();
        for file in absent {
            let (size, target) = (file.size.unwrap_or(0), self.cache.blob(commit, file));
            // Two names of one content are one file.
            if !seen.insert(target.clone()) {
                done += size;
                continue;
            }
            let path = self.cache.part_path(commit, file);
            let part =
                Part::open(&path, size).with_context(|| format!("failed to open {}", path.display()))?;
            done += part.done();
            jobs.push(Job::new(file, size, self.url(commit, file), part, target));
        }
        if !jobs.is_empty() {
            let board = Board::new(total, done);
            let fetched = fetch(&self.wire, &board, &jobs);
            drop(board);
            fetched.map_err(|error| self.last_words(error))?;
        }
        for file in files.iter() {
            self.cache
                .link(commit, file)
                .with_context(|| format!("failed to enter {} into the cache", file.name))?;
        }
        Ok(())
    }

    fn last_words(&self, error: anyhow::Error) -> anyhow::Error {
        let status = error.downcast_ref::<Fault>().and_then(Fault::status);
        match (status, error.downcast_ref::<Fault>().is_some()) {
            (Some(401 | 403), _) => error.context(format!(
                "{} does not give all of {} to you",
                self.wire.endpoint, self.id
            )),
            (_, true) => error.context("the download ended early; run the command again to go on"),
            _ => error,
        }
    }
}
