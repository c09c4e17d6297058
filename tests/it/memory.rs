//! Bodies pass through in a few MiB of memory, and a slow reader holds the sender back.

use std::time::Duration;

use crate::lab::{Answer, Gateway, Origin, Request, eventually, resident_bytes, within};

/// A body far larger than any buffer on its way.
const BODY: u64 = 200 << 20;
const PIECE: usize = 1 << 20;
/// What the gateway's memory may grow by meanwhile.
const ALLOWED: u64 = 24 << 20;
const LIMIT: Duration = Duration::from_secs(60);

fn grown(pid: u32, before: u64) -> u64 {
    resident_bytes(pid).saturating_sub(before)
}

#[tokio::test]
async fn a_large_download_passes_in_little_memory() {
    let times = (BODY / PIECE as u64) as usize;
    let origin = Origin::start(move |seen| match seen.path() {
        "/large" => Answer::status(200)
            .header("Cache-Control", "max-age=60")
            .large(vec![b'x'; PIECE], times),
        _ => Answer::ok("small"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/").await;
    let before = resident_bytes(gateway.pid);

    let mut client = gateway.connect().await;
    client.write(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let (status, _) = client.head().await.unwrap();
    assert_eq!(status, 200);
    // Nobody reads: what piles up in the gateway is what back-pressure allows.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let grown = grown(gateway.pid, before);
        assert!(grown < ALLOWED, "{} MiB more while nobody read", grown >> 20);
    }
    let mut read = 0;
    while read < BODY {
        let upto = client.discard_at_most((16 << 20).min(BODY - read));
        let n = within(LIMIT, "the download", upto).await.unwrap();
        assert!(n > 0, "ended after {read} bytes");
        read += n;
        let grown = grown(gateway.pid, before);
        assert!(grown < ALLOWED, "{} MiB more after {} MiB", grown >> 20, read >> 20);
    }
    assert_eq!(read, BODY);
}

#[tokio::test]
async fn a_large_upload_passes_in_little_memory() {
    let origin = Origin::start(|seen| Answer::ok(seen.body_length.to_string())).await;
    let routes = format!(
        "upstreams:\n  app: {{ targets: ['{}'] }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, max_body: 1GiB }}\n",
        origin.url()
    );
    let gateway = Gateway::routing(routes).start().await;
    gateway.get("/").await;
    let before = resident_bytes(gateway.pid);
    let mut client = gateway.connect().await;
    let head = format!("PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n");
    client.write(head.as_bytes()).await.unwrap();
    let piece = vec![b'u'; PIECE];
    let upload = async {
        for sent in 0..BODY / PIECE as u64 {
            client.write(&piece).await.unwrap();
            let grown = grown(gateway.pid, before);
            assert!(grown < ALLOWED, "{} MiB more after {sent} MiB", grown >> 20);
        }
        client.response("PUT").await.unwrap()
    };
    assert_eq!(within(LIMIT, "the upload", upload).await.text(), BODY.to_string());
}

#[tokio::test]
async fn the_cache_stays_in_its_budget() {
    let origin = Origin::start(|seen| {
        let name = seen.target.as_bytes();
        Answer::cacheable(name.iter().copied().cycle().take(64 << 10).collect::<Vec<u8>>())
    })
    .await;
    let budget = 16 << 20;
    let gateway = Gateway::before(&origin.url()).env("CACHE_L1_MAX_BYTES", "16MiB").start().await;
    gateway.get("/").await;
    let before = resident_bytes(gateway.pid);
    // 128 MiB of objects through a cache of 16 MiB.
    crate::lab::load(
        gateway.public,
        4,
        512,
        |client, nth| Request::get(format!("/{client}/{nth}")),
        |client, nth, response| {
            assert!(response.body.starts_with(format!("/{client}/{nth}").as_bytes()));
        },
    )
    .await;
    let allowed = budget + budget / 3 + ALLOWED;
    eventually("memory is in its budget", Duration::from_secs(5), || async {
        grown(gateway.pid, before) < allowed
    })
    .await;
}
