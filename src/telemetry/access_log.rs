//! The access log: one line a request, on standard output, without slowing the request down.
//!
//! A worker formats the line straight into a buffer of its own thread (`sink`) and goes on. One
//! writer thread empties these buffers at least each 100 ms and makes the system calls. Where the
//! reader of standard output is slower than the traffic, lines are dropped and counted
//! (`portway_access_log_dropped_total`): a full pipe must cost log lines, not requests.
//!
//! What a line holds is bounded: never the query (it may carry secrets), no headers, and long texts
//! are cut. Fields with nothing to say are left out.

mod line;
mod sink;

use std::{
    cell::OnceCell,
    fs::File,
    io,
    net::IpAddr,
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use super::{Format, RequestId, TraceContext, metrics::CacheOutcome};
pub use sink::Stats;
pub(super) use sink::Writer;
use sink::{Lane, Sink};

/// What one request came to.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub request_id: &'a RequestId,
    pub trace: &'a TraceContext,
    /// The client, as far as trusted proxies tell.
    pub client: IpAddr,
    pub method: &'a str,
    pub host: Option<&'a str>,
    /// Without the query.
    pub path: &'a str,
    /// Name of the route; `None` where none matched.
    pub route: Option<&'a str>,
    pub status: u16,
    /// Body bytes sent to the client.
    pub bytes: u64,
    /// From the request's head to the last byte of the response.
    pub duration: Duration,
    pub cache: CacheOutcome,
    /// The target that answered, or that failed last.
    pub upstream: Option<&'a str>,
    pub upstream_duration: Option<Duration>,
    /// The code of the problem the client was told of.
    pub code: Option<&'a str>,
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static SINK: OnceLock<Arc<Sink>> = OnceLock::new();

thread_local! {
    static LANE: OnceCell<Lane> = const { OnceCell::new() };
}

/// Whether [`write()`] does anything; ask before a record is put together.
pub fn enabled() -> bool {
    ENABLED.load(Relaxed)
}

/// Writes one line. Never blocks and never fails: a line that finds no room is counted.
pub fn write(record: &Record<'_>) {
    let Some(sink) = SINK.get().filter(|_| enabled()) else { return };
    // A thread that is ending has no lane any more; its last lines are not worth a lock.
    let _ = LANE
        .try_with(|lane| lane.get_or_init(|| sink.lane()).write(sink, SystemTime::now(), record));
}

/// Lines written and lost so far, in this process.
pub fn stats() -> Stats {
    SINK.get().map(|sink| sink.stats()).unwrap_or_default()
}

/// Starts the writer thread on standard output.
pub(super) fn start(format: Format) -> io::Result<Writer> {
    // Not `Stdout`: its line buffer would copy each batch and split it in two system calls.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let sink = SINK.get_or_init(|| Sink::new(format));
    let writer = Writer::spawn(Arc::clone(sink), output)?;
    ENABLED.store(true, Relaxed);
    Ok(writer)
}

/// Writes what is there and ends the writer thread, or leaves it behind after `patience`.
pub(super) fn stop(writer: Writer, patience: Duration) {
    ENABLED.store(false, Relaxed);
    writer.stop(patience);
}
