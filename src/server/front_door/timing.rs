//! What the clock does to a connection, and what a closing connection still delivers.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_http::{HttpService, KeepAlive, Response, body::BoxBody};
use actix_service::{Service as _, ServiceFactory as _, fn_service};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::{
    FrontDoor, Limits,
    corpus::{connect, read_all, statuses},
    refusal,
};
use crate::problem::{self, Code};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Waits until the server closes; what it sent, and after how many seconds.
async fn until_closed(client: &mut DuplexStream) -> (Vec<u16>, f64) {
    let start = Instant::now();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    (statuses(&received), start.elapsed().as_secs_f64())
}

#[actix_rt::test]
async fn a_head_that_does_not_end_is_answered_408_after_ten_seconds() {
    tokio::time::pause();
    let (mut client, requests) = connect(Limits::default()).await;
    client.write_all(&GET[..20]).await.unwrap();
    let (statuses, seconds) = until_closed(&mut client).await;
    assert_eq!(statuses, [408]);
    assert!((10.0..10.1).contains(&seconds), "{seconds}");
    assert_eq!(requests.get(), 0);
}

#[actix_rt::test]
async fn a_head_that_comes_byte_by_byte_has_no_more_time_than_another() {
    tokio::time::pause();
    let (client, _) = connect(Limits::default()).await;
    let (mut read, mut write) = tokio::io::split(client);
    write.write_all(GET).await.unwrap();
    actix_rt::spawn(async move {
        sleep(Duration::from_secs(30)).await;
        for byte in GET {
            let _ = write.write_all(&[*byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
    });
    let start = Instant::now();
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert_eq!(statuses(&received), [200, 408]);
    let seconds = start.elapsed().as_secs_f64();
    assert!((40.0..40.1).contains(&seconds), "{seconds}");
}

#[actix_rt::test]
async fn a_connection_that_never_says_anything_is_closed_without_an_answer() {
    tokio::time::pause();
    let (mut client, _) = connect(Limits::default()).await;
    let (statuses, seconds) = until_closed(&mut client).await;
    assert!(statuses.is_empty());
    assert!((10.0..10.1).contains(&seconds), "{seconds}");
}

#[actix_rt::test]
async fn an_idle_connection_is_closed_in_time_and_not_before() {
    tokio::time::pause();
    let (mut client, requests) = connect(Limits::default()).await;
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        let (received, closed) = read_all(&mut client).await;
        assert_eq!((statuses(&received), closed), (vec![200], false));
        sleep(Duration::from_secs(60)).await;
    }
    client.write_all(GET).await.unwrap();
    let (statuses, seconds) = until_closed(&mut client).await;
    assert_eq!(statuses, [200]);
    assert!((65.0..=75.1).contains(&seconds), "{seconds}");
    assert_eq!(requests.get(), 4);
}

#[actix_rt::test]
async fn a_response_may_take_longer_than_the_idle_timeout() {
    tokio::time::pause();
    let (mut client, _) = connect(Limits::default()).await;
    client.write_all(b"GET /minutes HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (statuses, seconds) = until_closed(&mut client).await;
    assert_eq!(statuses, [200]);
    assert!(seconds > 265.0, "{seconds}");
}

#[actix_rt::test]
async fn a_body_that_trickles_is_answered_408() {
    tokio::time::pause();
    let (client, _) = connect(Limits::default()).await;
    let (mut read, mut write) = tokio::io::split(client);
    write.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    actix_rt::spawn(async move {
        while write.write_all(&[b'x'; 490]).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let start = Instant::now();
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert_eq!(statuses(&received), [408]);
    assert!(start.elapsed() < Duration::from_secs(11));
}

#[actix_rt::test]
async fn a_body_just_fast_enough_arrives() {
    tokio::time::pause();
    let (mut client, _) = connect(Limits::default()).await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n").await.unwrap();
    for _ in 0..100 {
        client.write_all(&[b'x'; 600]).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    let (received, _) = read_all(&mut client).await;
    assert_eq!(statuses(&received), [200]);
}

#[actix_rt::test]
async fn a_body_nobody_reads_yet_is_not_slow() {
    tokio::time::pause();
    let (client, _) = connect(Limits::default()).await;
    let (mut read, mut write) = tokio::io::split(client);
    write
        .write_all(b"POST /minutes HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
        .await
        .unwrap();
    actix_rt::spawn(async move {
        let _ = write.write_all(&[b'x'; 4_000_000]).await;
        sleep(Duration::from_secs(300)).await;
    });
    let mut received = vec![0; 12];
    read.read_exact(&mut received).await.unwrap();
    assert_eq!(statuses(&received), [200]);
}

#[actix_rt::test]
async fn a_response_that_is_not_taken_is_dropped() {
    tokio::time::pause();
    let (mut client, requests) = connect(Limits::default()).await;
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(60)).await;
    // Still there, and what fits the pipe can still be read.
    assert_eq!(requests.get(), 1);
    sleep(Duration::from_secs(30)).await;
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(statuses(&received), [200]);
    assert!(received.len() <= 1024 * 1024, "cut off at what the pipe holds");
}

/// Answers refusals with their problem and everything else with 200, over TCP.
async fn tcp_server() -> std::net::SocketAddr {
    let service = HttpService::build()
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(Duration::ZERO)
        .h1(fn_service(|request: actix_http::Request| async move {
            let code = refusal(request.head()).unwrap_or(Code::NotFound);
            Ok::<_, Response<BoxBody>>(problem::response(code, None, "test"))
        }))
        .new_service(())
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    actix_rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let door = FrontDoor::new(stream, Limits::default(), false);
            actix_rt::spawn(service.call((door, None)));
        }
    });
    address
}

async fn answer_to(address: std::net::SocketAddr, start: &[u8], filler: usize) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(start).await.unwrap();
    // The server may have closed; that is what this is about.
    let _ = client.write_all(&vec![b'x'; filler]).await;
    let mut received = Vec::new();
    timeout(Duration::from_secs(5), client.read_to_end(&mut received)).await.unwrap().unwrap();
    String::from_utf8(received).unwrap()
}

#[actix_rt::test]
async fn a_client_that_is_still_sending_gets_the_last_response() {
    let address = tcp_server().await;
    let endless = answer_to(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: ", 600_000).await;
    assert!(endless.starts_with("HTTP/1.1 431 "), "{endless}");
    assert!(endless.contains("connection: close"), "{endless}");
    assert!(endless.ends_with('}'), "{endless}");

    // Refused by the handler before the body was read.
    let early = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 800000\r\n\r\n";
    let early = answer_to(address, early, 800_000).await;
    assert!(early.starts_with("HTTP/1.1 404 "), "{early}");
    assert!(early.contains("connection: close"), "{early}");
}

/// A socket that has the same request for every second read, and nothing in between.
struct Endless {
    request: Vec<u8>,
    ready: bool,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.ready = !self.ready;
        if !self.ready {
            return Poll::Pending;
        }
        buf.put_slice(&self.request);
        Poll::Ready(Ok(()))
    }
}

/// Prints what the front door adds to a request; run it optimised.
#[actix_rt::test]
#[ignore = "a measurement, not a test"]
async fn nanoseconds_per_head() {
    const ROUNDS: usize = 2_000;
    let request = b"GET /v2/products/4711?fields=name HTTP/1.1\r\nHost: api.example.com\r\n\
        User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: application/json\r\n\
        Accept-Encoding: gzip, br\r\nConnection: keep-alive\r\n\r\n";
    let run = |name: &str, io: &mut (dyn AsyncRead + Unpin)| {
        let mut cx = Context::from_waker(Waker::noop());
        let mut space = [std::mem::MaybeUninit::uninit(); 8192];
        // The fastest of many short runs: the machine has other work as well.
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = std::time::Instant::now();
            for ready in [true, false].repeat(ROUNDS) {
                let mut buf = ReadBuf::uninit(&mut space);
                assert_eq!(Pin::new(&mut *io).poll_read(&mut cx, &mut buf).is_ready(), ready);
                std::hint::black_box(buf.filled().len());
            }
            best = best.min(start.elapsed().as_nanos() as f64 / ROUNDS as f64);
        }
        println!("{name}: {best:.0} ns");
    };
    println!("a head of {} bytes", request.len());
    let endless = || Endless { request: request.to_vec(), ready: false };
    run("bare", &mut endless());
    run("behind the front door", &mut FrontDoor::new(endless(), Limits::default(), false));
}
