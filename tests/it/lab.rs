//! The test lab: everything a test needs to stand around a real gateway process.
//!
//! Tests start the binary itself, not the library, since the promises they check are made by the
//! process: its sockets, its signals, its exit codes, its log. Each test has a gateway, an origin and
//! ports of its own, so that they run side by side.

pub(crate) mod client;
pub(crate) mod fault_proxy;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod origin;
pub(crate) mod random;
pub(crate) mod servers;

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

pub(crate) use client::{Connection, Request, Response, load};
pub(crate) use gateway::Gateway;
pub(crate) use origin::{Answer, Gate, Origin, Seen};

/// How long a test waits for something that should happen at once. Long, because it is only ever
/// waited out by a test that fails, and machines get busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Waits until `probe` gives a value; panics with `what` when it has not within `limit`.
///
/// Tests use this instead of sleeping: it goes on as soon as the thing has happened.
pub(crate) async fn wait_for<T, F, P>(what: &str, limit: Duration, mut probe: P) -> T
where
    P: FnMut() -> F,
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// [`wait_for`] a condition.
pub(crate) async fn eventually<F, P>(what: &str, limit: Duration, mut probe: P)
where
    P: FnMut() -> F,
    F: Future<Output = bool>,
{
    wait_for(what, limit, || {
        let met = probe();
        async move { met.await.then_some(()) }
    })
    .await;
}

/// Fails a test that would otherwise hang.
pub(crate) async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}

/// A loopback port nobody listens on, for programs that cannot pick one themselves. Another process
/// may take it first, so those who use it retry.
pub(crate) fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    socket.local_addr().expect("a bound socket has an address").port()
}

/// An address at which connections are refused.
pub(crate) fn refusing() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// What can be sent to a process the lab started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    Term,
    Hup,
    Kill,
    Stop,
    Cont,
}

/// Sends a signal by process id. The shell's own `kill` does it: the crate has no `unsafe` code and
/// no dependency that would be needed for this alone.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let name = match signal {
        Signal::Term => "TERM",
        Signal::Hup => "HUP",
        Signal::Kill => "KILL",
        Signal::Stop => "STOP",
        Signal::Cont => "CONT",
    };
    // The process may have ended on its own: that is for the caller to notice, in its own words.
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid} 2>/dev/null")])
        .status()
        .expect("sh is everywhere");
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("Linux reports VmRSS");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("VmRSS is a number of KiB");
    kib * 1024
}
