//! What the operator sees of a running gateway: events, the access log, metrics, trace context.
//!
//! Two streams leave the process. **Events** (what the gateway itself has to say: started, reloaded,
//! a target went away) are rare, go through `tracing` and end on standard error. The **access log**
//! is one line a request and ends on standard output, so that either can be collected, or thrown
//! away, without the other. `Format` holds for both.
//!
//! The access log does not go through `tracing`: its JSON layer alone costs more CPU time than the
//! whole of a cache hit (12 µs a request, measured). See [`access_log`] for what is done instead.

pub mod access_log;
mod hex;
pub mod metrics;
pub(crate) mod random;
pub mod request_id;
pub mod throttle;
pub mod trace;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use tracing::Dispatch;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

pub use request_id::RequestId;
pub use trace::TraceContext;

/// How events and the access log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Lines for people.
    Pretty,
    /// One JSON object a line, for machines.
    Json,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the log filter is not valid: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging is already set up in this process")]
    Twice,
    #[error("the access log cannot be written")]
    Output(#[source] io::Error),
}

/// Flushes the access log when it is dropped; keep it until the last request is answered.
#[must_use = "dropping the guard ends the access log"]
pub struct Guard {
    writer: Option<access_log::Writer>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // A reader that no longer reads must not keep the process from ending.
            access_log::stop(writer, Duration::from_secs(2));
        }
    }
}

/// Sets up logging for the whole process; `main` calls it once, before anything else logs.
///
/// `filter` has the syntax of `RUST_LOG`. The access log is on when it lets the target
/// `portway::access` through at level `info`, so `info,portway::access=off` turns it off.
pub fn init(format: Format, filter: &str) -> Result<Guard, InitError> {
    let events = events(format, filter)?;
    let wanted = allows_access_log(&events);
    events.try_init().map_err(|_| InitError::Twice)?;
    let writer =
        wanted.then(|| access_log::start(format)).transpose().map_err(InitError::Output)?;
    Ok(Guard { writer })
}

fn events(format: Format, filter: &str) -> Result<Dispatch, InitError> {
    let filter = tracing_subscriber::registry().with(EnvFilter::builder().parse(filter)?);
    let layer = fmt::layer().with_writer(io::stderr);
    Ok(match format {
        Format::Pretty => filter.with(layer.with_ansi(io::stderr().is_terminal())).into(),
        Format::Json => filter.with(layer.json().flatten_event(true)).into(),
    })
}

/// Asks the filter itself, so that every form of directive counts.
fn allows_access_log(events: &Dispatch) -> bool {
    tracing::dispatcher::with_default(
        events,
        || tracing::enabled!(target: "portway::access", tracing::Level::INFO),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_decides_about_the_access_log() {
        let cases = [
            ("info", true),
            ("debug", true),
            ("warn", false),
            ("off", false),
            ("info,portway::access=off", false),
            ("info,portway=warn", false),
            ("warn,portway::access=info", true),
            ("warn,portway=info", true),
            ("error,other=trace", false),
        ];
        for (filter, expected) in cases {
            let events = events(Format::Json, filter).unwrap();
            assert_eq!(allows_access_log(&events), expected, "{filter}");
        }
    }

    #[test]
    fn a_wrong_filter_is_an_error_and_not_a_default() {
        assert!(matches!(events(Format::Pretty, "info,portway=loud"), Err(InitError::Filter(_))));
    }
}
