//! What is made of answers that are cut, stalled, ambiguous or endless.

use super::*;

#[test]
fn a_body_that_is_cut_short_ends_with_an_error() {
    run(async {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        ] {
            let (url, _) = upstream(move |_, mut stream| async move {
                read_head(&mut stream).await?;
                stream.write_all(answer.as_bytes()).await
            })
            .await;
            let upstream = state_of(&url);
            let inbound = client().send(&upstream, get()).await.unwrap();
            let error = text(inbound).await.unwrap_err();
            assert!(matches!(error, UpstreamError::Truncated(_)), "{error:?}");
        }
    });
}

#[test]
fn a_body_of_unknown_length_ends_with_the_connection() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await
        })
        .await;
        let inbound = client().send(&state_of(&url), get()).await.unwrap();
        assert_eq!(inbound.body.length(), None);
        assert_eq!(text(inbound).await.unwrap(), "hello");
    });
}

#[test]
fn an_invalid_response_is_refused_and_its_connection_dropped() {
    run(async {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(),
            "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n".into(),
            "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
            "HTTP/1.1 100 Continue\r\n\r\n".repeat(200),
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(70_000)),
        ] {
            let (url, accepted) = answering(answer).await;
            let mut settings = settings(&[&url]);
            settings.retry.attempts = 1;
            let (client, upstream) = (client(), state(&settings));
            for _ in 0..2 {
                let error = client.send(&upstream, get()).await.unwrap_err();
                assert_eq!(error.code(), Code::UpstreamInvalid, "{error}");
            }
            assert_eq!(accepted.get(), 2);
            let refused = client.send(&upstream, get()).await.unwrap_err();
            assert_eq!(refused.code(), Code::BreakerOpen);
        }
    });
}

#[test]
fn bytes_after_a_response_never_answer_the_next_request() {
    run(async {
        for answer in [
            format!("{HELLO}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil".to_owned(),
            "HTTP/1.1 304 Not Modified\r\n\r\nevil".to_owned(),
        ] {
            let (url, accepted) = answering(answer).await;
            let (client, upstream) = (client(), state_of(&url));
            for _ in 0..3 {
                let inbound = client.send(&upstream, get()).await.unwrap();
                assert!(!text(inbound).await.unwrap().contains("evil"));
            }
            assert_eq!(accepted.get(), 3);
        }
    });
}

#[test]
fn an_upstream_that_says_nothing_times_out() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            sleep(Duration::from_secs(60)).await;
            Ok(())
        })
        .await;
        let mut settings = settings(&[&url]);
        settings.timeout.first_byte = Duration::from_millis(50);
        let error = client().send(&state(&settings), get()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::FirstByteTimeout(_)), "{error:?}");
        assert_eq!(error.code(), Code::UpstreamTimeout);
    });
}

#[test]
fn a_stall_in_mid_body_times_out_but_a_slow_client_does_not() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await?;
            sleep(Duration::from_millis(120)).await;
            stream.write_all(b"wo").await?;
            sleep(Duration::from_secs(60)).await;
            Ok(())
        })
        .await;
        let mut settings = settings(&[&url]);
        settings.timeout.idle = Duration::from_millis(100);
        let mut body = client().send(&state(&settings), get()).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "hello");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(body.next().await.unwrap().unwrap(), "wo");
        let error = body.next().await.unwrap().unwrap_err();
        assert!(matches!(error, UpstreamError::Stalled(_)), "{error:?}");
        assert!(body.next().await.is_none());
    });
}

#[test]
fn a_large_body_passes_without_being_gathered() {
    run(async {
        const SIZE: usize = 64 * 1024 * 1024;
        let sent = Rc::new(Cell::new(0_usize));
        let counter = sent.clone();
        let (url, _) = upstream(move |_, mut stream| {
            let counter = counter.clone();
            async move {
                read_head(&mut stream).await?;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let piece = vec![7; 64 * 1024];
                for _ in 0..SIZE / piece.len() {
                    stream.write_all(&piece).await?;
                    counter.set(counter.get() + piece.len());
                }
                Ok(())
            }
        })
        .await;
        let mut body = client().send(&state_of(&url), get()).await.unwrap().body;
        body.next().await.unwrap().unwrap();
        sleep(Duration::from_millis(100)).await;
        assert!(sent.get() < SIZE / 2, "the upstream is held back: {}", sent.get());
        let mut got = 0;
        while let Some(piece) = body.next().await {
            got += piece.unwrap().len();
        }
        assert!(got > SIZE - 64 * 1024);
    });
}
