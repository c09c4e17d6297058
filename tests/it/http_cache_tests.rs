//! The public suite `http-cache-tests`, run through the gateway: RFC 9111 as others read it.
//!
//! The suite is not kept here. It is installed once into the target folder from the npm registry, its
//! origin is started on loopback, and its command line asks the gateway. Its own summary is not used:
//! results are judged against the test list of the installed version and a short list of excuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::lab::{
    Gateway, SOON, eventually,
    servers::{Server, program},
};

const VERSION: &str = "0.4.5";
/// How many optional optimisations must be taken.
const OPTIMAL: usize = 75;
const EXCUSED: &str = include_str!("../http-cache-tests-excused.txt");

/// Keeps the suite's origin on loopback: by itself it listens on every interface.
const LOOPBACK: &str = r"
'use strict'
const net = require('net')
const original = net.Server.prototype.listen
net.Server.prototype.listen = function (first, ...others) {
  if (typeof first !== 'number' && typeof first !== 'string') return original.call(this, first, ...others)
  const ready = others.filter(other => typeof other === 'function')
  return original.call(this, { host: '127.0.0.1', port: Number(first) }, ...ready)
}
";

/// Prints what each test is, since only the suite's own modules know: id, kind, prerequisites.
const LIST: &str = r"
import { pathToFileURL } from 'node:url'
const load = async file => (await import(pathToFileURL(process.argv[2] + '/tests/' + file))).default
const suites = [...await load('index.mjs'), await load('surrogate-control.mjs')]
const tests = suites.flatMap(suite => suite.tests).filter(test => !test.browser_only)
console.log(JSON.stringify(tests.map(test =>
  ({ id: test.id, kind: test.kind ?? 'required', needs: test.depends_on ?? [] }))))
";

/// Installs the suite once per target folder and returns where it is.
fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let done = target.join(format!("http-cache-tests-{VERSION}"));
    let suite = done.join("node_modules/http-cache-tests");
    if suite.is_dir() {
        return suite;
    }
    // Beside it first: an install that was cut short must not look finished.
    let half = tempfile::tempdir_in(target).expect("the target folder can be written");
    let output = Command::new(program("npm"))
        .args(["install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--prefix"])
        .arg(half.path())
        .arg(format!("http-cache-tests@{VERSION}"))
        .output()
        .expect("npm can be started");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "npm install http-cache-tests@{VERSION} failed: {errors}");
    // Another run may have been quicker; one of the two is as good as the other.
    let _ = std::fs::rename(half.path(), &done);
    assert!(suite.is_dir(), "npm installed nothing at {}", suite.display());
    suite
}

/// A Node program that ends by itself; returns what it printed.
async fn node(args: &[&str], dir: &Path, env: &[(&str, String)], limit: Duration) -> String {
    let mut command = tokio::process::Command::new(program("node"));
    command.args(args).current_dir(dir).envs(env.iter().cloned()).kill_on_drop(true);
    command.stdin(Stdio::null());
    let output = crate::lab::within(limit, "node", command.output()).await;
    let output = output.expect("node can be started");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "node {args:?} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Pass,
    Fail,
    /// A prerequisite did not pass, so the result says nothing.
    Dependency,
    /// The test could not be carried out.
    Setup,
    Untested,
}

struct Judge {
    kinds: BTreeMap<String, String>,
    needs: BTreeMap<String, Vec<String>>,
    results: Value,
}

impl Judge {
    fn new(list: &Value, results: Value) -> Self {
        let (mut kinds, mut needs) = (BTreeMap::new(), BTreeMap::new());
        for test in list.as_array().expect("the list is an array") {
            let id = test["id"].as_str().expect("a test has an id").to_owned();
            let on = test["needs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            needs.insert(id.clone(), on.map(str::to_owned).collect());
            kinds.insert(id, test["kind"].as_str().unwrap_or("required").to_owned());
        }
        Self { kinds, needs, results }
    }

    fn verdict(&self, id: &str) -> Verdict {
        let own = match &self.results[id] {
            Value::Null => return Verdict::Untested,
            Value::Bool(true) => Verdict::Pass,
            Value::Array(error) if error.first().is_some_and(|name| name == "Setup") => {
                Verdict::Setup
            }
            _ => Verdict::Fail,
        };
        // The suite's prerequisites have no cycles.
        let needs = self.needs.get(id).into_iter().flatten();
        if needs.into_iter().any(|need| self.verdict(need) != Verdict::Pass) {
            return Verdict::Dependency;
        }
        own
    }

    fn of_kind(&self, kind: &str) -> Vec<(&str, Verdict)> {
        let ids = self.kinds.iter().filter(|(_, k)| *k == kind);
        ids.map(|(id, _)| (id.as_str(), self.verdict(id))).collect()
    }

    fn counts(&self, kind: &str) -> BTreeMap<Verdict, usize> {
        let mut counts = BTreeMap::new();
        for (_, verdict) in self.of_kind(kind) {
            *counts.entry(verdict).or_default() += 1;
        }
        counts
    }
}

/// The ids in the list of excuses; each must say why.
fn excused() -> BTreeSet<&'static str> {
    let lines = EXCUSED.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let split = lines.map(|line| {
        let (id, reason) = line.split_once(' ').unwrap_or((line, ""));
        assert!(!reason.trim().is_empty(), "{id} is excused without a reason");
        id
    });
    split.collect()
}

#[tokio::test]
async fn the_public_suite_passes_but_for_what_is_excused() {
    let suite = tokio::task::spawn_blocking(installed).await.expect("the suite is installed");
    let scratch = tempfile::tempdir().expect("there is a temporary directory");
    let (preload, list) = (scratch.path().join("loopback.cjs"), scratch.path().join("list.mjs"));
    std::fs::write(&preload, LOOPBACK).unwrap();
    std::fs::write(&list, LIST).unwrap();
    let listed =
        node(&[&list.display().to_string(), &suite.display().to_string()], &suite, &[], SOON).await;
    let listed: Value = serde_json::from_str(&listed).expect("the list is JSON");

    let pid = scratch.path().join("origin.pid").display().to_string();
    let origin = Server::node_in(&suite, &preload, "server/server.mjs", move |port| {
        vec![
            ("npm_config_protocol", "http".to_owned()),
            ("npm_config_port", port.to_string()),
            ("npm_config_pidfile", pid.clone()),
        ]
    })
    .await;
    // The suite's origin hangs up and fails on purpose, many times in a row when the machine is busy.
    // A breaker that opens at that is right, and not what is asked here.
    let gateway = Gateway::routing(format!(
        "upstreams:\n  suite:\n    targets: ['http://{}']\n    breaker: {{ failures: 1000, window: 1s, open: 1s }}\nroutes:\n  - {{ name: suite, path: '/{{*rest}}', upstream: suite }}\n",
        origin.addr
    ))
    .start()
    .await;
    eventually("the suite's origin answers through the gateway", SOON, || async {
        // Nor 503: an origin that is slow to start opens the breaker, and the suite must not meet that.
        gateway.get("/state/warm-up").await.status < 500
    })
    .await;

    let env = [
        ("npm_config_protocol", "http".to_owned()),
        ("npm_config_port", origin.addr.port().to_string()),
        ("npm_config_base", format!("http://{}", gateway.public)),
        ("npm_config_id", String::new()),
        ("npm_package_config_id", String::new()),
    ];
    let printed = node(&["--no-warnings", "cli.mjs"], &suite, &env, Duration::from_secs(300)).await;
    let json = &printed[printed.find('{').expect("the results are JSON")..];
    let judge = Judge::new(&listed, serde_json::from_str(json).expect("the results are JSON"));

    for kind in ["required", "optimal", "check"] {
        println!("http-cache-tests {VERSION}, {kind}: {:?}", judge.counts(kind));
    }
    let excused = excused();
    let failed: Vec<_> =
        judge.of_kind("required").into_iter().filter(|(_, v)| *v != Verdict::Pass).collect();
    let passing: Vec<_> = excused.iter().filter(|id| judge.verdict(id) == Verdict::Pass).collect();
    let unexcused: Vec<String> = failed
        .iter()
        .filter(|(id, _)| !excused.contains(id))
        .map(|(id, verdict)| format!("{id}: {verdict:?} {}", judge.results[*id]))
        .collect();
    assert!(unexcused.is_empty(), "required, failed, not excused:\n{}", unexcused.join("\n"));
    assert!(passing.is_empty(), "excused but passing, take it off the list: {passing:?}");
    let optimal = judge.counts("optimal").get(&Verdict::Pass).copied().unwrap_or(0);
    let missed = judge.of_kind("optimal").into_iter().filter(|(_, v)| *v != Verdict::Pass);
    let missed: Vec<_> = missed.collect();
    assert!(optimal >= OPTIMAL, "{optimal} optimal tests pass, {OPTIMAL} should: {missed:?}");
}

#[test]
fn the_judge_fails_what_depends_on_a_failure() {
    let list = serde_json::json!([
        { "id": "a", "kind": "required", "needs": [] },
        { "id": "b", "kind": "required", "needs": ["a"] },
        { "id": "c", "kind": "optimal", "needs": ["b"] },
        { "id": "d", "kind": "check", "needs": [] },
        { "id": "e", "kind": "required", "needs": [] },
    ]);
    let results = serde_json::json!({
        "a": ["Assertion", "no"], "b": true, "c": true, "d": true, "e": ["Setup", "no"]
    });
    let judge = Judge::new(&list, results);
    let verdicts: Vec<Verdict> =
        ["a", "b", "c", "d", "e", "f"].map(|id| judge.verdict(id)).to_vec();
    use Verdict::{Dependency, Fail, Pass, Setup, Untested};
    assert_eq!(verdicts, [Fail, Dependency, Dependency, Pass, Setup, Untested]);
    assert!(!excused().is_empty());
}
