//! The lab itself: a referee that cannot see a foul proves nothing.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::lab::{
    Answer, Connection, Origin, Request, SOON, Seen, eventually,
    fault_proxy::{FaultProxy, Faults},
    servers::{Server, program},
    within,
};

/// Says something on a raw connection and returns what comes back first.
async fn say(addr: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the server accepts");
    stream.write_all(text.as_bytes()).await.expect("it reads");
    let mut bytes = [0; 1024];
    let read = within(SOON, "an answer", stream.read(&mut bytes));
    let n = read.await.unwrap_or(0);
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

#[tokio::test]
async fn the_origin_counts_and_keeps_what_it_is_sent() {
    let origin = Origin::start(|seen| Answer::ok(format!("{} {}", seen.target, seen.nth))).await;
    let mut client = Connection::open(origin.addr()).await.unwrap();
    assert_eq!(client.ask(&Request::get("/a?x")).await.unwrap().text(), "/a?x 1");
    assert_eq!(client.ask(&Request::get("/a?x")).await.unwrap().text(), "/a?x 2");
    client.ask(&Request::post("/b", "body")).await.unwrap();
    assert_eq!((origin.count("/a?x"), origin.total(), origin.connections()), (2, 3, 1));
    assert_eq!(origin.last().body, b"body");
    let raw = String::from_utf8(origin.raw()[0].clone()).unwrap();
    assert!(raw.starts_with("GET /a?x HTTP/1.1\r\nHost: "), "{raw:?}");
    origin.assert_strict();
}

#[tokio::test]
async fn the_origin_names_a_smuggled_request() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let two = "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    say(origin.addr(), two).await;
    eventually("both are counted", SOON, || async { origin.total() == 2 }).await;
    assert!(origin.faults()[0].contains("bytes before the answer"), "{:?}", origin.faults());
    let both =
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(say(origin.addr(), both).await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn the_origin_can_lie_cut_and_reset() {
    let origin = Origin::start(|seen: &Seen| match seen.target.as_str() {
        "/short" => Answer::ok("four").lying_length(10).then_close(),
        "/chunks" => Answer::status(200).chunk("a").chunk("b"),
        "/cut" => Answer::status(200).chunk("a").then_reset(),
        _ => Answer::reset(),
    })
    .await;
    let addr = origin.addr();
    let short = Request::get("/short").send(addr).await.unwrap();
    assert!(!short.whole && short.text() == "four");
    let chunks = Request::get("/chunks").send(addr).await.unwrap();
    assert!(chunks.whole && chunks.text() == "ab");
    assert!(!Request::get("/cut").send(addr).await.unwrap().whole);
    assert!(Request::get("/reset").send(addr).await.is_err());
}

#[tokio::test]
async fn the_fault_proxy_does_what_it_is_told() {
    let origin = Origin::start(|_| Answer::ok("0123456789".repeat(100))).await;
    let proxy = FaultProxy::start(origin.addr(), 7).await;
    let ask = Request::get("/");
    assert_eq!(ask.send(proxy.addr()).await.unwrap().body.len(), 1000);

    proxy.set(Faults { one_byte_slices: true, ..Faults::default() });
    assert_eq!(ask.send(proxy.addr()).await.unwrap().body.len(), 1000);

    proxy.set(Faults { cut_after: Some(500), ..Faults::default() });
    assert!(!ask.send(proxy.addr()).await.unwrap().whole);

    proxy.set(Faults { corrupt_one_in: Some(20), ..Faults::default() });
    // A corrupt length makes either side wait for what never comes.
    let corrupt = tokio::time::timeout(Duration::from_secs(1), ask.send(proxy.addr())).await;
    let intact =
        corrupt.is_ok_and(|r| r.is_ok_and(|r| r.body == "0123456789".repeat(100).as_bytes()));
    assert!(!intact, "nothing was corrupted");

    proxy.set(Faults { refuse: true, ..Faults::default() });
    assert!(ask.send(proxy.addr()).await.is_err());

    proxy.set(Faults { delay: Duration::from_millis(30), ..Faults::default() });
    let started = tokio::time::Instant::now();
    ask.send(proxy.addr()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(60), "once each way");

    proxy.set(Faults { bytes_per_second: Some(10_000), ..Faults::default() });
    ask.send(proxy.addr()).await.unwrap();

    proxy.set(Faults { half_open: true, ..Faults::default() });
    let mut waiting = Connection::open(proxy.addr()).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(100), waiting.ask(&ask)).await;
    assert!(silent.is_err(), "half open means silence");
    proxy.cut_all();
    within(SOON, "the cut", waiting.rest()).await;
}

#[tokio::test]
async fn postgres_starts_and_answers() {
    let postgres = Server::postgres().await;
    let port = postgres.addr.port().to_string();
    let select = tokio::process::Command::new(program("psql"))
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-Atc", "select 40 + 2"])
        .output();
    let output = within(SOON, "a query", select).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout.trim_ascii(), b"42", "{errors}{}", postgres.output());
}

#[tokio::test]
async fn a_node_peer_starts_and_answers() {
    let source = "import http from 'node:http'\n\
        http.createServer((_, r) => r.end('from node')).listen(+process.argv[2], '127.0.0.1')";
    let node = Server::node(source).await;
    assert_eq!(Request::get("/").send(node.addr).await.unwrap().text(), "from node");
}
