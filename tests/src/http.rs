//! A small HTTP/1.1 client that believes nothing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::bounds::stretched;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// As the host's network says.
    pub fn open(to: SocketAddr) -> io::Result<Connection> {
        Connection::open_within(to, PATIENCE)
    }

    /// Connects; each step may take so long (stretched).
    ///
    /// # Errors
    /// As the host's network says.
    pub fn open_within(to: SocketAddr, patience: Duration) -> io::Result<Connection> {
        let patience = stretched(patience);
        let stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Connection { reader: BufReader::with_capacity(64 << 10, stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// As the host's network says.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// As the host's network says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write)
    }

    /// Asks for a document, and reads the answer.
    ///
    /// # Errors
    /// The network's, or the answer is no HTTP.
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").as_bytes())?;
        self.response(false)
    }

    /// Reads the next answer; one to `HEAD` has no body.
    ///
    /// # Errors
    /// The network's, or the answer is no HTTP.
    pub fn response(&mut self, to_head: bool) -> io::Result<Response> {
        let line = self.line()?;
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|word| word.parse().ok());
        let Some(status) = status.filter(|_| version == "HTTP/1.1" || version == "HTTP/1.0") else {
            return Err(invalid(format!("no status line: {line:?}")));
        };
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| invalid(format!("no header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if to_head || status == 304 || status == 204 {
            return Ok(response);
        }
        let length = response.header("content-length").map(str::parse::<usize>);
        match (length, response.header("transfer-encoding")) {
            (Some(Ok(length)), None) => {
                response.body.resize(length, 0);
                self.reader.read_exact(&mut response.body)?;
            }
            (None, Some("chunked")) => response.body = self.chunks()?,
            (None, None) => {
                self.reader.read_to_end(&mut response.body)?;
            }
            other => return Err(invalid(format!("length of the body: {other:?}"))),
        }
        Ok(response)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size =
                usize::from_str_radix(line.trim(), 16).map_err(|_| invalid(format!("chunk: {line:?}")))?;
            let start = body.len();
            body.resize(start + size, 0);
            self.reader.read_exact(&mut body[start..])?;
            if !self.line()?.is_empty() {
                return Err(invalid("a chunk does not end with a line end"));
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.reader.read_until(b'\n', &mut bytes)?;
        match bytes.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None if bytes.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(invalid(format!("a line without CR LF: {:?}", String::from_utf8_lossy(&bytes)))),
        }
    }

    /// Whether the other side closed the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]))
            || self.reader.fill_buf().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
    }
}

/// One document over a connection of its own.
///
/// # Errors
/// The network's, or the answer is no HTTP.
pub fn get(from: SocketAddr, path: &str) -> io::Result<Response> {
    Connection::open(from)?.get(path)
}

/// Waits until a server answers with 200.
///
/// # Panics
/// It does not within `limit` (stretched).
pub fn wait_until_serving(server: SocketAddr, limit: Duration) {
    let mut last = String::new();
    let serving = crate::bounds::eventually(limit, || match get(server, "/") {
        Ok(response) if response.status == 200 => true,
        other => {
            last = format!("{other:?}");
            false
        }
    });
    assert!(serving, "{server} does not serve: {last}");
}
