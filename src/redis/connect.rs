//! Opens connections: to a server, or to the master that the sentinels name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
    cmd,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{heard::Heard, tls};
use crate::config::{Address, Login, RedisConfig};

/// How long one of several may take that would all do, before the next is asked.
pub(super) const ONE_OF_SEVERAL: Duration = Duration::from_millis(150);

/// Who gets the messages of a subscription.
pub(super) type Pushes = Option<Arc<dyn AsyncPushSender>>;

/// How servers are spoken to.
pub(super) struct Dialer {
    settings: RedisConnectionInfo,
    tls: Option<TlsConnector>,
}

/// A new connection, and the task that reads and writes for it: dropping that closes it, also with
/// replies outstanding from a server that hangs.
pub(super) struct Opened {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: AbortOnDropHandle<()>,
    /// How many bytes have come in.
    pub(super) heard: Arc<AtomicU64>,
}

impl Dialer {
    pub(super) fn new(config: &RedisConfig) -> Self {
        Self {
            settings: settings(&config.login, config.db),
            tls: config.tls.then(|| TlsConnector::from(tls::client_config())),
        }
    }

    pub(super) async fn open(&self, address: &Address, pushes: Pushes) -> RedisResult<Opened> {
        self.open_as(&self.settings, address, pushes).await
    }

    async fn open_as(
        &self,
        settings: &RedisConnectionInfo,
        address: &Address,
        pushes: Pushes,
    ) -> RedisResult<Opened> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => multiplexed(stream, settings, pushes).await,
            Some(tls) => {
                let name = ServerName::try_from(address.host.clone())
                    .map_err(|error| RedisError::from(std::io::Error::other(error)))?;
                multiplexed(tls.connect(name, stream).await?, settings, pushes).await
            }
        }
    }
}

/// Where a connection leads.
pub(super) enum Target {
    Server(Address),
    Master(Sentinels),
}

/// Who knows where the master is.
pub(super) struct Sentinels {
    pub(super) addresses: Vec<Address>,
    pub(super) master: String,
    pub(super) login: Login,
    /// The one to ask first: the last that answered.
    pub(super) first: AtomicUsize,
}

impl Target {
    pub(super) async fn connect(&self, dialer: &Dialer, pushes: Pushes) -> RedisResult<Opened> {
        let sentinels = match self {
            Self::Server(address) => return dialer.open(address, pushes).await,
            Self::Master(sentinels) => sentinels,
        };
        let mut opened = dialer.open(&sentinels.ask(dialer).await?, pushes).await?;
        // Sentinels may be behind the times. A login without leave to ask is believed.
        let role = cmd("ROLE").query_async::<Vec<Value>>(&mut opened.connection).await;
        match role.ok().and_then(|role| role.into_iter().next()) {
            Some(Value::BulkString(role)) if role != b"master" => {
                Err(other("the sentinels name a server that is no master"))
            }
            _ => Ok(opened),
        }
    }
}

impl Sentinels {
    /// Asks one after the other where the master is.
    async fn ask(&self, dialer: &Dialer) -> RedisResult<Address> {
        let settings = settings(&self.login, 0);
        let first = self.first.load(Relaxed);
        let mut last = other("no sentinel answers");
        for at in (0..self.addresses.len()).map(|it| (first + it) % self.addresses.len()) {
            let asking = async {
                let mut sentinel = dialer.open_as(&settings, &self.addresses[at], None).await?;
                let mut question = cmd("SENTINEL");
                question.arg("get-master-addr-by-name").arg(&self.master);
                question.query_async::<Option<(String, u16)>>(&mut sentinel.connection).await
            };
            match timeout(ONE_OF_SEVERAL, asking).await {
                Ok(Ok(Some((host, port)))) => {
                    self.first.store(at, Relaxed);
                    return Ok(Address { host, port });
                }
                Ok(Ok(None)) => last = other("the sentinels know no master of this name"),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }
}

/// RESP3, since its messages come beside replies: a subscription can be asked whether it lives.
fn settings(login: &Login, db: u16) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("portway", env!("CARGO_PKG_VERSION"))
        .set_db(db.into());
    if let Some(username) = &login.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password.expose());
    }
    settings
}

/// Greets the server, logs in, and starts the task that reads and writes.
async fn multiplexed<S>(
    stream: S,
    settings: &RedisConnectionInfo,
    pushes: Pushes,
) -> RedisResult<Opened>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who calls keeps the time.
    let mut config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    if let Some(pushes) = pushes {
        config = config.set_push_sender(pushes);
    }
    let heard = Arc::new(AtomicU64::new(0));
    let stream = Heard::new(stream, Arc::clone(&heard));
    let (connection, driver) =
        MultiplexedConnection::new_with_config(settings, stream, config).await?;
    Ok(Opened { connection, driver: AbortOnDropHandle::new(tokio::spawn(driver)), heard })
}

/// Asks whether the other side lives.
pub(super) async fn ping(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    cmd("PING").query_async::<()>(connection).await
}

/// A fault that is found here and not by the library.
pub(super) fn other(what: &'static str) -> RedisError {
    RedisError::from(std::io::Error::other(what))
}
