//! Heads of HTTP/1 requests: parsing, limits, and which answer a bad one gets. Pure; any bytes may come.
//!
//! Parsing proper is `httparse`'s. What is here is what a server must decide before it looks at the target: RFC 9112 on
//! framing and persistence, and bounds on everything.

use core::mem::MaybeUninit;

/// Most bytes of a request's head.
pub const MAX_HEAD: usize = 8 << 10;
/// Most bytes of a request's target.
pub const MAX_TARGET: usize = 4 << 10;
/// Most header fields of a request.
pub const MAX_FIELDS: usize = 64;

/// A request's method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// OPTIONS.
    Options,
    /// Another method that HTTP defines.
    Other,
}

/// A request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method.
    pub method: Method,
    /// Path and query, as sent.
    pub target: &'a str,
    /// HTTP/1.0 or HTTP/1.1: 0 or 1.
    pub minor: u8,
    /// Whether the client wants to go on with the connection.
    pub keep_alive: bool,
    /// Bytes of body that follow the head.
    pub content_length: u64,
    /// Entity tags of `If-None-Match`.
    pub if_none_match: Option<&'a [u8]>,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Why a request cannot be served. The connection cannot go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// 400: not HTTP, or framed in a way that could be read in two ways.
    Malformed,
    /// 414: the target is longer than [`MAX_TARGET`].
    TargetTooLong,
    /// 417: an expectation other than `100-continue`.
    Expectation,
    /// 431: the head is longer than [`MAX_HEAD`], or has more than [`MAX_FIELDS`] fields.
    HeadTooLarge,
    /// 501: an unknown method, or a transfer coding.
    NotImplemented,
    /// 505: not HTTP/1.
    Version,
}

impl BadRequest {
    /// The status code.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            BadRequest::Malformed => 400,
            BadRequest::TargetTooLong => 414,
            BadRequest::Expectation => 417,
            BadRequest::HeadTooLarge => 431,
            BadRequest::NotImplemented => 501,
            BadRequest::Version => 505,
        }
    }
}

/// The reason phrase of a status code.
#[must_use]
pub const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// Parses the head at the start of `bytes`: its length and the request, or `None` if it is not complete yet.
///
/// # Errors
/// [`BadRequest`], as soon as it is certain; always once `bytes` holds [`MAX_HEAD`] bytes without the end of a head.
pub fn parse(bytes: &[u8]) -> Result<Option<(usize, Request<'_>)>, BadRequest> {
    let bounded = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let length = match head.parse_with_uninit_headers(bounded, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return partial(bytes),
        Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(version_error(bounded)),
        Err(_) => return Err(BadRequest::Malformed),
    };
    let target = head.path.ok_or(BadRequest::Malformed)?;
    if target.len() > MAX_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    let method = method(head.method.ok_or(BadRequest::Malformed)?)?;
    let minor = head.version.ok_or(BadRequest::Malformed)?;
    let mut request = Request {
        method,
        target,
        minor,
        keep_alive: minor == 1,
        content_length: 0,
        if_none_match: None,
        expects_continue: false,
    };
    read_fields(&mut request, head.headers)?;
    Ok(Some((length, request)))
}

fn read_fields<'a>(request: &mut Request<'a>, fields: &[httparse::Header<'a>]) -> Result<(), BadRequest> {
    let mut hosts = 0;
    let mut length = None;
    let mut close = false;
    for field in fields {
        // Told apart by length first: most fields need no comparison.
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            4 if is("host") => hosts += 1,
            10 if is("connection") => {
                for option in field.value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && request.minor == 0 {
                        request.keep_alive = true;
                    }
                }
            }
            14 if is("content-length") => {
                let value = decimal(field.value).ok_or(BadRequest::Malformed)?;
                if length.is_some_and(|earlier| earlier != value) {
                    return Err(BadRequest::Malformed);
                }
                length = Some(value);
            }
            17 if is("transfer-encoding") => return Err(BadRequest::NotImplemented),
            13 if is("if-none-match") => request.if_none_match = Some(field.value),
            6 if is("expect") => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest::Expectation);
                }
                request.expects_continue = request.minor == 1;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && request.minor == 1) {
        return Err(BadRequest::Malformed);
    }
    // `close` wins over `keep-alive`, whichever comes first (RFC 9112, section 9.3).
    request.keep_alive &= !close;
    request.content_length = length.unwrap_or(0);
    Ok(())
}

/// What is to be said of a head that is not complete: nothing yet, unless it is too long already.
fn partial(bytes: &[u8]) -> Result<Option<(usize, Request<'static>)>, BadRequest> {
    let line_ends = bytes.iter().take(MAX_TARGET + 32).any(|&b| b == b'\n');
    if !line_ends && bytes.len() > MAX_TARGET + 32 {
        return Err(BadRequest::TargetTooLong);
    }
    if bytes.len() >= MAX_HEAD {
        return Err(BadRequest::HeadTooLarge);
    }
    Ok(None)
}

/// A request line may end in another version of HTTP, or in nonsense.
fn version_error(bytes: &[u8]) -> BadRequest {
    let line = bytes.split(|&b| b == b'\n' || b == b'\r').find(|line| !line.is_empty()).unwrap_or_default();
    let last = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    match last.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => BadRequest::Version,
        Some([major]) if major.is_ascii_digit() => BadRequest::Version,
        _ => BadRequest::Malformed,
    }
}

fn method(name: &str) -> Result<Method, BadRequest> {
    match name {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "OPTIONS" => Ok(Method::Options),
        "POST" | "PUT" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" => Ok(Method::Other),
        _ => Err(BadRequest::NotImplemented),
    }
}

/// A decimal number, digits only.
#[must_use]
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Whether `If-None-Match`'s list of tags names `tag` (with its quotes); comparison is weak, as RFC 9110 has it.
#[must_use]
pub fn matches_tag(list: &[u8], tag: &[u8]) -> bool {
    list.split(|&b| b == b',').map(<[u8]>::trim_ascii).any(|one| {
        let one = one.strip_prefix(b"W/").unwrap_or(one);
        one == b"*" || one == tag
    })
}

/// A date in the form of HTTP (RFC 9110, section 5.6.7), for seconds since 1970.
#[must_use]
pub fn date(seconds: u64) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let days = seconds / 86400;
    // Civil date from days, counted from 0000-03-01 in eras of 400 years (Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let mut two = |at: usize, value: u64| {
        text[at] = b'0' + (value / 10 % 10) as u8;
        text[at + 1] = b'0' + (value % 10) as u8;
    };
    two(5, day);
    two(12, year / 100);
    two(14, year % 100);
    two(17, seconds / 3600 % 24);
    two(20, seconds / 60 % 60);
    two(23, seconds % 60);
    text[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    text[8..11].copy_from_slice(MONTHS[(month - 1) as usize]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> (usize, Request<'_>) {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    fn status(text: &str) -> u16 {
        parse(text.as_bytes()).unwrap_err().status()
    }

    #[test]
    fn parses_what_clients_send() {
        let text = "GET /a?b=c HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/7\r\nAccept: */*\r\n\r\nGET";
        let (length, request) = ok(text);
        assert_eq!(length, text.len() - 3);
        assert_eq!((request.method, request.target, request.minor), (Method::Get, "/a?b=c", 1));
        assert!(request.keep_alive && request.content_length == 0);
    }

    #[test]
    fn persistence_follows_version_and_connection() {
        assert!(!ok("GET / HTTP/1.0\r\n\r\n").1.keep_alive);
        assert!(ok("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").1.keep_alive);
        assert!(!ok("GET / HTTP/1.1\r\nHost: x\r\nconnection: te, Close\r\n\r\n").1.keep_alive);
        assert!(!ok("GET / HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n").1.keep_alive);
        assert!(!ok("GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n").1.keep_alive);
    }

    #[test]
    fn bad_requests_get_their_answers() {
        assert_eq!(status("NONSENSE\r\n\r\n"), 400);
        assert_eq!(status("GET /\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
        assert_eq!(
            status("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            400
        );
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n"), 400);
        assert_eq!(status("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        assert_eq!(status("BREW / HTTP/1.1\r\nHost: a\r\n\r\n"), 501);
        assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(status("GET / HTTP/1.7\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n"), 417);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_TARGET))), 414);
        assert_eq!(status(&format!("GET /{}", "a".repeat(MAX_TARGET + 100))), 414);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(MAX_HEAD))), 431);
        let many: String = (0..=MAX_FIELDS).map(|n| format!("X{n}: y\r\n")).collect();
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), 431);
    }

    #[test]
    fn every_prefix_of_a_good_request_is_incomplete() {
        let text = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nIf-None-Match: \"q\"\r\n\r\n";
        for n in 0..text.len() {
            assert_eq!(parse(&text[..n]), Ok(None), "{n}");
        }
        let (_, request) = parse(text).unwrap().unwrap();
        assert_eq!((request.method, request.content_length), (Method::Other, 5));
        assert_eq!(request.if_none_match, Some(&b"\"q\""[..]));
    }

    #[test]
    fn no_bytes_panic() {
        let mut random = 1u64;
        let text = b"GET /path HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        for _ in 0..50_000 {
            let mut bytes = text.to_vec();
            for _ in 0..3 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                let at = (random >> 33) as usize % bytes.len();
                bytes[at] = (random >> 50) as u8;
            }
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn tags_and_numbers_and_dates() {
        assert!(matches_tag(b"\"a\", W/\"b\"", b"\"b\""));
        assert!(matches_tag(b"*", b"\"b\""));
        assert!(!matches_tag(b"\"a\"", b"\"b\""));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(decimal(b""), None);
        assert_eq!(&date(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&date(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(&date(951_827_696), b"Tue, 29 Feb 2000 12:34:56 GMT");
        assert_eq!(&date(1_795_181_283), b"Fri, 20 Nov 2026 13:28:03 GMT");
    }
}
