//! Listening, and connections: so many at most, each with its time.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use foraker_api::tls::{self, TlsError};
use foraker_confine::Kind;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::router;
use crate::background;
use crate::supervisor::Supervisor;

/// Threads that serve clients.
const THREADS: usize = 2;
/// Most connections at a time to each socket: who fills one leaves the others as they are.
const CONNECTIONS: usize = 1024;
/// How long a client may take to show who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// How long the head of a request may take to come, and how long a connection may rest.
const HEAD: Duration = Duration::from_secs(30);
/// How long a client may leave what is sent to it unread.
const UNREAD: Duration = Duration::from_secs(60);
/// Most bytes of a request's head.
const LONGEST_HEAD: usize = 16 << 10;
/// After what the host has no more descriptors for, for instance.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
pub struct Listener(Way);

/// Where they come from.
enum Way {
    Here(StdListener),
    Elsewhere(StdTcpListener, TlsAcceptor),
}

/// The same, for tasks.
enum Accepting {
    Here(UnixListener),
    Elsewhere(TcpListener, TlsAcceptor),
}

/// Why there is no socket for clients from elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum NoRemote {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error("cannot listen on {0}: {1}")]
    Address(SocketAddr, #[source] io::Error),
}

impl Listener {
    /// Makes the control socket, for those whom its mode allows: 0600 is this user alone.
    ///
    /// # Errors
    /// Another supervisor uses it, or the path cannot be used.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Listener> {
        if StdStream::connect(path).is_ok() {
            let text =
                format!("a supervisor runs already on {}: stop it, or name another --socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        // Left behind by one that was killed; whatever else is there stays, and is an error.
        if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        // Not changed afterwards: others could connect in between.
        // SAFETY: a system call that cannot fail; no other thread makes files yet.
        let mask = unsafe { libc::umask(!mode & 0o777) };
        let listener = StdListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        listener.map(|listener| Listener(Way::Here(listener)))
    }

    /// Makes a socket for clients on other machines that show a certificate (see [`foraker_api::tls`]). Returns also where it is.
    ///
    /// # Errors
    /// See [`NoRemote`].
    pub fn remote(address: SocketAddr, folder: &Path) -> Result<(Listener, SocketAddr), NoRemote> {
        let config = tls::server(folder)?;
        let bound = StdTcpListener::bind(address).and_then(|l| l.local_addr().map(|at| (l, at)));
        let (listener, at) = bound.map_err(|e| NoRemote::Address(address, e))?;
        Ok((Listener(Way::Elsewhere(listener, TlsAcceptor::from(config))), at))
    }

    /// The socket that a service manager has made and handed over, if it has: descriptor 3, as `sd_listen_fds(3)` says.
    #[must_use]
    pub fn inherited() -> Option<Listener> {
        let of = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        if of("LISTEN_PID")? != std::process::id() || of("LISTEN_FDS")? < 1 {
            return None;
        }
        // SAFETY: the service manager says that it is open and ours; nobody else here uses it. It is not to reach the cells.
        let listener = unsafe {
            libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC);
            StdListener::from_raw_fd(3)
        };
        Some(Listener(Way::Here(listener)))
    }

    /// Within the runtime.
    fn accepting(self) -> io::Result<Accepting> {
        Ok(match self.0 {
            Way::Here(listener) => {
                listener.set_nonblocking(true)?;
                Accepting::Here(UnixListener::from_std(listener)?)
            }
            Way::Elsewhere(listener, tls) => {
                listener.set_nonblocking(true)?;
                Accepting::Elsewhere(TcpListener::from_std(listener)?, tls)
            }
        })
    }
}

/// Makes the calling thread one that serves clients, and does so until `until` is done; then those that are being answered have a moment to be finished.
///
/// # Errors
/// The host has no threads to give.
pub fn serve(
    listeners: Vec<Listener>,
    supervisor: Supervisor,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    // Before the runtime starts threads, which inherit it.
    background::enter(Kind::Control);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let router = router(supervisor);
        let mut serving = tokio::task::JoinSet::new();
        for listener in listeners {
            serving.spawn(accept(listener.accepting()?, router.clone()));
        }
        until.await;
        Ok(())
    })
}

async fn accept(listener: Accepting, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Whoever comes when all places are taken waits in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let router = router.clone();
        let accepted = match &listener {
            Accepting::Here(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    converse(stream, router).await;
                    drop(place);
                });
            }),
            Accepting::Elsewhere(listener, tls) => listener.accept().await.map(|(stream, _)| {
                let tls = tls.clone();
                tokio::spawn(async move {
                    // Answers are written as wholes.
                    let _ = stream.set_nodelay(true);
                    match tokio::time::timeout(INTRODUCTION, tls.accept(stream)).await {
                        Ok(Ok(stream)) => converse(stream, router).await,
                        Ok(Err(e)) => log::debug!("somebody is no client of ours: {e}"),
                        Err(_) => log::debug!("somebody does not say who it is"),
                    }
                    drop(place);
                });
            }),
        };
        if let Err(e) = accepted {
            log::debug!("a client cannot be served: {e}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Answers the requests of a connection.
async fn converse(stream: impl AsyncRead + AsyncWrite + Send + 'static, router: Router) {
    let mut stream = tokio_io_timeout::TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let stream = Box::pin(stream);
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    if let Err(e) = conversation.await {
        log::trace!("a client has gone: {e}");
    }
}
