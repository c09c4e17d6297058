//! Opens connections: to a server, to the master that the sentinels name, to a cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, Value,
    aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
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

use super::{BUDGET, CONNECT, tls};
use crate::config::{Address, Login, RedisConfig, Servers};

/// How long one sentinel may take before the next is asked.
const SENTINEL: Duration = Duration::from_millis(150);

/// How often a cluster connection goes after a redirection or a lost node within one call.
const REDIRECTIONS: u32 = 4;

/// Knows how to get a connection.
pub(super) struct Connector {
    servers: Servers,
    settings: RedisConnectionInfo,
    tls: Option<TlsConnector>,
    /// The sentinel, or the node, to ask first: the last that answered.
    first: AtomicUsize,
}

/// A connection that any number of calls may use at once. Clones are the same connection.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A new connection, and the task that reads and writes for it: dropping that closes it, also with
/// replies outstanding from a server that hangs.
pub(super) struct Opened<C> {
    pub(super) connection: C,
    pub(super) driver: Option<AbortOnDropHandle<()>>,
}

impl Connector {
    pub(super) fn new(config: &RedisConfig) -> Self {
        Self {
            servers: config.servers.clone(),
            settings: settings(&config.login, config.db),
            tls: config.tls.then(|| TlsConnector::from(tls::client_config())),
            first: AtomicUsize::new(0),
        }
    }

    /// How Redis is set up, in a word.
    pub(super) fn mode(&self) -> &'static str {
        match self.servers {
            Servers::Single(_) => "single",
            Servers::Sentinel { .. } => "sentinel",
            Servers::Cluster(_) => "cluster",
        }
    }

    /// A connection for commands.
    pub(super) async fn connect(&self) -> RedisResult<Opened<Connection>> {
        if let Servers::Cluster(nodes) = &self.servers {
            let client = ClusterClientBuilder::new(self.nodes(nodes)?)
                .connection_timeout(CONNECT)
                .response_timeout(BUDGET)
                // The caller keeps the time.
                .overall_response_timeout(None)
                .retries(REDIRECTIONS)
                .min_retry_wait(2)
                .max_retry_wait(10)
                .build()?;
            let connection = Connection::Cluster(client.get_async_connection().await?);
            return Ok(Opened { connection, driver: None });
        }
        let opened = self.subscriber(None).await?;
        Ok(Opened { connection: Connection::Server(opened.connection), driver: opened.driver })
    }

    /// A connection to one server; `pushes` gets the messages it is subscribed to. In a cluster
    /// every node has every message, so any will do.
    pub(super) async fn subscriber(
        &self,
        pushes: Option<Arc<dyn AsyncPushSender>>,
    ) -> RedisResult<Opened<MultiplexedConnection>> {
        match &self.servers {
            Servers::Single(address) => self.open(address, &self.settings, pushes).await,
            Servers::Sentinel { sentinels, master, login } => {
                let address = self.master(sentinels, master, login).await?;
                let mut opened = self.open(&address, &self.settings, pushes).await?;
                // Sentinels may be behind the times. A login without leave to ask is believed.
                let role = cmd("ROLE").query_async::<Vec<Value>>(&mut opened.connection).await;
                let role = role.ok().and_then(|role| role.into_iter().next());
                match role {
                    Some(Value::BulkString(role)) if role != b"master" => {
                        Err((ErrorKind::Io, "the sentinels name a server that is no master").into())
                    }
                    _ => Ok(opened),
                }
            }
            Servers::Cluster(nodes) => {
                let mut last = None;
                let first = self.first.load(Relaxed);
                for at in (0..nodes.len()).map(|it| (first + it) % nodes.len()) {
                    let opening = self.open(&nodes[at], &self.settings, pushes.clone());
                    match timeout(SENTINEL, opening).await {
                        Ok(Ok(opened)) => {
                            self.first.store(at, Relaxed);
                            return Ok(opened);
                        }
                        Ok(Err(error)) => last = Some(error),
                        Err(_) => {}
                    }
                }
                Err(last.unwrap_or_else(|| (ErrorKind::Io, "no node answers").into()))
            }
        }
    }

    /// Asks one sentinel after the other where the master is.
    async fn master(
        &self,
        sentinels: &[Address],
        name: &str,
        login: &Login,
    ) -> RedisResult<Address> {
        let settings = settings(login, 0);
        let first = self.first.load(Relaxed);
        let mut last = None;
        for at in (0..sentinels.len()).map(|it| (first + it) % sentinels.len()) {
            let asking = async {
                let mut sentinel = self.open(&sentinels[at], &settings, None).await?;
                let mut question = cmd("SENTINEL");
                question.arg("get-master-addr-by-name").arg(name);
                question.query_async::<Option<(String, u16)>>(&mut sentinel.connection).await
            };
            match timeout(SENTINEL, asking).await {
                Ok(Ok(Some((host, port)))) => {
                    self.first.store(at, Relaxed);
                    return Ok(Address { host, port });
                }
                Ok(Ok(None)) => {
                    last = Some((ErrorKind::MasterNameNotFoundBySentinel, "unknown name").into());
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
        }
        Err(last.unwrap_or_else(|| (ErrorKind::Io, "no sentinel answers").into()))
    }

    async fn open(
        &self,
        address: &Address,
        settings: &RedisConnectionInfo,
        pushes: Option<Arc<dyn AsyncPushSender>>,
    ) -> RedisResult<Opened<MultiplexedConnection>> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => multiplexed(stream, settings, pushes).await,
            Some(tls) => {
                let name = ServerName::try_from(address.host.clone())?;
                multiplexed(tls.connect(name, stream).await?, settings, pushes).await
            }
        }
    }

    fn nodes(&self, nodes: &[Address]) -> RedisResult<Vec<ConnectionInfo>> {
        let tls = self.tls.is_some();
        nodes
            .iter()
            .map(|Address { host, port }| {
                let (host, port) = (host.clone(), *port);
                let address = match tls {
                    true => {
                        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
                    }
                    false => ConnectionAddr::Tcp(host, port),
                };
                let info = address.into_connection_info()?;
                Ok(info.set_redis_settings(self.settings.clone()))
            })
            .collect()
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
    pushes: Option<Arc<dyn AsyncPushSender>>,
) -> RedisResult<Opened<MultiplexedConnection>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who calls keeps the time.
    let mut config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    if let Some(pushes) = pushes {
        config = config.set_push_sender(pushes);
    }
    let (connection, driver) =
        MultiplexedConnection::new_with_config(settings, stream, config).await?;
    let driver = Some(AbortOnDropHandle::new(tokio::spawn(driver)));
    Ok(Opened { connection, driver })
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Asks whether the other side lives.
pub(super) async fn ping(connection: &mut impl ConnectionLike) -> Result<(), RedisError> {
    cmd("PING").query_async::<()>(connection).await
}
