//! The whole way from a client's socket to an upstream's, with actix in between.

use std::{convert::Infallible, net::SocketAddr};

use actix_http::{HttpMessage as _, HttpService, Request};
use actix_service::{fn_factory, fn_service};

use super::*;
use crate::routes::HeaderRules;

/// A bare gateway in front of `url`.
fn gateway(url: &str) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = state_of(url);
    let server = actix_server::Server::build().workers(1).disable_signals();
    let server = server
        .listen("test", listener, move || {
            let upstream = upstream.clone();
            HttpService::build()
                // Else a client that leaves is noticed only when something is written to it.
                .h1_allow_half_closed(false)
                .finish(fn_factory(move || {
                    let (client, upstream) = (client(), upstream.clone());
                    async move {
                        Ok::<_, ()>(fn_service(move |request| {
                            let (client, upstream) = (client.clone(), upstream.clone());
                            async move {
                                Ok::<_, Infallible>(serve(&client, &upstream, request).await)
                            }
                        }))
                    }
                }))
                .tcp()
        })
        .unwrap();
    actix_rt::spawn(server.run());
    address
}

async fn serve(
    client: &Client,
    upstream: &Arc<UpstreamState>,
    mut request: Request,
) -> Response<BoxBody> {
    let rules = HeaderRules::default();
    let peer = Peer::resolve(request.head(), request.peer_addr().unwrap(), false, &[]);
    let path_and_query = request.uri().path_and_query().unwrap().as_str().to_owned().into();
    let length = request.headers().get("content-length");
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let has_body = length.is_some() || request.headers().contains_key("transfer-encoding");
    let mut outbound = Outbound {
        method: request.method().clone(),
        path_and_query,
        headers: headers::for_upstream(request.head(), &peer, &rules),
        body: OutboundBody::Empty,
        replayable: true,
    };
    let outcome = if is_websocket(request.head()) {
        match tunnel(client, upstream, &outbound, request.take_payload()).await {
            Ok(Upgraded::Tunnel(response)) => return response,
            Ok(Upgraded::Declined(inbound)) => Ok(inbound),
            Err(error) => Err(error),
        }
    } else {
        if has_body {
            outbound.body = OutboundBody::Stream { payload: request.take_payload(), length };
        }
        client.send(upstream, outbound).await
    };
    match outcome {
        Ok(inbound) => {
            let mut response = Response::with_body(inbound.status, BoxBody::new(inbound.body));
            *response.headers_mut() = inbound.headers;
            headers::for_client(response.headers_mut(), &rules);
            response
        }
        Err(error) => crate::problem::response(error.code(), None, "test"),
    }
}

/// Answers each request with its body, as it comes.
async fn echo() -> String {
    upstream(|_, mut stream| async move {
        let mut got = read_head(&mut stream).await?;
        let end = got.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let length = String::from_utf8_lossy(&got[..end])
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
            .unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut left = length;
        let mut piece = got.split_off(end);
        loop {
            left -= piece.len();
            stream.write_all(&piece).await?;
            if left == 0 {
                return Ok(());
            }
            piece.clear();
            stream.read_buf(&mut piece).await?;
        }
    })
    .await
    .0
}

async fn read_some(reader: &mut tokio::net::tcp::OwnedReadHalf) -> Vec<u8> {
    let mut got = Vec::with_capacity(1 << 16);
    reader.read_buf(&mut got).await.unwrap();
    got
}

#[test]
fn a_body_passes_both_ways_at_once() {
    run(async {
        const SIZE: usize = 8 * 1024 * 1024;
        let stream = TcpStream::connect(gateway(&echo().await)).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let feed = actix_rt::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            writer.write_all(&vec![b'z'; SIZE]).await.unwrap();
            writer
        });
        let mut got = read_some(&mut reader).await;
        assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
        let mut bytes = 0;
        loop {
            bytes += got.iter().filter(|byte| **byte == b'z').count();
            if bytes == SIZE {
                break;
            }
            got = read_some(&mut reader).await;
            assert!(!got.is_empty(), "cut after {bytes}");
        }
        drop(feed.await);
    });
}

#[test]
fn a_cut_body_reaches_the_client_as_a_cut() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                .await
        })
        .await;
        let mut stream = TcpStream::connect(gateway(&url)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        assert!(got.ends_with(b"5\r\nhello\r\n"), "{}", got.escape_ascii());
    });
}

#[test]
fn a_client_that_leaves_takes_the_upstream_connection_along() {
    run(async {
        let (event, mut events) = mpsc::channel(8);
        let (url, _) = upstream(move |number, mut stream| {
            let event = event.clone();
            async move {
                read_head(&mut stream).await?;
                let _ = event.send("asked").await;
                // The first client leaves in mid-body, the second before there is an answer.
                if number == 0 {
                    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
                    stream.write_all(head).await?;
                }
                let _ = stream.read(&mut [0; 8]).await;
                let _ = event.send("closed").await;
                Ok(())
            }
        })
        .await;
        let gateway = gateway(&url);
        for answered in [true, false] {
            let mut stream = TcpStream::connect(gateway).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert_eq!(events.recv().await, Some("asked"));
            if answered {
                read_head(&mut stream).await.unwrap();
            }
            drop(stream);
            // Well before any timeout.
            let closed = timeout(Duration::from_secs(2), events.recv()).await;
            assert_eq!(closed, Ok(Some("closed")));
        }
    });
}

#[test]
fn a_websocket_works_through_the_server_and_closes_with_it() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            let head = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            let mut echoed = 0;
            let mut piece = [0; 4096];
            while echoed < 1 << 20 {
                let n = stream.read(&mut piece).await?;
                stream.write_all(&piece[..n]).await?;
                echoed += n;
            }
            Ok(())
        })
        .await;
        let stream = TcpStream::connect(gateway(&url)).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                    Upgrade: websocket\r\n\r\n";
        writer.write_all(head.as_bytes()).await.unwrap();
        let feed = actix_rt::spawn(async move {
            writer.write_all(&vec![b'\x07'; 1 << 20]).await.unwrap();
            writer
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got.starts_with(b"HTTP/1.1 101 Switching Protocols\r\n"));
        assert_eq!(got.iter().filter(|byte| **byte == b'\x07').count(), 1 << 20);
        drop(feed.await);
    });
}
