//! Bodies in zstd, where that saves a tenth.

use std::{cell::RefCell, io};

use zstd::bulk::{Compressor, Decompressor};

/// Shorter ones stay as they are.
const MIN_LENGTH: usize = 1024;

/// The fastest there is: Redis is one hop away, and the client waits.
const LEVEL: i32 = 1;

/// Bytes that tell whether the rest of a long body is worth trying.
const SAMPLE: usize = 16 << 10;

thread_local! {
    // Setting one up costs more than most bodies do.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// The body in zstd, unless it is short or that saves less than a tenth. If it is not `promising`,
/// a sample from its middle has to shrink first.
pub(super) fn compress(body: &[u8], promising: bool) -> Option<Vec<u8>> {
    if body.len() <= MIN_LENGTH {
        return None;
    }
    if !promising && body.len() > 2 * SAMPLE {
        let middle = (body.len() - SAMPLE) / 2;
        shrunk(&body[middle..middle + SAMPLE])?;
    }
    let mut frame = shrunk(body)?;
    frame.shrink_to_fit();
    Some(frame)
}

fn shrunk(plain: &[u8]) -> Option<Vec<u8>> {
    // Where there is no room for more, compression gives up as soon as it has used it.
    let mut frame = Vec::with_capacity(plain.len() / 10 * 9);
    with(&COMPRESSOR, || Compressor::new(LEVEL), |it| it.compress_to_buffer(plain, &mut frame))?;
    // The allocator may have given more room than was asked for.
    (frame.len() * 10 <= plain.len() * 9).then_some(frame)
}

/// The body of `length` bytes that is in `frame`.
pub(super) fn decompress(frame: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(length);
    with(&DECOMPRESSOR, Decompressor::new, |it| it.decompress_to_buffer(frame, &mut plain))?;
    (plain.len() == length).then_some(plain)
}

/// Runs `job` with what this thread keeps for it.
fn with<T, R>(
    kept: &'static std::thread::LocalKey<RefCell<Option<T>>>,
    new: impl FnOnce() -> io::Result<T>,
    job: impl FnOnce(&mut T) -> io::Result<R>,
) -> Option<R> {
    kept.with_borrow_mut(|kept| {
        let tool = match kept {
            Some(tool) => tool,
            None => kept.insert(new().ok()?),
        };
        job(tool).ok()
    })
}
