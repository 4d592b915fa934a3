//! HTTP: health, metrics and status for whoever looks, and OpenAI's route for whoever wants vectors.
//!
//! ```text
//!   connection ──> gate ──> health, metrics, status <── board <── posted by the loop after its turns
//!   (server)     (who may)  └> embed ──Call──> the loop ──> admission, lane, batch … ──Reply──> embed ──> connection
//! ```
//!
//! What is said of the service is read from the [`Board`], never asked of the loop: so it is said within milliseconds also
//! when the loop hangs, and then it is said that it hangs. What is asked of the loop has a deadline. This module decides
//! nothing about jobs.

mod board;
mod bounds;
mod call;
mod embed;
mod gate;
mod history;
mod metrics;
mod page;
mod refusal;
mod server;
mod tokens;
mod turnstile;
mod views;

pub use board::{Board, Posted, Process, Sources};
pub use call::{Ask, Call, Given, Reply};
pub use gate::Token;
pub use server::{Server, Setup, start};

use crate::clock::Clock;
use crate::job::request::RequestLimits;
use axum::Router;
use axum::routing::{get, post};
use std::sync::Arc;

/// What every handler knows.
#[derive(Clone)]
struct Shared(Arc<Inside>);

struct Inside {
    clock: Clock,
    board: Arc<Board>,
    sources: Sources,
    deaths: views::Deaths,
    line: call::Line,
    bodies: Arc<embed::Bodies>,
    bounds: bounds::Bounds,
    limits: RequestLimits,
    token: Arc<gate::Asked>,
    /// Names and aliases of the configured models.
    models: Vec<String>,
    counts: gate::Counts,
}

impl std::ops::Deref for Shared {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.0
    }
}

fn router(shared: Shared) -> Router {
    let gate = axum::middleware::from_fn_with_state(shared.clone(), gate::pass);
    Router::new()
        .route("/", get(page::page))
        .route("/health/live", get(views::live))
        .route("/health/ready", get(views::ready))
        .route("/status", get(views::status))
        .route("/history", get(history::history))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/models", get(views::models))
        .route("/v1/models/{*name}", get(views::model))
        .route("/v1/embeddings", post(embed::embed))
        .fallback(gate::no_such_path)
        .method_not_allowed_fallback(gate::no_such_method)
        .layer(gate)
        .with_state(shared)
}
