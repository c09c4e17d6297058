//! The public listener: sockets, TLS, the strict front door, and HTTP behind it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpService, KeepAlive, Protocol, error::DispatchError};
use actix_server::{Server, ServerBuilder};
use actix_service::{ServiceFactory, ServiceFactoryExt as _, fn_factory, fn_service};
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
    let builder: ServerBuilder = Server::build()
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(grace.as_secs().max(1))
        .max_concurrent_connections(25_600);
    let shared = Arc::clone(shared);
    let builder = match tls {
        None => builder.listen("portway", listener, move || {
            fn_service(|tcp: TcpStream| async move {
                let peer = greet(&tcp)?;
                Ok::<_, DispatchError>((
                    FrontDoor::new(tcp, Limits::default(), false),
                    Protocol::Http1,
                    Some(peer),
                ))
            })
            .and_then(http(Arc::clone(&shared), false))
        })?,
        Some(acceptor) => builder.listen("portway", listener, move || {
            let acceptor = acceptor.clone();
            fn_service(move |tcp: TcpStream| {
                let acceptor = acceptor.clone();
                async move {
                    let peer = greet(&tcp)?;
                    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp));
                    let stream = handshake
                        .await
                        .map_err(|_| DispatchError::SlowRequestTimeout)?
                        .map_err(DispatchError::Io)?;
                    Ok::<_, DispatchError>((
                        FrontDoor::new(stream, Limits::default(), true),
                        Protocol::Http1,
                        Some(peer),
                    ))
                }
            })
            .and_then(http(Arc::clone(&shared), true))
        })?,
    };
    Ok(builder.run())
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
