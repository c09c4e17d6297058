//! The public listener: sockets, TLS, the strict front door, and HTTP behind it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_http::{HttpService, KeepAlive, Protocol, error::DispatchError};
use actix_server::Server;
use actix_service::{
    Service as _, ServiceFactory, ServiceFactoryExt as _,
    boxed::{self, BoxServiceFactory},
    fn_factory, fn_service,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Shared,
    front_door::{FrontDoor, Limits},
    pipeline::{Connection, Gateway},
};

/// How long a client may take over the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time the workers have to let go of the listener.
pub const HANDOVER: Duration = Duration::from_millis(100);

/// Connections the kernel holds for us while all workers are busy.
const BACKLOG: i32 = 4096;

/// Opens a listening socket. The address can be taken over at once by the next process.
///
/// # Errors
///
/// When the address is in use or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves the gateway on `listener`; with `tls`, only over TLS.
///
/// # Errors
///
/// When the listener cannot be registered.
pub fn serve(
    shared: &Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    workers: usize,
    grace: Duration,
) -> io::Result<Server> {
    let shared = Arc::clone(shared);
    let server = Server::build()
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(grace.as_secs().max(1))
        .max_concurrent_connections(25_600)
        .listen("portway", listener, move || connections(&shared, tls.clone()))?
        .run();
    Ok(server)
}

/// Serves what waits in the queue of `listener` when the workers have stopped to accept.
///
/// Closing a listening socket resets the connections in its queue. So the app keeps a second handle
/// to the socket; the workers' own is closed first, and the queue is emptied here before the last.
pub async fn serve_last(
    shared: &Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    let Ok(service) = connections(shared, tls).new_service(()).await else { return Ok(()) };
    let service = Rc::new(service);
    let mut open = tokio::task::JoinSet::new();
    let until = Instant::now() + HANDOVER;
    loop {
        let last = Instant::now() >= until;
        // Without blocking, until the queue is empty or the connection at its head is broken.
        while let Ok((tcp, _)) = listener.accept() {
            tcp.set_nonblocking(true)?;
            let (tcp, service) = (TcpStream::from_std(tcp)?, Rc::clone(&service));
            open.spawn_local(async move { service.call(tcp).await });
        }
        if last {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(listener);
    while open.join_next().await.is_some() {}
    Ok(())
}

type Connections = BoxServiceFactory<(), TcpStream, (), DispatchError, ()>;

/// What a worker does with a connection.
fn connections(shared: &Arc<Shared>, tls: Option<TlsAcceptor>) -> Connections {
    match tls {
        None => boxed::factory(
            fn_service(|tcp: TcpStream| async move {
                let peer = greet(&tcp)?;
                let door = FrontDoor::new(tcp, Limits::default(), false);
                Ok::<_, DispatchError>((door, Protocol::Http1, Some(peer)))
            })
            .and_then(http(Arc::clone(shared), false)),
        ),
        Some(acceptor) => boxed::factory(
            fn_service(move |tcp: TcpStream| {
                let acceptor = acceptor.clone();
                async move {
                    let peer = greet(&tcp)?;
                    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp));
                    let stream = handshake
                        .await
                        .map_err(|_| DispatchError::SlowRequestTimeout)?
                        .map_err(DispatchError::Io)?;
                    let door = FrontDoor::new(stream, Limits::default(), true);
                    Ok::<_, DispatchError>((door, Protocol::Http1, Some(peer)))
                }
            })
            .and_then(http(Arc::clone(shared), true)),
        ),
    }
}

fn greet(tcp: &TcpStream) -> Result<SocketAddr, DispatchError> {
    tcp.set_nodelay(true).map_err(DispatchError::Io)?;
    tcp.peer_addr().map_err(DispatchError::Io)
}

fn http<IO>(
    shared: Arc<Shared>,
    secure: bool,
) -> impl ServiceFactory<
    (FrontDoor<IO>, Protocol, Option<SocketAddr>),
    Config = (),
    Response = (),
    Error = DispatchError,
    InitError = (),
>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let draining = Arc::clone(&shared);
    HttpService::build()
        // The front door keeps time: it knows where a request begins.
        .client_request_timeout(Duration::ZERO)
        .keep_alive(KeepAlive::Os)
        // A client that leaves takes its upstream request along.
        .h1_allow_half_closed(false)
        .graceful_shutdown_signal(move || {
            let shared = Arc::clone(&draining);
            async move { shared.draining.cancelled().await }
        })
        .on_connect_ext(move |io: &FrontDoor<IO>, data| {
            data.insert(Connection { door: io.connection(), secure });
        })
        .finish(fn_factory(move || {
            let gateway = Gateway::new(Arc::clone(&shared));
            async move { Ok::<_, ()>(gateway) }
        }))
        .map_init_err(|_| ())
}
