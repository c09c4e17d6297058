//! A response on its way into the cache: one task writes it, any number of clients read along.
//!
//! The writer runs at the origin's pace and not at the first client's, so a slow reader delays
//! nobody. It can afford to because a fill is bounded: a body larger than the limit, or more of them
//! at once than the budget allows, stops being stored. Then only the client that led goes on, with
//! back-pressure from its own connection, and those who waited fetch for themselves; they have
//! not been sent a byte yet, as they read along only where the length was known from the start.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use actix_http::{
    StatusCode,
    body::{BodySize, MessageBody},
    header::HeaderMap,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{entry::Entry, key::Key, l1::Variants, origin::Failure, policy::Lifetime};

/// A response that is being stored.
#[derive(Debug)]
pub struct Fill {
    pub key: Key,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub lifetime: Lifetime,
    pub filled_at: u64,
    pub length: Option<u64>,
    pub compressible: bool,
    /// What the response varies on, if anything.
    pub variants: Option<Arc<Variants>>,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    chunks: Vec<Bytes>,
    end: Option<End>,
    readers: Vec<Waker>,
}

/// How a fill ended.
#[derive(Debug, Clone)]
pub enum End {
    Stored(Arc<Entry>),
    /// The origin broke off.
    Cut(Failure),
    /// Too large after all; the rest goes to the leader only.
    Abandoned,
}

impl Fill {
    /// Whether this is the response to a request with this primary key and these headers.
    pub fn answers(&self, primary: &Key, headers: &HeaderMap) -> bool {
        match &self.variants {
            None => self.key == *primary,
            Some(variants) => self.key == variants.key_for(primary, headers),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a chunk and wakes the readers.
    pub fn push(&self, chunk: Bytes) {
        let readers = {
            let mut state = self.state();
            state.chunks.push(chunk);
            std::mem::take(&mut state.readers)
        };
        readers.into_iter().for_each(Waker::wake);
    }

    /// Ends the fill and wakes the readers.
    pub fn end(&self, end: End) {
        let readers = {
            let mut state = self.state();
            state.end.get_or_insert(end);
            std::mem::take(&mut state.readers)
        };
        readers.into_iter().for_each(Waker::wake);
    }

    /// The body so far; cheap, as chunks are shared.
    pub fn chunks(&self) -> Vec<Bytes> {
        self.state().chunks.clone()
    }

    /// Resolves when the fill has ended.
    pub async fn ended(&self) -> End {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            match &state.end {
                Some(end) => Poll::Ready(end.clone()),
                None => {
                    state.register(cx);
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl State {
    fn register(&mut self, cx: &Context<'_>) {
        if !self.readers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.readers.push(cx.waker().clone());
        }
    }
}

/// Ends the fill as cut when the task that writes it disappears, so that no reader waits for ever.
#[derive(Debug)]
pub struct Writer(pub Arc<Fill>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end(End::Cut(Failure(crate::problem::Code::Internal)));
    }
}

/// Reads a fill from its beginning, as the body of a client's response.
#[derive(Debug)]
pub struct Reader {
    fill: Arc<Fill>,
    next: usize,
    /// Where the leader finds what came after the fill was abandoned.
    rest: Option<mpsc::Receiver<Result<Bytes, Failure>>>,
}

impl Reader {
    pub fn new(fill: Arc<Fill>, rest: Option<mpsc::Receiver<Result<Bytes, Failure>>>) -> Self {
        Self { fill, next: 0, rest }
    }
}

impl MessageBody for Reader {
    type Error = Failure;

    fn size(&self) -> BodySize {
        self.fill.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Failure>>> {
        let this = self.get_mut();
        let abandoned = {
            let mut state = this.fill.state();
            let abandoned = matches!(state.end, Some(End::Abandoned));
            if let Some(chunk) = state.chunks.get_mut(this.next) {
                this.next += 1;
                // Nobody else will read an abandoned fill: its memory goes as it is sent.
                let chunk = if abandoned { std::mem::take(chunk) } else { chunk.clone() };
                return Poll::Ready(Some(Ok(chunk)));
            }
            match &state.end {
                Some(End::Stored(_)) => return Poll::Ready(None),
                Some(End::Cut(failure)) => return Poll::Ready(Some(Err(*failure))),
                Some(End::Abandoned) => true,
                None => {
                    state.register(cx);
                    false
                }
            }
        };
        if !abandoned {
            return Poll::Pending;
        }
        match &mut this.rest {
            // What was read already is of no use to anybody any more.
            Some(rest) => rest.poll_recv(cx),
            None => Poll::Ready(Some(Err(Failure(crate::problem::Code::Internal)))),
        }
    }
}

/// Bytes that all fills together may hold beyond what their lengths announced.
///
/// A body of unknown length could be endless; ten of them must not take ten times the limit.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: u64,
}

impl Budget {
    pub fn new(max: u64) -> Self {
        Self { used: AtomicU64::new(0), max }
    }

    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), taken: 0 }
    }
}

/// One fill's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    taken: u64,
}

impl Share {
    /// Takes `bytes` more; `false` when the budget is used up.
    pub fn take(&mut self, bytes: u64) -> bool {
        self.taken += bytes;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.budget.max
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}
