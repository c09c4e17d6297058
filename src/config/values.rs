//! How values are written: durations, sizes, URLs. The routes file uses the same notation.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use ipnet::IpNet;
use url::Url;

use super::vars::Expected;

/// Ten years. Longer spans are mistakes, and would overflow clocks that they are added to.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// `300` (seconds), `300s`, `5m`, `1h30m`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, Expected> {
    let parsed = match text.parse::<u64>() {
        // `parse` also takes a leading plus sign.
        Ok(seconds) if !text.starts_with('+') => Some(Duration::from_secs(seconds)),
        _ => with_units(text),
    };
    parsed.filter(|duration| *duration <= LONGEST).ok_or_else(|| {
        "a duration such as 300 (seconds), 300s, 5m, 1h30m or 250ms, at most 3650d".to_owned()
    })
}

/// Numbers with units, each unit once and from large to small.
fn with_units(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: u64 = rest[..digits].parse().ok()?;
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = &rest[digits..digits + letters];
        // Going on with the same iterator refuses units that come again or out of order.
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(count.checked_mul(*millis)?)?;
        rest = &rest[digits + letters..];
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

/// `8388608` (bytes), `512KiB`, `64MiB`, `1GiB`.
pub(crate) fn size(text: &str) -> Result<u64, Expected> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor = match &text[digits..] {
        "" | "B" => Some(1),
        "KiB" => Some(1_u64 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        _ => None,
    };
    let count = text[..digits].parse::<u64>().ok();
    count
        .zip(factor)
        .and_then(|(count, factor)| count.checked_mul(factor))
        .ok_or_else(|| "a size such as 8388608 (bytes), 512KiB, 64MiB or 1GiB".to_owned())
}

/// A whole number within `range`.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, Expected>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| {
        text.parse()
            .ok()
            .filter(|number| range.contains(number) && !text.starts_with('+'))
            .ok_or_else(|| format!("a whole number, {} to {}", range.start(), range.end()))
    }
}

/// `true` or `false`.
pub(crate) fn boolean(text: &str) -> Result<bool, Expected> {
    text.parse().map_err(|_| "true or false".to_owned())
}

/// An IP address, IPv6 without brackets.
pub(crate) fn ip_address(text: &str) -> Result<IpAddr, Expected> {
    text.parse().map_err(|_| "an IP address such as 127.0.0.1 or ::1".to_owned())
}

/// Networks separated by commas; an address alone is a network of one.
pub(crate) fn networks(text: &str) -> Result<Vec<IpNet>, Expected> {
    text.split(',')
        .map(str::trim)
        .filter(|network| !network.is_empty())
        .map(|network| {
            network.parse().or_else(|_| network.parse().map(|ip: IpAddr| IpNet::from(ip))).map_err(
                |_| format!("networks such as 10.0.0.0/8,fd00::/8, and {network:?} is not one"),
            )
        })
        .collect()
}

/// The address of an upstream: a path is kept as a prefix, credentials have no place in it.
pub(crate) fn base_url(text: &str) -> Result<Url, Expected> {
    let expected = |what: &str| Err(what.to_owned());
    let Ok(url) = Url::parse(text) else {
        return expected("a URL such as http://10.0.0.5:8080");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return expected("an http:// or https:// URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return expected("a URL without user name and password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return expected("a URL without query and fragment");
    }
    if url.port() == Some(0) {
        return expected("a URL with a port from 1 to 65535");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_in_every_notation() {
        for (text, millis) in [
            ("300", 300_000),
            ("300s", 300_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1s500ms", 1500),
            ("2d", 172_800_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn other_spellings_of_durations_are_refused() {
        for text in [
            "",
            " 5s",
            "5 s",
            "s",
            "5x",
            "-5s",
            "+5",
            "1.5s",
            "30m1h",
            "1h1h",
            "5S",
            "3651d",
            "99999999999999999999",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary_and_exact() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("8388608"), Ok(8 << 20));
        for text in ["", "MiB", "1MB", "1.5GiB", "64 MiB", "-1", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_take_addresses_too() {
        let parsed = networks("10.0.0.0/8, ::1,192.168.1.1").expect("valid");
        let shown: Vec<_> = parsed.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "::1/128", "192.168.1.1/32"]);
        assert!(networks("10.0.0.0/8,host").is_err());
    }

    #[test]
    fn base_urls_carry_no_credentials_query_or_fragment() {
        assert_eq!(base_url("http://h:1/api").expect("valid").path(), "/api");
        for text in [
            "h:80",
            "ftp://h",
            "http://u@h",
            "http://:p@h",
            "http://h/?q",
            "http://h/#f",
            "http://h:0",
            "http://",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            let _ = (duration(&text), size(&text), networks(&text), base_url(&text));
        }
    }
}
