//! SIGTERM: what is under way is finished, nothing new is lost, and a second one ends at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use crate::lab::{
    Answer, Connection, Gate, Gateway, Origin, Request, SOON, Signal, eventually, within,
};

/// The least a load balancer does: a connection that cannot be opened goes to the next instance.
/// It never repeats a request, so whatever an instance drops is lost and seen.
async fn balancer(instances: Arc<Mutex<Vec<SocketAddr>>>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut client, _)) = listener.accept().await {
            let mut list = instances.lock().expect("nobody panics with it").clone();
            turn += 1;
            let shift = turn % list.len().max(1);
            list.rotate_left(shift);
            tokio::spawn(async move {
                for instance in list {
                    if let Ok(mut server) = TcpStream::connect(instance).await {
                        // An end on either side ends both.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_the_exit_is_clean() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        Answer::status(200).chunk("begun ").then_gate(&held).chunk("and done")
    })
    .await;
    let mut gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    client.head().await.unwrap();
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"begun ");
    gateway.signal(Signal::Term);
    let addr = gateway.public;
    eventually("the listener is closed", SOON, || async {
        TcpStream::connect(addr).await.is_err()
    })
    .await;
    assert!(gateway.ended().is_none(), "it waits for what is under way");
    gate.open();
    assert_eq!(client.chunk().await.unwrap().unwrap(), b"and done");
    assert!(client.chunk().await.unwrap().unwrap().is_empty(), "a clean end of the body");
    assert_eq!(gateway.wait(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let mut gateway = Gateway::before(&origin.url()).start().await;
    // An idle keep-alive connection is no request under way.
    let mut idle = gateway.connect().await;
    idle.ask(&Request::get("/")).await.unwrap();
    let started = Instant::now();
    assert_eq!(gateway.stop().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once() {
    let origin = Origin::start(|_| Answer::never()).await;
    let mut gateway = Gateway::before(&origin.url()).env("SHUTDOWN_GRACE", "60s").start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the origin has it", SOON, || async { origin.total() == 1 }).await;
    gateway.signal(Signal::Term);
    let addr = gateway.public;
    eventually("the first one was heard", SOON, || async {
        TcpStream::connect(addr).await.is_err()
    })
    .await;
    assert!(gateway.ended().is_none());
    let second = Instant::now();
    gateway.signal(Signal::Term);
    gateway.wait(SOON).await;
    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
}

#[tokio::test]
async fn what_outlives_the_grace_period_is_cut() {
    let origin = Origin::start(|_| Answer::never()).await;
    let mut gateway = Gateway::before(&origin.url()).env("SHUTDOWN_GRACE", "1s").start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the origin has it", SOON, || async { origin.total() == 1 }).await;
    let started = Instant::now();
    gateway.signal(Signal::Term);
    gateway.wait(Duration::from_secs(5)).await;
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    within(SOON, "the cut", client.rest()).await;
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_no_request() {
    const CLIENTS: usize = 16;
    let origin =
        Origin::start(|seen| Answer::ok(seen.target.clone()).delay(Duration::from_millis(2))).await;
    let start = || Gateway::before(&origin.url()).env("SHUTDOWN_DELAY", "200ms").start();
    let mut gateways = vec![start().await, start().await];
    let instances = Arc::new(Mutex::new(gateways.iter().map(|g| g.public).collect::<Vec<_>>()));
    let front = balancer(Arc::clone(&instances)).await;

    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let stop = Arc::clone(&stop);
        clients.spawn(async move {
            let mut connection = Connection::open(front).await.unwrap();
            let mut asked = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let target = format!("/{client}/{asked}");
                let request = Request::get(&target);
                match connection.ask(&request).await {
                    Ok(response) => assert_eq!((response.status, response.text()), (200, target)),
                    // RFC 9112 9.3.1: a kept connection may be closed between two requests, and a
                    // client that finds it closed asks again on a new one. Anything else is a loss.
                    Err(error) => {
                        let idle_close = asked > 0 && connection.unread().is_empty();
                        assert!(idle_close, "client {client} lost {target}: {error}");
                        connection = Connection::open(front).await.unwrap();
                        let again = connection.ask(&request).await;
                        let again = again.unwrap_or_else(|e| panic!("{target} was lost: {e}"));
                        assert_eq!((again.status, again.text()), (200, target));
                    }
                }
                asked += 1;
                if connection.closing() || asked % 50 == 0 {
                    connection = Connection::open(front).await.unwrap();
                }
            }
            asked
        });
    }
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let next = start().await;
        instances.lock().unwrap().push(next.public);
        gateways.push(next);
        let mut old = gateways.remove(0);
        // As an orchestrator does: told to stop first, taken out of the list a moment later.
        old.signal(Signal::Term);
        tokio::time::sleep(Duration::from_millis(100)).await;
        instances.lock().unwrap().retain(|addr| *addr != old.public);
        assert_eq!(old.wait(SOON).await.code(), Some(0));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut total = 0;
    while let Some(asked) = clients.join_next().await {
        total += asked.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    }
    assert!(total > 1000, "only {total} requests in all");
}

#[tokio::test]
async fn while_it_waits_to_close_every_answer_says_close() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let mut gateway = Gateway::before(&origin.url()).env("SHUTDOWN_DELAY", "1500ms").start().await;
    let mut kept = gateway.connect().await;
    kept.ask(&Request::get("/")).await.unwrap();
    assert!(!kept.closing());
    gateway.signal(Signal::Term);
    let addr = gateway.public;
    eventually("answers say that the connection closes", Duration::from_secs(1), || async {
        let mut client = Connection::open(addr).await.expect("the listener is still open");
        let response = client.ask(&Request::get("/")).await.expect("it still answers");
        assert_eq!(response.status, 200);
        client.closing()
    })
    .await;
    let last = kept.ask(&Request::get("/")).await.expect("a kept connection still answers");
    assert!(last.status == 200 && kept.closing(), "{:?}", last.headers);
    gateway.wait(SOON).await;
}
