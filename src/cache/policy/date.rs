//! HTTP dates (RFC 9110 5.6.7): all three formats, letter case ignored, nothing else forgiven.
//!
//! `httpdate` accepts less (case) in one place and more in another, and freshness must not depend on
//! either: an `Expires` that is not a date means "already expired".

/// The month names' first letters, in order.
const MONTHS: [&[u8]; 12] = [
    b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec",
];
const DAYS: [&[u8]; 7] =
    [b"monday", b"tuesday", b"wednesday", b"thursday", b"friday", b"saturday", b"sunday"];

/// Seconds since the Unix epoch. `now`, likewise, decides the century of a two-digit year.
pub(super) fn parse(text: &[u8], now: u64) -> Option<i64> {
    let text = text.trim_ascii();
    match memchr::memchr(b',', text) {
        Some(3) => imf_fixdate(text),
        Some(comma) => rfc850(text, comma, now),
        None => asctime(text),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &[u8]) -> Option<i64> {
    if text.len() != 29 || !is_short_day(&text[..3]) || !is_gmt(&text[25..]) {
        return None;
    }
    if text[4] != b' ' || text[7] != b' ' || text[11] != b' ' || text[16] != b' ' {
        return None;
    }
    seconds(number(&text[12..16])?, month(&text[8..11])?, number(&text[5..7])?, &text[17..25])
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &[u8], comma: usize, now: u64) -> Option<i64> {
    let (day, rest) = (&text[..comma], &text[comma + 1..]);
    if !DAYS.iter().any(|name| name.eq_ignore_ascii_case(day)) || rest.len() != 23 {
        return None;
    }
    if rest[0] != b' ' || rest[3] != b'-' || rest[7] != b'-' || rest[10] != b' ' {
        return None;
    }
    if !is_gmt(&rest[19..]) {
        return None;
    }
    let in_year = |year| seconds(year, month(&rest[4..7])?, number(&rest[1..3])?, &rest[11..19]);
    // More than 50 years ahead means the most recent past year with these digits.
    let year = 2000 + number(&rest[8..10])?;
    let date = in_year(year)?;
    let horizon = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(50 * 31_556_952);
    if date > horizon { in_year(year - 100) } else { Some(date) }
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<i64> {
    if text.len() != 24 || !is_short_day(&text[..3]) {
        return None;
    }
    if text[3] != b' ' || text[7] != b' ' || text[10] != b' ' || text[19] != b' ' {
        return None;
    }
    let day = if text[8] == b' ' { &text[9..10] } else { &text[8..10] };
    seconds(number(&text[20..24])?, month(&text[4..7])?, number(day)?, &text[11..19])
}

fn is_short_day(text: &[u8]) -> bool {
    DAYS.iter().any(|name| name[..3].eq_ignore_ascii_case(text))
}

fn is_gmt(text: &[u8]) -> bool {
    text.eq_ignore_ascii_case(b" gmt")
}

fn month(text: &[u8]) -> Option<i64> {
    let index = MONTHS.iter().position(|name| name.eq_ignore_ascii_case(text))?;
    i64::try_from(index + 1).ok()
}

/// Up to four digits.
fn number(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |value: i64, digit| {
        digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
    })
}

fn seconds(year: i64, month: i64, day: i64, time: &[u8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *time else { return None };
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    // 60: a leap second.
    if hour > 23 || minute > 59 || second > 60 || day < 1 || day > days_in(year, month) {
        return None;
    }
    Some(days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Of the proleptic Gregorian calendar. Years are counted from March, so that the leap day is the last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_795_000_000;

    #[test]
    fn the_three_formats_mean_the_same_moment() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sUN, 06 nOV 1994 08:49:37 gmt",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn a_two_digit_year_is_at_most_fifty_years_ahead() {
        let near = parse(b"Thursday, 18-Aug-50 02:01:18 GMT", NOW);
        assert_eq!(near, parse(b"Thu, 18 Aug 2050 02:01:18 GMT", NOW));
        let far = parse(b"Thursday, 18-Aug-90 02:01:18 GMT", NOW);
        assert_eq!(far, parse(b"Sat, 18 Aug 1990 02:01:18 GMT", NOW));
    }

    #[test]
    fn what_is_not_a_date_is_refused() {
        for text in [
            "0",
            "",
            "-1",
            "foo",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 31 Feb 2050 02:01:18 GMT",
            "Thu, 00 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 24:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_date_reads_back(seconds in 0_u64..253_402_300_799) {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assert_eq!(parse(text.as_bytes(), NOW), Some(seconds as i64));
        }

        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&text, NOW);
        }

        #[test]
        fn no_near_date_panics(text in "[A-Za-z]{3,9}[ ,]{1,2}[0-9A-Za-z :-]{18,26}") {
            let _ = parse(text.as_bytes(), NOW);
        }
    }
}
