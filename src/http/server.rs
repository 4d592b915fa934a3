//! The listener and its connections: how many, how long each may take over what, and their end.

use super::board::{Board, Sources};
use super::call::{Call, Line};
use super::embed::Bodies;
use super::gate::{Counts, Peer, Token};
use super::{Inside, Shared, router, views};
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

/// Connections that may stay, and no more than a quarter of the files that the process may open: whatever a crowd does, the
/// broker can be reached.
const CONNECTIONS_MAX: usize = 1024;
const FILES_SHARE: u64 = 4;
/// Above that so many more are served once and closed: a crowd that only holds connections keeps no health check out.
const CONNECTIONS_SPARE: usize = 128;
/// Longest time for the head of a request, and for a connection to be idle.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// The same for a connection above [`CONNECTIONS_MAX`].
const HEAD_SPARE_MAX: Duration = Duration::from_secs(3);
/// Longest time for a client to take in any further piece of its response.
const WRITE_MAX: Duration = Duration::from_secs(30);
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
    task: JoinHandle<()>,
}

impl Server {
    /// Takes no further connections, and waits for those that are being answered, no longer than `limit`.
    pub async fn close(self, limit: Duration) {
        drop(self.stop);
        let _ = tokio::time::timeout(limit, self.task).await;
    }
}

/// Starts the server on the current runtime. A port that is taken is tried again: jobs from the broker need none.
pub fn start(setup: Setup) -> Server {
    let (stop, stopped) = oneshot::channel();
    Server {
        stop,
        task: tokio::spawn(serve(setup, stopped)),
    }
}

async fn serve(setup: Setup, mut stopped: oneshot::Receiver<()>) {
    let board = setup.board.clone();
    let wished = setup.listen;
    let listener = tokio::select! {
        listener = bind(wished, &board) => listener,
        _ = &mut stopped => return,
    };
    let connections = GracefulShutdown::new();
    let service = Arc::new(Connections::new(setup));
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
                    problem: None,
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
            listen: None,
            problem: Some(format!("{listen}: {failed}")),
        });
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

/// All connections.
struct Connections {
    router: TowerToHyperService<axum::Router>,
    open: AtomicUsize,
    stay_max: usize,
}

/// One of them; it is counted for as long as this lives.
struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    fn new(setup: Setup) -> Connections {
        let files = (setup.sources.process)().max_fds.unwrap_or(u64::MAX) / FILES_SHARE;
        let stay_max = usize::try_from(files).map_or(CONNECTIONS_MAX, |files| files.min(CONNECTIONS_MAX));
        let shared = Shared(Arc::new(Inside {
            clock: setup.clock,
            line: Line::new(setup.calls, setup.board.clone()),
            board: setup.board,
            sources: setup.sources,
            deaths: views::Deaths::default(),
            bodies: Bodies::new(setup.bodies_bytes_max, setup.requests_max),
            limits: setup.limits,
            token: setup.token,
            models: setup.models,
            counts: Counts::default(),
        }));
        Connections {
            router: TowerToHyperService::new(router(shared)),
            open: AtomicUsize::new(0),
            stay_max,
        }
    }

    /// Serves a connection aside, or closes it at once where there are too many.
    fn take(self: Arc<Self>, stream: TcpStream, peer: IpAddr, watcher: Watcher) {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self);
        let stays_max = counted.0.stay_max;
        if before >= stays_max + CONNECTIONS_SPARE {
            return;
        }
        // Answers are whole; waiting for more to send with them only costs time. A failure costs no more.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_MAX));
        let stays = before < stays_max;
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(if stays { HEAD_MAX } else { HEAD_SPARE_MAX })
            .keep_alive(stays)
            .max_buf_size(HEAD_BYTES_MAX);
        let router = counted.0.router.clone();
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
