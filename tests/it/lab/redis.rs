//! Real Redis servers: alone, with Sentinels, as a Cluster. Each has a port and a directory of its own
//! and comes back at the same address, so that a test can take it away and give it back.

mod cluster;
mod resp;
mod sentinel;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    SOON, Signal, free_port,
    servers::{Process, dying_with_us, program},
    wait_for,
};

pub(crate) use cluster::Cluster;
pub(crate) use resp::Reply;
pub(crate) use sentinel::Sentinel;

/// What a server is started with.
#[derive(Debug, Default, Clone)]
pub(crate) struct Options {
    settings: Vec<(String, String)>,
    password: Option<String>,
    tls: bool,
    sentinel: Option<String>,
    program: Option<PathBuf>,
}

impl Options {
    /// A setting as in `redis.conf`; its values are separated by spaces.
    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Every connection must give this password, those of replicas too.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.set("requirepass", password).set("masterauth", password)
    }

    /// Keeps the data over [`Redis::restart`]; without it a server comes back empty.
    pub(crate) fn persistent(self) -> Self {
        self.set("appendonly", "yes")
    }

    pub(crate) fn replica_of(self, primary: SocketAddr) -> Self {
        self.set("replicaof", format!("{} {}", primary.ip(), primary.port()))
    }

    /// Refuses writes over this size, in bytes, unless `policy` finds something to evict.
    pub(crate) fn max_memory(self, bytes: u64, policy: &str) -> Self {
        self.set("maxmemory", bytes.to_string()).set("maxmemory-policy", policy)
    }

    /// Speaks TLS on a second port, with a certificate for `localhost` and `127.0.0.1`.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Runs as a Sentinel with this configuration, which it rewrites.
    fn sentinel(mut self, config: String) -> Self {
        self.sentinel = Some(config);
        self
    }

    /// Runs this program, which understands Redis's arguments.
    pub(crate) fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(self) -> Redis {
        let tls = self.tls.then(|| {
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            rcgen::generate_simple_self_signed(names).expect("these are names")
        });
        let mut said = String::new();
        for _ in 0..3 {
            let dir = TempDir::new().expect("there is a temporary directory");
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let tls_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let write = |name: &str, text: &str| {
                std::fs::write(dir.path().join(name), text).expect("the directory is ours");
            };
            if let Some(pair) = &tls {
                write("cert.pem", &pair.cert.pem());
                write("key.pem", &pair.signing_key.serialize_pem());
            }
            if let Some(config) = &self.sentinel {
                write("sentinel.conf", config);
            }
            let mut redis =
                Redis { options: self.clone(), process: None, addr, tls_addr, dir, said: None };
            match redis.launch().await {
                Ok(()) => return redis,
                Err(output) => said = output,
            }
        }
        panic!("redis-server does not start: {said}");
    }
}

/// A Redis server of the test's own.
pub(crate) struct Redis {
    options: Options,
    /// None while it is down.
    process: Option<Process>,
    pub(crate) addr: SocketAddr,
    tls_addr: SocketAddr,
    /// Removed after the process is gone, being dropped after it.
    dir: TempDir,
    /// What the process printed that was killed last.
    said: Option<String>,
}

impl Redis {
    /// In memory only, nothing asked.
    pub(crate) async fn start() -> Self {
        Self::options().start().await
    }

    pub(crate) fn options() -> Options {
        Options::default()
    }

    /// Valkey, where `./test` found or brought one.
    pub(crate) fn valkey() -> Option<Options> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/valkey");
        let mut folders = std::env::split_paths(&path).chain([own]);
        let found = folders.find_map(|f| Some(f.join("valkey-server")).filter(|p| p.is_file()));
        found.map(|program| Self::options().program(program))
    }

    /// `REDIS_URL` for it.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}{}", self.user_info(), self.addr)
    }

    /// `REDIS_URL` for it by another address: that of a proxy before it.
    pub(crate) fn url_by(&self, addr: SocketAddr) -> String {
        format!("redis://{}{addr}", self.user_info())
    }

    /// `REDIS_URL` over TLS; [`Self::certificate`] is what to trust.
    pub(crate) fn tls_url(&self) -> String {
        assert!(self.options.tls, "this server was not started with TLS");
        format!("rediss://{}localhost:{}", self.user_info(), self.tls_addr.port())
    }

    /// The file of the certificate it shows over TLS.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn user_info(&self) -> String {
        self.options.password.as_ref().map(|p| format!(":{p}@")).unwrap_or_default()
    }

    fn arguments(&self) -> Command {
        let found = self.options.program.clone().unwrap_or_else(|| program("redis-server"));
        let mut command = dying_with_us(&found);
        command.current_dir(self.dir.path());
        if self.options.sentinel.is_some() {
            command.args(["sentinel.conf", "--sentinel"]);
        } else {
            command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        }
        command.args(["--bind", "127.0.0.1", "--port", &self.addr.port().to_string()]);
        command.arg("--dir").arg(self.dir.path());
        if self.options.tls {
            command.args(["--tls-port", &self.tls_addr.port().to_string()]);
            command.args(["--tls-auth-clients", "no", "--tls-ca-cert-file", "cert.pem"]);
            command.args(["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"]);
        }
        for (name, value) in &self.options.settings {
            command.arg(format!("--{name}")).args(value.split(' '));
        }
        command
    }

    async fn launch(&mut self) -> Result<(), String> {
        let process = Process::listening(&mut self.arguments(), self.addr, SOON).await?;
        self.process = Some(process);
        // It accepts connections before it has read its data.
        wait_for("Redis answers", SOON, || async {
            self.try_command(&["PING"]).await.is_ok().then_some(())
        })
        .await;
        Ok(())
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the server was not killed")
    }

    /// SIGSTOP: connections stay open, new ones are accepted by the kernel, nothing answers.
    pub(crate) fn stop_hanging(&self) {
        self.running().signal(Signal::Stop);
    }

    pub(crate) fn resume(&self) {
        self.running().signal(Signal::Cont);
    }

    /// SIGKILL, as a power cut. Connections to it are refused until [`Self::restart`].
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            self.said = Some(process.output());
        }
    }

    /// Brings it back at its address, killing it first if it runs: empty, unless it is persistent.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        if let Err(said) = self.launch().await {
            panic!("redis-server does not come back: {said}");
        }
    }

    /// What it printed, or what it had printed when it was killed.
    pub(crate) fn output(&self) -> String {
        match &self.process {
            Some(process) => process.output(),
            None => self.said.clone().unwrap_or_default(),
        }
    }

    /// Runs a command on a connection of its own and returns the answer as text, nested ones a line
    /// each; panics if Redis calls it an error.
    #[track_caller]
    pub(crate) fn command(&self, command: &[&str]) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        let shown = command.join(" ");
        let answer = self.try_command(command);
        async move { answer.await.unwrap_or_else(|e| panic!("{caller}: {shown}: {e}")).text() }
    }

    /// The same, as Redis put it; `Err` is its error, or why it could not be asked.
    pub(crate) fn try_command(
        &self,
        command: &[&str],
    ) -> impl Future<Output = Result<Reply, String>> + 'static {
        let command = command.iter().map(|word| word.as_bytes().to_vec()).collect();
        self.try_bytes(command)
    }

    /// The same with words that are not text.
    pub(crate) fn try_bytes(
        &self,
        command: Vec<Vec<u8>>,
    ) -> impl Future<Output = Result<Reply, String>> + 'static {
        resp::ask(self.addr, self.options.password.clone(), command)
    }

    pub(crate) async fn config_set(&self, name: &str, value: &str) {
        self.command(&["CONFIG", "SET", name, value]).await;
    }

    /// Waits until a line of `INFO` is this.
    pub(crate) async fn until_info(&self, section: &str, line: &str, limit: Duration) {
        wait_for(line, limit, || async {
            let info = self.try_command(&["INFO", section]).await.ok()?.text();
            info.lines().any(|l| l.trim() == line).then_some(())
        })
        .await;
    }
}
