//! WebSocket tunnels: the upgrade is forwarded, then bytes pass both ways.
//!
//! Nothing the client sent after its request's head goes upstream before the upstream has agreed
//! with a 101. Otherwise an upstream that answers 200 would read those bytes as a second request,
//! which the gateway never saw (RFC 9110 section 7.8, and a known way to smuggle one).

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{
    ConnectionType, Method, Payload, RequestHead, Response, StatusCode, Version,
    body::{BodySize, BoxBody, MessageBody},
    header::{self, HeaderValue},
};
use bytes::{Bytes, BytesMut};
use futures_util::Stream as _;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    time::Instant,
};

use super::{
    client::{Client, Inbound, Outbound, check},
    clock::now_ms,
    connection::{Io, Timer},
    error::UpstreamError,
    exchange::{Sending, exchange},
    upstream::{Lease, UpstreamState},
    wire::{self, Asked, RequestParts, Send},
};

/// A tunnel through which nothing has passed for so long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(60 * 60);
const PIECE: usize = 16 * 1024;

/// What became of a request to upgrade.
pub enum Upgraded {
    /// The upstream agreed: send this, and bytes pass both ways.
    Tunnel(Response<BoxBody>),
    /// The upstream answered with an ordinary response.
    Declined(Inbound),
}

/// Whether a request asks for a WebSocket. Requests for other protocols are forwarded without that.
pub fn is_websocket(head: &RequestHead) -> bool {
    let headers = head.headers();
    let mut upgrade = headers.get_all(header::UPGRADE);
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && upgrade.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && upgrade.next().is_none()
        && headers.get_all(header::CONNECTION).any(|value| {
            let mut tokens = value.as_bytes().split(|byte| *byte == b',');
            tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        })
}

/// Asks a target of `upstream` to switch to the WebSocket protocol.
///
/// `payload` is what the client sends after its head; the body of `request` is not used. The tunnel
/// has a connection of its own and is not tried twice.
pub async fn tunnel(
    client: &Client,
    upstream: &Arc<UpstreamState>,
    request: &Outbound,
    payload: Payload,
) -> Result<Upgraded, UpstreamError> {
    check(&request.method, &request.path_and_query)?;
    let settings = &upstream.settings;
    upstream.budget.earn();
    let mut lease = upstream.pick(now_ms(), &request.path_and_query, &[])?;
    let fail = |mut lease: Lease, error: UpstreamError| {
        if error.blames_target() {
            lease.failed();
        }
        Err(error)
    };
    let mut connection = match client.open(&lease, settings.timeout.connect).await {
        Ok(connection) => connection,
        Err(error) => return fail(lease, error),
    };
    let protocol = HeaderValue::from_static("websocket");
    let parts = RequestParts {
        method: &request.method,
        base: &lease.target.base,
        path_and_query: &request.path_and_query,
        host: &lease.target.authority,
        headers: &request.headers,
        send: Send::Nothing,
        upgrade: Some(&protocol),
    };
    wire::write_head(&mut connection.write, &parts);
    let mut sending = Some(Sending::new(None, Send::Nothing, settings.timeout.idle));
    let asked = Asked { head: false, upgrade: true };
    let head = exchange(&mut connection, &mut sending, &settings.timeout, asked).await;
    let mut head = match head {
        Ok(head) => head,
        Err(error) => return fail(lease, error),
    };
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        lease.succeeded();
        let idle = settings.timeout.idle;
        let inbound = client.inbound(connection, head, sending, lease, idle);
        return Ok(Upgraded::Declined(inbound));
    }
    let agreed = head.upgrade.take();
    if !agreed.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return fail(lease, UpstreamError::Invalid("it switches to a protocol nobody asked for"));
    }
    lease.succeeded();

    let early = connection.read.split();
    let (reader, writer) = tokio::io::split(connection.io);
    let moved = Rc::new(Cell::new(Instant::now()));
    let upload = actix_rt::spawn(upload(payload, writer, moved.clone()));
    let body = TunnelBody { reader, early, upload, moved, timer: Timer(None), _lease: lease };

    let mut response = Response::new(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    *headers = head.headers;
    headers.insert(header::UPGRADE, protocol);
    response.head_mut().set_connection_type(ConnectionType::Upgrade);
    Ok(Upgraded::Tunnel(response.set_body(BoxBody::new(body))))
}

/// Passes the client's bytes on until it closes, and then says so to the upstream.
async fn upload(
    mut payload: Payload,
    mut writer: WriteHalf<Io>,
    moved: Rc<Cell<Instant>>,
) -> io::Result<()> {
    while let Some(piece) = poll_fn(|cx| Pin::new(&mut payload).poll_next(cx)).await {
        let Ok(piece) = piece else { break };
        writer.write_all(&piece).await?;
        writer.flush().await?;
        moved.set(Instant::now());
    }
    writer.shutdown().await
}

/// The upstream's bytes, until either side closes.
struct TunnelBody {
    reader: ReadHalf<Io>,
    /// What came together with the 101.
    early: BytesMut,
    upload: actix_rt::task::JoinHandle<io::Result<()>>,
    moved: Rc<Cell<Instant>>,
    timer: Timer,
    /// The tunnel counts as a request in flight for as long as it is open.
    _lease: Lease,
}

impl Drop for TunnelBody {
    fn drop(&mut self) {
        // The client is gone or the upstream has closed: nothing is left to pass on.
        self.upload.abort();
    }
}

impl MessageBody for TunnelBody {
    type Error = UpstreamError;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = &mut *self;
        if this.early.is_empty() {
            this.early.reserve(PIECE);
            match pin!(this.reader.read_buf(&mut this.early)).poll(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(UpstreamError::Truncated(Some(error)))));
                }
                Poll::Pending => {
                    // `moved` may advance meanwhile, so the deadline is looked at again each time.
                    ready!(this.timer.poll(cx, this.moved.get() + IDLE_LIMIT));
                    return Poll::Ready(Some(Err(UpstreamError::Stalled(IDLE_LIMIT))));
                }
            }
        }
        this.moved.set(Instant::now());
        Poll::Ready(Some(Ok(this.early.split().freeze())))
    }
}
