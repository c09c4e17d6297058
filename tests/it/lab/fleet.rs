//! Several gateways with one routes file and one Redis: what a deployment with more than one instance
//! is, as seen from outside.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Gateway, Request, Response, gateway::Builder as GatewayBuilder};

/// What the instances are started with.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    routes: String,
    env: BTreeMap<String, String>,
    own_env: BTreeMap<(usize, String), String>,
}

impl Builder {
    /// A variable for every instance.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// A variable for one instance, before what all have.
    pub(crate) fn env_of(mut self, instance: usize, name: &str, value: impl Into<String>) -> Self {
        self.own_env.insert((instance, name.to_owned()), value.into());
        self
    }

    /// The Redis they share, as `REDIS_URL` puts it.
    pub(crate) fn redis(self, url: impl Into<String>) -> Self {
        self.env("REDIS_URL", url)
    }

    fn instance(&self, nth: usize) -> GatewayBuilder {
        let mut builder = Gateway::routing(&*self.routes);
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        for ((_, name), value) in self.own_env.iter().filter(|((of, _), _)| *of == nth) {
            builder = builder.env(name, value);
        }
        builder
    }

    /// Starts `count` instances and waits until all listen.
    pub(crate) async fn start(self, count: usize) -> Fleet {
        let starting = (0..count).map(|nth| self.instance(nth).start());
        let gateways = futures_util::future::join_all(starting).await;
        Fleet { builder: self, gateways: gateways.into_iter().map(Some).collect() }
    }
}

/// Running instances, numbered from 0.
pub(crate) struct Fleet {
    builder: Builder,
    /// None where one was killed.
    gateways: Vec<Option<Gateway>>,
}

impl Fleet {
    pub(crate) fn routing(routes: impl Into<String>) -> Builder {
        let namespace = ("CACHE_NAMESPACE".to_owned(), "lab".to_owned());
        let env = BTreeMap::from([namespace]);
        Builder { routes: routes.into(), env, own_env: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.gateways.len()
    }

    #[track_caller]
    pub(crate) fn instance(&self, nth: usize) -> &Gateway {
        self.gateways[nth].as_ref().expect("this instance runs")
    }

    /// The instances that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Gateway> {
        self.gateways.iter().flatten()
    }

    pub(crate) async fn get(&self, nth: usize, target: &str) -> Response {
        self.instance(nth).get(target).await
    }

    pub(crate) async fn send(&self, nth: usize, request: &Request) -> Response {
        self.instance(nth).send(request).await
    }

    /// Purges through one instance and returns its answer.
    pub(crate) async fn purge(&self, nth: usize, body: Value) -> Value {
        self.instance(nth).purge(body).await
    }

    /// SIGKILL for one instance, which leaves nobody a goodbye.
    pub(crate) fn kill(&mut self, nth: usize) {
        // The gateway's own drop is a SIGKILL and a wait.
        drop(self.gateways[nth].take());
    }

    /// Starts an instance anew, on other ports, killing the one that ran in its place.
    pub(crate) async fn restart(&mut self, nth: usize) {
        self.kill(nth);
        self.gateways[nth] = Some(self.builder.instance(nth).start().await);
    }

    /// Adds one more instance and returns its number.
    pub(crate) async fn add(&mut self) -> usize {
        let nth = self.len();
        self.gateways.push(Some(self.builder.instance(nth).start().await));
        nth
    }
}
