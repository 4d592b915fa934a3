//! The service against a real RabbitMQ: the contract's sections 3, 4 and 5 as seen from outside.
//!
//! Every test runs the real binary with a real model beside a private node that all tests share
//! ([`node`]), under a prefix of its own, and speaks to it as any program would ([`caller`]). Waits are
//! for conditions and have deadlines. Where RabbitMQ or the model is missing, a test says so and passes.

mod bench;
mod caller;
mod check;
mod clients;
mod collector;
mod dead;
mod faults;
mod floods;
mod frozen;
mod heartbeats;
mod hostile;
mod http;
mod http_health;
#[path = "../support/mended.rs"]
mod mended;
mod models;
mod node;
mod nodes;
mod openai;
mod overload;
mod page;
mod pika;
mod private;
mod proxy;
mod pty;
mod refusals;
mod replies;
mod service;
mod settle;
mod status;
mod stop;
mod streams;
mod submit;
mod submit_trouble;
mod top;
mod traces;
mod web;
