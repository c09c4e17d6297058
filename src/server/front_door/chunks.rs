//! Follows a chunked body byte by byte, to know where it ends (RFC 9112 section 7.1).
//!
//! Stricter than it has to be where readers are known to differ: no space around a size, no bare
//! line feed, extensions that follow the grammar, and a bound on everything that is not data, so
//! that a body cannot be made of extensions or trailers.

use super::syntax::{is_token, is_value};
use crate::problem::Code;

/// Bytes of chunk extensions in one body. Nothing here reads them.
const EXTENSION_BYTES: usize = 16 * 1024;
/// Bytes of trailer lines in one body.
const TRAILER_BYTES: usize = 8 * 1024;
/// Hex digits of a chunk size, leading zeros included.
const SIZE_DIGITS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    SizeStart,
    Size,
    SizeLf,
    ExtensionStart,
    ExtensionName,
    ExtensionNameSpace,
    ExtensionValueStart,
    ExtensionToken,
    ExtensionQuoted,
    ExtensionEscape,
    ExtensionEnd,
    ExtensionEndSpace,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// Where in a chunked body the connection is.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: State,
    size: u64,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
}

impl Chunks {
    /// Follows `bytes` up to the end of the body and says how many belong to it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<usize, Code> {
        let mut at = 0;
        while self.state != State::Done {
            let Some(&byte) = bytes.get(at) else { break };
            if self.state == State::Data {
                let left = (bytes.len() - at) as u64;
                let here = self.size.min(left);
                self.size -= here;
                // Not more than `left`, which is a length in memory.
                at += here as usize;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(byte)?;
            at += 1;
        }
        Ok(at)
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn step(&mut self, byte: u8) -> Result<State, Code> {
        use State::{
            Data, DataCr, DataLf, Done, EndLf, ExtensionEnd, ExtensionEndSpace, ExtensionEscape,
            ExtensionName, ExtensionNameSpace, ExtensionQuoted, ExtensionStart, ExtensionToken,
            ExtensionValueStart, Size, SizeLf, SizeStart, TrailerLf, TrailerName, TrailerStart,
            TrailerValue,
        };
        self.count(byte)?;
        let next = match (self.state, byte) {
            (SizeStart | Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => return self.digit(byte),
            (Size | ExtensionName | ExtensionToken | ExtensionEnd, b'\r') => SizeLf,
            (
                Size | ExtensionName | ExtensionNameSpace | ExtensionToken | ExtensionEnd
                | ExtensionEndSpace,
                b';',
            ) => ExtensionStart,
            (SizeLf, b'\n') if self.size > 0 => Data,
            (SizeLf, b'\n') => TrailerStart,

            (ExtensionStart | ExtensionValueStart | ExtensionNameSpace, b' ' | b'\t') => self.state,
            (ExtensionStart, _) if is_token(byte) => ExtensionName,
            (ExtensionName, b' ' | b'\t') => ExtensionNameSpace,
            (ExtensionName | ExtensionNameSpace, b'=') => ExtensionValueStart,
            (ExtensionName, _) if is_token(byte) => ExtensionName,
            (ExtensionValueStart, b'"') => ExtensionQuoted,
            (ExtensionValueStart | ExtensionToken, _) if is_token(byte) => ExtensionToken,
            (ExtensionQuoted, b'"') => ExtensionEnd,
            (ExtensionQuoted, b'\\') => ExtensionEscape,
            (ExtensionQuoted | ExtensionEscape, _) if is_value(byte) => ExtensionQuoted,
            (ExtensionToken | ExtensionEnd | ExtensionEndSpace, b' ' | b'\t') => ExtensionEndSpace,

            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.digits = 0;
                SizeStart
            }

            (TrailerStart, b'\r') => EndLf,
            (EndLf, b'\n') => Done,
            (TrailerStart | TrailerName, _) if is_token(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\r') => TrailerLf,
            (TrailerValue, _) if is_value(byte) => TrailerValue,
            (TrailerLf, b'\n') => TrailerStart,
            _ => return Err(Code::MalformedRequest),
        };
        Ok(next)
    }

    fn digit(&mut self, byte: u8) -> Result<State, Code> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        self.digits += 1;
        // The size is 0 here before the first digit: the data before it has been used up.
        if self.digits > SIZE_DIGITS || self.size >> 59 != 0 {
            return Err(Code::MalformedRequest);
        }
        self.size = self.size << 4 | u64::from(digit);
        Ok(State::Size)
    }

    /// Bounds what a body may hold besides data.
    fn count(&mut self, byte: u8) -> Result<(), Code> {
        match self.state {
            State::SizeStart | State::Size if byte != b';' => {}
            State::SizeLf | State::Data | State::DataCr | State::DataLf | State::Done => {}
            State::TrailerStart
            | State::TrailerName
            | State::TrailerValue
            | State::TrailerLf
            | State::EndLf => {
                self.trailer_bytes += 1;
                if self.trailer_bytes > TRAILER_BYTES {
                    return Err(Code::HeadersTooLarge);
                }
            }
            _ => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES {
                    return Err(Code::MalformedRequest);
                }
            }
        }
        Ok(())
    }
}
