//! Starts the real binary and finds out where it listens.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Connection, Request, Response, SOON, Signal, signal, wait_for};

/// What the process printed, both streams together, line by line.
#[derive(Debug, Default, Clone)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn collect(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                log.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                line.clear();
            }
        });
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// The lines that are JSON objects, with an event's `fields` beside its other members.
    pub(crate) fn events(&self) -> Vec<Value> {
        let parsed = self.lines().into_iter().filter_map(|l| serde_json::from_str(&l).ok());
        parsed
            .filter_map(|mut event: Value| {
                let object = event.as_object_mut()?;
                if let Some(Value::Object(fields)) = object.remove("fields") {
                    object.extend(fields);
                }
                Some(event)
            })
            .collect()
    }

    /// The first event with this message.
    pub(crate) fn event(&self, message: &str) -> Option<Value> {
        self.events().into_iter().find(|e| e["message"] == message)
    }
}

/// The binary built with the tests, or the one that `PORTWAY_BIN` names: figures of the soak tests
/// mean something only with a release build.
fn binary() -> OsString {
    std::env::var_os("PORTWAY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_portway").into())
}

/// What a gateway is started with.
#[derive(Debug)]
pub(crate) struct Builder {
    args: Vec<String>,
    env: BTreeMap<String, String>,
    routes: Option<String>,
    /// How many files it may have open; what the tests may, unless set.
    open_files: Option<u32>,
    dir: TempDir,
}

impl Builder {
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Starts it with no more file descriptors than this.
    pub(crate) fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Where this gateway's routes file is or would be.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn routes_path(&self) -> PathBuf {
        self.dir.path().join("routes.yaml")
    }

    fn spawn(&self) -> Child {
        let mut command = match self.open_files {
            None => Command::new(binary()),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!(r#"ulimit -n {limit} && exec "$0" "$@""#)]);
                shell.arg(binary());
                shell
            }
        };
        command.args(&self.args).env_clear().current_dir(self.dir.path());
        command.envs([("HOST", "127.0.0.1"), ("PORT", "0"), ("ADMIN_PORT", "0")]);
        command.envs([("LOG_FORMAT", "json"), ("WORKERS", "2")]);
        if let Some(routes) = &self.routes {
            std::fs::write(self.routes_path(), routes).expect("the routes file can be written");
            command.env("ROUTES_FILE", self.routes_path());
        }
        command.envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary was built with this test")
    }

    fn launch(self) -> Gateway {
        let mut child = self.spawn();
        let log = Log::default();
        log.collect(child.stdout.take().expect("stdout is piped"));
        log.collect(child.stderr.take().expect("stderr is piped"));
        Gateway {
            pid: child.id(),
            child,
            // Unknown until it has said so.
            public: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            log,
            token: self.env.get("ADMIN_TOKEN").cloned(),
            routes_path: self.routes_path(),
            _dir: self.dir,
        }
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start(self) -> Gateway {
        let mut gateway = self.launch();
        let (public, admin) = wait_for("the gateway listens", SOON, || {
            if let Ok(Some(status)) = gateway.child.try_wait() {
                panic!("the gateway ended at start with {status}");
            }
            let event = gateway.log.event("listening");
            async move {
                let event = event?;
                let addr = |field: &str| event[field].as_str()?.parse::<SocketAddr>().ok();
                Some((addr("public_addr")?, addr("admin_addr")?))
            }
        })
        .await;
        (gateway.public, gateway.admin) = (public, admin);
        gateway
    }

    /// Starts something that does not tell its ports as `serve` does: the log is all there is.
    pub(crate) fn start_unseen(self) -> Gateway {
        self.launch()
    }

    /// Runs a command that ends by itself.
    pub(crate) fn run(self) -> Finished {
        let child = self.spawn();
        let output = wait_with_deadline(child, Duration::from_secs(20));
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn wait_with_deadline(child: Child, limit: Duration) -> std::process::Output {
    let pid = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(limit) {
        Ok(output) => output.expect("the command can be waited for"),
        Err(_) => {
            signal(pid, Signal::Kill);
            panic!("the command was still running after {limit:?}");
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running gateway; killed when dropped, its output printed if the test failed.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) log: Log,
    token: Option<String>,
    routes_path: PathBuf,
    _dir: TempDir,
}

impl Gateway {
    fn builder(args: &[&str]) -> Builder {
        Builder {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: BTreeMap::new(),
            routes: None,
            open_files: None,
            dir: TempDir::new().expect("there is a temporary directory"),
        }
    }

    /// `portway serve` with `UPSTREAM_URL`.
    pub(crate) fn before(upstream: &str) -> Builder {
        Self::builder(&["serve"]).env("UPSTREAM_URL", upstream)
    }

    /// `portway serve` with a routes file.
    pub(crate) fn routing(routes: impl Into<String>) -> Builder {
        let mut builder = Self::builder(&["serve"]);
        builder.routes = Some(routes.into());
        builder
    }

    /// Another command, with nothing set but ports of its own.
    pub(crate) fn command(args: &[&str]) -> Builder {
        Self::builder(args)
    }

    /// Another command, with a routes file.
    pub(crate) fn command_with_routes(args: &[&str], routes: &str) -> Builder {
        let mut builder = Self::builder(args);
        builder.routes = Some(routes.to_owned());
        builder
    }

    pub(crate) async fn send(&self, request: &Request) -> Response {
        request.send(self.public).await.unwrap_or_else(|e| {
            panic!("{} {} was not answered: {e}", request.method, request.target)
        })
    }

    pub(crate) async fn get(&self, target: &str) -> Response {
        self.send(&Request::get(target)).await
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.public).await.expect("the gateway accepts")
    }

    /// A request to the admin listener, with the token this gateway was started with.
    pub(crate) async fn admin(&self, request: Request) -> Response {
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        request.send(self.admin).await.expect("the admin listener answers")
    }

    /// Purges by what `body` names and returns the answer.
    pub(crate) async fn purge(&self, body: Value) -> Value {
        let request = Request::post("/admin/v1/cache/purge", body.to_string())
            .header("Content-Type", "application/json");
        let response = self.admin(request).await;
        assert_eq!(response.status, 200, "purge {body}: {:?}", response.text());
        response.json()
    }

    pub(crate) fn routes_path(&self) -> &Path {
        &self.routes_path
    }

    /// Replaces the routes file as editors do: a new file renamed over the old one.
    pub(crate) fn replace_routes(&self, routes: &str) {
        let beside = self.routes_path.with_extension("new");
        std::fs::write(&beside, routes).expect("the routes file can be written");
        std::fs::rename(&beside, &self.routes_path).expect("the routes file can be replaced");
    }

    pub(crate) fn signal(&self, what: Signal) {
        signal(self.pid, what);
    }

    /// Whether the process has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child can be waited for")
    }

    /// SIGTERM, then its end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::Term);
        self.wait(Duration::from_secs(40)).await
    }

    /// Waits for the end of the process.
    pub(crate) async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway was still running after {limit:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may be stopped (SIGSTOP) or gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log.lines();
            let from = lines.len().saturating_sub(200);
            eprintln!("--- the gateway's last lines ---\n{}", lines[from..].join("\n"));
        }
    }
}
