//! What is known of each upstream at run time, shared by all workers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use actix_http::header::HeaderValue;
use rustls_pki_types::ServerName;
use serde::Serialize;
use url::Url;

use super::{
    balance::{self, Choice},
    breaker::{Breaker, BreakerState, Permit},
    budget::RetryBudget,
    clock::now_ms,
    error::UpstreamError,
};
use crate::routes::Upstream;

/// The state of all upstreams of a route table.
#[derive(Debug)]
pub struct Upstreams(Vec<Arc<UpstreamState>>);

impl Upstreams {
    /// Builds the state of `upstreams`; those that `previous` had with the same settings go on with
    /// what was learned of them, so a reload neither closes a breaker nor trusts a sick target.
    pub fn build(upstreams: &[Upstream], previous: Option<&Self>) -> Self {
        let keep = |upstream: &Upstream| {
            previous?.0.iter().find(|state| state.settings == *upstream).cloned()
        };
        let build = |upstream| keep(upstream).unwrap_or_else(|| UpstreamState::new(upstream));
        Self(upstreams.iter().map(build).collect())
    }

    /// The upstream at an index of the route table these were built from.
    pub fn get(&self, index: usize) -> Option<&Arc<UpstreamState>> {
        self.0.get(index)
    }

    /// What an operator sees.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.0.iter().map(|state| state.status()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<UpstreamState>> {
        self.0.iter()
    }
}

/// The state of one upstream.
#[derive(Debug)]
pub struct UpstreamState {
    pub(super) settings: Upstream,
    pub(super) targets: Box<[Arc<Target>]>,
    turn: AtomicU64,
    pub(super) budget: RetryBudget,
}

/// One of an upstream's servers.
#[derive(Debug)]
pub(super) struct Target {
    /// Unique in the process: the key of its connections.
    pub id: u64,
    pub url: Arc<str>,
    pub host: Box<str>,
    pub port: u16,
    /// The name its certificate must carry; `None` without TLS.
    pub tls: Option<ServerName<'static>>,
    /// The `Host` it is asked for.
    pub authority: HeaderValue,
    /// Its own path, without a slash at the end.
    pub base: Box<str>,
    identity: u64,
    healthy: AtomicBool,
    breaker: Breaker,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
}

/// An upstream as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamStatus {
    pub name: Arc<str>,
    pub targets: Vec<TargetStatus>,
}

/// A target as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct TargetStatus {
    pub url: Arc<str>,
    /// By its active health checks; true where there are none.
    pub healthy: bool,
    pub breaker: BreakerState,
    pub in_flight: usize,
    pub requests: u64,
    pub failures: u64,
    /// Requests sent here after another attempt had failed.
    pub retries: u64,
}

impl UpstreamState {
    pub(super) fn new(settings: &Upstream) -> Arc<Self> {
        let target = |url| Arc::new(Target::new(url, settings));
        Arc::new(Self {
            targets: settings.targets.iter().map(target).collect(),
            settings: settings.clone(),
            turn: AtomicU64::new(0),
            budget: RetryBudget::default(),
        })
    }

    /// The upstream's name in the routes file.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    pub(super) fn status(&self) -> UpstreamStatus {
        let now = now_ms();
        let targets = self.targets.iter().map(|target| target.status(now)).collect();
        UpstreamStatus { name: self.settings.name.clone(), targets }
    }

    /// Whether a request could go to another target instead.
    pub(super) fn has_choice(&self) -> bool {
        self.targets.len() > 1
    }

    /// Chooses a target for a request, one not in `tried` if there is one.
    pub(super) fn pick(
        self: &Arc<Self>,
        now: u64,
        key: &[u8],
        tried: &[usize],
    ) -> Result<Lease, UpstreamError> {
        let turn =
            if self.targets.len() > 1 { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let choice = Choice { balance: self.settings.balance, turn, key };
        let choose = |skip: &[usize]| {
            balance::choose(
                choice,
                self.targets.len(),
                |i| {
                    let target = &self.targets[i];
                    !skip.contains(&i) && target.is_healthy() && target.breaker.may_admit(now)
                },
                |i| self.targets[i].in_flight.load(Ordering::Relaxed),
                |i| self.targets[i].identity,
            )
        };
        // Between the choice and the admission another request may take a half-open target's only
        // place, so there are as many tries as targets.
        for _ in 0..=self.targets.len() {
            let Some(index) = choose(tried).or_else(|| choose(&[])) else { break };
            if let Some(permit) = self.targets[index].breaker.admit(now) {
                return Ok(Lease::new(self.targets[index].clone(), index, permit));
            }
        }
        Err(if self.targets.iter().any(|target| target.is_healthy()) {
            UpstreamError::BreakerOpen
        } else {
            UpstreamError::NoHealthyTarget
        })
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Target {
    fn new(url: &Url, settings: &Upstream) -> Self {
        let host = url.host_str().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let authority = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            url: url.as_str().trim_end_matches('/').into(),
            host: host.into(),
            port: url.port_or_known_default().unwrap_or(80),
            // A URL's host is a valid server name; were it not, connecting says so.
            tls: (url.scheme() == "https")
                .then(|| ServerName::try_from(host.to_owned()).ok())
                .flatten(),
            authority: HeaderValue::from_str(&authority)
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            base: url.path().trim_end_matches('/').into(),
            identity: balance::hash(url.as_str().as_bytes()),
            healthy: AtomicBool::new(true),
            breaker: Breaker::new(settings.breaker),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }

    /// A request comes here because another attempt failed.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// The certificate name to check, or an error where the URL has none that could be checked.
    pub(super) fn server_name(&self) -> io::Result<Option<ServerName<'static>>> {
        match &self.tls {
            None if self.url.starts_with("https:") => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a name a certificate can have",
            )),
            name => Ok(name.clone()),
        }
    }

    fn status(&self, now: u64) -> TargetStatus {
        TargetStatus {
            url: self.url.clone(),
            healthy: self.is_healthy(),
            breaker: self.breaker.state(now),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}

/// A request's place at a target, until its response is complete or given up.
#[derive(Debug)]
pub(super) struct Lease {
    pub target: Arc<Target>,
    pub index: usize,
    /// `None` once the breaker has been told how it went.
    permit: Option<Permit>,
    blamed: bool,
}

impl Lease {
    fn new(target: Arc<Target>, index: usize, permit: Permit) -> Self {
        target.in_flight.fetch_add(1, Ordering::Relaxed);
        target.requests.fetch_add(1, Ordering::Relaxed);
        Self { target, index, permit: Some(permit), blamed: false }
    }

    /// The target has begun to answer.
    pub(super) fn succeeded(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.target.breaker.succeeded(permit);
        }
    }

    /// The response has come to its end.
    pub(super) fn completed(&self) {
        if !self.blamed {
            self.target.breaker.completed();
        }
    }

    /// The target failed, be it after its response had begun.
    pub(super) fn failed(&mut self) {
        self.blamed = true;
        self.target.failures.fetch_add(1, Ordering::Relaxed);
        self.target.breaker.failed(self.permit.take().unwrap_or(Permit::Normal), now_ms());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(permit) = self.permit {
            self.target.breaker.give_back(permit, now_ms());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routes::{Balance, Breaker, Retry, Timeouts};

    pub(in crate::proxy) fn settings(targets: &[&str]) -> Upstream {
        Upstream {
            name: "test".into(),
            targets: targets.iter().map(|url| url.parse().unwrap()).collect(),
            balance: Balance::RoundRobin,
            health: None,
            timeout: Timeouts {
                connect: Duration::from_secs(1),
                first_byte: Duration::from_secs(5),
                idle: Duration::from_secs(5),
            },
            retry: Retry { attempts: 2, on_connect: true, on_status: vec![502, 503] },
            breaker: Breaker {
                failures: 2,
                window: Duration::from_secs(10),
                open: Duration::from_secs(60),
            },
        }
    }

    fn pick(state: &Arc<UpstreamState>, tried: &[usize]) -> Result<usize, UpstreamError> {
        state.pick(0, b"/", tried).map(|lease| lease.index)
    }

    #[test]
    fn a_retry_goes_elsewhere_where_there_is_an_elsewhere() {
        let state = UpstreamState::new(&settings(&["http://a", "http://b"]));
        assert_eq!(pick(&state, &[0]).unwrap(), 1);
        assert_eq!(pick(&state, &[0]).unwrap(), 1);
        assert_eq!(pick(&state, &[1]).unwrap(), 0);
        let state = UpstreamState::new(&settings(&["http://a"]));
        assert_eq!(pick(&state, &[0]).unwrap(), 0);
    }

    #[test]
    fn unhealthy_and_broken_targets_are_left_out() {
        let state = UpstreamState::new(&settings(&["http://a", "http://b"]));
        state.targets[0].set_healthy(false);
        (0..4).for_each(|_| assert_eq!(pick(&state, &[]).unwrap(), 1));
        for _ in 0..2 {
            state.pick(now_ms(), b"/", &[]).unwrap().failed();
        }
        assert!(matches!(pick(&state, &[]), Err(UpstreamError::BreakerOpen)));
        state.targets[1].set_healthy(false);
        assert!(matches!(pick(&state, &[]), Err(UpstreamError::NoHealthyTarget)));
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_an_unchanged_upstream() {
        let old = settings(&["http://a"]);
        let before = Upstreams::build(&[old.clone(), settings(&["http://b"])], None);
        before.0[0].targets[0].set_healthy(false);
        let after = Upstreams::build(&[settings(&["http://c"]), old], Some(&before));
        assert!(after.status()[0].targets[0].healthy);
        assert!(!after.status()[1].targets[0].healthy);
    }

    #[test]
    fn a_lease_counts_as_long_as_it_lives() {
        let state = UpstreamState::new(&settings(&["http://[::1]:81/base/"]));
        let lease = state.pick(0, b"/", &[]).unwrap();
        assert_eq!(state.status().targets[0].in_flight, 1);
        assert_eq!(&*lease.target.host, "::1");
        assert_eq!(lease.target.authority, "[::1]:81");
        assert_eq!(&*lease.target.base, "/base");
        drop(lease);
        assert_eq!(state.status().targets[0].in_flight, 0);
        assert_eq!(
            serde_json::to_value(state.status()).unwrap()["targets"][0]["breaker"],
            "closed"
        );
    }
}
