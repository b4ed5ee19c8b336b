//! Where a daemon listens, and the way there.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::tls;

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// On this machine.
    Socket(PathBuf),
    /// On another one.
    Remote(Remote),
}

/// A daemon on another machine.
#[derive(Clone)]
pub struct Remote {
    address: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Remote {
    /// The daemon at `HOST:PORT`, with the certificates of a folder. The daemon's own certificate has to be for that host.
    ///
    /// # Errors
    /// The address is none, or the folder is of no use.
    pub fn new(address: &str, folder: &std::path::Path) -> Result<Remote, String> {
        let no_address = || format!("'{address}' is no address: write HOST:PORT");
        let (host, port) = address.rsplit_once(':').ok_or_else(no_address)?;
        port.parse::<u16>().map_err(|_| no_address())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| no_address())?;
        let config = tls::client(folder).map_err(|e| e.to_string())?;
        Ok(Remote { address: address.to_owned(), name, config })
    }
}

impl fmt::Debug for Remote {
    /// Its key is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Remote").field(&self.address).finish()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Socket(path) => path.display().fmt(f),
            Endpoint::Remote(remote) => remote.address.fmt(f),
        }
    }
}

/// What a conversation goes through.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Endpoint {
    /// The name that a request gives to whom it asks.
    pub(crate) fn host(&self) -> &str {
        match self {
            Endpoint::Socket(_) => "localhost",
            Endpoint::Remote(remote) => &remote.address,
        }
    }

    /// Goes there.
    pub(crate) async fn open(&self) -> io::Result<Box<dyn Stream>> {
        let remote = match self {
            Endpoint::Socket(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Endpoint::Remote(remote) => remote,
        };
        let opened = async {
            let stream = TcpStream::connect(&remote.address).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&remote.config));
            connector.connect(remote.name.clone(), stream).await
        };
        let opened = tokio::time::timeout(tls::PATIENCE, opened).await;
        Ok(Box::new(opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}
