//! A response body, put together from rows that are JSON already.

use bytes::Bytes;

use super::error::Failure;

/// The largest body.
const MAX_BYTES: usize = 8 << 20;

/// A JSON list under construction.
#[derive(Default)]
pub(super) struct List {
    text: Vec<u8>,
    pub(super) count: usize,
}

impl List {
    pub(super) fn push(&mut self, row: &str) -> Result<(), Failure> {
        if self.text.len() + row.len() > MAX_BYTES {
            return Err(Failure::result_too_large());
        }
        self.text.push(if self.count == 0 { b'[' } else { b',' });
        self.text.extend_from_slice(row.as_bytes());
        self.count += 1;
        Ok(())
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Bytes {
        if self.count == 0 {
            return Bytes::from_static(b"[]");
        }
        self.text.push(b']');
        self.text.into()
    }

    /// The first, without the brackets; what follows it is dropped by whoever asked for one.
    pub(super) fn only(self) -> Option<Bytes> {
        (self.count == 1).then(|| Bytes::from(self.text).slice(1..))
    }
}
