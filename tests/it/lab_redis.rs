//! The lab's Redis servers: what is taken away, given back and moved is really that.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::lab::{
    Answer, Fleet, Origin, Redis, SOON, eventually,
    fault_proxy::{FaultProxy, Faults},
    redis::{Cluster, Reply, Sentinel},
    within,
};

async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.expect("the server accepts")
}

/// Says something on an open connection; whether `answer` came back in time.
async fn answers(stream: &mut TcpStream, text: &str, answer: &str) -> bool {
    stream.write_all(text.as_bytes()).await.expect("the kernel takes it");
    let mut bytes = vec![0; answer.len()];
    let read = stream.read_exact(&mut bytes);
    let read = tokio::time::timeout(Duration::from_millis(200), read).await;
    read.is_ok_and(|r| r.is_ok()) && bytes == answer.as_bytes()
}

#[tokio::test]
async fn redis_freezes_dies_and_comes_back_empty_at_its_address() {
    let mut redis = Redis::start().await;
    let addr = redis.addr;
    let mut stream = connect(addr).await;
    assert!(answers(&mut stream, "PING\r\n", "+PONG\r\n").await);
    redis.stop_hanging();
    assert!(!answers(&mut stream, "PING\r\n", "+PONG\r\n").await, "{}", redis.output());
    redis.resume();
    within(SOON, "the thaw", stream.read_exact(&mut [0; 7])).await.unwrap();

    redis.command(&["SET", "a", "1"]).await;
    redis.kill();
    assert!(TcpStream::connect(addr).await.is_err());
    redis.restart().await;
    assert_eq!(redis.try_command(&["GET", "a"]).await, Ok(Reply::Nil));
    assert_eq!(redis.addr, addr);
}

#[tokio::test]
async fn a_persistent_redis_comes_back_with_its_data() {
    let mut redis = Redis::options().persistent().start().await;
    redis.command(&["SET", "a", "1"]).await;
    redis.restart().await;
    assert_eq!(redis.command(&["GET", "a"]).await, "1");
}

#[tokio::test]
async fn redis_refuses_what_it_was_told_to() {
    let redis = Redis::options().password("s3cret").tls().start().await;
    assert!(answers(&mut connect(redis.addr).await, "PING\r\n", "-NOAUTH").await);
    assert_eq!(redis.url(), format!("redis://:s3cret@{}", redis.addr));
    assert!(redis.tls_url().starts_with("rediss://:s3cret@localhost:"));
    assert!(redis.certificate().is_file());
    let big = "x".repeat(1 << 20);
    redis.config_set("maxmemory", "1mb").await;
    let full = redis.try_command(&["SET", "b", &big]).await.unwrap_err();
    assert!(full.starts_with("OOM"), "{full}");

    let replica = Redis::options().password("s3cret").replica_of(redis.addr).start().await;
    replica.until_info("replication", "master_link_status:up", SOON).await;
    let refused = replica.try_command(&["SET", "c", "1"]).await.unwrap_err();
    assert!(refused.starts_with("READONLY"), "{refused}");
    let small = Redis::options().max_memory(1 << 20, "noeviction").start().await;
    assert!(small.try_command(&["SET", "b", &big]).await.is_err());
}

#[tokio::test]
async fn valkey_is_a_redis_too() {
    let Some(options) = Redis::valkey() else { return println!("there is no Valkey here") };
    let valkey = options.start().await;
    valkey.command(&["SET", "a", "1"]).await;
    assert!(valkey.command(&["INFO", "server"]).await.contains("valkey_version"));
}

#[tokio::test]
async fn sentinels_elect_the_replica_when_the_primary_is_killed() {
    let mut sentinel = Sentinel::start(Redis::options()).await;
    let (first, second) = (sentinel.nodes[0].addr, sentinel.nodes[1].addr);
    assert_eq!(sentinel.primary_addr().await, first);
    sentinel.fail_over().await;
    assert_eq!(sentinel.primary_addr().await, second);
    sentinel.nodes[1].command(&["SET", "a", "1"]).await;
    // With one Sentinel less the others still answer; they hear of it from each other.
    sentinel.sentinel(0).kill();
    let asked = || async { sentinel.primary_addr().await == second };
    eventually("the others know", SOON, asked).await;
    assert!(sentinel.url().ends_with("/main/0"));
}

#[tokio::test]
async fn a_cluster_moves_a_slot_with_its_keys() {
    let cluster = Cluster::start(Redis::options(), false).await;
    let slot = cluster.slot_of(b"{a}").await;
    let owner = cluster.owner(slot).await;
    for n in 0..250 {
        cluster.nodes[owner].command(&["SET", &format!("{{a}}{n}"), &n.to_string()]).await;
    }
    let to = (owner + 1) % 3;
    cluster.move_slot(slot, to).await;
    assert_eq!(cluster.owner(slot).await, to);
    assert_eq!(cluster.nodes[to].command(&["GET", "{a}249"]).await, "249");
    let moved = cluster.nodes[owner].try_command(&["GET", "{a}249"]).await.unwrap_err();
    assert!(moved.starts_with("MOVED"), "{moved}");
    assert_eq!(cluster.keys().await.len(), 250);
    assert_eq!(cluster.addresses().split(',').count(), 3);
}

#[tokio::test]
async fn a_cluster_with_replicas_is_whole() {
    let cluster = Cluster::start(Redis::options(), true).await;
    assert_eq!(cluster.nodes.len(), 6);
    cluster.nodes[5].until_info("replication", "role:slave", SOON).await;
}

#[tokio::test]
async fn the_fault_proxy_cuts_subscribers_alone() {
    let redis = Redis::start().await;
    let proxy = FaultProxy::start(redis.addr, 1).await;
    assert_eq!(redis.url_by(proxy.addr()), format!("redis://{}", proxy.addr()));
    let (mut caller, mut subscriber) = (connect(proxy.addr()).await, connect(proxy.addr()).await);
    assert!(answers(&mut subscriber, "subscribe news\r\n", "*3\r\n$9\r\nsubscribe").await);
    let only_where = Some("SUBSCRIBE");
    proxy.set(Faults { half_open: true, only_where, ..Faults::default() });
    assert!(answers(&mut caller, "PING\r\n", "+PONG\r\n").await);
    redis.command(&["PUBLISH", "news", "one"]).await;
    let mut news = [0; 60];
    let heard = subscriber.read_exact(&mut news);
    assert!(tokio::time::timeout(Duration::from_millis(200), heard).await.is_err());
    let mut late = connect(proxy.addr()).await;
    assert!(!answers(&mut late, "SUBSCRIBE news\r\n", "*3").await);
}

#[tokio::test]
async fn a_fleet_can_lose_an_instance_and_start_it_again() {
    let origin = Origin::start(|seen| Answer::ok(seen.target.clone())).await;
    let redis = Redis::start().await;
    let routes = crate::cache::cached(&origin, "ttl: 1m, tags: [all]");
    let fleet = Fleet::routing(routes).redis(redis.url()).env_of(1, "WORKERS", "1");
    let mut fleet = fleet.start(2).await;
    let killed = fleet.instance(0).public;
    fleet.kill(0);
    assert!(TcpStream::connect(killed).await.is_err());
    assert_eq!((fleet.running().count(), fleet.len()), (1, 2));
    fleet.restart(0).await;
    assert_eq!(fleet.get(0, "/a").await.text(), "/a");
    let third = fleet.add().await;
    let request = crate::lab::Request::get("/b");
    assert_eq!(fleet.send(third, &request).await.text(), "/b");
    fleet.purge(1, json!({ "tag": "all" })).await;
}
