//! The composition root: builds every part, joins them, runs them and stops them in order.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_http::{Method, header::HeaderMap};
use actix_server::Server;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::{self, Asked, Inspect, RouteView, Target},
    cache::{
        self, Cache,
        clock::Timestamp,
        purge::{Mode, Selector},
        remote::redis::RedisRemote,
    },
    config::{CacheConfig, Config, TlsFiles},
    db::Db,
    limits::Limits,
    proxy::{self, UpstreamStatus},
    redis::Redis,
    routes::{self, Action, Found, Params, RouteTable},
    server::{
        Readiness, Shared, listen, metrics, position::Positions, snapshot::Snapshot,
        tls::Certificate, warm,
    },
    sql::Dialect,
    telemetry::metrics::Registry,
};

/// How often the cache frees what nobody can use any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long a start waits for the other instances at most.
const JOINING: Duration = Duration::from_secs(1);

/// How long idle connections stay open after the listener has closed.
const LINGER: Duration = Duration::from_secs(1);

/// A gateway that listens and is ready to run.
pub struct App {
    shared: Arc<Shared>,
    public: Server,
    /// A second handle to the public listener, to empty its queue at the end.
    last_listener: TcpListener,
    tls: Option<TlsAcceptor>,
    admin: Server,
    public_address: SocketAddr,
    admin_address: SocketAddr,
    grace: Duration,
    delay: Duration,
    /// Stopped when the app is dropped.
    _background: Vec<AbortOnDropHandle<()>>,
    _watchers: Vec<routes::Watcher>,
}

impl App {
    /// Opens the listeners and starts everything that runs beside the requests.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound, the certificate cannot be read, or a database URL has parts that
    /// are not known.
    pub fn build(config: Config, table: RouteTable) -> anyhow::Result<Self> {
        let registry = Arc::new(Registry::default());
        let redis = config.redis.as_ref().map(Redis::start);
        let db = Db::start(&config.database)?;
        let dialect = Dialect::of(&db);
        let snapshot = Snapshot::build(table, config.cache.default_ttl, dialect, &registry, None);
        let mut background = Vec::new();
        let cache = cache(&config.cache, redis.as_ref(), &mut background);
        let shared = Arc::new(Shared {
            cache: Arc::clone(&cache),
            limits: Limits::new(redis.clone()),
            redis,
            db,
            positions: Positions::new(config.database.replica_max_lag),
            snapshot: ArcSwap::from_pointee(snapshot),
            trusted_proxies: config.server.trusted_proxies.clone(),
            upstream_tls: proxy::client_config().context("TLS to upstreams")?,
            registry: Arc::clone(&registry),
            readiness: Readiness::default(),
            draining: CancellationToken::new(),
        });

        metrics::register(&shared);
        let public_listener = bind(SocketAddr::new(config.server.host, config.server.port))?;
        let admin_listener = bind(SocketAddr::new(config.admin.host, config.admin.port))?;
        let public_address = public_listener.local_addr()?;
        let admin_address = admin_listener.local_addr()?;

        let mut watchers = Vec::new();
        let acceptor = match &config.server.tls {
            None => None,
            Some(files) => {
                let certificate = Certificate::load(&files.cert, &files.key)?;
                let acceptor = certificate.acceptor()?;
                watchers.extend(watch_certificate(files, &certificate)?);
                Some(acceptor)
            }
        };
        let last_listener = public_listener.try_clone()?;
        let public = listen::serve(
            &shared,
            public_listener,
            acceptor.clone(),
            config.server.workers,
            config.server.shutdown_grace,
        )?;
        let context = admin::Context {
            cache: Arc::clone(&cache),
            db: shared.db.clone(),
            registry,
            gateway: Arc::new(View(Arc::clone(&shared))),
            token: config.admin.token.as_ref().map(|token| admin::Token::new(token.expose())),
            stopping: shared.draining.clone(),
        };
        let admin = admin::serve(context, admin_listener)?;

        shared.snapshot.load().upstreams.spawn_health_checks(&shared.upstream_tls);
        background.push(spawn(sweep(cache)));
        background.push(spawn(prepare_database(Arc::clone(&shared), config.database.migrate)));
        if let Some(file) = config.routes.file.clone() {
            let reload = Arc::new(tokio::sync::Notify::new());
            let changed = Arc::clone(&reload);
            watchers.push(routes::watch(&file, move || changed.notify_one())?);
            let task = reload_routes(
                Arc::clone(&shared),
                file,
                config.cache.default_ttl,
                reload,
                public_address,
            );
            // On this thread, as warm-up is.
            background.push(AbortOnDropHandle::new(actix_web::rt::spawn(task)));
        }
        Ok(Self {
            shared,
            public,
            last_listener,
            tls: acceptor,
            admin,
            public_address,
            admin_address,
            grace: config.server.shutdown_grace,
            delay: config.server.shutdown_delay,
            _background: background,
            _watchers: watchers,
        })
    }

    /// Where the gateway listens.
    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    /// Where the admin side listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until `stop` resolves, then lets open requests finish within the grace period.
    ///
    /// Readiness fails first, so that load balancers look elsewhere; after `SHUTDOWN_DELAY` the
    /// listener closes, and each connection ends with its current request.
    ///
    /// # Errors
    ///
    /// When a listener ends by itself.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let public = self.public.handle();
        let admin = self.admin.handle();
        let mut serving = tokio::spawn(self.public);
        let admin_task = tokio::spawn(self.admin);
        if let (Some(redis), Some(l2)) = (&self.shared.redis, self.shared.cache.l2()) {
            // So that the first requests after a restart find what is cached there.
            redis.settled().await;
            if redis.is_up() && !l2.coherence.joined(JOINING).await {
                tracing::warn!("not in touch with the other instances yet");
            }
        }
        self.shared.readiness.set_ready();
        tracing::info!(
            public_addr = %self.public_address,
            admin_addr = %self.admin_address,
            "listening"
        );
        warm::spawn(&self.shared, self.public_address);
        tokio::select! {
            () = stop => {}
            ended = &mut serving => anyhow::bail!("the listener ended by itself: {ended:?}"),
        }
        // From here on every response announces `Connection: close`.
        self.shared.readiness.set_draining();
        tracing::info!("draining");
        tokio::time::sleep(self.delay).await;
        let draining = self.shared.draining.clone();
        let drained = timeout(self.grace, async {
            tokio::join!(
                async {
                    // A worker that stops drops connections it has been given and not yet begun:
                    // so first no new ones, and a moment to begin those.
                    public.pause().await;
                    tokio::time::sleep(listen::HANDOVER / 2).await;
                    public.stop(true).await;
                },
                listen::serve_last(&self.shared, self.last_listener, self.tls),
                async {
                    // Clients in the middle of something send their next request on the connection
                    // they have, and learn from its response that it was the last.
                    tokio::time::sleep(LINGER.min(self.grace / 2)).await;
                    draining.cancel();
                },
            )
        })
        .await;
        if drained.is_err() {
            tracing::warn!("requests outlived the grace period of {:?}", self.grace);
            public.stop(false).await;
        }
        if let Some(l2) = self.shared.cache.l2() {
            l2.coherence.leave().await;
        }
        // Whoever could still ask it is gone.
        self.shared.db.close(LINGER).await;
        admin.stop(true).await;
        admin_task.abort();
        tracing::info!("stopped");
        Ok(())
    }
}

/// The cache, by itself or with Redis as its second tier.
fn cache(
    config: &CacheConfig,
    redis: Option<&Arc<Redis>>,
    background: &mut Vec<AbortOnDropHandle<()>>,
) -> Arc<Cache> {
    let settings = cache::Settings {
        l1_max_bytes: config.l1_max_bytes,
        max_object_bytes: config.max_object_bytes,
    };
    let Some(redis) = redis else { return Cache::new(settings) };
    let remote = RedisRemote::new(Arc::clone(redis));
    let store = Arc::clone(&remote);
    let (cache, keeping_in_touch) = Cache::sharing(settings, store, config.l1_ttl);
    if let Some(l2) = cache.l2() {
        remote.listen(Arc::clone(&l2.coherence));
    }
    background.push(AbortOnDropHandle::new(actix_web::rt::spawn(keeping_in_touch)));
    cache
}

fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    listen::bind(address).with_context(|| format!("cannot listen on {address}"))
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// Applies the migrations and gets what is kept in the tables, for as long as that takes: requests that do
/// not need them are served meanwhile.
async fn prepare_database(shared: Arc<Shared>, migrate: bool) {
    if migrate {
        apply_migrations(&shared.db).await;
    }
    shared.positions.load(&shared.db).await;
}

async fn apply_migrations(db: &Db) {
    let mut wait = Duration::from_millis(250);
    loop {
        match db.migrate().await {
            Ok(applied) => {
                for name in applied {
                    tracing::info!(migration = name, "migration applied");
                }
                return;
            }
            Err(error) => tracing::warn!("migrations not applied yet: {error}"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

async fn sweep(cache: Arc<Cache>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let cache = Arc::clone(&cache);
        // A panic there is a defect that the panic hook has reported; the next sweep tries again.
        let _ = tokio::task::spawn_blocking(move || cache.sweep(Timestamp::now())).await;
    }
}

/// Reads the routes file again whenever it changes or the process gets SIGHUP. A good version
/// replaces the table; a bad one is refused and the old one goes on serving.
async fn reload_routes(
    shared: Arc<Shared>,
    file: std::path::PathBuf,
    default_ttl: Duration,
    changed: Arc<tokio::sync::Notify>,
    address: SocketAddr,
) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::error!("SIGHUP cannot be watched: {error}"),
    };
    loop {
        tokio::select! {
            () = changed.notified() => {}
            _ = hangup.recv() => {}
        }
        match RouteTable::load(&file, &crate::config::Environment) {
            Ok(table) => {
                let previous = shared.snapshot.load_full();
                let dialect = Dialect::of(&shared.db);
                let snapshot =
                    Snapshot::build(table, default_ttl, dialect, &shared.registry, Some(&previous));
                let routes = snapshot.table.routes.len();
                let changed: Vec<Selector> = snapshot
                    .changed_responses(&previous)
                    .into_iter()
                    .map(|name| Selector::Route(name.to_string()))
                    .collect();
                shared.snapshot.store(Arc::new(snapshot));
                if !changed.is_empty() {
                    shared.cache.purge(&changed, Mode::Hard).await;
                }
                shared.snapshot.load().upstreams.spawn_health_checks(&shared.upstream_tls);
                shared.readiness.reloaded(None);
                tracing::info!(routes, "routes reloaded");
                warm::spawn(&shared, address);
            }
            Err(errors) => {
                shared.readiness.reloaded(Some(errors.to_string()));
                tracing::error!(
                    "routes file refused, the last good one goes on serving:\n{errors}"
                );
            }
        }
    }
}

fn watch_certificate(
    files: &TlsFiles,
    certificate: &Arc<Certificate>,
) -> anyhow::Result<Vec<routes::Watcher>> {
    [&files.cert, &files.key]
        .into_iter()
        .map(|file| {
            let (files, certificate) = (files.clone(), Arc::clone(certificate));
            let reload = move || match certificate.reload(&files.cert, &files.key) {
                Ok(()) => tracing::info!("certificate reloaded"),
                // Between the writes of its two files a certificate and its key do not match.
                Err(error) => tracing::warn!("certificate not reloaded: {error}"),
            };
            Ok(routes::watch(file, reload)?)
        })
        .collect()
}

/// What the admin side sees.
struct View(Arc<Shared>);

impl Inspect for View {
    fn routes(&self) -> Vec<RouteView> {
        let snapshot = self.0.snapshot.load();
        snapshot
            .routes()
            .map(|(route, running)| RouteView {
                name: route.name.to_string(),
                path: route.path.as_str().to_owned(),
                host: route.host.as_deref().map(str::to_owned),
                methods: route.methods.iter().flatten().map(ToString::to_string).collect(),
                upstream: match &route.action {
                    Action::Proxy { upstream, .. } => {
                        Some(snapshot.table.upstreams[*upstream].name.to_string())
                    }
                    Action::Respond { .. } | Action::Sql(_) => None,
                },
                cache: running.cache.stats.snapshot(),
            })
            .collect()
    }

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.0.snapshot.load().upstreams.status()
    }

    fn asked(&self, target: &Target<'_>, headers: &HeaderMap) -> Option<Asked> {
        let snapshot = self.0.snapshot.load();
        let Target { host, path, query, route } = *target;
        let index = match route {
            Some(name) => snapshot.table.routes.iter().position(|it| *it.name == *name)?,
            None => {
                let mut params = Params::default();
                match snapshot.table.find(&Method::GET, host, path, headers, &mut params) {
                    Found::Route(index, _) => index,
                    Found::MethodNotAllowed(_) | Found::NotFound => return None,
                }
            }
        };
        let rule = snapshot.table.routes[index].cache.as_ref();
        let query = match rule.and_then(|rule| rule.query.as_deref()) {
            Some(names) => cache::key::named_query(query, names),
            None => query.map(Into::into),
        };
        let route = Arc::clone(&snapshot.running(index).cache);
        Some(Asked { route, query: query.map(Into::into) })
    }

    fn refused_routes(&self) -> Option<String> {
        self.0.readiness.refused_routes()
    }
}
