//! Buffers between the threads that serve and the one that writes.
//!
//! Each serving thread has a lane of two buffers. It writes into whichever is not locked; the
//! writer takes the buffers one after the other and holds a lock only while it swaps a full buffer
//! for an empty one, so one of the two is always free and nobody waits. A channel would need a
//! timer on every thread to get at the last lines of one that has become idle; here the writer
//! comes and takes them.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
        mpsc,
    },
    thread::{self, Thread},
    time::{Duration, SystemTime},
};

use super::{Record, line};
use crate::telemetry::Format;

/// Longest time a line waits.
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// From here on a buffer is worth a system call.
const WAKE_AT: usize = 64 * 1024;
/// No buffer grows beyond this and one line: what a worker writes in a quarter of a second at 50 000
/// requests a second.
const FULL_AT: usize = 4 * 1024 * 1024;
/// What an emptied buffer may keep, so that a burst does not hold memory for ever.
const KEEP: usize = 256 * 1024;

/// What became of the lines so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    pub written: u64,
    pub dropped: u64,
}

/// Everything the serving threads and the writer share.
pub(super) struct Sink {
    format: Format,
    lanes: Mutex<Vec<Arc<Buffers>>>,
    writer: OnceLock<Thread>,
    stopping: AtomicBool,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// One serving thread's way into the sink.
pub(super) struct Lane(Arc<Buffers>);

type Buffers = [Mutex<Buffer>; 2];

#[derive(Default)]
struct Buffer {
    text: Vec<u8>,
    lines: u64,
}

impl Sink {
    pub(super) fn new(format: Format) -> Arc<Self> {
        Arc::new(Self {
            format,
            lanes: Mutex::default(),
            writer: OnceLock::new(),
            stopping: AtomicBool::new(false),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    /// A lane for the calling thread; lanes of ended threads are forgotten once they are empty.
    pub(super) fn lane(&self) -> Lane {
        let buffers = Arc::default();
        lock(&self.lanes).push(Arc::clone(&buffers));
        Lane(buffers)
    }

    pub(super) fn stats(&self) -> Stats {
        Stats { written: self.written.load(Relaxed), dropped: self.dropped.load(Relaxed) }
    }

    fn run(&self, mut output: impl Write) {
        let mut spare = Buffer::default();
        loop {
            // Read before the buffers are: what was written before the stop is still taken.
            let last = self.stopping.load(Acquire);
            self.drain(&mut output, &mut spare);
            if last {
                return;
            }
            thread::park_timeout(FLUSH_EVERY);
        }
    }

    fn drain(&self, output: &mut impl Write, spare: &mut Buffer) {
        // Copied, so that a new thread can register while the output is slow.
        let lanes = lock(&self.lanes).clone();
        for lane in &lanes {
            for buffer in lane.iter() {
                mem::swap(spare, &mut *lock(buffer));
                if spare.lines > 0 {
                    match write_all(output, &spare.text) {
                        Ok(()) => self.written.fetch_add(spare.lines, Relaxed),
                        // Nobody is left who could be told; the metric tells.
                        Err(_) => self.dropped.fetch_add(spare.lines, Relaxed),
                    };
                }
                spare.lines = 0;
                spare.text.clear();
                spare.text.shrink_to(KEEP);
            }
        }
        drop(lanes);
        // A lane that only this list holds belongs to a thread that has ended.
        lock(&self.lanes).retain_mut(|lane| match Arc::get_mut(lane) {
            Some(buffers) => buffers.iter_mut().any(|b| lines(b) > 0),
            None => true,
        });
    }
}

impl Lane {
    /// Appends one line, or counts it as dropped where the writer is that far behind.
    pub(super) fn write(&self, sink: &Sink, now: SystemTime, record: &Record<'_>) {
        let Some(mut buffer) = self.0.iter().find_map(try_lock) else {
            sink.dropped.fetch_add(1, Relaxed);
            return;
        };
        let before = buffer.text.len();
        if before >= FULL_AT {
            drop(buffer);
            sink.dropped.fetch_add(1, Relaxed);
            return;
        }
        line::format(sink.format, &mut buffer.text, now, record);
        buffer.lines += 1;
        let after = buffer.text.len();
        drop(buffer);
        // Once a buffer, and not on every line past the mark: waking is a system call.
        if before < WAKE_AT
            && after >= WAKE_AT
            && let Some(writer) = sink.writer.get()
        {
            writer.unpark();
        }
    }
}

/// The running writer thread.
pub(in crate::telemetry) struct Writer {
    sink: Arc<Sink>,
    thread: Thread,
    ended: mpsc::Receiver<()>,
}

impl Writer {
    pub(super) fn spawn(sink: Arc<Sink>, output: impl Write + Send + 'static) -> io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let shared = Arc::clone(&sink);
        let handle = thread::Builder::new().name("access-log".into()).spawn(move || {
            // Dropped when the thread ends, however it ends; that is the message.
            let _end = end;
            shared.run(output);
        })?;
        let thread = handle.thread().clone();
        let _ = sink.writer.set(thread.clone());
        Ok(Self { sink, thread, ended })
    }

    /// Writes what is there and ends the thread; gives up after `patience`.
    pub(super) fn stop(self, patience: Duration) {
        self.sink.stopping.store(true, Release);
        self.thread.unpark();
        // Disconnected is the good end; a timeout means that the output does not move.
        let _ = self.ended.recv_timeout(patience);
    }
}

/// `write_all` that also copes with an output somebody made non-blocking.
fn write_all(output: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match output.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => text = &text[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Formatting does not panic; if it ever did, the worst is one broken line.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn lines(buffer: &mut Mutex<Buffer>) -> u64 {
    buffer.get_mut().unwrap_or_else(PoisonError::into_inner).lines
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
