//! As much of an HTTP client as it takes to see that a server answers, where `curl` is not installed.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Longest response that is read, bytes.
const MAX: u64 = 1 << 20;

/// Fetches a page from a port of this machine.
pub(crate) fn get(port: u16, path: &str, limit: Duration) -> Result<Response> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(MAX).read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// Reads a response that ended with its connection.
fn parse(bytes: &[u8]) -> Result<Response> {
    const END: &[u8] = b"\r\n\r\n";
    let head = bytes.windows(END.len()).position(|w| w == END).context("the response has no head")?;
    let text = String::from_utf8_lossy(&bytes[..head]);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if !first.starts_with("HTTP/1.") {
        bail!("this is no HTTP: {first}");
    }
    let status =
        first.split(' ').nth(1).and_then(|s| s.parse().ok()).context("the response has no status")?;
    let body = bytes[head + END.len()..].to_vec();
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        bail!("the response is cut short: {} of {} bytes", body.len(), length.unwrap_or(0));
    }
    Ok(Response { status, body })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn a_page_is_fetched() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let response = get(port, "/x", Duration::from_secs(10)).unwrap();
        assert_eq!(response, Response { status: 404, body: b"no".to_vec() });
        assert!(server.join().unwrap().starts_with("GET /x HTTP/1.1\r\n"));
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for bytes in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 x\r\n\r\n"] {
            assert!(parse(bytes).is_err());
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").is_err());
    }
}
