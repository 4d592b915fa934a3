//! The listener and its connections: how many, how long each may take over what, and their end.

use super::board::{Board, Full, Sources};
use super::bounds::Bounds;
use super::call::{Call, Line};
use super::embed::Bodies;
use super::gate::{Asked, Counts, Peer, Token};
use super::turnstile::Turnstile;
use super::{Inside, Shared, refusal, router, views};
use crate::clock::Clock;
use crate::job::request::RequestLimits;
use crate::report::Http;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_io_timeout::TimeoutStream;
use tracing::{error, info, warn};

/// Connections that stay have one of so many files that the process may open.
const FILES_SHARE: u64 = 4;
/// What is kept of a head that is too long for it is an error (431).
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Pause before a taken port is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server needs.
#[derive(Debug)]
pub struct Setup {
    /// The clock of the process.
    pub clock: Clock,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What callers must present, if anything.
    pub token: Option<Token>,
    /// What is said of the service.
    pub board: Arc<Board>,
    /// Where the rest of it is read.
    pub sources: Sources,
    /// Names and aliases of the configured models.
    pub models: Vec<String>,
    /// Bounds on one request.
    pub limits: RequestLimits,
    /// Bytes of bodies that may be here at once.
    pub bodies_bytes_max: usize,
    /// Requests for vectors that may be here at once.
    pub requests_max: usize,
    /// The way to the loop; it has room for two messages of each request.
    pub calls: mpsc::Sender<Call>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    stop: oneshot::Sender<()>,
    bodies: Arc<Bodies>,
    token: Arc<Asked>,
    task: JoinHandle<()>,
}

impl Server {
    /// So many bytes of bodies may be here at once from now on.
    pub fn reload(&self, bodies_bytes_max: usize) {
        self.bodies.set_bytes_max(bodies_bytes_max);
    }

    /// Callers must present this token from now on; whether it is another one. Where none was asked for, none will be.
    pub fn renew(&self, token: Token) -> bool {
        self.token.renew(token)
    }

    /// Takes no further connections, and waits for those that are being answered, no longer than `limit`.
    pub async fn close(self, limit: Duration) {
        drop(self.stop);
        let _ = tokio::time::timeout(limit, self.task).await;
    }
}

/// Starts the server on the current runtime. A port that is taken is tried again: jobs from the broker need none.
pub fn start(setup: Setup) -> Server {
    start_within(setup, Bounds::default())
}

fn start_within(setup: Setup, bounds: Bounds) -> Server {
    let (stop, stopped) = oneshot::channel();
    let bodies = Bodies::new(setup.bodies_bytes_max, setup.requests_max, setup.clock);
    let bodies = Arc::new(bodies);
    let token = Arc::new(Asked::new(setup.token.clone()));
    let held = (bodies.clone(), token.clone());
    Server {
        stop,
        bodies,
        token,
        task: tokio::spawn(serve(setup, bounds, held, stopped)),
    }
}

async fn serve(
    setup: Setup,
    bounds: Bounds,
    (bodies, token): (Arc<Bodies>, Arc<Asked>),
    mut stopped: oneshot::Receiver<()>,
) {
    let board = setup.board.clone();
    let wished = setup.listen;
    let listener = tokio::select! {
        listener = bind(wished, &board) => listener,
        _ = &mut stopped => return,
    };
    let connections = GracefulShutdown::new();
    let service = Arc::new(Connections::new(setup, bounds, bodies, token));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => service.clone().take(stream, peer.ip(), connections.watcher()),
            Err(error) => {
                warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn bind(listen: SocketAddr, board: &Board) -> TcpListener {
    let mut told = String::new();
    loop {
        let failed = match TcpListener::bind(listen).await {
            Ok(listener) => {
                let bound = listener.local_addr().unwrap_or(listen).to_string();
                info!(listen = bound, "HTTP is served");
                board.set_http(Http {
                    listen: Some(bound),
                    ..Http::default()
                });
                return listener;
            }
            Err(failed) => failed.to_string(),
        };
        if failed != told {
            error!(
                "http.listen = \"{listen}\": {failed}; HTTP is not served, jobs from the broker are. Another instance may have \
                 the port: give this one its own, or \"\" for none. Trying again every {} s",
                BIND_PAUSE.as_secs()
            );
            told.clone_from(&failed);
        }
        board.set_http(Http {
            problem: Some(format!("{listen}: {failed}")),
            ..Http::default()
        });
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

/// All connections.
struct Connections {
    router: TowerToHyperService<axum::Router>,
    board: Arc<Board>,
    bounds: Bounds,
    open: AtomicUsize,
    stay_max: usize,
    /// Those above `stay_max`: how fast they go is when a connection may find room.
    spare: Turnstile,
}

/// One of them; it is counted for as long as this lives.
struct Counted {
    all: Arc<Connections>,
    stays: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.open.fetch_sub(1, Ordering::Relaxed);
        if !self.stays {
            self.all.spare.leave();
        }
    }
}

impl Connections {
    fn new(setup: Setup, bounds: Bounds, bodies: Arc<Bodies>, token: Arc<Asked>) -> Connections {
        let files = (setup.sources.process)().max_fds.unwrap_or(u64::MAX) / FILES_SHARE;
        let stay_max =
            usize::try_from(files).map_or(bounds.connections, |files| files.min(bounds.connections));
        let shared = Shared(Arc::new(Inside {
            clock: setup.clock,
            line: Line::new(setup.calls, setup.board.clone(), bounds.answer),
            board: setup.board.clone(),
            sources: setup.sources,
            deaths: views::Deaths::default(),
            bodies,
            bounds,
            limits: setup.limits,
            token,
            models: setup.models,
            counts: Counts::default(),
        }));
        Connections {
            router: TowerToHyperService::new(router(shared)),
            board: setup.board,
            bounds,
            open: AtomicUsize::new(0),
            stay_max,
            spare: Turnstile::new(setup.clock),
        }
    }

    /// Serves a connection aside, or sends it away at once where there are too many.
    fn take(self: Arc<Self>, stream: TcpStream, peer: IpAddr, watcher: Watcher) {
        // One task accepts all connections, so nobody comes between the look and the count.
        let before = self.open.load(Ordering::Relaxed);
        if before >= self.stay_max + self.bounds.spare {
            self.board.refuse(Full::Connections);
            turn_away(&stream, self.spare.retry_after_ms());
            return;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let stays = before < self.stay_max;
        if !stays {
            self.spare.enter();
        }
        let (bounds, router) = (self.bounds, self.router.clone());
        let counted = Counted { all: self, stays };
        // Answers are whole; waiting for more to send with them only costs time. A failure costs no more.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(bounds.write));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(if stays { bounds.head } else { bounds.spare_head })
            .keep_alive(stays)
            .max_buf_size(HEAD_BYTES_MAX);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            router.call(request.map(Body::new))
        });
        tokio::spawn(async move {
            let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
            // A client that has gone, or was too slow, is nobody's trouble but its own.
            let _ = watcher.watch(connection).await;
            drop(counted);
        });
    }
}

/// Says when to come back, and lets go. Nothing is kept for it, no task and no clock: what the kernel does not take at once is
/// not said. What has come of the request is taken in first, because a connection that is closed with something unread is
/// reset, and the caller may lose the answer; of one whose request is still under way, or longer than a head may be, it may all
/// the same.
fn turn_away(stream: &TcpStream, retry_after_ms: u64) {
    let mut unread = [0; 4 << 10];
    for _ in 0..HEAD_BYTES_MAX / unread.len() {
        if stream
            .try_read(&mut unread)
            .is_ok_and(|read| read == unread.len())
        {
            continue;
        }
        break;
    }
    let _ = stream.try_write(&refusal::crowded(retry_after_ms));
}

#[cfg(test)]
mod tests;
