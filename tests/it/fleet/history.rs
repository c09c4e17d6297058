//! Writes, purges and reads at random over many instances, and the judge of what was read.
//!
//! The judge knows for each key the newest version whose purge was acknowledged. A read that began
//! after that must not return an older one; a newer one is fine, as the write comes before its purge.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{by_key, routes};
use crate::lab::{
    Answer, Connection, Fleet, Origin, Redis, Request, Seen,
    fault_proxy::{FaultProxy, Faults},
    fleet::{Builder, HOST, confirmed, get},
    random::Random,
};

#[derive(Default)]
struct Key {
    /// What the origin has.
    current: AtomicU64,
    /// What every read from now on must have at least, as purges were confirmed.
    acknowledged: AtomicU64,
    /// The same by writes through the gateway, whose answers do not say who confirmed.
    written: AtomicU64,
    /// How that came about, for the report of a read that had less.
    by: Mutex<String>,
}

/// The origin's data, and what clients were told of it.
pub(crate) struct Data(Vec<Key>);

impl Data {
    fn key(&self, path: &str) -> Option<&Key> {
        self.0.get(path.strip_prefix("/k/")?.parse::<usize>().ok()?)
    }

    /// Changes a key where it is kept, and nobody knows yet.
    pub(crate) fn write(&self, key: usize) -> u64 {
        self.0[key].current.fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn acknowledge(&self, key: usize, version: u64) {
        self.0[key].acknowledged.fetch_max(version, SeqCst);
    }

    fn acknowledged_by(&self, key: usize, version: u64, how: &str, took: Duration) {
        self.acknowledge(key, version);
        *lock(&self.0[key].by) = format!("{version} by {how} in {took:.2?}");
    }

    pub(crate) fn acknowledged(&self, key: usize) -> u64 {
        self.0[key].acknowledged.load(SeqCst)
    }
}

/// The origin of `count` keys: `GET` tells a key's version, as it was when the request came and a little
/// later, so that purges overtake fills; `PUT` makes the next one.
pub(crate) async fn origin(count: usize) -> (Origin, Arc<Data>) {
    let data = Arc::new(Data((0..count).map(|_| Key::default()).collect()));
    let kept = Arc::clone(&data);
    let turn = AtomicUsize::new(0);
    let origin = Origin::start(move |seen: &Seen| {
        let Some(key) = kept.key(seen.path()) else { return Answer::status(404) };
        if seen.method == "PUT" {
            let version = key.current.fetch_add(1, SeqCst) + 1;
            return Answer::ok("").header("X-Version", version.to_string());
        }
        let slow = [0, 0, 1, 3, 8][turn.fetch_add(1, SeqCst) % 5];
        let body = format!("{} {}", seen.path(), key.current.load(SeqCst));
        Answer::ok(body).delay(Duration::from_millis(slow))
    })
    .await;
    (origin, data)
}

/// The version that an answer has of `key`.
pub(crate) fn version(answer: &crate::lab::Response, key: usize) -> Result<u64, String> {
    let text = answer.text();
    let version = text.strip_prefix(&format!("/k/{key} ")).and_then(|v| v.parse().ok());
    version.filter(|_| answer.status == 200).ok_or_else(|| format!("{} {text:?}", answer.status))
}

/// What came of a run.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) reads: usize,
    pub(crate) hits: usize,
    pub(crate) writes: usize,
    /// Purges that an instance did not confirm: no promise was made. How long each took, and what was
    /// answered.
    pub(crate) unconfirmed: Vec<String>,
    pub(crate) wrong: Vec<String>,
    /// Reads that had less than a write through the gateway made.
    wrong_by_put: Vec<String>,
    /// Writes through the gateway whose purges were not confirmed by all, as the instances count.
    puts_in_doubt: u64,
    /// How long each acknowledgement took.
    purges: Vec<Duration>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.hits += other.hits;
        self.writes += other.writes;
        self.unconfirmed.extend(other.unconfirmed);
        self.wrong.extend(other.wrong);
        self.wrong_by_put.extend(other.wrong_by_put);
        self.purges.extend(other.purges);
    }

    #[track_caller]
    pub(crate) fn assert_nothing_old(&self) {
        let mut wrong = self.wrong.clone();
        if self.puts_in_doubt == 0 {
            wrong.extend(self.wrong_by_put.iter().cloned());
        }
        let first = &wrong[..wrong.len().min(10)];
        assert!(wrong.is_empty(), "{} wrong reads, the first: {first:#?}", wrong.len());
    }

    /// Where nothing breaks, purges are confirmed but for some that a busy machine delays.
    #[track_caller]
    pub(crate) fn assert_confirmed(&self) {
        let doubts = self.unconfirmed.len() + self.puts_in_doubt as usize;
        assert!(doubts * 50 <= self.writes, "{doubts} of {}: {:#?}", self.writes, self.unconfirmed);
    }

    pub(crate) fn print(&mut self, took: Duration) {
        println!(
            "{} reads ({} hits), {} writes ({} purges and {} PUTs not confirmed; {} reads older than such a PUT) in {took:.1?}; write to acknowledgement: p50 {:.2?}, p99 {:.2?}",
            self.reads,
            self.hits,
            self.writes,
            self.unconfirmed.len(),
            self.puts_in_doubt,
            self.wrong_by_put.len(),
            percentile(&mut self.purges, 50),
            percentile(&mut self.purges, 99),
        );
    }
}

pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}

/// One of the tasks of a run: asks instances in turn, over connections of its own.
struct Client {
    public: Vec<Connection>,
    admin: Vec<SocketAddr>,
    data: Arc<Data>,
    keys: usize,
    puts: bool,
    random: Random,
    outcome: Outcome,
}

impl Client {
    async fn ask(&mut self, instance: usize, request: &Request) -> crate::lab::Response {
        let answer = self.public[instance].ask(request).await;
        answer.unwrap_or_else(|e| panic!("{} {}: {e}", request.method, request.target))
    }

    async fn read(&mut self, instance: usize, key: usize) {
        let least = self.data.acknowledged(key);
        let written = self.data.0[key].written.load(SeqCst);
        let answer = self.ask(instance, &get(format!("/k/{key}"))).await;
        self.outcome.reads += 1;
        self.outcome.hits += usize::from(answer.x_cache() == "HIT");
        let (fault, by_put) = match version(&answer, key) {
            Ok(version) if version >= least.max(written) => return,
            Ok(version) => (format!("version {version}"), version >= least),
            Err(answer) => (answer, false),
        };
        let status = answer.header("cache-status").unwrap_or_default();
        let by = lock(&self.data.0[key].by).clone();
        let line =
            format!("{key} at {instance}: {fault}, not {least}, {written} by PUT; {status}; {by}");
        let list = if by_put { &mut self.outcome.wrong_by_put } else { &mut self.outcome.wrong };
        list.push(line);
    }

    async fn write(&mut self, instance: usize, key: usize) {
        let started = Instant::now();
        self.outcome.writes += 1;
        let selector = match self.random.below(6) {
            0 | 1 if self.puts => {
                let put = Request::new("PUT", format!("/k/{key}")).header("Host", HOST).body("");
                let answer = self.ask(instance, &put).await;
                let version = answer.header("x-version").and_then(|v| v.parse().ok());
                match version {
                    Some(version) => {
                        self.data.0[key].written.fetch_max(version, SeqCst);
                    }
                    None => self.outcome.wrong.push(format!("PUT: {}", answer.status)),
                }
                return self.outcome.purges.push(started.elapsed());
            }
            2 => by_key(&format!("/k/{key}")),
            3 => json!({ "tag": format!("k:{key}") }),
            4 => json!({ "prefix": format!("/k/{key}") }),
            _ => match self.random.below(4) {
                0 => json!({ "all": true }),
                1 => json!({ "route": "item" }),
                2 => json!({ "pattern": "/k/*" }),
                _ => json!({ "tag": format!("k:{key}") }),
            },
        };
        let version = self.data.write(key);
        let answer = purge(self.admin[instance], &selector).await;
        self.outcome.purges.push(started.elapsed());
        if confirmed(&answer, self.admin.len()) {
            let how = format!("{selector} at instance {instance}");
            self.data.acknowledged_by(key, version, &how, started.elapsed());
        } else {
            let took = started.elapsed();
            self.outcome.unconfirmed.push(format!("{selector} in {took:.2?}: {answer}"));
        }
    }

    /// One write in four; the others read, now and then what was written just before, elsewhere.
    async fn go(mut self, operations: usize) -> Outcome {
        let mut last = 0;
        for _ in 0..operations {
            let instance = self.random.below(self.public.len() as u64) as usize;
            let key = self.random.below(self.keys as u64) as usize;
            match self.random.below(8) {
                0 | 1 => {
                    self.write(instance, key).await;
                    last = key;
                }
                2 | 3 => self.read(instance, last).await,
                _ => self.read(instance, key).await,
            }
        }
        self.outcome
    }
}

async fn purge(admin: SocketAddr, selector: &Value) -> Value {
    let request = Request::post("/admin/v1/cache/purge", selector.to_string());
    let request = request.header("Content-Type", "application/json");
    request.send(admin).await.expect("the admin listener answers").json()
}

/// How a run goes.
pub(crate) struct Run {
    pub(crate) keys: usize,
    /// Tasks that go at once.
    pub(crate) clients: usize,
    /// What all of them do together.
    pub(crate) operations: usize,
    /// Whether they write through the gateway too, whose answer does not say who missed the purge.
    pub(crate) puts: bool,
    pub(crate) seed: u64,
}

impl Run {
    /// Lets them go at the instances that run, and judges what they read.
    pub(crate) async fn at(self, fleet: &Fleet, data: &Arc<Data>) -> Outcome {
        let before = unconfirmed(fleet).await;
        let mut tasks = JoinSet::new();
        for nth in 0..self.clients {
            let mut public = Vec::new();
            for gateway in fleet.running() {
                public.push(gateway.connect().await);
            }
            let client = Client {
                public,
                admin: fleet.running().map(|g| g.admin).collect(),
                data: Arc::clone(data),
                keys: self.keys,
                puts: self.puts,
                random: Random::seeded(self.seed + nth as u64),
                outcome: Outcome::default(),
            };
            tasks.spawn(client.go(self.operations / self.clients));
        }
        let mut all = Outcome::default();
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(outcome) => all.add(outcome),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        // Those of the operator are counted by their answers.
        let counted = unconfirmed(fleet).await - before;
        let named = all.unconfirmed.iter().filter(|answer| !answer.contains("\"missing\":[]"));
        all.puts_in_doubt = counted.saturating_sub(named.count() as u64);
        all
    }
}

/// Purges that the instances know not to be confirmed by all.
async fn unconfirmed(fleet: &Fleet) -> u64 {
    const COUNTER: &str = "portway_cache_coherence_events_total{event=\"unconfirmed\"} ";
    let mut count = 0;
    for gateway in fleet.running() {
        let metrics = gateway.admin(Request::get("/metrics")).await.text();
        let found = metrics.lines().find_map(|line| line.strip_prefix(COUNTER));
        let number: Option<u64> = found.and_then(|n| n.parse().ok());
        count += number.unwrap_or_else(|| panic!("no {COUNTER}in {metrics}"));
    }
    count
}

/// How long after a purge was sent the *other* instances still served the old version, each time.
pub(crate) async fn purge_to_effect(
    fleet: &Fleet,
    data: &Arc<Data>,
    rounds: usize,
) -> Vec<Duration> {
    let count = fleet.len();
    let mut times = Vec::new();
    let mut connections = Vec::new();
    for gateway in fleet.running() {
        connections.push(gateway.connect().await);
    }
    let ask = get("/k/0");
    for round in 0..rounds {
        for connection in &mut connections {
            // What is asked for twice is in the instance's own memory.
            for _ in 0..2 {
                connection.ask(&ask).await.expect("it answers");
            }
        }
        let wanted = data.write(0);
        let admin = fleet.instance(round % count).admin;
        let started = Instant::now();
        let selector = json!({ "tag": "k:0" });
        let purging = tokio::spawn(async move { purge(admin, &selector).await });
        let watched = &mut connections[(round + 1) % count];
        loop {
            let answer = watched.ask(&ask).await.expect("it answers");
            if version(&answer, 0).expect("a version") >= wanted {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "round {round}: never purged");
        }
        times.push(started.elapsed());
        let answer = purging.await.expect("the purge does not panic");
        assert!(confirmed(&answer, count), "{answer}");
        data.acknowledge(0, wanted);
    }
    times
}

/// A fleet before an origin of so many keys.
pub(crate) async fn fleet(
    count: usize,
    keys: usize,
    redis: &Redis,
    settings: impl Fn(Builder) -> Builder,
) -> (Fleet, Origin, Arc<Data>) {
    let (origin, data) = origin(keys).await;
    let builder = Fleet::routing(routes(&origin)).redis(redis.url());
    let fleet = settings(builder).start(count).await;
    fleet.linked().await;
    (fleet, origin, data)
}

/// A run over three instances whose links to Redis are cut, fall silent, lose their subscribers or get
/// slow, at random.
pub(crate) async fn over_breaking_links(run: Run) -> Outcome {
    let redis = Redis::start().await;
    let (origin, data) = origin(run.keys).await;
    let mut builder = Fleet::routing(routes(&origin));
    let mut proxies = Vec::new();
    for nth in 0..3 {
        let proxy = FaultProxy::start(redis.addr, run.seed + nth as u64).await;
        builder = builder.env_of(nth, "REDIS_URL", redis.url_by(proxy.addr()));
        proxies.push(proxy);
    }
    let fleet = builder.start(3).await;
    fleet.linked().await;
    let mut random = Random::seeded(run.seed);
    let breaking = async {
        loop {
            let proxy = &proxies[random.below(3) as usize];
            let faults = match random.below(5) {
                0 => Faults { half_open: true, only_where: Some("SUBSCRIBE"), ..Faults::default() },
                1 => Faults { half_open: true, ..Faults::default() },
                2 => Faults { delay: Duration::from_millis(15), ..Faults::default() },
                3 => Faults { refuse: true, ..Faults::default() },
                _ => Faults::default(),
            };
            proxy.set(faults);
            if random.below(2) == 0 {
                proxy.cut_all();
            }
            tokio::time::sleep(Duration::from_millis(20 + random.below(300))).await;
            proxy.set(Faults::default());
            tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        }
    };
    let started = Instant::now();
    let mut outcome = tokio::select! {
        outcome = run.at(&fleet, &data) => outcome,
        () = breaking => unreachable!("it goes on for ever"),
    };
    outcome.print(started.elapsed());
    origin.assert_strict();
    let confirmed = outcome.writes - outcome.unconfirmed.len();
    assert!(confirmed > 0 && outcome.hits > 0, "nothing was put to the test");
    outcome
}

/// Takes the lock of a test that may have failed with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
