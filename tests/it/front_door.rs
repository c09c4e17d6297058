//! The front door: the corpus of raw requests, played against the whole gateway with a recording
//! origin behind it.
//!
//! Whatever a client sends, the origin is sent strict HTTP and never more requests than a strict
//! reader finds in the client's bytes; what is refused ends its connection; and another client's next
//! request gets its own answer. `tests/corpus/front_door/README.md` describes the case files.

use std::{io::ErrorKind, path::Path, time::Duration};

use crate::lab::{Answer, Connection, Gateway, Origin, Request, SOON, client::End, within};

/// One case file.
#[derive(Debug)]
struct Case {
    name: String,
    /// Statuses of all responses, in order.
    expect: Vec<u16>,
    closed: bool,
    requests: usize,
    fin: bool,
    bytes: Vec<u8>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).expect("a case can be read");
        let (head, body) = text.split_once("\n---\n").expect("a case has a head and a body");
        let field = |key: &str| {
            let lines = head.lines().filter(|l| !l.starts_with('#'));
            let pairs = lines.filter_map(|l| l.split_once(": "));
            pairs.into_iter().find(|(k, _)| *k == key).map(|(_, v)| v)
        };
        let required = |key: &str| field(key).unwrap_or_else(|| panic!("{name} has no `{key}`"));
        let expect = match required("expect") {
            "none" => Vec::new(),
            statuses => statuses.split(' ').map(|s| s.parse().expect("a status")).collect(),
        };
        Self {
            expect,
            closed: required("then") == "closed",
            requests: required("requests").parse().expect("a number of requests"),
            fin: field("fin") == Some("yes"),
            bytes: unescape(body),
            name,
        }
    }

    fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/front_door");
        let files = std::fs::read_dir(&folder).expect("the corpus is there");
        let paths = files.map(|f| f.expect("it can be listed").path());
        let mut paths: Vec<_> =
            paths.filter(|p| p.extension().is_some_and(|e| e == "case")).collect();
        paths.sort();
        assert!(paths.len() > 100, "only {} cases", paths.len());
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// Each upgrade in the corpus is declined, and then belongs to the connection that is closed.
    fn refused(&self) -> bool {
        self.expect.last().is_some_and(|status| *status >= 400)
    }
}

/// The bytes of a case: line ends count for nothing, escapes stand for bytes.
fn unescape(body: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in body.lines() {
        let (times, line) = match line.strip_prefix("@repeat ").and_then(|r| r.split_once(' ')) {
            Some((times, text)) => (times.parse().expect("@repeat takes a number"), text),
            None => (1, line),
        };
        let mut once = Vec::new();
        let mut rest = line.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'\\' {
                once.push(byte);
                continue;
            }
            once.push(match rest.next() {
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'0') => 0,
                Some(b'x') => {
                    let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
                    let (high, low) =
                        (digit().expect("a hex digit"), digit().expect("a hex digit"));
                    u8::try_from(high * 16 + low).expect("two hex digits are a byte")
                }
                Some(other) => other,
                None => panic!("a lone backslash in {line:?}"),
            });
        }
        for _ in 0..times {
            bytes.extend(&once);
        }
    }
    bytes
}

/// The method of each request, as far as a client must know it: a HEAD has no body in its answer.
fn methods(case: &Case) -> Vec<&'static str> {
    let text = String::from_utf8_lossy(&case.bytes);
    let lines = text.split("\r\n").filter(|l| l.contains(" HTTP/1."));
    lines.map(|l| if l.starts_with("HEAD ") { "HEAD" } else { "GET" }).collect()
}

/// Plays one case and returns what went wrong.
async fn play(gateway: &Gateway, case: &Case, one_by_one: bool) -> Result<(), String> {
    let mut client = Connection::open(gateway.public).await.map_err(|e| e.to_string())?;
    // The gateway may refuse and close before it has read everything.
    if one_by_one {
        for byte in &case.bytes {
            if client.write(std::slice::from_ref(byte)).await.is_err() {
                break;
            }
        }
    } else {
        let _ = client.write(&case.bytes).await;
    }
    if case.fin {
        let _ = client.finish().await;
    }
    let methods = methods(case);
    let mut statuses = Vec::new();
    let mut finals = 0;
    while statuses.len() < case.expect.len() {
        let method = methods.get(finals).copied().unwrap_or("GET");
        let next = client.any_response(method).await;
        // A client that ended its side counts as gone; whether it is still told why is left open.
        if case.fin && next.as_ref().is_err_and(|e| e.kind() == ErrorKind::UnexpectedEof) {
            return Ok(());
        }
        let next = next.map_err(|e| format!("after {statuses:?}: {e}"))?;
        statuses.push(next.status);
        finals += usize::from(next.status >= 200);
    }
    if statuses != case.expect {
        return Err(format!("answered {statuses:?}, expected {:?}", case.expect));
    }
    if case.closed {
        let end = client.rest().await;
        let more = crate::lab::http::latin1(client.unread());
        if end == End::Open || !more.is_empty() {
            return Err(format!("not closed ({end:?}), or more after it: {more:?}"));
        }
    } else {
        // Open means that it still serves.
        let again = client.ask(&Request::get("/still-open").header("Host", "a.example")).await;
        let again = again.map_err(|e| format!("it is not open: {e}"))?;
        if again.status != 200 {
            return Err(format!("the next request got {}", again.status));
        }
    }
    Ok(())
}

/// The requests the gateway sent that the case itself cannot account for.
fn sent_for_case(origin: &Origin) -> usize {
    let own = ["/still-open", "/victim"];
    origin.requests().iter().filter(|s| !own.contains(&s.path())).count()
}

async fn play_all(one_by_one: bool) {
    let mut failures = Vec::new();
    for case in Case::all() {
        // A large body byte by byte takes long and shows nothing that a small one does not.
        if one_by_one && case.bytes.len() > 4096 {
            continue;
        }
        let origin = Origin::start(|seen| {
            let slow = Duration::from_millis(if seen.path() == "/slow" { 50 } else { 0 });
            Answer::ok("from the origin").delay(slow)
        })
        .await;
        let gateway = gateway_for(&origin).await;
        if let Err(failure) = within(SOON * 3, &case.name, play(&gateway, &case, one_by_one)).await
        {
            failures.push(format!("{}: {failure}", case.name));
        }
        let victim = gateway.get("/victim").await;
        if victim.status != 200 || victim.text() != "from the origin" {
            failures.push(format!("{}: a victim got {}", case.name, victim.status));
        }
        let sent = sent_for_case(&origin);
        if sent > case.requests {
            failures.push(format!("{}: {sent} requests upstream of {}", case.name, case.requests));
        }
        if origin.requests().iter().any(|s| s.target.contains("smuggled")) {
            failures.push(format!("{}: the hidden request went upstream", case.name));
        }
        if case.refused() && case.requests == 0 && sent > 0 {
            failures.push(format!("{}: a refused request went upstream", case.name));
        }
        if !origin.faults().is_empty() {
            failures.push(format!("{}: upstream was sent {:?}", case.name, origin.faults()));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// One gateway for each case: what one leaves behind must not help or hurt the next.
async fn gateway_for(origin: &Origin) -> Gateway {
    Gateway::before(&origin.url()).env("WORKERS", "1").start().await
}

#[tokio::test]
async fn every_case_of_the_corpus_is_answered_as_a_strict_reader_would() {
    play_all(false).await;
}

#[tokio::test]
async fn every_case_comes_out_the_same_one_byte_at_a_time() {
    play_all(true).await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_to_arrive_is_ended() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET / HTTP/1.1\r\nHost: a.example\r\nX-Slow: ").await.expect("it is read");
    // 10 s for the headers; a byte now and then does not buy more time.
    let end = async {
        loop {
            let byte = client.write(b"a").await;
            let more = tokio::time::timeout(Duration::from_millis(500), client.rest()).await;
            if byte.is_err() || more.is_ok() {
                return;
            }
        }
    };
    within(Duration::from_secs(14), "the end of a slow request", end).await;
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn an_answer_from_the_cache_leaves_no_body_to_be_read_as_a_request() {
    let origin = Origin::start(|_| Answer::cacheable("stored").header("ETag", "\"v1\"")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.send(&Request::get("/doc").header("Host", "a.example")).await;
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for condition in ["", "If-None-Match: \"v1\"\r\n"] {
        let mut client = gateway.connect().await;
        let request = format!(
            "GET /doc HTTP/1.1\r\nHost: a.example\r\n{condition}Content-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        );
        client.write(request.as_bytes()).await.expect("it is read");
        let first = client.response("GET").await.expect("it is answered");
        assert!([200, 304, 400].contains(&first.status), "{}", first.status);
        let _ = client.ask(&Request::get("/next").header("Host", "a.example")).await;
    }
    assert!(origin.requests().iter().all(|s| s.path() != "/smuggled"));
    origin.assert_strict();
}

#[test]
fn the_escapes_of_a_case_are_bytes() {
    assert_eq!(unescape("a\\r\\n\nb\\x20\\0\\\\\n@repeat 3 x\\t\n"), b"a\r\nb \0\\x\tx\tx\t");
}
