//! Follows a connection's bytes from request to request and says which may be passed on.

use std::rc::Rc;

use super::{
    Limits,
    chunks::Chunks,
    connection::Shared,
    head::{Framing, Head},
    pace::Pace,
};
use crate::problem::Code;

/// Which part of a request the next byte belongs to.
#[derive(Debug)]
pub(super) enum Stage {
    Head(Head),
    /// So many bytes of body are left.
    Length(u64),
    Chunks(Chunks),
    /// The client asked to close after the last request (RFC 9112 section 9.6): what follows is
    /// read and thrown away until it does.
    Closing,
    /// The connection is no longer HTTP.
    Tunnel,
    /// Nothing is passed on any more; the code is there until the refusal has been announced.
    Refused(Option<Code>),
    /// Nothing is passed on any more, and the reader sees the end.
    Ended,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) stage: Stage,
    pub(super) shared: Rc<Shared>,
    /// Whether the one empty line that may precede a request line has been seen.
    blank: bool,
    /// Whether the request in hand is the last.
    last: bool,
    secure: bool,
}

impl Watch {
    pub(super) fn new(secure: bool) -> Self {
        Self {
            stage: Stage::Head(Head::default()),
            shared: Rc::default(),
            blank: false,
            last: false,
            secure,
        }
    }

    /// Judges `bytes`, which begin where the last call stopped, and says how many may pass.
    ///
    /// What is left is an incomplete head, to be given again with more behind it, or a request
    /// that [`must_wait`](Self::must_wait), or something that [`has_ended`](Self::has_ended) the
    /// connection.
    pub(super) fn follow(&mut self, bytes: &[u8], limits: &Limits, pace: &mut Pace) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.stage {
                Stage::Head(head) => {
                    if !self.shared.may_pass() {
                        return at;
                    }
                    // RFC 9112 section 2.2; actix skips it as well.
                    if !self.blank && rest[0] == b'\r' {
                        match rest.get(1) {
                            Some(b'\n') => {
                                self.blank = true;
                                at += 2;
                                continue;
                            }
                            Some(_) => self.refuse(Code::MalformedRequest),
                            None => {}
                        }
                        return at;
                    }
                    match head.read(rest, limits, self.secure) {
                        Ok(None) => return at,
                        Ok(Some(complete)) => {
                            at += complete.len;
                            self.blank = false;
                            self.shared.head_passed();
                            pace.head_complete();
                            self.last = complete.closes;
                            match complete.framing {
                                Framing::None => self.next_head(pace),
                                Framing::Length(length) => self.stage = Stage::Length(length),
                                Framing::Chunked => self.stage = Stage::Chunks(Chunks::default()),
                                Framing::Upgrade => self.stage = Stage::Tunnel,
                            }
                        }
                        Err(code) => {
                            self.refuse(code);
                            return at;
                        }
                    }
                }
                Stage::Length(left) => {
                    let here = (*left).min(rest.len() as u64);
                    *left -= here;
                    // Not more than `rest.len()`.
                    at += here as usize;
                    if *left == 0 {
                        self.next_head(pace);
                    }
                }
                Stage::Chunks(chunks) => match chunks.read(rest) {
                    Ok(read) => {
                        at += read;
                        if chunks.is_done() {
                            self.next_head(pace);
                        }
                    }
                    Err(code) => {
                        self.end(Some(code));
                        return at;
                    }
                },
                Stage::Tunnel => return bytes.len(),
                Stage::Refused(_) | Stage::Ended | Stage::Closing => return at,
            }
        }
        at
    }

    fn next_head(&mut self, pace: &mut Pace) {
        self.stage = if self.last { Stage::Closing } else { Stage::Head(Head::default()) };
        pace.body_complete();
    }

    /// Replaces the request that was about to be passed on.
    pub(super) fn refuse(&mut self, code: Code) {
        self.stage = Stage::Refused(Some(code));
    }

    /// Ends what the reader sees, in the middle of a body if `fault` says so.
    pub(super) fn end(&mut self, fault: Option<Code>) {
        self.shared.set_fault(fault);
        self.stage = Stage::Ended;
    }

    /// Whether the next request has to wait for the response to the one before it.
    pub(super) fn must_wait(&self) -> bool {
        matches!(self.stage, Stage::Head(_)) && !self.shared.may_pass()
    }

    /// Whether nothing more is passed on.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Refused(_) | Stage::Ended | Stage::Closing)
    }
}
