//! Request bodies on their way upstream.

use super::*;

#[test]
fn an_upload_streams_and_a_large_one_arrives_whole() {
    run(async {
        let (first, mut arrived) = mpsc::channel(1);
        let (url, _) = upstream(move |_, mut stream| {
            let first = first.clone();
            async move {
                let mut got = read_head(&mut stream).await?;
                while !got.ends_with(b"0\r\n\r\n") {
                    if got.windows(3).any(|window| window == b"one") {
                        let _ = first.try_send(());
                    }
                    stream.read_buf(&mut got).await?;
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{:07}", got.len());
                stream.write_all(answer.as_bytes()).await
            }
        })
        .await;
        let (sender, outbound) = post(None);
        let feed = async move {
            sender.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
            // The rest is held back until the upstream has the first piece.
            arrived.recv().await.unwrap();
            for _ in 0..64 {
                sender.send(Ok(Bytes::from(vec![b'a'; 50_000]))).await.unwrap();
            }
        };
        let (client, upstream) = (client(), state_of(&url));
        let (inbound, ()) = tokio::join!(client.send(&upstream, outbound), feed);
        let length: usize = text(inbound.unwrap()).await.unwrap().parse().unwrap();
        assert!(length > 3_200_000, "{length}");
    });
}

#[test]
fn a_body_other_than_announced_is_not_passed_off_as_whole() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.map(drop)
        })
        .await;
        for piece in [&b"ab"[..], b"abcd"] {
            let (sender, outbound) = post(Some(3));
            sender.try_send(Ok(Bytes::from_static(piece))).unwrap();
            drop(sender);
            let upstream = state_of(&url);
            let error = client().send(&upstream, outbound).await.unwrap_err();
            assert_eq!(error.code(), Code::MalformedRequest);
            let error = UpstreamError::RequestBody(PayloadError::Overflow);
            assert_eq!(error.code(), Code::BodyTooLarge);
        }
    });
}

#[test]
fn a_client_that_stops_sending_is_given_up() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.map(drop)
        })
        .await;
        let mut settings = settings(&[&url]);
        settings.timeout.idle = Duration::from_millis(50);
        let (_sender, outbound) = post(Some(3));
        let error = client().send(&state(&settings), outbound).await.unwrap_err();
        assert_eq!(error.code(), Code::RequestTimeout);
    });
}

#[test]
fn an_early_answer_is_passed_on_while_the_body_is_still_coming() {
    run(async {
        // One closes at once, with unread bytes; the other goes on and echoes what comes after.
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await
        })
        .await;
        let (sender, outbound) = post(None);
        sender.try_send(Ok(Bytes::from_static(b"x"))).unwrap();
        let inbound = client().send(&state_of(&url), outbound).await.unwrap();
        assert_eq!(inbound.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(text(inbound).await.unwrap(), "no");

        let (url, accepted) = upstream(|_, mut stream| async move {
            loop {
                read_head(&mut stream).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await?;
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).await?;
                stream.write_all(&echo).await?;
            }
        })
        .await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..2 {
            let (sender, outbound) = post(Some(4));
            let inbound = client.send(&upstream, outbound).await.unwrap();
            let feed = sender.send(Ok(Bytes::from_static(b"ping")));
            let (text, sent) = tokio::join!(text(inbound), feed);
            sent.unwrap();
            assert_eq!(text.unwrap(), "ping");
        }
        assert_eq!(accepted.get(), 1, "a complete exchange leaves a usable connection");
    });
}
