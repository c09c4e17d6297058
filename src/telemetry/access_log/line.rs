//! One record as one line of text: JSON, or the same facts for people.
//!
//! Formatted by hand, without serde and `core::fmt` where that shows: a line costs about what
//! copying it costs. Text from outside (method, host, path) is escaped in both formats, so that no
//! request can begin a line of its own or send control sequences to a terminal.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::Record;
use crate::telemetry::{Format, metrics::CacheOutcome};

/// Longest text of a field in bytes; what is beyond is cut and marked with `…`.
const MAX_TEXT: usize = 2048;

/// Appends the line for `record`, which ended at `now`, and the line feed.
pub(super) fn format(format: Format, out: &mut Vec<u8>, now: SystemTime, record: &Record<'_>) {
    match format {
        Format::Json => json(out, now, record),
        Format::Pretty => pretty(out, now, record),
    }
}

fn json(out: &mut Vec<u8>, now: SystemTime, record: &Record<'_>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    timestamp(out, now);
    // The names that events have as well, so that one reader can tell the two apart.
    out.extend_from_slice(
        b"\",\"level\":\"INFO\",\"target\":\"portway::access\",\"request_id\":\"",
    );
    out.extend_from_slice(record.request_id.as_bytes());
    out.extend_from_slice(b"\",\"trace_id\":\"");
    out.extend_from_slice(&record.trace.trace_id_hex());
    out.extend_from_slice(b"\",\"client_ip\":\"");
    address(out, record.client);
    out.extend_from_slice(b"\",\"method\":\"");
    escape(out, record.method);
    let mut text = |name: &[u8], value: Option<&str>| {
        if let Some(value) = value {
            out.extend_from_slice(name);
            escape(out, value);
        }
    };
    text(b"\",\"host\":\"", record.host);
    text(b"\",\"path\":\"", Some(record.path));
    text(b"\",\"route\":\"", record.route);
    text(b"\",\"upstream\":\"", record.upstream);
    text(b"\",\"code\":\"", record.code);
    text(b"\",\"cache\":\"", outcome(record.cache));
    out.extend_from_slice(b"\",\"status\":");
    decimal(out, record.status.into());
    out.extend_from_slice(b",\"bytes\":");
    decimal(out, record.bytes);
    out.extend_from_slice(b",\"duration_us\":");
    decimal(out, micros(record.duration));
    if let Some(duration) = record.upstream_duration {
        out.extend_from_slice(b",\"upstream_us\":");
        decimal(out, micros(duration));
    }
    out.extend_from_slice(b"}\n");
}

fn pretty(out: &mut Vec<u8>, now: SystemTime, record: &Record<'_>) {
    timestamp(out, now);
    out.push(b' ');
    decimal(out, record.status.into());
    out.push(b' ');
    escape(out, record.method);
    out.push(b' ');
    escape(out, record.host.unwrap_or_default());
    escape(out, record.path);
    out.push(b' ');
    decimal(out, micros(record.duration));
    out.extend_from_slice("µs ".as_bytes());
    decimal(out, record.bytes);
    out.push(b'B');
    let mut text = |name: &[u8], value: Option<&str>| {
        if let Some(value) = value {
            out.extend_from_slice(name);
            escape(out, value);
        }
    };
    text(b" ", outcome(record.cache));
    text(b" route=", record.route);
    text(b" upstream=", record.upstream);
    text(b" code=", record.code);
    if let Some(duration) = record.upstream_duration {
        out.extend_from_slice(b" upstream_us=");
        decimal(out, micros(duration));
    }
    out.extend_from_slice(b" client=");
    address(out, record.client);
    out.extend_from_slice(b" id=");
    out.extend_from_slice(record.request_id.as_bytes());
    out.push(b'\n');
}

fn outcome(cache: CacheOutcome) -> Option<&'static str> {
    (cache != CacheOutcome::None).then(|| cache.as_str())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Appends `text` as the inside of a JSON string (RFC 8259 section 7).
fn escape(out: &mut Vec<u8>, text: &str) {
    let (text, cut) = match text.len() > MAX_TEXT {
        true => (&text[..text.floor_char_boundary(MAX_TEXT)], true),
        false => (text, false),
    };
    // Without a branch in the loop, so that it runs many bytes at a time; nearly every text is
    // plain. 0xC2 begins the control characters U+0080 to U+009F, among others.
    let special = |byte: u8| byte < 0x20 || matches!(byte, b'"' | b'\\' | 0x7f | 0xc2);
    if !text.bytes().fold(false, |any, byte| any | special(byte)) {
        out.extend_from_slice(text.as_bytes());
    } else {
        for character in text.chars() {
            match character {
                '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
                // JSON demands it below U+0020 only; terminals act on the others as well.
                _ if character.is_control() => {
                    // `Text` never fails, nor does a number.
                    let _ = write!(Text(out), "\\u{:04x}", u32::from(character));
                }
                _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
    if cut {
        out.extend_from_slice("…".as_bytes());
    }
}

/// Appends `now` as RFC 3339 in UTC, to the microsecond.
fn timestamp(out: &mut Vec<u8>, now: SystemTime) {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let second = (seconds % 86_400) as u32;
    let micros = since_epoch.subsec_micros();
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |at: usize, value: u32| {
        text[at] = b'0' + (value / 10 % 10) as u8;
        text[at + 1] = b'0' + (value % 10) as u8;
    };
    put(0, year / 100);
    put(2, year);
    put(5, month);
    put(8, day);
    put(11, second / 3600);
    put(14, second / 60 % 60);
    put(17, second % 60);
    put(20, micros / 10_000);
    put(22, micros / 100);
    put(24, micros);
    out.extend_from_slice(&text);
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Years are counted from March, which puts the leap day at their end: then the length of the
/// months before a month is a line with whole steps, (153 m + 2) / 5.
fn date(days: u64) -> (u32, u32, u32) {
    const FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    const ERA: u64 = 146_097; // days in 400 years
    // Past the year 9999 the four digits would not do; no clock is there.
    let days = days.min(2_932_896) + FROM_MARCH_OF_YEAR_0;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 400 * era + year + u64::from(month >= 10);
    (year as u32, (if month < 10 { month + 3 } else { month - 9 }) as u32, day as u32)
}

fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

fn address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                decimal(out, octet.into());
            }
        }
        IpAddr::V6(ip) => {
            // `Text` never fails, nor does the address.
            let _ = write!(Text(out), "{ip}");
        }
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
pub(super) mod tests;
