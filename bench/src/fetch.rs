//! One HTTP request, and the whole response as it came: so that the native server answers with a guest's very bytes.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const MAX_RESPONSE: usize = 16 << 20;

/// Fetches `path` over a connection of its own that is kept alive by HTTP's defaults. Returns header and body.
///
/// # Errors
/// When there is no whole response with status 200 and a `Content-Length`.
pub fn fetch(server: SocketAddrV4, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server.into(), Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {server}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // In one piece: written bit by bit, the rest of it would wait for the first bit's acknowledgement.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n").as_bytes())?;
    let mut response = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some(length) = length(&response)? {
            ensure!(response.len() <= length, "{path}: more came than the response's length");
            if response.len() == length {
                return Ok(response);
            }
        }
        let n = stream.read(&mut chunk).with_context(|| format!("{path}: the response stopped"))?;
        ensure!(n > 0 && response.len() < MAX_RESPONSE, "{path}: the response is not whole");
        response.extend_from_slice(&chunk[..n]);
    }
}

/// Bytes of the whole response, once its header is there.
fn length(response: &[u8]) -> Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) =
        parsed.parse(response).map_err(|e| anyhow::anyhow!("no HTTP response: {e}"))?
    else {
        return Ok(None);
    };
    if parsed.code != Some(200) {
        bail!("status {:?}", parsed.code);
    }
    let body: usize = parsed
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("content-length"))
        .and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse().ok())
        .context("the response has no Content-Length")?;
    Ok(Some(head + body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_as_long_as_its_header_says() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").unwrap(), Some(45));
        assert!(length(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(length(b"SSH-2.0\r\n").is_err());
    }
}
