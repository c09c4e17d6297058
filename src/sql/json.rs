//! A response body, put together row by row.

use bytes::Bytes;

use super::error::Failure;

/// The largest body.
const MAX_BYTES: usize = 8 << 20;

/// A JSON list under construction.
#[derive(Default)]
pub(super) struct List {
    text: Vec<u8>,
    count: usize,
}

impl List {
    /// Adds what `write` writes as a row.
    pub(super) fn push(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.text.push(if self.count == 0 { b'[' } else { b',' });
        write(&mut self.text)?;
        self.count += 1;
        if self.text.len() > MAX_BYTES { Err(Failure::result_too_large()) } else { Ok(()) }
    }

    /// How many rows it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Bytes {
        if self.count == 0 {
            return Bytes::from_static(b"[]");
        }
        self.text.push(b']');
        self.text.into()
    }

    /// The one row, without the brackets.
    pub(super) fn only(self) -> Option<Bytes> {
        (self.count == 1).then(|| Bytes::from(self.text).slice(1..))
    }
}
