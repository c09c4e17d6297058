//! Upgrades to WebSocket.

use super::*;

fn websocket(upgraded: Upgraded) -> Response<BoxBody> {
    match upgraded {
        Upgraded::Tunnel(response) => response,
        Upgraded::Declined(inbound) => panic!("declined: {inbound:?}"),
    }
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_none_before_the_101() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            let head = read_head(&mut stream).await?;
            let text = String::from_utf8_lossy(&head).into_owned();
            assert!(text.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"), "{text}");
            // Time for early bytes to arrive, were there any.
            let early = timeout(Duration::from_millis(50), stream.read(&mut [0; 8])).await;
            assert!(early.is_err());
            let head = "HTTP/1.1 101 x\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: a\r\n\r\nwelcome ";
            stream.write_all(head.as_bytes()).await?;
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.map(drop)
        })
        .await;
        let (sender, outbound) = post(None);
        sender.try_send(Ok(Bytes::from_static(b"ping"))).unwrap();
        let OutboundBody::Stream { payload, .. } = outbound.body else { unreachable!() };
        let upstream = state_of(&url);
        let response = websocket(tunnel(&client(), &upstream, &get(), payload).await.unwrap());
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert!(response.headers().contains_key("sec-websocket-accept"));
        assert_eq!(response.headers().get("upgrade").unwrap(), "websocket");

        let mut body = response.into_body();
        let mut got = Vec::new();
        let mut next = async || {
            std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await.transpose().unwrap()
        };
        while got != b"welcome ping" {
            got.extend_from_slice(&next().await.unwrap());
        }
        // The client closes, the upstream then does, and the tunnel ends.
        drop(sender);
        assert!(next().await.is_none());
    });
}

#[test]
fn an_upstream_that_declines_an_upgrade_answers_as_usual() {
    run(async {
        let (url, _) = answering(HELLO).await;
        let upgraded = tunnel(&client(), &state_of(&url), &get(), Payload::None).await.unwrap();
        let Upgraded::Declined(inbound) = upgraded else { panic!("tunnel") };
        assert_eq!(text(inbound).await.unwrap(), "hello");

        let (url, _) = answering("HTTP/1.1 101 x\r\nUpgrade: h2c\r\n\r\n").await;
        let error = tunnel(&client(), &state_of(&url), &get(), Payload::None).await.err().unwrap();
        assert_eq!(error.code(), Code::UpstreamInvalid);
    });
}
