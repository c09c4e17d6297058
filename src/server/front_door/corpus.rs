//! Plays `tests/corpus/front_door` against the front door with actix behind it.

use std::{
    cell::Cell,
    convert::Infallible,
    fs,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use actix_http::{
    HttpMessage as _, HttpService, KeepAlive, Request, Response, StatusCode,
    body::{BodySize, BoxBody, MessageBody},
};
use actix_service::{Service as _, ServiceFactory as _, fn_service};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{sleep, timeout},
};

use super::{Connection, Exchange, FrontDoor, Limits, refusal};
use crate::problem::{self, Code};

/// What came of one connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) statuses: Vec<u16>,
    pub(super) closed: bool,
    pub(super) requests: usize,
}

pub(super) struct Case {
    name: String,
    expected: Outcome,
    fin: bool,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn cases() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/front_door");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "case"))
        .collect();
    files.sort();
    files.iter().map(|path| parse(path)).collect()
}

fn parse(path: &std::path::Path) -> Case {
    let text = fs::read_to_string(path).unwrap();
    let (head, body) = text.split_once("---\n").expect("a case has a line `---`");
    let field =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let statuses = field("expect")
        .expect("a case says what to expect")
        .split(' ')
        .filter(|&status| status != "none")
        .map(|status| status.parse().unwrap())
        .collect();
    let mut bytes = Vec::new();
    for line in body.lines() {
        let (times, line) = match line.strip_prefix("@repeat ") {
            Some(repeat) => {
                let (times, line) = repeat.split_once(' ').unwrap();
                (times.parse().unwrap(), line)
            }
            None => (1, line),
        };
        bytes.extend_from_slice(&unescape(line).repeat(times));
    }
    Case {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        expected: Outcome {
            statuses,
            closed: field("then") == Some("closed"),
            requests: field("requests").unwrap().parse().unwrap(),
        },
        fin: field("fin").is_some(),
        bytes,
    }
}

fn unescape(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.as_bytes();
    while let [byte, tail @ ..] = rest {
        let (byte, used) = match (byte, tail) {
            (b'\\', [b'r', ..]) => (b'\r', 1),
            (b'\\', [b'n', ..]) => (b'\n', 1),
            (b'\\', [b't', ..]) => (b'\t', 1),
            (b'\\', [b'0', ..]) => (0, 1),
            (b'\\', [b'\\', ..]) => (b'\\', 1),
            (b'\\', [b'x', high, low, ..]) => {
                let digits = [*high, *low];
                let digits = str::from_utf8(&digits).unwrap();
                (u8::from_str_radix(digits, 16).unwrap(), 3)
            }
            (b'\\', _) => panic!("unknown escape in {line}"),
            _ => (*byte, 0),
        };
        bytes.push(byte);
        rest = &tail[used..];
    }
    bytes
}

/// Answers refusals as the pipeline does, everything else with 200 after reading the body.
async fn handle(
    mut request: Request,
    count: Rc<Cell<usize>>,
) -> Result<Response<BoxBody>, Response<BoxBody>> {
    if let Some(code) = refusal(request.head()) {
        return Ok(problem::response(code, None, "test"));
    }
    count.set(count.get() + 1);
    let connection = request.conn_data::<Connection>().unwrap().clone();
    let mut exchange = connection.begin();
    match request.uri().path() {
        "/slow" => sleep(Duration::from_millis(20)).await,
        "/minutes" => sleep(Duration::from_secs(200)).await,
        "/large" => {
            exchange.answered();
            let body = LastWithExchange(Bytes::from(vec![b'x'; 4_000_000]), exchange);
            return Ok(Response::new(StatusCode::OK).set_body(BoxBody::new(body)));
        }
        _ => {}
    }
    let mut length = 0;
    if !request.headers().contains_key("upgrade") {
        let mut payload = connection.guard(request.take_payload());
        while let Some(piece) = payload.next().await {
            match piece {
                Ok(piece) => length += piece.len(),
                Err(_) => {
                    let code = connection.body_fault().unwrap_or(Code::Internal);
                    exchange.answered();
                    return Ok(problem::response(code, None, "test"));
                }
            }
        }
    }
    exchange.answered();
    Ok(Response::new(StatusCode::OK).set_body(BoxBody::new(Bytes::from(length.to_string()))))
}

/// A body that keeps its exchange open until it has been sent.
struct LastWithExchange(Bytes, #[expect(dead_code, reason = "held for its end")] Exchange);

impl MessageBody for LastWithExchange {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        self.0.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

/// A connection to a server with the front door; the number is that of the requests let through.
pub(super) async fn connect(limits: Limits) -> (DuplexStream, Rc<Cell<usize>>) {
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    let service = HttpService::build()
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(Duration::ZERO)
        .on_connect_ext(|io: &FrontDoor<DuplexStream>, data| {
            data.insert(io.connection());
        })
        .h1(fn_service(move |request| handle(request, Rc::clone(&counted))))
        .new_service(())
        .await
        .unwrap();
    let (client, server) = tokio::io::duplex(1024 * 1024);
    actix_rt::spawn(async move {
        let _ = service.call((FrontDoor::new(server, limits, false), None)).await;
    });
    (client, count)
}

/// Everything the server sends until it closes or is silent for a second.
pub(super) async fn read_all(client: &mut DuplexStream) -> (Vec<u8>, bool) {
    let mut received = Vec::new();
    loop {
        let mut piece = [0; 4096];
        match timeout(Duration::from_secs(1), client.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => return (received, true),
            Ok(Ok(read)) => received.extend_from_slice(&piece[..read]),
            Err(_) => return (received, false),
        }
    }
}

/// The status codes in what a server sent; no body here looks like a status line.
pub(super) fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    text.match_indices("HTTP/1.")
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .collect()
}

async fn play(case: &Case, piece: usize) -> (Outcome, String) {
    let (mut client, count) = connect(Limits::default()).await;
    for piece in case.bytes.chunks(piece) {
        if client.write_all(piece).await.is_err() {
            break;
        }
        if piece.len() == 1 {
            // Lets the server see each byte alone.
            tokio::task::yield_now().await;
        }
    }
    if case.fin {
        client.shutdown().await.unwrap();
    }
    let (received, closed) = read_all(&mut client).await;
    let outcome = Outcome { statuses: statuses(&received), closed, requests: count.get() };
    (outcome, String::from_utf8_lossy(&received).into_owned())
}

async fn play_all(piece: usize) {
    tokio::time::pause();
    let cases = cases();
    assert!(cases.len() >= 80);
    let mut failures = String::new();
    for case in &cases {
        let (outcome, received) = play(case, piece).await;
        if outcome != case.expected {
            failures += &format!(
                "{}\n  expected {:?}\n  got {outcome:?}\n{received}\n",
                case.name, case.expected
            );
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[actix_rt::test]
async fn every_case_of_the_corpus_ends_as_it_says() {
    play_all(usize::MAX).await;
}

#[actix_rt::test]
async fn it_ends_the_same_when_the_bytes_come_one_at_a_time() {
    play_all(1).await;
}

#[actix_rt::test]
async fn a_pipelined_head_leaves_the_response_before_it_whole() {
    tokio::time::pause();
    let (mut client, _) = connect(Limits::default()).await;
    client
        .write_all(
            b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
              HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let (received, _) = read_all(&mut client).await;
    let text = String::from_utf8(received).unwrap();
    let (_, rest) = text.split_once("\r\n\r\n").unwrap();
    // Without waiting, actix writes the first response as if it were to the HEAD: no body.
    assert!(rest.starts_with("3HTTP/1.1 200"), "{text}");
    assert!(!text.split("\r\n\r\n").next().unwrap().contains("close"), "{text}");
}
