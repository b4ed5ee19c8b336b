//! The control API as any client sees it: HTTP/1.1 over a Unix socket, written by hand, so that it can be written wrongly too.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Its body as JSON.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Its body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether it says what is wrong as it should: problem details, in one line.
    #[must_use]
    pub fn is_a_problem(&self) -> bool {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        self.head.to_ascii_lowercase().contains("content-type: application/problem+json")
            && problem["status"] == self.status
            && !detail.is_empty()
            && !detail.contains('\n')
    }
}

/// Asks once, on a connection of its own.
///
/// # Panics
/// There is no answer.
#[must_use]
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    send(socket, request.as_bytes()).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// Sends bytes, whatever they are, and reads what comes back.
///
/// # Errors
/// Nobody listens, or what comes back is no answer.
pub fn send(socket: &Path, request: &[u8]) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It may have seen enough and closed.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        read?;
    }
    answer(&bytes)
}

/// Takes an answer apart.
///
/// # Errors
/// It is none.
pub fn answer(bytes: &[u8]) -> io::Result<Answer> {
    let no_answer =
        || io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(bytes).into_owned());
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(no_answer)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(no_answer)?;
    let body = bytes[end + 4..].to_vec();
    Ok(Answer { status, head, body })
}
