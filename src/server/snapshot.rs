//! Everything that a routes file decides, at one moment.
//!
//! A reload builds a new snapshot and swaps it in; requests under way finish on the one they began
//! with. Counts and the health of unchanged upstreams live on from one to the next.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    cache::{RouteCache, l2::Varies, policy::Rules, stats::RouteStats},
    limits::RouteLimits,
    proxy::Upstreams,
    routes::{Action, CacheRule, Route, RouteTable},
    sql::{Compiled, Dialect},
    telemetry::metrics::{Registry, RouteMetrics},
};

/// The route table with what its routes need at run time.
pub struct Snapshot {
    pub table: RouteTable,
    pub upstreams: Arc<Upstreams>,
    /// As many as the table has routes, in their order.
    routes: Vec<Running>,
}

/// What one route keeps while it serves.
#[derive(Clone)]
pub struct Running {
    pub cache: Arc<RouteCache>,
    pub metrics: Arc<RouteMetrics>,
    /// `None` where the route has no limit.
    pub limits: Option<Arc<RouteLimits>>,
    /// What an SQL route runs.
    pub sql: Option<Arc<Compiled>>,
}

impl Snapshot {
    /// `default_ttl` is for routes whose `cache:` section gives none, `dialect` that of the database.
    pub fn build(
        table: RouteTable,
        default_ttl: Duration,
        dialect: Dialect,
        registry: &Registry,
        previous: Option<&Self>,
    ) -> Self {
        let upstreams =
            Arc::new(Upstreams::build(&table.upstreams, previous.map(|it| &*it.upstreams)));
        let known: HashMap<&str, &Running> = previous
            .into_iter()
            .flat_map(|it| it.table.routes.iter().map(|route| &*route.name).zip(&it.routes))
            .collect();
        let routes = table
            .routes
            .iter()
            .map(|route| {
                let known = known.get(&*route.name).copied();
                Running::new(route, default_ttl, dialect, registry, known)
            })
            .collect();
        Self { table, upstreams, routes }
    }

    /// Names of routes that `previous` had with other changes to the response's headers.
    ///
    /// Those are made before a response is stored, so what is stored has the old ones.
    pub fn changed_responses(&self, previous: &Self) -> Vec<Arc<str>> {
        let before: HashMap<&str, &Route> =
            previous.table.routes.iter().map(|route| (&*route.name, &**route)).collect();
        let differs = |route: &&Arc<Route>| {
            before.get(&*route.name).is_some_and(|it| it.response != route.response)
        };
        self.table.routes.iter().filter(differs).map(|route| Arc::clone(&route.name)).collect()
    }

    pub fn running(&self, index: usize) -> &Running {
        &self.routes[index]
    }

    /// Every route with what it keeps.
    pub fn routes(&self) -> impl Iterator<Item = (&Arc<Route>, &Running)> {
        self.table.routes.iter().zip(&self.routes)
    }
}

impl Running {
    fn new(
        route: &Route,
        default_ttl: Duration,
        dialect: Dialect,
        registry: &Registry,
        previous: Option<&Self>,
    ) -> Self {
        let cache = RouteCache {
            name: Arc::clone(&route.name),
            rules: route
                .cache
                .as_ref()
                .map_or_else(Rules::default, |rule| rules(rule, default_ttl)),
            vary: route.cache.as_ref().map(|rule| rule.vary.clone()).unwrap_or_default(),
            stats: previous
                .map_or_else(|| Arc::new(RouteStats::default()), |it| Arc::clone(&it.cache.stats)),
            varies: Varies::default(),
        };
        let limits = RouteLimits::of(route, previous.and_then(|it| it.limits.as_deref()));
        Self {
            cache: Arc::new(cache),
            metrics: registry.route(&route.name),
            limits: limits.map(Arc::new),
            sql: match &route.action {
                Action::Sql(rule) => Some(Arc::new(Compiled::new(rule, dialect))),
                Action::Proxy { .. } | Action::Respond { .. } => None,
            },
        }
    }
}

fn rules(rule: &CacheRule, default_ttl: Duration) -> Rules {
    Rules {
        default_ttl: Some(rule.ttl.unwrap_or(default_ttl)),
        override_origin: rule.override_origin,
        stale_while_revalidate: rule.stale_while_revalidate,
        stale_if_error: rule.stale_if_error,
    }
}
