//! Published ports: connections to a port of the host are passed on to a guest.
//!
//! A proxy in the process instead of a rule in the kernel's firewall: nothing is left behind when the process is killed, and
//! no firewall needs to be there. Clients that can reach the guests' subnet need no published port and pay nothing for it.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use foraker_confine::Kind;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

/// Most connections through one published port at a time; more wait in the host's backlog.
const CONNECTIONS: usize = 4096;
/// How long a guest may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of buffer for each direction of a connection.
const BUFFER: usize = 16 << 10;

/// Serves published ports from a thread of its own.
#[derive(Debug)]
pub struct Publisher {
    runtime: Handle,
    /// Its end ends the thread, and everything published with it.
    _alive: oneshot::Sender<()>,
}

/// A port of the host that somebody listens on.
#[derive(Debug)]
pub struct Listener {
    runtime: Handle,
    listener: tokio::net::TcpListener,
}

/// A published port. When this is dropped, nobody listens there any more, and every connection through it is closed.
#[derive(Debug)]
pub struct Published {
    task: AbortHandle,
    /// Closed when the task is gone.
    gone: mpsc::Receiver<()>,
}

/// A port that cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another program has it.
    #[error("port {0} is in use: stop the program that listens there, or publish another port")]
    InUse(SocketAddr),
    /// The address or port may not be used.
    #[error("no right to listen on {0}: choose a port from 1024 on, or run as root")]
    Denied(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, std::io::Error),
}

impl Publisher {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host has no thread or event queue to give.
    pub fn start() -> std::io::Result<Publisher> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("published".to_owned()).spawn(move || {
            foraker_confine::enter(Kind::Published);
            // Nothing is ever sent: the other end is dropped.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Publisher { runtime: handle, _alive: alive })
    }

    /// Listens on a port of the host, so that a port in use is known before a guest starts. Connections wait.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn listen(&self, address: SocketAddr) -> Result<Listener, PublishError> {
        let other = |e| PublishError::Other(address, e);
        let listener = TcpListener::bind(address).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => PublishError::InUse(address),
            std::io::ErrorKind::PermissionDenied => PublishError::Denied(address),
            _ => other(e),
        })?;
        listener.set_nonblocking(true).map_err(other)?;
        let _inside = self.runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).map_err(other)?;
        Ok(Listener { runtime: self.runtime.clone(), listener })
    }
}

impl Listener {
    /// Passes connections on to `target`, until what is returned is dropped.
    #[must_use]
    pub fn pass_to(self, target: SocketAddr) -> Published {
        let Listener { runtime, listener } = self;
        let (held, gone) = mpsc::channel();
        let task = runtime.spawn(serve(Open { listener, _held: held }, target));
        Published { task: task.abort_handle(), gone }
    }

    /// The port.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.task.abort();
        // The port is free for the next guest when this returns. No step of the task waits, so that it does at once.
        let _ = self.gone.recv();
    }
}

/// A listener, and what says that it is gone: dropped in this order, also by a task that never ran.
struct Open {
    listener: tokio::net::TcpListener,
    _held: mpsc::Sender<()>,
}

async fn serve(open: Open, target: SocketAddr) {
    // Its connections go first.
    accept(&open.listener, target).await;
}

async fn accept(listener: &tokio::net::TcpListener, target: SocketAddr) {
    // Ended with this function.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            let _ = connections.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                // A connection that breaks is the business of its two ends.
                connections.spawn(async move { drop(relay(client, target).await) });
            }
            // Out of descriptors, or the client has gone: the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let mut guest = tokio::time::timeout(CONNECT, TcpStream::connect(target)).await??;
    client.set_nodelay(true)?;
    guest.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut guest, BUFFER, BUFFER).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn passes_bytes_both_ways_and_closes() {
        let target = TcpListener::bind(any()).unwrap();
        let address = target.local_addr().unwrap();
        let publisher = Publisher::start().unwrap();
        let front = publisher.listen(any()).unwrap();
        let port = front.address().unwrap();
        let _published = front.pass_to(address);
        let guest = std::thread::spawn(move || {
            let (mut c, _) = target.accept().unwrap();
            let mut asked = [0; 4];
            c.read_exact(&mut asked).unwrap();
            c.write_all(b"pong").unwrap();
            asked
        });
        let mut client = std::net::TcpStream::connect(port).unwrap();
        client.write_all(b"ping").unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!((answer.as_slice(), guest.join().unwrap()), (&b"pong"[..], *b"ping"));
    }

    #[test]
    fn what_is_published_no_more_is_free_at_once_and_its_connections_end() {
        let target = TcpListener::bind(any()).unwrap();
        let publisher = Publisher::start().unwrap();
        let mut port = any();
        for round in 0..100 {
            let listener = publisher.listen(port).expect("free again");
            port = listener.address().unwrap();
            let published = listener.pass_to(target.local_addr().unwrap());
            if round % 10 == 0 {
                let mut client = std::net::TcpStream::connect(port).unwrap();
                let (mut guest, _) = target.accept().unwrap();
                drop(published);
                let ended = |end: std::io::Result<usize>| !matches!(end, Ok(1..));
                assert!(ended(client.read(&mut [0])) && ended(guest.read(&mut [0])));
                assert!(std::net::TcpStream::connect(port).is_err(), "nobody listens");
            }
        }
    }

    #[test]
    fn a_port_in_use_is_said_clearly() {
        let taken = TcpListener::bind(any()).unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Publisher::start().unwrap().listen(address).unwrap_err();
        assert!(refused.to_string().contains("in use"));
    }
}
