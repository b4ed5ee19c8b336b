//! The thread that serves the pages.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::guard::Options;
use crate::http::router;
use crate::source::Source;

/// Most connections at a time; more wait in the host's backlog. A browser opens up to six.
const CONNECTIONS: usize = 256;
/// Threads that ask the source.
const ASKERS: usize = 4;
/// Bytes that the kernel keeps for a browser that does not read.
const UNREAD: usize = 64 << 10;

/// Serves the page on `listener` for ever, from this thread and at most four others that it starts. `options` has the listener's address.
///
/// # Errors
/// The host gives no event queue, or refuses to make the listener ready for it.
pub fn serve(listener: TcpListener, source: Arc<dyn Source>, options: Options) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Accepted connections inherit it.
    socket2::SockRef::from(&listener).set_send_buffer_size(UNREAD)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(ASKERS).build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let listener = Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS)) };
        axum::serve(listener, router(source, options)).await
    })
}

/// Accepts a bounded number of connections.
struct Bounded {
    listener: tokio::net::TcpListener,
    places: Arc<Semaphore>,
}

/// A connection, and its place.
struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // It is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        // Goes on after errors, as the trait asks.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Small messages at a steady pace: none should wait for the next.
        if let Err(e) = stream.set_nodelay(true) {
            log::debug!("a connection to the page: {e}");
        }
        (Connection { stream, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
