//! Tests of the running gateway: one binary, a file per promise, and the lab they share.

mod lab;

mod architecture;
mod cache;
mod cache_purge;
mod cache_stale;
mod config;
mod data_cache;
mod demo;
mod fleet;
mod front_door;
mod health;
mod http_cache_tests;
mod lab_redis;
mod lab_works;
mod limits;
mod memory;
mod observability;
mod proxy;
mod proxy_faults;
mod redis_faults;
mod redis_link;
mod redis_messages;
mod redis_topologies;
mod reload;
mod shutdown;
mod soak;
mod sql_routes;
