//! Which connection carries a request, and what is written and read there.

use super::*;

#[test]
fn a_connection_is_used_again() {
    run(async {
        let (url, accepted) = answering(HELLO).await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..5 {
            let inbound = client.send(&upstream, get()).await.unwrap();
            assert_eq!(&*inbound.target, url);
            assert_eq!(inbound.body.length(), Some(5));
            assert_eq!(text(inbound).await.unwrap(), "hello");
        }
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        let (url, accepted_chunked) = answering(chunked).await;
        let upstream = state_of(&url);
        for _ in 0..5 {
            assert_eq!(text(client.send(&upstream, get()).await.unwrap()).await.unwrap(), "hello");
        }
        assert_eq!((accepted.get(), accepted_chunked.get()), (1, 1));
    });
}

#[test]
fn a_request_is_written_anew_with_one_host_and_one_framing() {
    run(async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let keep = seen.clone();
        let (url, _) = upstream(move |_, mut stream| {
            let keep = keep.clone();
            async move {
                let head = read_head(&mut stream).await?;
                *keep.borrow_mut() = head;
                stream.write_all(HELLO.as_bytes()).await
            }
        })
        .await;
        let (sender, outbound) = post(Some(3));
        sender.try_send(Ok(Bytes::from_static(b"abc"))).unwrap();
        client().send(&state_of(&format!("{url}/base/")), outbound).await.unwrap();
        let authority = url.strip_prefix("http://").unwrap();
        assert_eq!(
            String::from_utf8(seen.take()).unwrap(),
            format!("POST /base/x?y HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 3\r\n\r\nabc")
        );
    });
}

#[test]
fn a_connection_that_died_while_idle_is_replaced_once() {
    run(async {
        // Every connection answers one request and dies upon the next.
        let (url, accepted) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(HELLO.as_bytes()).await?;
            read_head(&mut stream).await.map(drop)
        })
        .await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..3 {
            assert_eq!(text(client.send(&upstream, get()).await.unwrap()).await.unwrap(), "hello");
        }
        assert_eq!(accepted.get(), 3);

        // What cannot be repeated is not repeated.
        let once = Outbound { replayable: false, ..get() };
        let error = client.send(&upstream, once).await.unwrap_err();
        assert_eq!(error.code(), Code::UpstreamUnreachable);
        assert_eq!(accepted.get(), 3);
    });
}

#[test]
fn a_connection_that_was_closed_while_idle_is_not_used() {
    run(async {
        let (url, accepted) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(HELLO.as_bytes()).await
        })
        .await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..3 {
            let once = Outbound { replayable: false, ..get() };
            client.send(&upstream, once).await.unwrap();
            sleep(Duration::from_millis(30)).await;
        }
        assert_eq!(accepted.get(), 3);
    });
}

#[test]
fn an_upstream_that_names_its_idle_limit_is_believed() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n";
        let (url, accepted) = answering(answer).await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..2 {
            client.send(&upstream, get()).await.unwrap();
        }
        assert_eq!(accepted.get(), 2);
    });
}

#[test]
fn interim_responses_are_skipped() {
    run(async {
        let (url, _) =
            answering(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{HELLO}")).await;
        let inbound = client().send(&state_of(&url), get()).await.unwrap();
        assert_eq!(inbound.status, StatusCode::OK);
        assert_eq!(text(inbound).await.unwrap(), "hello");
    });
}

#[test]
fn the_answer_to_head_has_no_body_and_keeps_its_length() {
    run(async {
        let (url, accepted) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..2 {
            let head = request(Method::HEAD, OutboundBody::Empty);
            let inbound = client.send(&upstream, head).await.unwrap();
            assert_eq!(inbound.headers.get("content-length").unwrap(), "5");
            let size = BoxBody::new(inbound.body).size();
            assert_eq!(size, BodySize::Sized(5), "that is what the client is told");
            let head = request(Method::HEAD, OutboundBody::Empty);
            let inbound = client.send(&upstream, head).await.unwrap();
            assert_eq!(text(inbound).await.unwrap(), "");
        }
        assert_eq!(accepted.get(), 1);
    });
}

#[test]
fn a_cancelled_request_closes_its_connection() {
    run(async {
        let (closed, mut was_closed) = mpsc::channel(8);
        let (url, accepted) = upstream(move |number, mut stream| {
            let closed = closed.clone();
            async move {
                read_head(&mut stream).await?;
                if number == 1 {
                    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
                    stream.write_all(head).await?;
                }
                let ended = stream.read(&mut [0; 8]).await.map_or(0, |n| n);
                let _ = closed.send(ended).await;
                Ok(())
            }
        })
        .await;
        let (client, upstream) = (client(), state_of(&url));
        let waited = timeout(Duration::from_millis(50), client.send(&upstream, get())).await;
        assert!(waited.is_err());
        assert_eq!(was_closed.recv().await, Some(0));

        let mut body = client.send(&upstream, get()).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "hello");
        drop(body);
        assert_eq!(was_closed.recv().await, Some(0));
        assert_eq!(accepted.get(), 2);
    });
}

#[test]
fn what_cannot_be_forwarded_is_refused() {
    run(async {
        let (url, accepted) = answering(HELLO).await;
        let bad = Outbound { path_and_query: Bytes::from_static(b"/a b"), ..get() };
        for outbound in [request(Method::CONNECT, OutboundBody::Empty), bad] {
            let error = client().send(&state_of(&url), outbound).await.unwrap_err();
            assert_eq!(error.code(), Code::MalformedRequest);
        }
        assert_eq!(accepted.get(), 0);
    });
}
