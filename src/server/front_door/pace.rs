//! Keeps the time of a connection with one timer.
//!
//! Setting a timer for every request would cost more than reading its head. The timer therefore
//! ticks a few times per idle timeout, and a request only leaves a mark that the next tick finds;
//! the exact clock is used where a client has already made somebody wait: in the middle of a head
//! or of a body.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::Limits;

/// Ticks per idle timeout; a silent connection is closed up to one tick early.
const TICKS: u32 = 8;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of a request.
    Idle,
    /// The response to a request; how long that takes is not the client's doing, unless it does not
    /// take it.
    Busy,
    /// The rest of a head.
    Head,
    /// More of a body.
    Body,
}

#[derive(Debug)]
pub(super) struct Pace {
    timer: Option<Pin<Box<Sleep>>>,
    /// Who the timer wakes; asking the timer to would cost more than comparing.
    waker: Option<Waker>,
    /// Whether the timer was last set for something more exact than a tick.
    exact: bool,
    /// Whether bytes have moved since the last tick.
    touched: bool,
    /// Whether the peer has stopped taking what is sent to it.
    blocked: bool,
    quiet_since: Instant,
    /// When the head that is arriving began; the first one began with the connection.
    head_since: Option<Instant>,
    fresh: bool,
    body: Option<Window>,
}

/// How much of a body came while the connection was waiting for it.
#[derive(Debug, Default)]
struct Window {
    waiting_since: Option<Instant>,
    waited: Duration,
    received: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            timer: None,
            waker: None,
            exact: false,
            touched: false,
            blocked: false,
            quiet_since: now,
            head_since: Some(now),
            fresh: true,
            body: None,
        }
    }

    /// Takes note of an attempt to write.
    pub(super) fn written(&mut self, blocked: bool) {
        self.blocked = blocked;
        self.touched |= !blocked;
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn head_complete(&mut self) {
        self.head_since = None;
        self.fresh = false;
    }

    pub(super) fn body_complete(&mut self) {
        self.body = None;
    }

    /// Takes note of bytes from the socket; `true` if a body has been coming too slowly.
    pub(super) fn bytes_read(&mut self, bytes: usize, limits: &Limits) -> bool {
        self.touched = true;
        let Some(window) = &mut self.body else { return false };
        window.received += bytes as u64;
        if let Some(since) = window.waiting_since.take() {
            window.waited += since.elapsed();
        }
        window.waited >= limits.body_window && window.is_too_slow(limits)
    }

    /// Ready when `phase` has lasted too long. To be asked each time the socket has nothing.
    pub(super) fn poll_late(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
        phase: Phase,
    ) -> Poll<()> {
        let tick = limits.idle_timeout / TICKS;
        match self.deadline(limits, phase) {
            Some(deadline) => {
                self.exact = true;
                let timer = timer_at(&mut self.timer, deadline);
                if timer.deadline() > deadline {
                    timer.as_mut().reset(deadline);
                }
            }
            None if self.exact || self.timer.is_none() => {
                self.exact = false;
                let first = Instant::now() + tick;
                timer_at(&mut self.timer, first).as_mut().reset(first);
            }
            None => {
                let waits = self.timer.as_ref().is_some_and(|timer| !timer.is_elapsed());
                if waits && self.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    return Poll::Pending;
                }
            }
        }
        loop {
            // Set by one of the arms above or by an earlier call.
            let Some(timer) = &mut self.timer else { return Poll::Pending };
            if timer.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let now = Instant::now();
            let next = match self.deadline(limits, phase) {
                Some(deadline) if now < deadline => deadline,
                Some(_) => match &mut self.body {
                    Some(window) if phase == Phase::Body => {
                        window.waited = limits.body_window;
                        if window.is_too_slow(limits) {
                            return Poll::Ready(());
                        }
                        window.waiting_since = Some(now);
                        now + limits.body_window
                    }
                    _ => return Poll::Ready(()),
                },
                None if self.touched || (phase == Phase::Busy && !self.blocked) => {
                    self.touched = false;
                    self.quiet_since = now;
                    now + tick
                }
                None if now >= self.quiet_since + (limits.idle_timeout - tick) => {
                    return Poll::Ready(());
                }
                None => now + tick,
            };
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(next);
            }
        }
    }

    /// When `phase` will have lasted too long; `None` where ticks are exact enough.
    fn deadline(&mut self, limits: &Limits, phase: Phase) -> Option<Instant> {
        match phase {
            Phase::Idle if self.fresh => Some(self.quiet_since + limits.header_timeout),
            Phase::Idle | Phase::Busy => None,
            Phase::Head => {
                let since = *self.head_since.get_or_insert_with(Instant::now);
                Some(since + limits.header_timeout)
            }
            Phase::Body => {
                let window = self.body.get_or_insert_default();
                let since = *window.waiting_since.get_or_insert_with(Instant::now);
                Some(since + limits.body_window.saturating_sub(window.waited))
            }
        }
    }
}

impl Window {
    /// Judges a window that is over and begins the next.
    fn is_too_slow(&mut self, limits: &Limits) -> bool {
        let least = limits.body_rate.saturating_mul(limits.body_window.as_secs().max(1));
        let slow = self.received < least;
        *self = Self::default();
        slow
    }
}

fn timer_at(timer: &mut Option<Pin<Box<Sleep>>>, deadline: Instant) -> &mut Pin<Box<Sleep>> {
    timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)))
}
