//! Portway: an API gateway with a correct, coherent response cache, in one binary.
//!
//! `ARCHITECTURE.md` shows how the modules depend on one another; each module's own page says what
//! it is for and why it is built the way it is.

pub mod admin;
pub mod app;
pub mod cache;
pub mod config;
pub mod db;
pub mod demo;
pub mod limits;
pub mod problem;
pub mod proxy;
pub mod redis;
pub mod routes;
pub mod server;
pub mod sql;
pub mod telemetry;
