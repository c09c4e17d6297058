//! The upstream side: chooses a target, sends a request to it and streams the response back.
//!
//! HTTP/1.1 is spoken here directly, over `httparse`, and not by a client library, for two reasons.
//! A gateway has to be stricter than a library may be: one response that two parsers read
//! differently mixes up two users. And everything happens in the request's own task, so a cancelled
//! request closes its connection by being dropped, back-pressure is a poll that returns `Pending`,
//! and a pass-through costs no channel and no wake-up of its own.

mod balance;
mod body;
mod breaker;
mod budget;
mod chunked;
mod client;
mod clock;
mod connection;
mod error;
mod exchange;
pub mod headers;
mod health;
mod peer;
mod pool;
mod tls;
mod upgrade;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

pub use body::InboundBody;
pub use breaker::BreakerState;
pub use client::{Client, Inbound, Outbound, OutboundBody};
pub use error::UpstreamError;
pub use peer::{Peer, client_ip};
pub use tls::client_config;
pub use upgrade::{Upgraded, is_websocket, tunnel};
pub use upstream::{TargetStatus, UpstreamState, UpstreamStatus, Upstreams};
