//! The promises that only show in numbers, at their full numbers: nothing lost over restarts and
//! reloads, nobody given what is another's, and what it costs to stay up.
//!
//! Ignored by default, since they take minutes. `cargo test --test it soak -- --ignored --nocapture
//! --test-threads=1` runs them; with `PORTWAY_BIN` set to a release build the figures they print
//! mean something.

mod fleet;
mod identities;
mod resources;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::lab::{
    Answer, Connection, Gateway, Origin, Request, Response, SOON, Seen, Signal, eventually,
    random::Random,
};

/// Ends a task with the test that started it.
struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A load balancer as small as they get: it asks each instance whether it is ready and sends a new
/// connection to the next one that is. A connection that cannot be opened goes to another instance;
/// a request is never repeated, so whatever an instance drops is lost and seen.
struct Balancer {
    addr: SocketAddr,
    ready: Arc<Vec<AtomicBool>>,
    /// Connections that an instance refused and another one took.
    refused: Arc<AtomicUsize>,
    _tasks: Vec<Ended>,
}

impl Balancer {
    async fn start(instances: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let ready: Arc<Vec<_>> =
            Arc::new(instances.iter().map(|_| AtomicBool::new(true)).collect());
        let refused = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for (nth, instance) in instances.iter().copied().enumerate() {
            let ready = Arc::clone(&ready);
            tasks.push(Ended(tokio::spawn(async move {
                let question = Request::get("/health/ready").header("Connection", "close");
                loop {
                    let answer = question.send(instance).await;
                    ready[nth].store(answer.is_ok_and(|a| a.status == 200), SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })));
        }
        let (known, counted) = (Arc::clone(&ready), Arc::clone(&refused));
        tasks.push(Ended(tokio::spawn(async move {
            let mut turn = 0;
            while let Ok((mut client, _)) = listener.accept().await {
                turn += 1;
                let mut order: Vec<usize> = (0..instances.len()).collect();
                order.rotate_left(turn % instances.len());
                order.sort_by_key(|nth| !known[*nth].load(SeqCst));
                let list: Vec<SocketAddr> = order.into_iter().map(|nth| instances[nth]).collect();
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let _ = client.set_nodelay(true);
                    for instance in list {
                        if let Ok(mut server) = TcpStream::connect(instance).await {
                            let _ = server.set_nodelay(true);
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                            return;
                        }
                        counted.fetch_add(1, SeqCst);
                    }
                });
            }
        })));
        Self { addr, ready, refused, _tasks: tasks }
    }
}

/// What clients that ask one after the other lived to see.
#[derive(Default)]
struct Tally {
    taken: AtomicUsize,
    answered: AtomicUsize,
    opened: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Tally {
    /// Asks what `next` says for each number that no other client has taken yet, until it says
    /// nothing; what it says besides the request is for `check`.
    async fn client<C>(
        &self,
        addr: SocketAddr,
        pause: Duration,
        next: impl Fn(usize) -> Option<(Request, C)>,
        check: impl Fn(C, &Response) -> Result<(), String>,
    ) {
        let mut connection = None;
        while let Some((asked, context)) = next(self.taken.fetch_add(1, SeqCst)) {
            let answer = async {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => {
                        self.opened.fetch_add(1, SeqCst);
                        Connection::open(addr).await?
                    }
                };
                let answer = open.ask(&asked).await?;
                if !open.closing() {
                    connection = Some(open);
                }
                Ok::<_, std::io::Error>(answer)
            };
            let fault = match answer.await {
                Ok(answer) if !answer.whole => Err("cut".to_owned()),
                Ok(answer) => check(context, &answer),
                Err(error) => Err(error.to_string()),
            };
            match fault {
                Ok(()) => _ = self.answered.fetch_add(1, SeqCst),
                Err(fault) => {
                    let line = format!("{} {}: {fault}", asked.method, asked.target);
                    self.lost.lock().expect("nobody panics with it").push(line);
                }
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    #[track_caller]
    fn assert_nothing_lost(&self) {
        let lost = self.lost.lock().expect("nobody panics with it");
        let first = &lost[..lost.len().min(20)];
        assert!(lost.is_empty(), "{} requests lost, the first: {first:#?}", lost.len());
    }
}

async fn all(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Three kinds of requests in turn: what must not be repeated, what is cached, what passes through.
fn nth_request(n: usize) -> Request {
    match n % 4 {
        0 => Request::post(format!("/post/{n}"), format!("posted {n} ").repeat(n % 100 + 1)),
        1 => Request::get(format!("/hot/{}", n % 400)),
        _ => Request::get(format!("/plain/{n}")),
    }
}

fn nth_answer(request: &Request) -> Vec<u8> {
    let target = request.target.repeat(20).into_bytes();
    request.body.clone().unwrap_or(target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn a_hundred_thousand_requests_survive_three_restarts() {
    const CLIENTS: usize = 64;
    const REQUESTS: usize = 100_000;
    const RESTARTS: usize = 3;
    let origin = Origin::start(|seen: &Seen| match seen.path() {
        _ if seen.method == "POST" => Answer::ok(seen.body.clone()),
        hot if hot.starts_with("/hot/") => Answer::cacheable(hot.repeat(20)),
        plain => Answer::ok(plain.repeat(20)).header("Cache-Control", "no-store"),
    })
    .await;
    let instance = |port: u16| {
        let gateway = Gateway::before(&origin.url()).env("SHUTDOWN_DELAY", "300ms");
        gateway.env("PORT", port.to_string()).start()
    };
    let mut gateways = [instance(0).await, instance(0).await];
    let balancer = Balancer::start(gateways.iter().map(|g| g.public).collect()).await;

    let tally = Arc::new(Tally::default());
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (tally, front) = (Arc::clone(&tally), balancer.addr);
        clients.spawn(async move {
            let check = |n: usize, answer: &Response| {
                let right = answer.status == 200 && answer.body == nth_answer(&nth_request(n));
                right.then_some(()).ok_or_else(|| format!("{} {:?}", answer.status, answer.text()))
            };
            let next = |n| (n < REQUESTS).then(|| (nth_request(n), n));
            tally.client(front, Duration::ZERO, next, check).await;
        });
    }
    for nth in 0..RESTARTS {
        let due = REQUESTS * (nth + 1) / (RESTARTS + 1);
        let progress = || async { tally.taken.load(SeqCst) >= due };
        eventually("the load has come so far", Duration::from_secs(120), progress).await;
        let port = gateways[nth % 2].public.port();
        let told = Instant::now();
        let status = gateways[nth % 2].stop().await;
        let (out, during) = (told.elapsed(), tally.taken.load(SeqCst) - due);
        assert_eq!(status.code(), Some(0), "a clean exit");
        assert!(out < Duration::from_secs(25), "{out:?}");
        gateways[nth % 2] = instance(port).await;
        let ready = || async { balancer.ready.iter().all(|r| r.load(SeqCst)) };
        eventually("both instances are ready", SOON, ready).await;
        println!("restart {nth}: out in {out:.2?}, {during} requests meanwhile");
    }
    assert!(tally.taken.load(SeqCst) < REQUESTS, "the load ended before the restarts did");
    all(clients).await;
    let took = started.elapsed();
    println!(
        "{} of {REQUESTS} answered in {took:.1?} ({:.0}/s), {} connections, {} refused by one instance",
        tally.answered.load(SeqCst),
        REQUESTS as f64 / took.as_secs_f64(),
        tally.opened.load(SeqCst),
        balancer.refused.load(SeqCst),
    );
    tally.assert_nothing_lost();
    origin.assert_strict();
    let requests = origin.requests();
    let posts: Vec<_> = requests.iter().filter(|r| r.method == "POST").collect();
    assert_eq!(posts.len(), REQUESTS / 4, "each POST once");
    assert!(posts.iter().all(|post| post.nth == 1), "no POST twice");
}

/// A routes file in which every cut is a fault: it is one map in braces.
fn versioned(origin: &Origin, version: usize) -> String {
    let rule = format!("response: {{ set: {{ X-Version: '{version}' }} }}");
    format!(
        "{{ upstreams: {{ app: {{ targets: ['{}'] }} }},\nroutes: [\n  {{ name: fixed, path: /fixed, respond: {{ status: 200, body: 'version {version}' }}, {rule} }},\n  {{ name: all, path: '/{{*rest}}', upstream: app, cache: {{ ttl: 1s }}, {rule} }} ] }}",
        origin.url()
    )
}

fn turmoil_request(n: usize) -> Request {
    match n % 3 {
        0 => Request::get("/fixed"),
        1 => Request::get(format!("/hot/{}", n % 60)),
        _ => Request::get(format!("/plain/{n}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn a_routes_file_in_turmoil_loses_nothing() {
    const CLIENTS: usize = 16;
    const TIMES: usize = 50;
    const EACH: Duration = Duration::from_millis(1200);
    const SEEN_BY_WATCHER: Duration = Duration::from_millis(350);
    let origin = Origin::start(|seen: &Seen| match seen.path() {
        hot if hot.starts_with("/hot/") => Answer::ok(hot.to_owned()),
        plain => Answer::ok(plain.to_owned()).header("Cache-Control", "no-store"),
    })
    .await;
    let gateway = Gateway::routing(versioned(&origin, 0)).start().await;
    // The version that is served for certain, and the newest that may be.
    let (certain, newest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tally = Arc::new(Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (tally, over, addr) = (Arc::clone(&tally), Arc::clone(&over), gateway.public);
        let (certain, newest) = (Arc::clone(&certain), Arc::clone(&newest));
        clients.spawn(async move {
            let next = |n| {
                let least = certain.load(SeqCst);
                (!over.load(SeqCst)).then(|| (turmoil_request(n), (n, least)))
            };
            let check = |(n, least): (usize, usize), answer: &Response| {
                let version = answer.header("x-version").and_then(|v| v.parse().ok());
                let version: usize = version.ok_or("no version")?;
                // A stored response keeps the header that was set when it was fetched.
                let least = if n % 3 == 1 { 0 } else { least };
                let target = turmoil_request(n).target;
                let body = if n % 3 == 0 { format!("version {version}") } else { target };
                let right = answer.status == 200
                    && answer.text() == body
                    && (least..=newest.load(SeqCst)).contains(&version);
                right.then_some(()).ok_or_else(|| {
                    format!("{} {:?} by {version}, not {least}", answer.status, answer.text())
                })
            };
            tally.client(addr, Duration::from_millis(2), next, check).await;
        });
    }

    let started = Instant::now();
    let file = gateway.routes_path();
    let mut random = Random::seeded(50);
    for version in 1..=TIMES {
        let cycle = Instant::now();
        match version % 6 {
            0 => fs::write(file, b"\xff\xfe\0 not text").unwrap(),
            1 => fs::write(file, "").unwrap(),
            2 => fs::remove_file(file).unwrap(),
            3 => gateway.replace_routes(&versioned(&origin, version).replace("app,", "gone,")),
            4 => gateway.replace_routes("rootes: []\n"),
            _ => fs::write(file, versioned(&origin, version).replace("path", "pfad")).unwrap(),
        }
        tokio::time::sleep(SEEN_BY_WATCHER).await;
        let good = versioned(&origin, version);
        let half = 1 + random.below(good.len() as u64 - 1) as usize;
        fs::write(file, &good[..half]).unwrap();
        tokio::time::sleep(SEEN_BY_WATCHER).await;
        if version % 10 == 0 {
            gateway.signal(Signal::Hup);
        }
        newest.store(version, SeqCst);
        if version % 2 == 0 {
            fs::write(file, good).unwrap();
        } else {
            gateway.replace_routes(&good);
        }
        let served =
            || async { gateway.get("/fixed").await.text() == format!("version {version}") };
        eventually("the mended file is served", SOON, served).await;
        certain.store(version, SeqCst);
        tokio::time::sleep(EACH.saturating_sub(cycle.elapsed())).await;
    }
    over.store(true, SeqCst);
    all(clients).await;
    let log = gateway.log.events();
    let said = |what: &str| {
        log.iter().filter(|e| e["message"].as_str().is_some_and(|m| m.starts_with(what))).count()
    };
    let (good, bad) = (said("routes reloaded"), said("routes file refused"));
    let took = started.elapsed();
    println!(
        "{} answered in {took:.1?} ({:.0}/s), {good} good versions, {bad} bad ones refused, {} origin connections",
        tally.answered.load(SeqCst),
        tally.answered.load(SeqCst) as f64 / took.as_secs_f64(),
        origin.connections(),
    );
    tally.assert_nothing_lost();
    origin.assert_strict();
    assert!(good >= TIMES && bad >= TIMES, "{good} good, {bad} bad");
}
