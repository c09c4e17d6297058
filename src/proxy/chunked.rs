//! Reads the chunked transfer coding, strictly (RFC 9112 section 7.1).
//!
//! A lenient reader and a strict one disagree on where a body ends, and the difference is somebody
//! else's response. Extensions and trailers are skipped; what they may add up to is bounded.

use bytes::{Buf, BytesMut};

/// Bytes of extensions and trailers that one body may carry.
const MAX_EXTRA: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a chunk size of so many digits so far.
    Size {
        value: u64,
        digits: u8,
    },
    /// In the extension after the size.
    Extension(u64),
    /// Before the line feed that ends the size line.
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// What the buffer holds next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This many bytes at the front of the buffer are content; take them, then ask again.
    Data(usize),
    /// More has to be read.
    More,
    /// The body is complete.
    End,
}

#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    extra: usize,
}

impl Chunked {
    pub(super) const fn new() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, extra: 0 }
    }

    /// Consumes framing from the front of `buffer` up to content, its end, or the body's end.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Next, &'static str> {
        loop {
            if self.state == State::Done {
                return Ok(Next::End);
            }
            let Some(&byte) = buffer.first() else { return Ok(Next::More) };
            if let State::Data(left) = self.state {
                let here = left.min(buffer.len() as u64);
                self.state = if here == left { State::DataCr } else { State::Data(left - here) };
                return Ok(Next::Data(here as usize));
            }
            self.state = self.step(byte)?;
            buffer.advance(1);
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, &'static str> {
        Ok(match (self.state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                // Fifteen digits cannot overflow, and no honest chunk needs more.
                if digits == 15 {
                    return Err("a chunk size is too large");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf(value),
            (State::Size { value, digits: 1.. }, b';') => State::Extension(value),
            (State::Extension(value), b'\r') => State::SizeLf(value),
            (State::Extension(_), b'\n' | 0) => return Err("a chunk extension is malformed"),
            (state @ State::Extension(_), _) => self.skip(state)?,
            (State::SizeLf(0), b'\n') => State::TrailerStart,
            (State::SizeLf(value), b'\n') => State::Data(value),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, b'\n' | 0) => {
                return Err("a trailer is malformed");
            }
            (State::TrailerStart | State::Trailer, _) => self.skip(State::Trailer)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err("the chunked framing is malformed"),
        })
    }

    fn skip(&mut self, state: State) -> Result<State, &'static str> {
        self.extra += 1;
        if self.extra > MAX_EXTRA {
            return Err("too many bytes of chunk extensions or trailers");
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content, and what was left after its end; `None` if the end has not come.
    type Decoded = Result<Option<(Vec<u8>, Vec<u8>)>, &'static str>;

    /// Decodes `pieces` as they arrive.
    fn decode(pieces: &[&[u8]]) -> Decoded {
        let (mut chunked, mut buffer, mut body) = (Chunked::new(), BytesMut::new(), Vec::new());
        let mut pieces = pieces.iter();
        loop {
            match chunked.next(&mut buffer)? {
                Next::Data(n) => body.extend_from_slice(&buffer.split_to(n)),
                Next::End => {
                    pieces.for_each(|piece| buffer.extend_from_slice(piece));
                    return Ok(Some((body, buffer.to_vec())));
                }
                Next::More => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => return Ok(None),
                },
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_skipped() {
        let text = b"4;a=b\r\nWiki\r\n1 \r\n";
        assert!(decode(&[text]).is_err(), "space after the size");
        let text = b"4;a=b\r\nWiki\r\n0\r\nHost: evil\r\n\r\nrest";
        assert_eq!(decode(&[text]), Ok(Some((b"Wiki".to_vec(), b"rest".to_vec()))));
    }

    #[test]
    fn lenient_readings_are_refused() {
        for text in [
            &b"\r\n"[..],
            b"+1\r\nx\r\n",
            b"0x1\r\nx\r\n",
            b"1\nx\r\n0\r\n\r\n",
            b"1\r\nxx\r\n",
            b"1\r\nx\n0\r\n\r\n",
            b"1;a\nb\r\nx\r\n",
            b"0\r\n\n",
            b"0\r\nA: b\n\r\n",
            b"1000000000000000\r\n",
            b"-1\r\n",
            b";\r\n",
        ] {
            assert!(decode(&[text]).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn extensions_without_end_are_refused() {
        let text = [b"1;".to_vec(), vec![b'a'; MAX_EXTRA + 1]].concat();
        assert!(decode(&[&text]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_of_any_body_decodes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cut in 1usize..20
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            prop_assert_eq!(decode(&pieces), Ok(Some((chunks.concat(), Vec::new()))));
            let short: Vec<&[u8]> = wire[..wire.len() - 1].chunks(cut).collect();
            prop_assert_eq!(decode(&short), Ok(None), "a cut body never ends cleanly");
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&[&bytes]);
        }
    }
}
