//! The Hugging Face Hub as `pull` needs it: what a model's files are, and each file, resumed and checked.
//!
//! The protocol and the cache are hf-hub's. Added here is what it lacks: a bound on every wait, checks of
//! size and SHA-256, and retries that never append to the wrong place.

use anyhow::{Context, anyhow, bail, ensure};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Where the Hub is, unless `HF_ENDPOINT` names a mirror.
const ENDPOINT: &str = "https://huggingface.co";
/// Longest time to find and connect to the Hub.
const REACH_MAX: Duration = Duration::from_secs(8);
/// Longest silence of the Hub, be it before the first byte or between two.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Attempts at one file; each goes on where the one before it was cut off.
const ATTEMPTS: u32 = 5;

/// One file of a model on the Hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Path in the model.
    pub name: String,
    /// Bytes, where the Hub says so.
    pub size: Option<u64>,
    /// Checksum in hexadecimal; the Hub has it for large files only.
    pub sha256: Option<String>,
}

/// The files of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<Remote>,
}

/// One model on the Hub, at one revision.
pub struct Hub {
    api: Api,
    cache: Cache,
    endpoint: String,
    id: String,
    revision: String,
}

impl Hub {
    /// Prepares; nothing is asked yet.
    ///
    /// # Errors
    /// A cache that cannot be made, or an endpoint that is no URL.
    pub fn new(cache: &Path, id: &str, revision: &str) -> anyhow::Result<Hub> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT")
            .unwrap_or_else(|| ENDPOINT.to_owned())
            .trim_end_matches('/')
            .to_owned();
        let cache = cache.join("hub");
        std::fs::create_dir_all(&cache).with_context(|| format!("failed to create {}", cache.display()))?;
        let cache = Cache::new(cache);
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(set("HF_TOKEN").or_else(|| cache.token()))
            .with_user_agent("embeddings", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .with_retries(0)
            .build()
            .context("failed to prepare the client of the Hub")?;
        Ok(Hub {
            api,
            cache,
            endpoint,
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }

    /// Fails soon where the Hub cannot be reached at all: the client itself would wait for minutes.
    ///
    /// # Errors
    /// Who was not reached, and why.
    pub fn reach(&self) -> anyhow::Result<()> {
        ensure!(
            std::env::var_os("HF_HUB_OFFLINE").is_none_or(|value| value.is_empty() || value == "0"),
            "HF_HUB_OFFLINE is set"
        );
        // Behind a proxy it is the proxy that connects.
        let proxies = [
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "HTTP_PROXY",
            "http_proxy",
        ];
        if proxies
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
        {
            return Ok(());
        }
        let (scheme, rest) = self
            .endpoint
            .split_once("://")
            .unwrap_or(("https", &self.endpoint));
        let host = rest.split('/').next().unwrap_or_default();
        let port = if scheme == "http" { 80 } else { 443 };
        let address = if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        let task = move || -> std::io::Result<()> {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in address.to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, REACH_MAX / 2) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let reached =
            watched(REACH_MAX, &Arc::default(), task).and_then(|result| result.map_err(anyhow::Error::new));
        reached.with_context(|| format!("failed to reach {}", self.endpoint))
    }

    /// Asks for the files of the revision.
    ///
    /// # Errors
    /// No such model or revision, no permission, or a Hub that does not answer.
    pub fn listing(&self) -> anyhow::Result<Listing> {
        let repo = self.api.repo(self.at(&self.revision));
        let task = move || -> Result<serde_json::Value, ApiError> {
            let mut answer = repo
                .info_request()
                .query("blobs", "true")
                .call()
                .map_err(Box::new)?;
            Ok(answer.body_mut().read_json().map_err(Box::new)?)
        };
        let answer = watched(SILENCE_MAX, &Arc::default(), task)
            .with_context(|| format!("failed to ask {} for {}", self.endpoint, self.id))?
            .map_err(|error| self.explain(&error))?;
        let commit = answer["sha"].as_str().context("the Hub names no commit")?;
        ensure!(
            !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric()),
            "the Hub names the commit {commit:?}"
        );
        let entries = answer["siblings"].as_array().context("the Hub lists no files")?;
        let file = |entry: &serde_json::Value| {
            Some(Remote {
                name: entry["rfilename"].as_str()?.to_owned(),
                size: entry["lfs"]["size"].as_u64().or_else(|| entry["size"].as_u64()),
                sha256: entry["lfs"]["sha256"].as_str().map(str::to_lowercase),
            })
        };
        // A name is joined to a path later; one that could lead elsewhere is no file of ours.
        let inside = |file: &Remote| {
            Path::new(&file.name)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        Ok(Listing {
            commit: commit.to_owned(),
            files: entries.iter().filter_map(file).filter(inside).collect(),
        })
    }

    /// What is wrong, in the words of someone who pulls a model.
    fn explain(&self, error: &ApiError) -> anyhow::Error {
        let (id, revision, endpoint) = (&self.id, &self.revision, &self.endpoint);
        match status(error) {
            Some(401 | 404) => anyhow!(
                "{endpoint} has no model {id} at revision {revision} (or it is private: set HF_TOKEN)"
            ),
            Some(403) => {
                anyhow!("{endpoint} does not give {id} to you: accept its terms there and set HF_TOKEN")
            }
            Some(429) => anyhow!("{endpoint} asks for a pause (429); try again later"),
            _ => anyhow!("failed to ask {endpoint} for {id}: {error}"),
        }
    }

    /// Fetches one file of a commit into the cache, or finds it there, and checks it.
    ///
    /// # Errors
    /// What went wrong; what was fetched so far stays, and the next call goes on behind it.
    pub fn fetch(
        &self,
        commit: &str,
        file: &mut Remote,
        bar: &ProgressBar,
        before: u64,
    ) -> anyhow::Result<PathBuf> {
        let cached = self
            .cache
            .repo(self.at(commit))
            .pointer_path(commit)
            .join(&file.name);
        if cached.exists() {
            match verify(&cached, file) {
                Ok(()) => return Ok(cached),
                Err(_) => discard(&cached),
            }
        }
        for attempt in 1.. {
            let activity = Arc::new(AtomicU64::new(0));
            let meter = Meter {
                bar: bar.clone(),
                before,
                done: 0,
                activity: activity.clone(),
            };
            let (api, cache, repo, name) = (
                self.api.clone(),
                self.cache.clone(),
                self.at(commit),
                file.name.clone(),
            );
            let task = move || -> Result<(String, u64, PathBuf), ApiError> {
                let repository = api.repo(repo.clone());
                let metadata = api.metadata(&repository.url(&name))?;
                meter.activity.fetch_add(1, Ordering::Relaxed);
                let (etag, size) = (metadata.etag().to_owned(), metadata.size() as u64);
                // A part that is complete or too long would be asked for a range that does not exist.
                let mut part = cache.repo(repo).blob_path(&etag);
                part.set_extension("part");
                if std::fs::metadata(&part).is_ok_and(|of| of.len() >= size) {
                    std::fs::remove_file(&part)?;
                }
                Ok((etag, size, repository.download_with_progress(&name, meter)?))
            };
            let error = match watched(SILENCE_MAX, &activity, task) {
                Err(silent) => {
                    return Err(silent.context(format!(
                        "failed to fetch {}; run the command again to go on",
                        file.name
                    )));
                }
                Ok(Ok((etag, size, path))) => {
                    file.size.get_or_insert(size);
                    if file.sha256.is_none()
                        && etag.len() == 64
                        && etag.bytes().all(|b| b.is_ascii_hexdigit())
                    {
                        file.sha256 = Some(etag.to_lowercase());
                    }
                    let checked = verify(&path, file);
                    if checked.is_err() {
                        discard(&path);
                    }
                    return checked.map(|()| path);
                }
                Ok(Err(error)) => error,
            };
            let last = attempt >= ATTEMPTS || status(&error).is_some_and(|code| code < 500 && code != 429);
            if last {
                return Err(self
                    .explain(&error)
                    .context(format!("failed to fetch {}", file.name)));
            }
            std::thread::sleep(Duration::from_millis(250) * 2u32.pow(attempt));
        }
        unreachable!("the loop ends by returning")
    }

    /// Remembers that all files of a commit are in the cache.
    ///
    /// # Errors
    /// What the system says.
    pub fn remember(&self, listing: &Listing) -> anyhow::Result<()> {
        self.cache
            .repo(self.at(&self.revision))
            .create_ref(&listing.commit)?;
        let path = self.listing_path(&listing.commit);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(path, serde_json::to_vec(listing)?)?;
        Ok(())
    }

    /// What an earlier pull of this revision left in the cache, if all of it is there.
    pub fn remembered(&self) -> Option<Listing> {
        let reference = self.repo_dir().join("refs").join(&self.revision);
        let commit = std::fs::read_to_string(reference).ok()?;
        let listing: Listing =
            serde_json::from_slice(&std::fs::read(self.listing_path(commit.trim())).ok()?).ok()?;
        let folder = self.folder(&listing.commit);
        listing
            .files
            .iter()
            .all(|file| folder.join(&file.name).exists())
            .then_some(listing)
    }

    /// The folder of a commit in the cache.
    pub fn folder(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.at(commit)).pointer_path(commit)
    }

    fn listing_path(&self, commit: &str) -> PathBuf {
        self.repo_dir().join("listings").join(format!("{commit}.json"))
    }

    /// The model's folder in the cache; it holds `blobs`, `refs` and `snapshots`, and `listings` of ours.
    fn repo_dir(&self) -> PathBuf {
        self.cache.path().join(self.at(&self.revision).folder_name())
    }
}

/// The HTTP status inside an error. The client's own error type is not reachable from here; its text is
/// `http status: 404`.
fn status(error: &ApiError) -> Option<u16> {
    let text = error.to_string();
    text.split_once("http status: ")?
        .1
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Checks size and checksum of a file, as far as they are known.
///
/// # Errors
/// What it is and what it should be.
pub fn verify(path: &Path, file: &Remote) -> anyhow::Result<()> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("failed to read {}", path.display()))?
        .len();
    if let Some(expected) = file.size.filter(|expected| *expected != size) {
        bail!("{} has {size} bytes, the Hub says {expected}", file.name);
    }
    if let Some(expected) = &file.sha256 {
        let found = sha256(path)?;
        ensure!(
            found == *expected,
            "{} has sha256 {found}, the Hub says {expected}",
            file.name
        );
    }
    Ok(())
}

/// The checksum of a file.
///
/// # Errors
/// What the system says.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("failed to read {}", path.display()))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        match file
            .read(&mut buffer)
            .with_context(|| format!("failed to read {}", path.display()))?
        {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Takes a damaged file out of the cache: the link and what it points to.
fn discard(path: &Path) {
    if let Ok(blob) = path.canonicalize() {
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(path);
}

/// Runs `task` on a thread of its own and waits for it, unless `activity` stands still for `limit`. The
/// thread is then left behind; the process is about to end with the error.
fn watched<T: Send + 'static>(
    limit: Duration,
    activity: &Arc<AtomicU64>,
    task: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let tick = Duration::from_millis(100);
    let (done, answer) = channel();
    std::thread::Builder::new()
        .name("io-hub".to_owned())
        .spawn(move || drop(done.send(task())))
        .context("failed to start a thread")?;
    let (mut seen, mut quiet) = (activity.load(Ordering::Relaxed), Duration::ZERO);
    loop {
        match answer.recv_timeout(tick) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => bail!("the download ended without a result"),
            Err(RecvTimeoutError::Timeout) => {
                let now = activity.load(Ordering::Relaxed);
                quiet = if now == seen { quiet + tick } else { Duration::ZERO };
                seen = now;
                ensure!(quiet < limit, "no answer for {} s", limit.as_secs());
            }
        }
    }
}

/// Moves the one bar of a pull, and shows that bytes move.
struct Meter {
    bar: ProgressBar,
    before: u64,
    done: u64,
    activity: Arc<AtomicU64>,
}

impl Progress for Meter {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.activity.fetch_add(1, Ordering::Relaxed);
        self.bar.set_position(self.before + self.done);
    }

    fn finish(&mut self) {}
}
