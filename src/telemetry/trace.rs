//! W3C trace context: which trace a request belongs to, read from and written as `traceparent`.
//!
//! A gateway that starts no trace still passes the context on, because the services on both sides
//! of it would otherwise see two traces. Where a client brings none, one is begun and marked as
//! sampled: services usually follow the flag they are given, so "not sampled" from the front would
//! switch tracing off behind it. A context that breaks the rules is replaced, never repaired.

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};

use super::{hex, random};

/// The header that carries a [`TraceContext`].
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Sampled, and (level 2 of the specification) "the trace id is random".
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;
const RANDOM: u8 = 0b10;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The same for every span of the trace; not all zero.
    pub trace_id: [u8; 16],
    /// The span that is the parent of whoever receives this context; not all zero.
    pub parent_id: [u8; 8],
    flags: u8,
}

/// The context of one request, and whether the client's trace goes on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub context: TraceContext,
    /// `false`: a new trace was begun, so the client's `tracestate`, which belongs to another or
    /// to a broken one, must not go on.
    pub continued: bool,
}

/// Continues the trace that `headers` name, or begins one where they name none or are not valid.
///
/// Two `traceparent` lines are not valid: nobody can tell which of them is meant.
pub fn accept_or_new(headers: &HeaderMap) -> Accepted {
    let mut lines = headers.get_all(TRACEPARENT);
    let parent = match (lines.next(), lines.next()) {
        (Some(line), None) => TraceContext::parse(line.as_bytes()),
        _ => None,
    };
    match parent {
        Some(parent) => Accepted { context: parent.child(), continued: true },
        None => Accepted { context: TraceContext::begin(), continued: false },
    }
}

impl TraceContext {
    /// Begins a trace.
    pub fn begin() -> Self {
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&nonzero().to_be_bytes());
        trace_id[8..].copy_from_slice(&random::next().to_be_bytes());
        Self { trace_id, parent_id: nonzero().to_be_bytes(), flags: SAMPLED | RANDOM }
    }

    /// Reads the value of a `traceparent` header; surrounding blanks are allowed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let (fixed, rest) = value.split_at_checked(55)?;
        let [version] = hex::decode(&fixed[..2])?;
        match version {
            0xff => return None,
            0 if !rest.is_empty() => return None,
            // A later version may add fields, but only after another dash.
            _ if !rest.is_empty() && rest[0] != b'-' => return None,
            _ => {}
        }
        if [fixed[2], fixed[35], fixed[52]] != [b'-'; 3] {
            return None;
        }
        let trace_id = hex::decode(&fixed[3..35])?;
        let parent_id = hex::decode(&fixed[36..52])?;
        let [flags] = hex::decode(&fixed[53..])?;
        let valid = trace_id != [0; 16] && parent_id != [0; 8];
        // Flags nobody has defined yet must not be passed on.
        valid.then_some(Self { trace_id, parent_id, flags: flags & KNOWN_FLAGS })
    }

    /// The same trace under a new span id: what this process sends on.
    pub fn child(&self) -> Self {
        Self { parent_id: nonzero().to_be_bytes(), ..*self }
    }

    /// Whether the caller may have recorded this trace.
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace id as it is written.
    pub fn trace_id_hex(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        hex::encode(&self.trace_id, &mut digits);
        digits
    }

    /// The value of a `traceparent` header, in version 00, the only one there is.
    pub fn to_header(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex::encode(&self.trace_id, &mut text[3..35]);
        hex::encode(&self.parent_id, &mut text[36..52]);
        hex::encode(&[self.flags], &mut text[53..]);
        HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes are header text")
    }
}

fn nonzero() -> u64 {
    random::next().max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<TraceContext> {
        TraceContext::parse(text.as_bytes())
    }

    #[test]
    fn a_valid_context_survives_a_round_trip() {
        let context = parse(VALID).unwrap();
        assert!(context.sampled());
        assert_eq!(&context.trace_id_hex(), b"0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.to_header(), VALID);
        assert_eq!(parse(&format!(" {VALID}\t")), Some(context));
    }

    #[test]
    fn broken_contexts_are_refused() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let span = "b7ad6b7169203331";
        for text in [
            String::new(),
            "00".into(),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{}-01", span.to_uppercase()),
            format!("0F-{trace}-{span}-01"),
            format!("00-{trace}-{span}-0X"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-01-"),
            format!("00-{trace}-{span}-01-extra"),
            format!("01-{trace}-{span}-01extra"),
            format!("00_{trace}-{span}-01"),
            format!("00-{trace}_{span}-01"),
            format!("00-{trace}-{span}_01"),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}0-{span}-01"),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_by_the_fields_known_today() {
        for tail in ["", "-", "-what-the-future-will-be-like"] {
            let text = format!("cc{}{tail}", &VALID[2..]);
            assert_eq!(parse(&text).unwrap().to_header(), VALID, "{text}");
        }
    }

    #[test]
    fn unknown_flags_are_not_passed_on() {
        for (flags, expected) in [("00", "00"), ("01", "01"), ("03", "03"), ("fe", "02")] {
            let context = parse(&format!("{}{flags}", &VALID[..53])).unwrap();
            assert_eq!(context.to_header(), format!("{}{expected}", &VALID[..53]));
            assert_eq!(context.sampled(), expected != "00" && expected != "02");
        }
    }

    #[test]
    fn a_child_stays_in_its_trace_under_an_id_of_its_own() {
        let parent = parse(VALID).unwrap();
        let child = parent.child();
        assert_eq!(child.trace_id, parent.trace_id);
        assert_ne!(child.parent_id, parent.parent_id);
        assert!(child.sampled());
    }

    #[test]
    fn the_clients_trace_goes_on_only_when_it_is_named_once_and_well() {
        let headers = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(TRACEPARENT, HeaderValue::from_str(line).unwrap());
            }
            headers
        };
        let accepted = accept_or_new(&headers(&[VALID]));
        assert!(accepted.continued);
        assert_eq!(accepted.context.trace_id, parse(VALID).unwrap().trace_id);
        for lines in [&[][..], &[VALID, VALID], &["00-broken"]] {
            let accepted = accept_or_new(&headers(lines));
            assert!(!accepted.continued);
            assert!(accepted.context.sampled());
            let written = accepted.context.to_header();
            assert_eq!(TraceContext::parse(written.as_bytes()), Some(accepted.context));
            assert_ne!(accepted.context.trace_id, parse(VALID).unwrap().trace_id);
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_the_parser_panic_and_what_it_accepts_it_writes_validly(
            value in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,9})?".prop_map(String::into_bytes),
            ]
        ) {
            if let Some(context) = TraceContext::parse(&value) {
                let written = context.to_header();
                prop_assert_eq!(TraceContext::parse(written.as_bytes()), Some(context));
            }
        }
    }
}
