//! What holds for every input, not only for those somebody thought of.
//!
//! The inputs are the cases of the corpus with a few bytes changed: close enough to HTTP to get
//! past the first line.

use actix_http::h1::{Codec, Message, MessageType};
use bytes::BytesMut;
use proptest::prelude::*;
use tokio::time::Instant;
use tokio_util::codec::Decoder as _;

use super::{
    Limits, corpus,
    pace::Pace,
    watch::{Stage, Watch},
};
use crate::problem::Code;

/// What the front door makes of an input.
#[derive(Debug)]
struct Reading {
    passed: Vec<u8>,
    heads: u32,
    /// Why nothing more is passed on.
    verdict: Option<Code>,
    stage: Stage,
}

/// Reads `bytes` in pieces that end at `cuts`.
fn read(bytes: &[u8], cuts: &[usize]) -> Reading {
    let limits = Limits::default();
    let mut watch = Watch::new(false);
    let mut pace = Pace::new(Instant::now());
    let (mut passed, mut staged) = (Vec::new(), Vec::new());
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        staged.extend_from_slice(&bytes[from..cut]);
        from = cut;
        let cleared = watch.follow(&staged, &limits, &mut pace);
        passed.extend(staged.drain(..cleared));
        if watch.has_ended() {
            break;
        }
    }
    let verdict = match watch.stage {
        Stage::Refused(code) => code,
        _ => watch.shared.fault(),
    };
    Reading { passed, heads: watch.shared.passed.get(), verdict, stage: watch.stage }
}

fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<_> = corpus::cases()
        .into_iter()
        .map(|case| case.bytes)
        .filter(|seed| seed.len() < 2000)
        .collect();
    let byte = prop_oneof![
        any::<u8>(),
        proptest::sample::select(&b"\r\n \t:;,0159afAF=\"\\/*#@?%._-\0"[..]),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, byte), 0..4);
    (proptest::sample::select(seeds), changes).prop_map(|(mut input, changes)| {
        for (at, kind, byte) in changes {
            let at = at.index(input.len() + 1);
            match kind {
                0 => input.insert(at, byte),
                1 if at < input.len() => input[at] = byte,
                2 if at < input.len() => drop(input.remove(at)),
                3 => input.truncate(at),
                _ => {}
            }
        }
        input
    })
}

/// Cuts of `length` bytes: each byte alone, or a few pieces.
fn cuts(length: usize, points: &[prop::sample::Index]) -> Vec<usize> {
    if points.is_empty() {
        return (0..length).collect();
    }
    let mut cuts: Vec<_> = points.iter().map(|point| point.index(length + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// Reads what was passed on as actix does.
fn actix_reads(bytes: &[u8]) -> Result<(u32, bool, usize), String> {
    // The codec keeps a clock, which needs a runtime to run in.
    thread_local!(static RUNTIME: actix_rt::Runtime = actix_rt::Runtime::new().unwrap());
    RUNTIME.with(|runtime| runtime.block_on(async { decode(Codec::default(), bytes) }))
}

fn decode(mut codec: Codec, bytes: &[u8]) -> Result<(u32, bool, usize), String> {
    let mut buffer = BytesMut::from(bytes);
    let (mut heads, mut in_body) = (0, false);
    loop {
        match codec.decode(&mut buffer).map_err(|error| error.to_string())? {
            None => return Ok((heads, in_body, buffer.len())),
            Some(Message::Item(_)) => {
                heads += 1;
                in_body = codec.message_type() != MessageType::None;
            }
            Some(Message::Chunk(Some(_))) => {}
            Some(Message::Chunk(None)) => in_body = false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read(&bytes, &[]);
    }

    #[test]
    fn the_verdict_does_not_depend_on_how_the_bytes_are_cut(
        input in inputs(),
        points in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let whole = read(&input, &[]);
        let pieces = read(&input, &cuts(input.len(), &points));
        prop_assert_eq!(whole.verdict, pieces.verdict);
        prop_assert_eq!(whole.heads, pieces.heads);
        if whole.verdict.is_none() {
            prop_assert_eq!(whole.passed, pieces.passed);
        }
    }

    #[test]
    fn actix_reads_what_is_passed_on_as_the_same_requests(input in inputs()) {
        let reading = read(&input, &[]);
        let (heads, in_body, left) = actix_reads(&reading.passed).map_err(TestCaseError::fail)?;
        prop_assert_eq!(heads, reading.heads);
        match reading.stage {
            // Only the empty line that may precede a request can be left over.
            Stage::Head(_) | Stage::Refused(_) | Stage::Closing => {
                prop_assert!(!in_body);
                prop_assert!(left == 0 || (left == 2 && reading.passed.ends_with(b"\r\n")));
            }
            Stage::Length(_) | Stage::Chunks(_) | Stage::Tunnel | Stage::Ended => {
                prop_assert!(in_body);
            }
        }
    }
}
