//! Whose requests are answered.
//!
//! The page listens on an address of this machine, and so every web page that a browser on it opens can send requests there. Three things
//! keep those out:
//! - `Host` must be the address itself or `localhost`. A name that somebody else's name server resolves to this address (DNS rebinding) is not.
//! - `Origin`, where there is one, must be the page's own, and what the page asks in the background must come from the page (`Sec-Fetch-Site`).
//! - Actions need the *key*, which is only in the address that the daemon printed, behind `#`: a browser sends it to nobody by itself. It also
//!   keeps out other users of this machine, who may read the page like everybody who can connect.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The header that carries the key.
pub(crate) const KEY_HEADER: &str = "x-foraker-key";

/// Nothing from elsewhere, nothing in line, no markup from text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Where the page is, and what may be done there.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that it listens on.
    address: SocketAddr,
    /// What an action needs; without it, none is possible.
    key: Option<Key>,
}

impl Options {
    /// A page that only shows, on this address.
    #[must_use]
    pub const fn read_only(address: SocketAddr) -> Self {
        Self { address, key: None }
    }

    /// A page on which guests can be started, stopped, killed, paused and resumed by who has the key.
    #[must_use]
    pub const fn writable(address: SocketAddr, key: Key) -> Self {
        Self { address, key: Some(key) }
    }

    /// Whether there are actions.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.key.is_some()
    }

    /// What to open in a browser, with the key.
    #[must_use]
    pub fn url(&self) -> String {
        let mut url = format!("http://{}/", self.address);
        if let Some(key) = &self.key {
            // Writing to a string cannot fail.
            let _ = write!(url, "#key={}", key.0);
        }
        url
    }
}

/// What an action needs: 128 random bits.
#[derive(Clone)]
pub struct Key(String);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// The host gives no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes.iter().fold(String::new(), |mut key, byte| {
            // Writing to a string cannot fail.
            let _ = write!(key, "{byte:02x}");
            key
        })))
    }

    /// Compares in a time that does not tell how much of it was right.
    fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        own.len() == given.len() && own.iter().zip(given).fold(0, |d, (a, b)| d | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// Refuses what nobody should have sent; says to the browser what pages may do.
pub(crate) async fn guard(State(options): State<Arc<Options>>, request: Request, next: Next) -> Response {
    let mut response = match examine(&options, request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => (status, format!("{why}\n")).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn examine(
    options: &Options,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<(), (StatusCode, &'static str)> {
    let host = only(headers, HOST).filter(|host| is_own(options.address.ip(), host)).ok_or((
        StatusCode::MISDIRECTED_REQUEST,
        "this page answers only under its own address: use the address that the daemon printed, or localhost",
    ))?;
    let foreign = (StatusCode::FORBIDDEN, "this page answers no other page");
    if headers.contains_key(ORIGIN)
        && only(headers, ORIGIN).and_then(|o| o.strip_prefix("http://")) != Some(host)
    {
        return Err(foreign);
    }
    // A link to the page itself may stand anywhere.
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if path.starts_with("/api/") && !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(foreign);
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    match &options.key {
        None => Err((StatusCode::FORBIDDEN, "this page is read-only")),
        Some(key) if headers.get(KEY_HEADER).is_some_and(|given| key.is(given.as_bytes())) => Ok(()),
        Some(_) => {
            Err((StatusCode::FORBIDDEN, "the key is missing: open the address that the daemon printed"))
        }
    }
}

/// A header that is there once, and is text.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a host is this address, or `localhost`. The port does not matter, as a tunnel may have another: what a browser sends here under one
/// of these names, no name server has led here.
fn is_own(address: IpAddr, host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    match literal.parse::<IpAddr>() {
        // Whoever listens on all addresses has each of them.
        Ok(literal) => literal == address || address.is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(options: &Options, method: &Method, path: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        examine(options, method, path, &map).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_the_own_address_is_answered() {
        let options = Options::read_only("127.0.0.1:8080".parse().unwrap());
        for (host, good) in [
            ("127.0.0.1:8080", true),
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("localhost:9999", true),
            ("evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("localhost.", false),
            ("127.0.0.2:8080", false),
            ("[::1]:8080", false),
            ("user@localhost", false),
            ("", false),
        ] {
            let got = status(&options, &Method::GET, "/", &[("host", host)]);
            assert_eq!(got, if good { 200 } else { 421 }, "{host}");
        }
        assert_eq!(status(&options, &Method::GET, "/", &[]), 421);
        assert_eq!(status(&options, &Method::GET, "/", &[("host", "localhost"), ("host", "localhost")]), 421);
        assert!(is_own("::1".parse().unwrap(), "[::1]:8080"));
        assert!(is_own("0.0.0.0".parse().unwrap(), "192.0.2.7:8080"));
        assert!(!is_own("0.0.0.0".parse().unwrap(), "evil.example"));
    }

    #[test]
    fn other_pages_are_not_answered() {
        let options = Options::read_only("127.0.0.1:8080".parse().unwrap());
        let get = |path, name, value| {
            status(&options, &Method::GET, path, &[("host", "localhost:8080"), (name, value)])
        };
        assert_eq!(get("/api/stream", "origin", "http://localhost:8080"), 200);
        for origin in ["http://evil.example", "http://127.0.0.1:8080", "null", "https://localhost:8080"] {
            assert_eq!(get("/api/stream", "origin", origin), 403, "{origin}");
        }
        assert_eq!(get("/api/stream", "sec-fetch-site", "cross-site"), 403);
        assert_eq!(get("/api/stream", "sec-fetch-site", "same-site"), 403);
        assert_eq!(get("/api/stream", "sec-fetch-site", "same-origin"), 200);
        assert_eq!(get("/", "sec-fetch-site", "cross-site"), 200);
    }

    #[test]
    fn actions_need_the_key() {
        let address = "127.0.0.1:8080".parse().unwrap();
        let key = Key::random().unwrap();
        let post = |options: &Options, key: &str| {
            let headers = [("host", "localhost"), (KEY_HEADER, key)];
            status(options, &Method::POST, "/api/guests/1/kill", &headers)
        };
        let writable = Options::writable(address, key.clone());
        assert_eq!(post(&writable, &key.0), 200);
        assert_eq!(post(&writable, ""), 403);
        assert_eq!(post(&writable, &Key::random().unwrap().0), 403);
        assert_eq!(post(&Options::read_only(address), &key.0), 403);
        assert_eq!(writable.url(), format!("http://127.0.0.1:8080/#key={}", key.0));
        assert_eq!(key.0.len(), 32);
    }
}
