//! The test lab: everything a test needs to stand around a real gateway process.
//!
//! Tests start the binary itself, not the library, since the promises they check are made by the
//! process: its sockets, its signals, its exit codes, its log. Each test has a gateway, an origin and
//! ports of its own, so that they run side by side.

pub(crate) mod client;
pub(crate) mod fault_proxy;
pub(crate) mod fleet;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod origin;
pub(crate) mod random;
pub(crate) mod redis;
pub(crate) mod servers;

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use socket2::Socket;

pub(crate) use client::{Connection, Request, Response, load};
pub(crate) use fleet::Fleet;
pub(crate) use gateway::Gateway;
pub(crate) use origin::{Answer, Gate, Origin, Seen};
pub(crate) use redis::Redis;

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

/// A loopback port nobody listens on, for programs that cannot pick one themselves. It is below those
/// that the system hands out, so the tests' own sockets never take it; others may, so users retry.
pub(crate) fn free_port() -> u16 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut random = random::Random::seeded(time as u64 ^ u64::from(std::process::id()) << 32);
    let ports = std::iter::repeat_with(|| 10_000 + random.below(20_000) as u16);
    let mut free = ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().expect("some port is free")
}

/// An address at which connections are refused for as long as the test runs.
pub(crate) fn refusing() -> SocketAddr {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let socket = hold(any).expect("loopback has a free port");
    let addr = socket.local_addr().expect("a bound socket has an address");
    HELD.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    addr.as_socket().expect("it is an internet address")
}

/// Binds an address without listening: connections are refused, and nobody else gets it.
pub(crate) fn hold(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    // An origin that was here before leaves connections behind that are not quite over.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
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
