//! What large bodies, many connections and too few file descriptors cost.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Ended, all};
use crate::lab::{
    Answer, Connection, Gateway, Origin, Request, SOON, http, resident_bytes, wait_for, within,
};

const GIB: u64 = 1 << 30;
const PIECE: usize = 64 << 10;

/// The piece that one body repeats: different at each place of it, and for each body.
fn pattern(body: u8) -> Vec<u8> {
    (0..PIECE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ body).collect()
}

/// What is read from a socket, and how far it was taken.
struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    fn new(stream: TcpStream) -> Self {
        Self { stream, bytes: Vec::with_capacity(256 << 10), at: 0 }
    }

    /// What is there, after a read if that is nothing.
    async fn some(&mut self) -> io::Result<&[u8]> {
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(&self.bytes[self.at..])
    }

    /// Everything up to and with `end`, byte by byte: it is short.
    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut taken = Vec::new();
        while !taken.ends_with(end) {
            taken.push(self.some().await?[0]);
            self.at += 1;
        }
        Ok(taken)
    }

    /// Takes `count` bytes of a body of `piece` after `done` of its bytes, and compares each.
    async fn take(&mut self, count: u64, done: &mut u64, piece: &[u8]) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let from = (*done % PIECE as u64) as usize;
            let some = self.some().await?;
            let now = some.len().min(PIECE - from).min(left as usize);
            if some[..now] != piece[from..from + now] {
                return Err(io::Error::other(format!("wrong bytes after {done}")));
            }
            self.at += now;
            *done += now as u64;
            left -= now as u64;
        }
        Ok(())
    }

    /// Takes a whole body and returns its length.
    async fn body(&mut self, chunked: bool, length: u64, piece: &[u8]) -> io::Result<u64> {
        let mut done = 0;
        if !chunked {
            self.take(length, &mut done, piece).await?;
            return Ok(done);
        }
        loop {
            let line = self.until(b"\r\n").await?;
            let line = http::latin1(&line[..line.len() - 2]);
            match http::chunk_size(&line).map_err(io::Error::other)? {
                0 => break,
                size => self.take(size, &mut done, piece).await?,
            }
            self.until(b"\r\n").await?;
        }
        self.until(b"\r\n").await?;
        Ok(done)
    }
}

/// Writes a body of 1 GiB, piece by piece.
async fn write_body(stream: &mut TcpStream, chunked: bool, piece: &[u8]) -> io::Result<()> {
    let mut frame = piece.to_vec();
    if chunked {
        frame = [format!("{PIECE:x}\r\n").as_bytes(), piece, b"\r\n"].concat();
    }
    for _ in 0..GIB / PIECE as u64 {
        stream.write_all(&frame).await?;
    }
    if chunked { stream.write_all(b"0\r\n\r\n").await } else { Ok(()) }
}

fn framing(chunked: bool) -> String {
    if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {GIB}") }
}

/// An origin that sends 1 GiB for a GET, and takes one for a PUT, without holding either. The path
/// is `/{body}`; bodies with an odd number are chunked.
async fn giants() -> (SocketAddr, Ended) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let addr = listener.local_addr().expect("a bound socket has an address");
    let accepting = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(giant(stream));
        }
    });
    (addr, Ended(accepting))
}

async fn giant(stream: TcpStream) -> io::Result<()> {
    let mut reader = Reader::new(stream);
    loop {
        let head = http::latin1(&reader.until(b"\r\n\r\n").await?);
        let target = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        let Ok(body) = target.parse::<u8>() else {
            reader.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            continue;
        };
        let (chunked, piece) = (body % 2 == 1, pattern(body));
        if head.starts_with("PUT") {
            let read = reader.body(chunked, GIB, &piece).await;
            let text = read.map_or_else(|e| e.to_string(), |n| n.to_string());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            reader.stream.write_all(answer.as_bytes()).await?;
            continue;
        }
        // Cacheable, as far as the headers go: the gateway begins to store it, and gives up.
        let framing = framing(chunked);
        let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\n{framing}\r\n\r\n");
        reader.stream.write_all(head.as_bytes()).await?;
        write_body(&mut reader.stream, chunked, &piece).await?;
    }
}

/// Keeps the highest resident memory of a process while it is there.
fn watch_memory(pid: u32) -> (Arc<AtomicU64>, Ended) {
    let highest = Arc::new(AtomicU64::new(resident_bytes(pid)));
    let noted = Arc::clone(&highest);
    let watching = tokio::spawn(async move {
        loop {
            noted.fetch_max(resident_bytes(pid), SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    (highest, Ended(watching))
}

async fn download(addr: SocketAddr, body: u8) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET /{body} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await?;
    let mut reader = Reader::new(stream);
    let head = http::latin1(&reader.until(b"\r\n\r\n").await?).to_ascii_lowercase();
    let chunked = head.contains("transfer-encoding: chunked");
    assert!(head.starts_with("http/1.1 200") && (chunked || head.contains("content-length: ")));
    assert_eq!(reader.body(chunked, GIB, &pattern(body)).await?, GIB);
    Ok(())
}

async fn upload(addr: SocketAddr, body: u8) -> io::Result<()> {
    let chunked = body % 2 == 1;
    let mut stream = TcpStream::connect(addr).await?;
    let head = format!("PUT /{body} HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", framing(chunked));
    stream.write_all(head.as_bytes()).await?;
    write_body(&mut stream, chunked, &pattern(body)).await?;
    let mut reader = Reader::new(stream);
    let head = http::latin1(&reader.until(b"\r\n\r\n").await?);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let all = GIB.to_string();
    let said = reader.until(all.as_bytes());
    within(SOON, "the origin has it whole", said).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_gigabytes_pass_in_little_memory() {
    const AT_ONCE: u8 = 10;
    const ALLOWED: u64 = 32 << 20;
    let (origin, _origin) = giants().await;
    let routes = format!(
        "upstreams:\n  app: {{ targets: ['http://{origin}'] }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, max_body: 1GiB, cache: {{}} }}\n"
    );
    let gateway = Gateway::routing(routes).start().await;
    gateway.get("/small").await;
    for direction in ["down", "up"] {
        let before = resident_bytes(gateway.pid);
        let cpu = cpu_time(gateway.pid);
        let (highest, watching) = watch_memory(gateway.pid);
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for body in 0..AT_ONCE {
            let addr = gateway.public;
            clients.spawn(async move {
                let passed = match direction {
                    "down" => download(addr, body).await,
                    _ => upload(addr, body).await,
                };
                passed.unwrap_or_else(|e| panic!("body {body} {direction}: {e}"));
            });
        }
        within(Duration::from_secs(600), "ten bodies", all(clients)).await;
        drop(watching);
        let (took, added) = (started.elapsed(), highest.load(SeqCst).saturating_sub(before));
        println!(
            "10 GiB {direction} in {took:.1?} ({:.0} MiB/s), {:.1} s of CPU, {:.1} MiB more at the highest, over {:.1} MiB",
            10240.0 / took.as_secs_f64(),
            (cpu_time(gateway.pid) - cpu).as_secs_f64(),
            added as f64 / f64::from(1 << 20),
            before as f64 / f64::from(1 << 20),
        );
        assert!(added < ALLOWED, "{} MiB more ({direction})", added >> 20);
    }
}

/// The CPU time a process has used so far, in the 1/100 s that Linux counts in.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name of the program comes before and may hold anything but is in parentheses.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[12..14].iter().map(|f| f.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

/// How many files this process may have open.
fn files_allowed() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux tells limits");
    let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(3).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

/// Asks on a connection that holds no buffer and reads until `body`, which is small.
async fn ask_bare(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await?;
    let (mut answer, mut length) = ([0; 2048], 0);
    let end = format!("\r\n\r\n{path}");
    while !answer[..length].ends_with(end.as_bytes()) {
        match stream.read(&mut answer[length..]).await? {
            0 => return Err(io::Error::other(http::latin1(&answer[..length]))),
            n => length += n,
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", http::latin1(&answer[..length]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_idle_connections_cost_little() {
    const CONNECTIONS: usize = 10_000;
    const ALLOWED_EACH: u64 = 24 << 10;
    if files_allowed() < CONNECTIONS + 300 {
        println!("skipped: {} open files are too few, see ulimit -n", files_allowed());
        return;
    }
    let origin = Origin::start(|seen| Answer::cacheable(seen.target.clone())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/warm").await;
    let before = resident_bytes(gateway.pid);
    let started = Instant::now();
    let mut idle = Vec::new();
    for n in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(gateway.public).await.unwrap();
        let path = format!("/{}", n % 10);
        let answer = within(SOON, "an answer", ask_bare(&mut stream, &path)).await;
        answer.unwrap_or_else(|e| panic!("connection {n}: {e}"));
        idle.push(stream);
    }
    let opened = started.elapsed();
    let each = resident_bytes(gateway.pid).saturating_sub(before) / CONNECTIONS as u64;
    let (cpu, since) = (cpu_time(gateway.pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let used = (cpu_time(gateway.pid) - cpu).as_secs_f64() / since.elapsed().as_secs_f64();
    let mut slowest = Duration::ZERO;
    for n in 0..100 {
        let asked = Instant::now();
        assert_eq!(gateway.get(&format!("/{n}")).await.text(), format!("/{n}"));
        slowest = slowest.max(asked.elapsed());
    }
    println!(
        "{CONNECTIONS} connections opened in {opened:.1?}, {each} bytes each, {:.2} % CPU while idle, slowest of 100 new requests {slowest:.1?}",
        used * 100.0,
    );
    for (n, stream) in idle.iter_mut().enumerate() {
        let answer = within(SOON, "an answer", ask_bare(stream, "/0")).await;
        answer.unwrap_or_else(|e| panic!("idle connection {n}: {e}"));
    }
    drop(idle);
    assert!(each < ALLOWED_EACH, "{each} bytes each");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(used < 0.2, "{used:.2} of a core for idle connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn full_file_descriptors_are_survived() {
    const CLIENTS: usize = 300;
    const STARVED: Duration = Duration::from_secs(5);
    let origin = Origin::start(|seen| Answer::ok(seen.target.clone())).await;
    let gateway = &Gateway::before(&origin.url()).open_files(128).start().await;
    gateway.get("/warm").await;
    for round in 0..3 {
        let lines = gateway.log.lines().len();
        let (cpu, started) = (cpu_time(gateway.pid), Instant::now());
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            let addr = gateway.public;
            clients.spawn(async move {
                // Connected by the kernel, whether or not the gateway takes it.
                let mut connection = Connection::open(addr).await.unwrap();
                let request = Request::get(format!("/{round}/{n}"));
                let answer = tokio::time::timeout(STARVED, connection.ask(&request)).await;
                tokio::time::sleep(STARVED.saturating_sub(started.elapsed())).await;
                match answer {
                    Err(_) => "waiting".to_owned(),
                    Ok(Err(error)) => format!("{:?}", error.kind()),
                    Ok(Ok(answer)) => answer.status.to_string(),
                }
            });
        }
        let mut outcomes = std::collections::BTreeMap::<String, usize>::new();
        tokio::time::sleep(STARVED / 2).await;
        let files = fs::read_dir(format!("/proc/{}/fd", gateway.pid)).expect("the process lives");
        let files = files.count();
        while let Some(outcome) = clients.join_next().await {
            *outcomes.entry(outcome.unwrap()).or_default() += 1;
        }
        let used = (cpu_time(gateway.pid) - cpu).as_secs_f64() / started.elapsed().as_secs_f64();
        let left = Instant::now();
        // First that it takes connections, then that upstreams are reached.
        let answers = |path: &'static str| async move {
            wait_for("it answers again", Duration::from_secs(10), || async {
                let question = Request::get(path);
                let answer = tokio::time::timeout(SOON, question.send(gateway.public)).await;
                (answer.ok()?.ok()?.status == 200).then_some(())
            })
            .await;
            left.elapsed()
        };
        let (accepts, recovered) = (answers("/health/live").await, answers("/after").await);
        println!(
            "round {round}: {outcomes:?}, {files} files open, {:.1} % CPU, {} log lines; accepts {accepts:.2?} and proxies {recovered:.2?} after the clients left",
            used * 100.0,
            gateway.log.lines().len() - lines,
        );
        assert!(used < 0.5, "{used:.2} of a core while starved");
        assert!(recovered < Duration::from_secs(1), "accepts {accepts:?}, proxies {recovered:?}");
        assert!(outcomes.contains_key("waiting"), "it was not starved: {outcomes:?}");
    }
}
