//! A TCP proxy that misbehaves on demand, to be put between two honest peers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::random::Random;

/// What is done to the bytes that pass, in both directions. The default does nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Holds each piece back this long.
    pub(crate) delay: Duration,
    /// Cuts a connection after this many bytes from the server.
    pub(crate) cut_after: Option<u64>,
    /// Flips a bit of one byte in this many, chosen by the seed.
    pub(crate) corrupt_one_in: Option<u64>,
    /// Takes bytes and forwards none, without a word: a peer that is gone while its connection stays.
    pub(crate) half_open: bool,
    /// Forwards byte by byte.
    pub(crate) one_byte_slices: bool,
    pub(crate) bytes_per_second: Option<u64>,
    /// Accepts connections and closes them at once.
    pub(crate) refuse: bool,
    /// Leaves alone the connections whose client has not said this among its first bytes, in whatever
    /// letters. What it said before the faults were set counts.
    pub(crate) only_where: Option<&'static str>,
}

/// What a connection's client said first.
#[derive(Default)]
struct Said(Mutex<Vec<u8>>);

impl Said {
    /// As much is looked at of each connection.
    const KEPT: usize = 16 << 10;

    fn add(&self, bytes: &[u8]) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = Self::KEPT.saturating_sub(said.len()).min(bytes.len());
        said.extend_from_slice(&bytes[..room]);
    }

    fn holds(&self, text: &str) -> bool {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.windows(text.len()).any(|w| w.eq_ignore_ascii_case(text.as_bytes()))
    }
}

/// A running proxy; stops when dropped.
pub(crate) struct FaultProxy {
    addr: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    cut: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FaultProxy {
    /// Forwards to `server`; `seed` decides what chance decides.
    pub(crate) async fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let faults = Arc::new(Mutex::new(Faults::default()));
        let (cut, on_cut) = watch::channel(());
        let shared = Arc::clone(&faults);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            let mut nth = 0;
            while let Ok((client, _)) = listener.accept().await {
                nth += 1;
                let (faults, mut on_cut) = (Arc::clone(&shared), on_cut.clone());
                on_cut.mark_unchanged();
                connections.spawn(async move {
                    let random = Random::seeded(seed.wrapping_add(nth));
                    tokio::select! {
                        () = forward(client, server, faults, random) => {}
                        _ = on_cut.changed() => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, faults, cut, accepting }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on, also on open connections.
    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Drops every open connection.
    pub(crate) fn cut_all(&self) {
        // Nobody listens when nothing is open.
        let _ = self.cut.send(());
    }
}

async fn forward(
    client: TcpStream,
    server: SocketAddr,
    faults: Arc<Mutex<Faults>>,
    random: Random,
) {
    let now = || faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if now().refuse {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let said = Said::default();
    // Either direction's end ends both: a cut must reach both peers.
    tokio::select! {
        () = pump(client_read, server_write, &faults, &said, random.clone(), false) => {}
        () = pump(server_read, client_write, &faults, &said, random, true) => {}
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    faults: &Mutex<Faults>,
    said: &Said,
    mut random: Random,
    from_server: bool,
) {
    // On the heap: a future that holds its buffer is copied around with it.
    let mut bytes = vec![0; 16384];
    let mut passed = 0_u64;
    loop {
        let Ok(n @ 1..) = from.read(&mut bytes).await else { return };
        if !from_server {
            said.add(&bytes[..n]);
        }
        let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if faults.only_where.is_some_and(|text| !said.holds(text)) {
            faults = Faults::default();
        }
        if faults.half_open {
            continue;
        }
        let mut piece = bytes[..n].to_vec();
        if let Some(one_in) = faults.corrupt_one_in {
            for byte in &mut piece {
                if random.below(one_in) == 0 {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        if !faults.delay.is_zero() {
            tokio::time::sleep(faults.delay).await;
        }
        let allowed = faults.cut_after.filter(|_| from_server).map(|c| c.saturating_sub(passed));
        let cut = allowed.is_some_and(|a| a <= n as u64);
        if let Some(allowed) = allowed {
            piece.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
        }
        passed += piece.len() as u64;
        let size = if faults.one_byte_slices { 1 } else { piece.len().max(1) };
        for slice in piece.chunks(size) {
            if to.write_all(slice).await.is_err() || to.flush().await.is_err() {
                return;
            }
            if faults.one_byte_slices {
                tokio::task::yield_now().await;
            }
        }
        if let Some(rate) = faults.bytes_per_second {
            let millis = piece.len() as u64 * 1000 / rate.max(1);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        if cut {
            return;
        }
    }
}
