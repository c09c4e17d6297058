//! Starters for real servers and peers on free loopback ports, each with a directory of its own and
//! gone when dropped.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{SOON, Signal, free_port, signal, wait_for};

/// PostgreSQL creates a cluster before it serves; on a busy machine that takes its time.
const SLOW_START: Duration = Duration::from_secs(60);

/// A process with its output kept; killed when dropped.
pub(crate) struct Process {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let output = Arc::new(Mutex::new(String::new()));
        keep(child.stdout.take(), &output);
        keep(child.stderr.take(), &output);
        Self { child, output }
    }

    /// Starts it and waits until it listens at `addr`; what it said when it ended before that.
    pub(crate) async fn listening(
        command: &mut Command,
        addr: SocketAddr,
        limit: Duration,
    ) -> Result<Self, String> {
        let mut process = Self::spawn(command);
        let up = wait_for("the server accepts connections", limit, || {
            let ended = process.ended();
            async move {
                if ended {
                    return Some(false);
                }
                TcpStream::connect(addr).await.is_ok().then_some(true)
            }
        });
        if up.await { Ok(process) } else { Err(process.output()) }
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().ok().flatten().is_some()
    }

    /// What it printed so far.
    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn signal(&self, what: Signal) {
        signal(self.child.id(), what);
    }

    /// SIGKILL, as a power cut.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // PostgreSQL's children notice that their parent is gone and leave too.
        self.kill();
    }
}

/// A server process that listens on a loopback port.
pub(crate) struct Server {
    process: Process,
    pub(crate) addr: SocketAddr,
    /// Removed after the process is gone.
    _dir: TempDir,
}

impl Server {
    /// PostgreSQL with a fresh cluster, superuser `postgres`, no password, database `postgres`.
    pub(crate) async fn postgres() -> Self {
        Self::on_a_free_port(SLOW_START, |dir, port| {
            let data = dir.join("data");
            let mut initdb = as_ordinary_user(&program("initdb"), dir);
            initdb.args(["--auth=trust", "--username=postgres", "--no-sync", "-D"]).arg(&data);
            let done = initdb.output().expect("initdb can be started");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "initdb failed: {said}");
            let mut command = as_ordinary_user(&program("postgres"), dir);
            command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
            command.args(["-c", "fsync=off", "-c", "unix_socket_directories="]);
            command
        })
        .await
    }

    /// A Node program, given as its source; it gets its port as `process.argv[2]`.
    pub(crate) async fn node(source: &str) -> Self {
        Self::on_a_free_port(SOON, |dir, port| {
            let script = dir.join("peer.mjs");
            std::fs::write(&script, source).expect("the script can be written");
            let mut command = Command::new(program("node"));
            command.arg(script).arg(port.to_string());
            command
        })
        .await
    }

    /// A Node program of an installed package, run in its folder with `preload` before it.
    pub(crate) async fn node_in(
        folder: &Path,
        preload: &Path,
        script: &str,
        env: impl Fn(u16) -> Vec<(&'static str, String)>,
    ) -> Self {
        Self::on_a_free_port(SOON, |_, port| {
            let mut command = Command::new(program("node"));
            command.arg("--require").arg(preload).arg(script).current_dir(folder).envs(env(port));
            command
        })
        .await
    }

    /// Starts what `command` builds, on another port if somebody else took the first.
    async fn on_a_free_port(limit: Duration, command: impl Fn(&Path, u16) -> Command) -> Self {
        let mut said = String::new();
        for _ in 0..3 {
            let dir = TempDir::new().expect("there is a temporary directory");
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let mut command = command(dir.path(), addr.port());
            match Process::listening(&mut command, addr, limit).await {
                Ok(process) => return Self { process, addr, _dir: dir },
                Err(output) => said = output,
            }
        }
        panic!("the server does not start: {said}");
    }

    /// What it printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

fn keep(stream: Option<impl Read + Send + 'static>, output: &Arc<Mutex<String>>) {
    let Some(stream) = stream else { return };
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.push_str(&line);
            output.push('\n');
        }
    });
}

/// Finds a program on PATH, or where Debian keeps PostgreSQL's. `./test` installs what is missing.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(debian.map(|version| version.path().join("bin")));
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run ./test, which installs it"))
}

/// A command that the kernel kills with the thread that starts it: a test that is itself killed leaves
/// nothing behind.
pub(crate) fn dying_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// PostgreSQL refuses to run as root: there, another user does, and owns the directory.
fn as_ordinary_user(program: &Path, dir: &Path) -> Command {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0");
    if !root {
        return Command::new(program);
    }
    // Temporary directories are private to their owner; this one gets a new one.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir, open).expect("the directory is ours");
    let user = ["postgres", "nobody"].into_iter().find(|user| {
        Command::new("chown").arg(user).arg(dir).output().is_ok_and(|o| o.status.success())
    });
    let user = user.expect("there is a user postgres or nobody");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid"]).arg(group_of(user)).arg("--clear-groups");
    command.arg("--").arg(program).current_dir(dir).env("HOME", dir);
    command
}

fn group_of(user: &str) -> String {
    let group = Command::new("id").args(["-g", user]).output().expect("id is everywhere");
    String::from_utf8_lossy(&group.stdout).trim().to_owned()
}
