//! Published ports: connections to a port of the host are passed on to a guest.
//!
//! A proxy in the process instead of a rule in the kernel's firewall: nothing is left behind when the process is killed, and
//! no firewall needs to be there. Clients that can reach the guests' subnet need no published port and pay nothing for it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Most connections through one published port at a time; more wait in the host's backlog.
const CONNECTIONS: usize = 4096;
/// How long a guest may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of buffer for each direction of a connection.
const BUFFER: usize = 16 << 10;

/// A port of the host and the guest's address behind it.
#[derive(Debug)]
pub struct Published {
    listener: TcpListener,
    target: SocketAddr,
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

/// Listens on a port of the host, so that a port in use is known before a guest starts.
///
/// # Errors
/// See [`PublishError`].
pub fn listen(address: SocketAddr) -> Result<TcpListener, PublishError> {
    let listener = TcpListener::bind(address).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => PublishError::InUse(address),
        std::io::ErrorKind::PermissionDenied => PublishError::Denied(address),
        _ => PublishError::Other(address, e),
    })?;
    listener.set_nonblocking(true).map_err(|e| PublishError::Other(address, e))?;
    Ok(listener)
}

impl Published {
    /// Passes connections to `listener` on to `target`.
    #[must_use]
    pub fn new(listener: TcpListener, target: SocketAddr) -> Published {
        Published { listener, target }
    }
}

/// Serves published ports from a thread of its own, until the process ends.
///
/// # Errors
/// The host has no thread or event queue to give.
pub fn serve(ports: Vec<Published>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners: Vec<_> = {
        let _inside = runtime.enter();
        ports
            .into_iter()
            .map(|p| Ok((tokio::net::TcpListener::from_std(p.listener)?, p.target)))
            .collect::<std::io::Result<_>>()?
    };
    std::thread::Builder::new().name("published".to_owned()).spawn(move || {
        runtime.block_on(async {
            let tasks: Vec<_> = listeners
                .into_iter()
                .map(|(listener, target)| tokio::spawn(accept(listener, target)))
                .collect();
            for task in tasks {
                // Tasks do not end before the process does.
                let _ = task.await;
            }
        });
    })?;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, target: SocketAddr) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(async move {
                    // A connection that breaks is the business of its two ends.
                    let _ = relay(client, target).await;
                    drop(place);
                });
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

    #[test]
    fn passes_bytes_both_ways_and_closes() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = target.local_addr().unwrap();
        let front = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = front.local_addr().unwrap();
        serve(vec![Published::new(front, address)]).unwrap();
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
    fn a_port_in_use_is_said_clearly() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(listen(address).unwrap_err().to_string().contains("in use"));
    }
}
