//! Which target gets a request, and which gets it next.

use super::*;

#[test]
fn a_target_that_refuses_connections_is_passed_over() {
    run(async {
        let (url, _) = answering(HELLO).await;
        let (client, upstream) = (client(), state(&settings(&[&refusing().await, &url])));
        for _ in 0..6 {
            // A retry a second is free, and the dead target is ejected after two failures.
            let inbound = client.send(&upstream, get()).await;
            if let Err(error) = &inbound {
                assert_eq!(error.code(), Code::UpstreamUnreachable);
            }
        }
        let status = upstream.status();
        assert_eq!(status.targets[0].breaker, BreakerState::Open);
        assert_eq!(status.targets[1].breaker, BreakerState::Closed);
        assert_eq!(status.targets[0].failures, 2);
        assert!(status.targets[1].retries >= 1);
        for _ in 0..6 {
            assert_eq!(text(client.send(&upstream, get()).await.unwrap()).await.unwrap(), "hello");
        }
    });
}

#[test]
fn a_failed_request_is_sent_once_more_to_another_target() {
    run(async {
        let (url, _) = answering(HELLO).await;
        let (sick, _) = answering("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        for (first, replays) in [(refusing().await, true), (sick.clone(), true), (sick, false)] {
            let upstream = state(&settings(&[&first, &url]));
            let outbound = Outbound { replayable: replays, ..get() };
            let inbound = client().send(&upstream, outbound).await.unwrap();
            assert_eq!(inbound.status.is_success(), replays);
        }
        let upstream = state(&settings(&[&refusing().await]));
        let error = client().send(&upstream, get()).await.unwrap_err();
        assert_eq!(error.code(), Code::UpstreamUnreachable);
        let error = client().send(&upstream, get()).await.unwrap_err();
        assert_eq!(error.code(), Code::BreakerOpen);
    });
}

#[test]
fn a_request_with_a_body_is_never_repeated() {
    run(async {
        let (sick, accepted) = answering("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        let (sender, mut outbound) = post(Some(1));
        outbound.method = Method::PUT;
        sender.try_send(Ok(Bytes::from_static(b"a"))).unwrap();
        let inbound = client().send(&state_of(&sick), outbound).await.unwrap();
        assert_eq!(inbound.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(accepted.get(), 1);
    });
}

#[test]
fn a_cut_body_counts_against_the_target() {
    run(async {
        let (url, _) = upstream(|_, mut stream| async move {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello").await
        })
        .await;
        let (client, upstream) = (client(), state_of(&url));
        for _ in 0..2 {
            assert!(text(client.send(&upstream, get()).await.unwrap()).await.is_err());
        }
        let error = client.send(&upstream, get()).await.unwrap_err();
        assert_eq!(error.code(), Code::BreakerOpen);
    });
}

#[test]
fn health_checks_eject_a_sick_target_and_take_it_back() {
    run(async {
        let sick = Rc::new(Cell::new(false));
        let is_sick = sick.clone();
        let (url, _) = upstream(move |_, mut stream| {
            let sick = is_sick.get();
            async move {
                let head = read_head(&mut stream).await?;
                assert!(head.starts_with(b"GET /healthz HTTP/1.1\r\n"));
                let status = if sick { 500 } else { 200 };
                let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await
            }
        })
        .await;
        let mut settings = settings(&[&url]);
        settings.health = Some(crate::routes::HealthCheck {
            path: "/healthz".into(),
            interval: Duration::from_millis(20),
            unhealthy_after: 2,
            healthy_after: 2,
        });
        let upstreams = Arc::new(Upstreams::build(&[settings], None));
        upstreams.spawn_health_checks(&client_config().unwrap());
        for wanted in [true, false, true] {
            sick.set(!wanted);
            while upstreams.status()[0].targets[0].healthy != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        }
    });
}
