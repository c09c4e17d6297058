//! Proxying: what passes, what is taken off and put on, and that nothing waits for the end of a body.

use std::time::Duration;

use crate::lab::{
    Answer, Gate, Gateway, Origin, Request, SOON, Seen, client::End, eventually, within,
};

/// One upstream behind one route for every path; `extra` is YAML inside the route.
fn everything(origin: &Origin, extra: &str) -> String {
    format!(
        "upstreams:\n  app: {{ targets: ['{}'] }}\nroutes:\n  - name: all\n    path: '/{{*rest}}'\n    upstream: app\n{extra}",
        origin.url()
    )
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent() {
    let origin = Origin::start(|_| Answer::ok("ok")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let request = Request::new("PATCH", "/a%20b/c?x=%2F&y=+&z&x=2")
        .header("X-One", "first")
        .header("X-One", "second")
        .header("X-Empty", "")
        .header("Content-Type", "text/x; q=\"a, b\"")
        .body("the body");
    assert_eq!(gateway.send(&request).await.status, 200);
    let seen = origin.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PATCH", "/a%20b/c?x=%2F&y=+&z&x=2"));
    assert_eq!(seen.header_all("x-one"), ["first", "second"]);
    assert_eq!(seen.header("x-empty"), Some(""));
    assert_eq!(seen.header("content-type"), Some("text/x; q=\"a, b\""));
    assert_eq!((seen.body.as_slice(), seen.chunked), (&b"the body"[..], false));
    origin.assert_strict();
}

#[tokio::test]
async fn a_response_arrives_as_it_was_sent() {
    let origin = Origin::start(|_| {
        Answer::status(418)
            .header("Set-Cookie", "a=1; Path=/")
            .header("Set-Cookie", "b=2")
            .header("X-Odd", "\u{e9}t\u{e9}")
            .header("Date", "Sun, 22 Nov 2026 10:00:00 GMT")
            .header("Server", "the-origin")
            .body("short and stout")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let response = gateway.get("/").await;
    assert_eq!((response.status, response.text().as_str()), (418, "short and stout"));
    assert_eq!(response.header_all("set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!(response.header("x-odd"), Some("\u{e9}t\u{e9}"));
    assert_eq!(response.header_all("date"), ["Sun, 22 Nov 2026 10:00:00 GMT"]);
    assert_eq!(response.header("server"), Some("the-origin"));
    assert_eq!(response.header("content-length"), Some("15"));
    assert_eq!(response.header("content-type"), None, "none was sent, none is made up");
}

#[tokio::test]
async fn answers_without_a_body_pass() {
    let origin = Origin::start(|seen| match seen.path() {
        "/204" => Answer::status(204),
        "/304" => Answer::status(304).header("ETag", "\"x\""),
        _ => Answer::ok("twelve bytes"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    let head = client.ask(&Request::new("HEAD", "/head")).await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("12")));
    let none = client.ask(&Request::get("/204")).await.unwrap();
    assert_eq!((none.status, none.header("content-length")), (204, None));
    let unmodified = Request::get("/304").header("If-None-Match", "\"x\"");
    assert_eq!(client.ask(&unmodified).await.unwrap().status, 304);
    // The connection is still in step.
    assert_eq!(client.ask(&Request::get("/")).await.unwrap().text(), "twelve bytes");
}

#[tokio::test]
async fn hop_by_hop_fields_end_here() {
    let origin = Origin::start(|_| {
        Answer::ok("ok")
            .header("Connection", "X-Secret-Hop, keep-alive")
            .header("X-Secret-Hop", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Authenticate", "Basic")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let request = Request::get("/")
        .header("Connection", "X-Hop, keep-alive")
        .header("X-Hop", "1")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Proxy-Authorization", "Basic Zm9v")
        .header("TE", "trailers")
        .header("X-End", "2");
    let response = gateway.send(&request).await;
    let seen = origin.last();
    for name in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te"] {
        assert_eq!(seen.header(name), None, "{name} went upstream");
    }
    assert_eq!(seen.header("x-end"), Some("2"));
    for name in ["x-secret-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(response.header(name), None, "{name} came back");
    }
}

#[tokio::test]
async fn a_client_cannot_strip_what_the_gateway_adds() {
    let origin = Origin::start(|_| Answer::ok("ok")).await;
    let extra = "    request: { set: { X-Added: yes-it-is } }\n";
    let gateway = Gateway::routing(everything(&origin, extra)).start().await;
    let names = "X-Added, X-Forwarded-For, X-Forwarded-Proto, Forwarded, Via, Host, traceparent";
    assert_eq!(gateway.send(&Request::get("/").header("Connection", names)).await.status, 200);
    let seen = origin.last();
    assert_eq!(seen.header("x-added"), Some("yes-it-is"));
    for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded", "via", "host", "traceparent"]
    {
        assert!(seen.header(name).is_some(), "{name} was stripped: {:?}", seen.headers);
    }
}

#[tokio::test]
async fn a_stranger_cannot_forge_where_a_request_came_from() {
    let origin = Origin::start(|_| Answer::ok("ok")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let request = Request::get("/")
        .header("Host", "shop.example")
        .header("X-Forwarded-For", "6.6.6.6")
        .header("X-Forwarded-Host", "evil.example")
        .header("X-Forwarded-Proto", "https")
        .header("Forwarded", "for=6.6.6.6;host=evil.example")
        .header("X-Real-IP", "6.6.6.6");
    gateway.send(&request).await;
    let seen = origin.last();
    assert_eq!(seen.header_all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.header_all("x-forwarded-host"), ["shop.example"]);
    assert_eq!(seen.header_all("x-forwarded-proto"), ["http"]);
    let forwarded = seen.header_all("forwarded").join(",");
    assert!(
        forwarded.contains("for=127.0.0.1") && forwarded.contains("shop.example"),
        "{forwarded}"
    );
    assert!(seen.header("via").is_some_and(|v| v.starts_with("1.1 ")), "{:?}", seen.headers);
    let all = format!("{:?}", seen.headers);
    assert!(!all.contains("6.6.6.6") && !all.contains("evil"), "{all}");
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_added_to() {
    let origin = Origin::start(|_| Answer::ok("ok")).await;
    let gateway =
        Gateway::before(&origin.url()).env("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    let request = Request::get("/")
        .header("X-Forwarded-For", "203.0.113.7")
        .header("X-Forwarded-Host", "shop.example")
        .header("X-Forwarded-Proto", "https")
        .header("Via", "1.1 edge");
    gateway.send(&request).await;
    let seen = origin.last();
    assert_eq!(seen.header_all("x-forwarded-for").join(", "), "203.0.113.7, 127.0.0.1");
    assert_eq!(seen.header("x-forwarded-host"), Some("shop.example"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    let via = seen.header_all("via").join(", ");
    assert!(via.starts_with("1.1 edge, 1.1 "), "{via}");
}

#[tokio::test]
async fn server_sent_events_pass_one_by_one() {
    let (second, third) = (Gate::closed(), Gate::closed());
    let gates = (second.clone(), third.clone());
    let origin = Origin::start(move |_| {
        Answer::status(200)
            .header("Content-Type", "text/event-stream")
            .chunk("data: 1\n\n")
            .then_gate(&gates.0)
            .chunk("data: 2\n\n")
            .then_gate(&gates.1)
            .chunk("data: 3\n\n")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    client
        .write(b"GET /events HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n")
        .await
        .unwrap();
    let read = async {
        client.head().await.unwrap();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: 1\n\n");
        second.open();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: 2\n\n");
        third.open();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"data: 3\n\n");
        assert!(client.chunk().await.unwrap().unwrap().is_empty());
    };
    within(SOON, "each event as it comes", read).await;
}

#[tokio::test]
async fn an_upload_passes_as_it_comes() {
    let origin = Origin::start(|seen| Answer::ok(seen.body.clone())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    let head = "POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write(format!("{head}5\r\nfirst\r\n").as_bytes()).await.unwrap();
    eventually("the first chunk is at the origin", SOON, || async {
        origin.raw().iter().any(|raw| raw.windows(5).any(|w| w == b"first"))
    })
    .await;
    assert_eq!(origin.total(), 0, "the request has not ended yet");
    client.write(b"7\r\n second\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(client.response("POST").await.unwrap().text(), "first second");
    origin.assert_strict();
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let origin = Origin::start(|seen| Answer::ok(seen.body.clone())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    client.write(head).await.unwrap();
    let (status, _) = within(SOON, "100 Continue", client.head()).await.unwrap();
    assert_eq!(status, 100);
    client.write(b"body").await.unwrap();
    assert_eq!(client.response("POST").await.unwrap().text(), "body");
}

#[tokio::test]
async fn a_websocket_is_tunnelled_and_early_bytes_wait_for_the_101() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |seen: &Seen| {
        assert_eq!(seen.header("upgrade"), Some("websocket"));
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        Answer::switch_to_echo(&headers).gated(&held)
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    let handshake = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly";
    client.write(handshake.as_bytes()).await.unwrap();
    eventually("the origin has the handshake", SOON, || async { origin.total() == 1 }).await;
    // Time enough for a gateway that passes bytes blindly to show it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let raw = origin.raw().concat();
    assert!(!raw.windows(5).any(|w| w == b"early"), "bytes went upstream before the 101");

    gate.open();
    let talk = async {
        let (status, headers) = client.head().await.unwrap();
        assert_eq!(status, 101);
        let accept = crate::lab::http::header(&headers, "sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(client.exactly(5).await.unwrap(), b"early");
        let frame: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        client.write(&frame[..1000]).await.unwrap();
        assert_eq!(client.exactly(1000).await.unwrap(), frame[..1000]);
        client.write(&frame).await.unwrap();
        assert_eq!(client.exactly(frame.len()).await.unwrap(), frame);
        client.finish().await.unwrap();
        assert_eq!(client.rest().await, End::Closed);
    };
    within(SOON, "the echo", talk).await;
}

#[tokio::test]
async fn other_upgrades_are_not_offered_upstream() {
    let origin = Origin::start(|_| Answer::ok("plain")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let request = Request::get("/").header("Connection", "Upgrade, HTTP2-Settings");
    let request = request.header("Upgrade", "h2c").header("HTTP2-Settings", "AAMAAABkAAQ");
    let response = gateway.send(&request).await;
    assert!(response.status == 200 || response.status == 400, "{}", response.status);
    assert!(origin.requests().iter().all(|seen| seen.header("upgrade").is_none()));
}

#[tokio::test]
async fn upstream_connections_are_reused() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).env("WORKERS", "1").start().await;
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    assert_eq!((origin.total(), origin.connections()), (20, 1));
}

#[tokio::test]
async fn a_route_rewrites_the_path_and_the_headers() {
    let origin = Origin::start(|_| Answer::ok("ok").header("X-Powered-By", "secret")).await;
    let routes = format!(
        "
upstreams:
  app: {{ targets: ['{}/base'] }}
routes:
  - name: product
    path: /api/products/{{id}}
    upstream: app
    rewrite: /v2/products/{{id}}
    request: {{ set: {{ X-Api-Version: '2' }}, remove: [Cookie] }}
    response: {{ set: {{ X-Frame-Options: DENY }}, remove: [X-Powered-By] }}
  - name: rest
    path: '/{{*rest}}'
    upstream: app
",
        origin.url()
    );
    let gateway = Gateway::routing(routes).start().await;
    let request = Request::get("/api/products/4%2F2?full=1").header("Cookie", "a=1");
    let response = gateway.send(&request).await;
    let seen = origin.last();
    assert_eq!(seen.target, "/base/v2/products/4%2F2?full=1");
    assert_eq!((seen.header("x-api-version"), seen.header("cookie")), (Some("2"), None));
    assert_eq!(response.header("x-frame-options"), Some("DENY"));
    assert_eq!(response.header("x-powered-by"), None);
    gateway.get("/other").await;
    assert_eq!(origin.last().target, "/base/other");
}

#[tokio::test]
async fn the_most_specific_route_answers() {
    let routes = "
routes:
  - { name: rest, path: '/{*rest}', respond: { status: 200, body: rest } }
  - { name: any, path: '/a/{id}', methods: [GET], respond: { status: 200, body: any } }
  - { name: literal, path: /a/b, methods: [GET, HEAD], respond: { status: 201, body: literal } }
  - { name: host, path: '/a/{id}', host: shop.example, methods: [GET], respond: { status: 200, body: host } }
  - { name: beta, path: '/a/{id}', headers: { X-Beta: 'on' }, methods: [GET], respond: { status: 200, body: beta } }
";
    let gateway = Gateway::routing(routes).start().await;
    let literal = gateway.get("/a/b").await;
    assert_eq!((literal.status, literal.text().as_str()), (201, "literal"));
    assert_eq!(gateway.get("/a/c").await.text(), "any");
    assert_eq!(gateway.get("/a/c/d").await.text(), "rest");
    assert_eq!(gateway.get("/").await.text(), "rest");
    let host = Request::get("/a/c").header("Host", "shop.example");
    assert_eq!(gateway.send(&host).await.text(), "host");
    let beta = Request::get("/a/c").header("X-Beta", "on");
    assert_eq!(gateway.send(&beta).await.text(), "beta");
}

#[tokio::test]
async fn a_path_that_matches_with_another_method_says_which() {
    let routes = "
routes:
  - { name: read, path: /a, methods: [GET, HEAD], respond: { status: 200, body: a } }
  - { name: write, path: /a, methods: [PUT], respond: { status: 204 } }
";
    let gateway = Gateway::routing(routes).start().await;
    let refused = gateway.send(&Request::new("DELETE", "/a")).await;
    refused.assert_problem(405, "method_not_allowed");
    let allow = refused.header_all("allow").join(",");
    let mut allowed: Vec<&str> = allow.split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "PUT"]);
    gateway.get("/b").await.assert_problem(404, "no_route");
}

#[tokio::test]
async fn methods_that_are_never_forwarded_are_refused() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for request in
        ["CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n"]
    {
        let mut client = gateway.connect().await;
        client.write(request.as_bytes()).await.unwrap();
        let response = client.response("GET").await.unwrap();
        assert!([400, 405, 501].contains(&response.status), "{request}: {}", response.status);
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_next_request_is_safe() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::routing(everything(&origin, "    max_body: 1KiB\n")).start().await;
    let exactly = gateway.send(&Request::post("/", vec![b'a'; 1024])).await;
    assert_eq!(exactly.status, 200);

    let mut declared = gateway.connect().await;
    let response = declared.ask(&Request::post("/", vec![b'a'; 1025])).await.unwrap();
    response.assert_problem(413, "body_too_large");

    let mut chunked = gateway.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = format!("{head}800\r\n{}\r\n0\r\n\r\n", "a".repeat(2048));
    chunked.write(body.as_bytes()).await.unwrap();
    chunked.response("POST").await.unwrap().assert_problem(413, "body_too_large");
    // Either the rest was drained or the connection is closed; what is left is never a request.
    for client in [&mut declared, &mut chunked] {
        if let Ok(next) = client.ask(&Request::get("/next")).await {
            assert_eq!(next.status, 200);
        }
    }
    assert!(origin.requests().iter().all(|s| s.body_length <= 1024), "too much went upstream");
    origin.assert_strict();
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_passes_whole() {
    let raw = "HTTP/1.1 200 OK\r\nX-Style: old\r\n\r\nuntil the end";
    let origin = Origin::start(move |_| Answer::raw(raw)).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let response = gateway.get("/").await;
    assert!(response.whole);
    assert_eq!(response.text(), "until the end");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start(|seen| {
        let first = seen.target == "/1";
        Answer::ok(seen.target.clone()).delay(Duration::from_millis(if first { 100 } else { 0 }))
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    let ask = |n: u32| format!("GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n");
    client.write((1..=5).map(ask).collect::<String>().as_bytes()).await.unwrap();
    for n in 1..=5 {
        assert_eq!(client.response("GET").await.unwrap().text(), format!("/{n}"));
    }
    origin.assert_strict();
}

#[tokio::test]
async fn tls_is_served_and_a_renewed_certificate_is_picked_up() {
    let origin = Origin::start(|seen| {
        Answer::ok(seen.header("x-forwarded-proto").unwrap_or_default().to_owned())
    })
    .await;
    let issue = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let first = issue();
    let builder = Gateway::before(&origin.url());
    let (cert, key) = (builder.dir().join("cert.pem"), builder.dir().join("key.pem"));
    let write = |pair: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        std::fs::write(&cert, pair.cert.pem()).unwrap();
    };
    write(&first);
    let files = [cert.display().to_string(), key.display().to_string()];
    let gateway =
        builder.env("TLS_CERT_FILE", &files[0]).env("TLS_KEY_FILE", &files[1]).start().await;
    let root = first.cert.der().clone();
    let open = crate::lab::Connection::open_tls;
    let mut client = open(gateway.public, root).await.unwrap();
    assert_eq!(client.ask(&Request::get("/")).await.unwrap().text(), "https");

    let second = issue();
    write(&second);
    let root = second.cert.der().clone();
    eventually("the new certificate is served", SOON, || {
        let root = root.clone();
        async { open(gateway.public, root).await.is_ok() }
    })
    .await;
    assert_eq!(client.ask(&Request::get("/")).await.unwrap().text(), "https", "open ones go on");
}
