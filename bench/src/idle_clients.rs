//! Clients that connect, make one request, and then hold their connections open in silence.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::socket::set_option;

/// Open, idle connections. Reset when dropped, so that none lingers.
#[derive(Debug)]
pub struct IdleClients(Vec<TcpStream>);

impl IdleClients {
    /// Opens `count` connections and makes one request for `path` on each.
    ///
    /// # Errors
    /// When the server does not take one of them, or does not answer with status 200.
    pub fn connect(server: SocketAddrV4, path: &str, count: usize) -> Result<IdleClients> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n");
        let mut clients = IdleClients(Vec::with_capacity(count));
        for i in 0..count {
            let what = || format!("idle connection {i} to {server}");
            let mut stream =
                TcpStream::connect_timeout(&server.into(), Duration::from_secs(5)).with_context(what)?;
            reset_on_close(&stream)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(request.as_bytes()).with_context(what)?;
            let mut answer = [0; 4096];
            let n = stream.read(&mut answer).with_context(what)?;
            ensure!(answer[..n].starts_with(b"HTTP/1.1 200"), "{}: no good answer", what());
            clients.0.push(stream);
        }
        Ok(clients)
    }

    /// Checks that the server still holds every connection.
    ///
    /// # Errors
    /// When one was closed.
    pub fn check(&self) -> Result<()> {
        for (i, stream) in self.0.iter().enumerate() {
            stream.set_nonblocking(true)?;
            let open = matches!(stream.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
            ensure!(open, "the server closed idle connection {i} of {}", self.0.len());
        }
        Ok(())
    }
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(stream, libc::SO_LINGER, &linger).context("SO_LINGER")
}
