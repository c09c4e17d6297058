//! A site whose pages are rewritten and purged while clients read them, and what every read has to
//! satisfy, however requests, writes, purges and sweeps fall between one another.

use std::{io::Read as _, sync::atomic::AtomicU64};

use flate2::read::GzDecoder;
use tokio_util::task::AbortOnDropHandle;

use super::{
    sim::{Sim, Trouble},
    *,
};
use crate::cache::{
    l1::Slot,
    purge::{Mode, Selector, Verdict},
    remote::Remote,
};

const SMALL: Settings = Settings { l1_max_bytes: 1 << 20, max_object_bytes: 4 << 10 };

const PAGES: u64 = 4;

/// One page: what it is now, and what no later read may fall behind.
#[derive(Debug, Default)]
struct Page {
    version: AtomicU64,
    /// The version before the last purge that has returned.
    floor: AtomicU64,
}

/// The site, its cache, and its readers and writers.
#[derive(Clone)]
pub struct World {
    /// One for each instance.
    labs: Vec<Lab>,
    pages: Arc<[Page]>,
    /// Whether a write through the cache can count on every instance to have heard of it.
    reliable: bool,
    keepers: Arc<Vec<AbortOnDropHandle<()>>>,
    /// Over how many steps the acts are spread.
    spread: u64,
}

/// How often a task lets others run first.
pub async fn stroll(steps: u64) {
    for _ in 0..steps {
        tokio::task::yield_now().await;
    }
}

impl World {
    pub fn new() -> Self {
        let pages: Arc<[Page]> = (0..PAGES).map(|_| Page::default()).collect();
        let served = Arc::clone(&pages);
        let mut lab = Lab::new(move |call| page(Arc::clone(&served), call));
        lab.cache = Cache::new(SMALL);
        Self { labs: vec![lab], pages, reliable: true, keepers: Arc::default(), spread: 40 }
    }

    /// Several instances in front of one site.
    pub async fn shared(instances: usize, seed: u64, trouble: Trouble) -> Self {
        let mut world = Self::new();
        let alone = world.labs.remove(0);
        let sim = Sim::new(seed, trouble);
        let mut keepers = Vec::new();
        for number in 0..instances {
            let port = sim.port(&number.to_string());
            let remote = Arc::clone(&port) as Arc<dyn Remote>;
            // Short, so that the second tier is asked again and again.
            let (cache, keeper) = Cache::sharing(SMALL, remote, Duration::from_millis(3));
            port.listen(&cache.l2().expect("it has a second tier").coherence);
            keepers.push(AbortOnDropHandle::new(actix_rt::spawn(keeper)));
            let route = route("r", Rules::default());
            world.labs.push(Lab { cache, route, ..alone.clone() });
        }
        for lab in &world.labs {
            let joined = lab.cache.l2().unwrap().coherence.joined(Duration::from_secs(60)).await;
            assert!(joined, "an instance never took part");
        }
        // Less of a crowd: what is shared has to be found before it is purged.
        world.spread = 1000;
        world.keepers = Arc::new(keepers);
        world.reliable = trouble.lost + trouble.failing == 0;
        world
    }

    /// Requests that were served from what another instance had stored.
    pub fn shared_hits(&self) -> u64 {
        let hits = |lab: &Lab| lab.cache.l2().unwrap().stats.hits.get();
        self.labs.iter().map(hits).sum()
    }

    fn lab(&self, dice: &mut Dice) -> &Lab {
        &self.labs[dice.roll(self.labs.len() as u64) as usize]
    }

    /// One thing that happens: mostly a read.
    pub async fn act(self, mut dice: Dice) {
        stroll(dice.roll(self.spread)).await;
        match dice.roll(100) {
            0..14 => self.write(&mut dice).await,
            14..18 => self.post(&mut dice).await,
            18..22 => self.purge_softly(&mut dice).await,
            22..26 => {
                let later = if dice.chance(20) { 1 << 40 } else { 0 };
                self.lab(&mut dice).cache.sweep(Timestamp(Timestamp::now().0 + later));
            }
            _ => self.read(&mut dice).await,
        }
    }

    fn asks(&self, page: u64, dice: &mut Dice) -> Asks {
        let mut asks = Asks::get(&format!("/p/{page}"))
            .header("x-page", &page.to_string())
            .header("x-seed", &dice.roll(u64::MAX).to_string())
            .header("x-caller", &dice.roll(1 << 30).to_string())
            .header("x-lang", ["de", "en"][dice.roll(2) as usize])
            .header("x-dev", ["tv", "phone"][dice.roll(2) as usize]);
        if page == 1 {
            asks.scope = "acme".to_owned();
        }
        if page == 2 {
            asks.query = Some("q=1".to_owned());
        }
        if page.is_multiple_of(2) {
            asks.tags.push(format!("t{page}"));
        }
        asks.repeatable = dice.chance(80);
        asks
    }

    fn selector(&self, page: u64, dice: &mut Dice) -> Selector {
        let host = dice.chance(50).then(|| "a.test".to_owned());
        match dice.roll(7) {
            0 => Selector::Url {
                host: "a.test".to_owned(),
                path: format!("/p/{page}"),
                query: (page == 2).then(|| "q=1".to_owned()),
            },
            1 => Selector::Route("r".to_owned()),
            2 if page == 1 => Selector::Tenant("acme".to_owned()),
            3 => Selector::Prefix { host, path: format!("/p/{page}") },
            4 => Selector::Pattern { host, glob: format!("/?/*{page}*") },
            5 => Selector::All,
            _ => Selector::Tag(format!("t{page}")),
        }
    }

    async fn write(&self, dice: &mut Dice) {
        let page = dice.roll(PAGES);
        let Page { version, floor } = &self.pages[page as usize];
        let written = version.fetch_add(1, Ordering::SeqCst) + 1;
        stroll(dice.roll(5)).await;
        if self.purge(page, Mode::Hard, dice).await {
            floor.fetch_max(written, Ordering::SeqCst);
        }
    }

    async fn purge_softly(&self, dice: &mut Dice) {
        self.purge(dice.roll(PAGES), Mode::Soft, dice).await;
    }

    /// Whether every instance has confirmed it.
    async fn purge(&self, page: u64, mode: Mode, dice: &mut Dice) -> bool {
        let (cache, selectors) = (&self.lab(dice).cache, [self.selector(page, dice)]);
        let ledger = &cache.ledger;
        if self.labs.len() > 1 || dice.chance(50) {
            let purged = cache.purge(&selectors, mode).await;
            return purged.recorded && purged.missing.is_empty();
        }
        // Elsewhere, under a number that some of the purges to come have not.
        ledger.apply(ledger.generation() + 1 + dice.roll(4), &selectors, mode);
        true
    }

    /// A write through the cache: the origin's answer says which version it made.
    async fn post(&self, dice: &mut Dice) {
        let page = dice.roll(PAGES);
        let asks = self.asks(page, dice).method(Method::POST);
        let lab = self.lab(dice);
        let write = in_time(lab.get(&asks.header("x-write", "1"))).await;
        if let Ok(got) = write
            && self.reliable
        {
            let written = got.header("x-version").and_then(|text| text.parse().ok());
            self.pages[page as usize].floor.fetch_max(written.unwrap_or(0), Ordering::SeqCst);
        }
    }

    async fn read(&self, dice: &mut Dice) {
        let page = dice.roll(PAGES);
        let mut asks = self.asks(page, dice);
        if dice.chance(30) {
            asks = asks.header("accept-encoding", "gzip");
        }
        match dice.roll(20) {
            0 => asks = asks.header("cache-control", "no-cache"),
            1 => asks = asks.header("cache-control", "only-if-cached"),
            2 => asks = asks.header("cache-control", "max-stale"),
            3 => asks = asks.method(Method::HEAD),
            _ => {}
        }
        let patience = if dice.chance(15) { dice.roll(30) } else { u64::MAX };
        let floor = self.pages[page as usize].floor.load(Ordering::SeqCst);
        let lab = self.lab(dice);
        let read = async { in_time(lab.get(&asks)).await };
        let got = tokio::select! {
            got = read => got,
            // The client hangs up: a leader vanishes, or a reader.
            () = stroll(patience) => return,
        };
        if let Ok(got) = got
            && got.status == StatusCode::OK
            && asks.method == Method::GET
        {
            verify(&asks, &got, page, floor);
        }
    }

    /// After everything has ended nothing is held any more, and what is remembered of the purges is
    /// no more than what they named.
    pub async fn has_come_to_rest(&self) {
        for lab in &self.labs {
            lab.has_come_to_rest().await;
        }
    }
}

impl Lab {
    async fn has_come_to_rest(&self) {
        let cache = &self.cache;
        for _ in 0..1000 {
            let flights = Arc::strong_count(&cache.flights) - 1;
            let fills = Arc::strong_count(&cache.known) + Arc::strong_count(&cache.unknown) - 2;
            if flights + fills == 0 {
                // By page a URL, a tag, two prefixes and two patterns; the route, the tenant, and
                // what the route varies on.
                assert!(cache.ledger.notes() <= 6 * PAGES as usize + 3, "{:?}", cache.ledger);
                cache.purge(&[Selector::All], Mode::Hard).await;
                cache.sweep(Timestamp::now());
                // A compressed copy may take its place behind the sweep; no look-up finds it.
                cache.l1.sweep(|slot| match slot {
                    Slot::Entry(it) => {
                        assert_eq!(cache.ledger.check(it), Verdict::Dead);
                        false
                    }
                    Slot::Variants(_) | Slot::Unshared(_) => true,
                });
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("a flight or a fill never ended");
    }
}

/// What a read that began at `floor` may see.
fn verify(asks: &Asks, got: &Got, page: u64, floor: u64) {
    let header = |name| asks.headers.get(name).unwrap().to_str().unwrap();
    let mut plain = Vec::new();
    let body = if got.header("content-encoding") == Some("gzip") && !got.cut {
        GzDecoder::new(&got.body[..]).read_to_end(&mut plain).expect("a whole gzip body");
        &plain[..]
    } else {
        &got.body[..]
    };
    let text = std::str::from_utf8(body).unwrap();
    assert!(got.cut || text.ends_with("|END"), "cut, and served as whole: {text:.60}");
    let parts: Vec<&str> = text.split('|').collect();
    // The last of a body that broke off may be half a part.
    let [of, version, lang, dev, caller, length, _, ..] = parts[..] else {
        return assert!(got.cut, "{text:.60}");
    };
    assert!(got.cut || length.parse() == Ok(text.len()), "not all of it: {text:.60}");
    assert_eq!(of, page.to_string(), "another page's response");
    assert!(lang == "-" || lang == header("x-lang"), "another variant: {text:.40}");
    assert!(dev == "-" || dev == header("x-dev"), "another variant: {text:.40}");
    assert!(caller == "-" || caller == header("x-caller"), "another caller's: {text:.40}");
    let version: u64 = version.parse().unwrap();
    assert!(version >= floor, "version {version} after the purge of {floor}: {:?}", got.headers);
}

/// The origin: reads the page's version at some moment, and answers with it some time later.
async fn page(pages: Arc<[Page]>, call: Call) -> Result<Response, Failure> {
    let number = |name| call.header(name).parse::<u64>().unwrap_or_default();
    let page = number("x-page");
    let mut dice = Dice(number("x-seed") ^ call.number as u64);
    stroll(dice.roll(8)).await;
    let current = &pages[page as usize].version;
    if call.header("x-write") == "1" {
        let written = current.fetch_add(1, Ordering::SeqCst) + 1;
        stroll(dice.roll(8)).await;
        return Ok(reply(200, &[("x-version", &written.to_string())], ""));
    }
    let version = current.load(Ordering::SeqCst);
    stroll(dice.roll(12)).await;
    match dice.roll(40) {
        0..2 => return Err(BROKEN),
        2..4 => return Ok(reply(503, &[], "busy")),
        _ => {}
    }
    // What a page varies on changes from version to version.
    let names = ["", "x-lang", "x-dev, x-lang"][(version % 3) as usize];
    let selected = |name| if names.contains(name) { call.header(name) } else { "-" };
    let private = dice.chance(15);
    let caller = if private { call.header("x-caller") } else { "-" };
    let etag = format!("\"{version}-{}-{}\"", selected("x-lang"), selected("x-dev"));
    let control = match dice.roll(6) {
        _ if private => "private, max-age=100",
        0 => "no-cache",
        1 => "max-age=1, stale-while-revalidate=100",
        2 => "max-age=1, stale-if-error=100",
        _ => "max-age=100",
    };
    let tag = if page.is_multiple_of(2) { String::new() } else { format!("x, t{page}") };
    let aged = if control.starts_with("max-age=1,") { "5" } else { "0" };
    let headers = [
        ("cache-control", control),
        ("age", aged),
        ("etag", &etag),
        ("vary", names),
        ("cache-tag", &tag),
        ("content-type", "text/plain"),
    ];
    if let Ask::Validate(validators) = &call.ask
        && validators.iter().any(|(_, value)| value.as_bytes() == etag.as_bytes())
        && !private
    {
        let mut not_modified = reply(304, &headers, "");
        not_modified.body = Body::Whole(Bytes::new());
        return Ok(not_modified);
    }
    let start = format!("{page}|{version}|{}|{}|{caller}|", selected("x-lang"), selected("x-dev"));
    let length = [60, 1500, 3000, 6000][dice.roll(4) as usize];
    let mut text = format!("{start}{length}|");
    text.push_str(&"~".repeat(length - text.len() - 4));
    text.push_str("|END");
    Ok(sent(text, &headers, dice))
}

/// The body at once or in pieces, with its length announced or not, whole or cut.
fn sent(text: String, headers: &[(&str, &str)], mut dice: Dice) -> Response {
    let length = text.len() as u64;
    let announced = match dice.roll(3) {
        0 => return reply(200, headers, &text),
        1 => Some(length),
        _ => None,
    };
    let (response, sender) = streamed(headers, announced);
    actix_rt::spawn(async move {
        let cut_at = dice.chance(12).then(|| dice.roll(length) as usize);
        let mut sent = 0;
        for piece in text.as_bytes().chunks(1 + dice.roll(2000) as usize) {
            stroll(dice.roll(6)).await;
            sent += piece.len();
            if cut_at.is_some_and(|at| sent > at) {
                // Where the length was announced, an end that comes too soon says it as well.
                if announced.is_none() || dice.chance(50) {
                    let _ = sender.send(Err(BROKEN));
                }
                return;
            }
            if sender.send(Ok(Bytes::copy_from_slice(piece))).is_err() {
                return;
            }
        }
    });
    response
}
