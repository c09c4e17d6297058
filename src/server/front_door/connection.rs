//! What the pipeline and the front door tell each other about one connection.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use actix_http::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;

use crate::problem::Code;

#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Whether somebody reports exchanges; without that nothing waits for them.
    pub(super) attached: Cell<bool>,
    /// Request heads that were passed on.
    pub(super) passed: Cell<u32>,
    /// Those of them whose response head is decided.
    answered: Cell<u32>,
    /// Those of them whose response is complete or given up.
    finished: Cell<u32>,
    fault: Cell<Option<Code>>,
    reader: RefCell<Option<Waker>>,
    /// Who reads the body now.
    payload: RefCell<Option<Waker>>,
}

impl Shared {
    pub(super) fn head_passed(&self) {
        self.passed.set(self.passed.get().wrapping_add(1));
    }

    /// Whether every request so far has got its response head.
    pub(super) fn may_pass(&self) -> bool {
        !self.attached.get() || self.answered.get() == self.passed.get()
    }

    /// Whether a request is being worked on.
    pub(super) fn is_busy(&self) -> bool {
        self.attached.get() && self.finished.get() != self.passed.get()
    }

    pub(super) fn fault(&self) -> Option<Code> {
        self.fault.get()
    }

    /// Tells whoever reads the body that no more of it will come, and why.
    pub(super) fn set_fault(&self, fault: Option<Code>) {
        self.fault.set(fault);
        if fault.is_some()
            && let Some(payload) = self.payload.borrow_mut().take()
        {
            payload.wake();
        }
    }

    /// Wakes the reader when the request in hand gets its response head, and when it is over.
    pub(super) fn wake_when_answered(&self, waker: &Waker) {
        *self.reader.borrow_mut() = Some(waker.clone());
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }
}

/// The pipeline's side of a connection; put into the connection's data by `on_connect_ext`.
///
/// actix reads ahead and takes the version, the method's `HEAD`-ness and the `Connection` of the
/// request it read *last* when it writes a response, so a pipelined `HEAD` can take away the body
/// of the response before it. Once an exchange is reported with [`Connection::begin`], the front
/// door holds the next request back until the one before it has its response head.
#[derive(Debug, Clone)]
pub struct Connection(pub(super) Rc<Shared>);

impl Connection {
    /// Says that a request is being worked on; every request of the connection must be reported.
    pub fn begin(&self) -> Exchange {
        Exchange { shared: Rc::clone(&self.0), answered: false }
    }

    /// The body of a request, which fails where the front door found a fault in it.
    pub fn guard<S>(&self, payload: S) -> GuardedPayload<S> {
        GuardedPayload { payload, shared: Rc::clone(&self.0) }
    }

    /// What was wrong with the body that is being read, if it is the client's fault.
    ///
    /// To be asked when the payload ends with an error: `None` means the connection broke.
    pub fn body_fault(&self) -> Option<Code> {
        self.0.fault()
    }
}

/// See [`Connection::guard`].
///
/// actix drops a request whose connection ends in the middle of the body, without an answer. So the
/// front door only falls silent at a fault, and it is this stream that ends.
#[derive(Debug)]
pub struct GuardedPayload<S> {
    payload: S,
    shared: Rc<Shared>,
}

impl<S> Stream for GuardedPayload<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.payload).poll_next(cx);
        if next.is_pending() {
            if self.shared.fault().is_some() {
                return Poll::Ready(Some(Err(PayloadError::Incomplete(None))));
            }
            *self.shared.payload.borrow_mut() = Some(cx.waker().clone());
        }
        next
    }
}

/// One request and its response; to be kept until the response body has been sent or dropped.
#[derive(Debug)]
pub struct Exchange {
    shared: Rc<Shared>,
    answered: bool,
}

impl Exchange {
    /// To be called in the poll that hands the response head to actix.
    pub fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.shared.answered.set(self.shared.answered.get().wrapping_add(1));
            self.shared.wake_reader();
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.answered();
        self.shared.finished.set(self.shared.finished.get().wrapping_add(1));
        self.shared.wake_reader();
    }
}
