//! The upstream side against upstreams that misbehave, over real sockets.

mod answers;
mod exchanges;
mod targets;
mod through;
mod tls;
mod tunnels;
mod uploads;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{
    Method, Payload, Response, StatusCode,
    body::{BodySize, BoxBody, MessageBody as _},
    error::PayloadError,
    header::HeaderMap,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{upstream::tests::settings, *};
use crate::{
    problem::{Code, Problem as _},
    routes::Upstream,
};

fn run<T>(test: impl Future<Output = T>) -> T {
    actix_rt::System::new()
        .block_on(async { timeout(Duration::from_secs(20), test).await.expect("the test hangs") })
}

/// An upstream that treats its connections as `script` says; the count of them is shared.
async fn upstream<F>(script: impl Fn(usize, TcpStream) -> F + 'static) -> (String, Rc<Cell<usize>>)
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Rc::new(Cell::new(0));
    let accepted = count.clone();
    actix_rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = accepted.get();
            accepted.set(number + 1);
            actix_rt::spawn(script(number, stream));
        }
    });
    (url, count)
}

/// Reads up to the end of a head; what came after it is in there too.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut got = Vec::new();
    while !got.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut got).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(got)
}

/// An upstream that gives `answer` to every request and keeps its connections.
async fn answering(answer: impl Into<Vec<u8>>) -> (String, Rc<Cell<usize>>) {
    let answer = answer.into();
    upstream(move |_, mut stream| {
        let answer = answer.clone();
        async move {
            loop {
                read_head(&mut stream).await?;
                stream.write_all(&answer).await?;
            }
        }
    })
    .await
}

async fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn client() -> Rc<Client> {
    Client::new(client_config().unwrap())
}

fn request(method: Method, body: OutboundBody) -> Outbound {
    Outbound {
        method,
        path_and_query: Bytes::from_static(b"/x?y"),
        headers: HeaderMap::new(),
        body,
        replayable: true,
    }
}

fn get() -> Outbound {
    request(Method::GET, OutboundBody::Empty)
}

fn post(length: Option<u64>) -> (mpsc::Sender<Result<Bytes, PayloadError>>, Outbound) {
    let (sender, receiver) = mpsc::channel(1);
    let body = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let payload = Payload::Stream { payload: Box::pin(body) as Pin<Box<_>> };
    (sender, request(Method::POST, OutboundBody::Stream { payload, length }))
}

fn state(settings: &Upstream) -> Arc<UpstreamState> {
    UpstreamState::new(settings)
}

fn state_of(url: &str) -> Arc<UpstreamState> {
    state(&settings(&[url]))
}

async fn text(inbound: Inbound) -> Result<String, UpstreamError> {
    let mut body = inbound.body;
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(String::from_utf8(all).unwrap())
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
