//! Heads of HTTP requests: however a client cuts and frames its bytes, there is one reading of them, and it is bounded.
//!
//! The parser is the library OS's file itself: the crate around it builds for guests alone.

#[path = "../../../guest-libos/src/http.rs"]
#[allow(dead_code, unreachable_pub, reason = "the library OS exports all of it")]
mod parser;

use parser::{BadRequest, MAX_FIELDS, MAX_HEAD, MAX_TARGET, Request};

/// Most prefixes that are tried; all, for heads as most clients send them.
const PREFIXES: usize = 256;

/// Parses `data` as a client's bytes.
pub fn run(data: &[u8]) {
    helpers(data);
    match parser::parse(data) {
        Ok(Some((length, request))) => complete(data, length, &request),
        Ok(None) => {
            assert!(data.len() < MAX_HEAD, "a head may grow without end");
            // Empty lines before a request line are skipped.
            let start = data.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(data.len());
            assert!(!data[start..].windows(4).any(|end| end == b"\r\n\r\n"), "a head that never ends");
        }
        Err(why) => refused(data, why),
    }
}

fn complete(data: &[u8], length: usize, request: &Request<'_>) {
    assert!(length <= data.len() && length <= MAX_HEAD);
    let head = &data[..length];
    assert!(head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"));
    assert!(!request.target.is_empty() && request.target.len() <= MAX_TARGET);
    assert!(request.target.bytes().all(|byte| byte > b' ' && byte != 0x7f));
    assert!(request.minor <= 1);
    assert!(!request.expects_continue || request.minor == 1);

    // What comes behind the head says nothing about it, and no shorter piece of it is a request: a server that
    // gets it in pieces acts once, at its end.
    assert_eq!(parser::parse(head), Ok(Some((length, *request))));
    let step = length.div_ceil(PREFIXES);
    for end in (0..length).step_by(step).chain([length - 1]) {
        assert_eq!(parser::parse(&head[..end]), Ok(None), "the first {end} bytes");
    }

    // Framing and addressing, read in the plainest way: line by line.
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let _request_line = lines.find(|line| !line.is_empty());
    let fields: Vec<(&[u8], &[u8])> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| {
            let colon = line.iter().position(|&byte| byte == b':').expect("a field has a colon");
            (&line[..colon], line[colon + 1..].trim_ascii())
        })
        .collect();
    assert!(fields.len() <= MAX_FIELDS);
    let of = |name: &'static str| {
        fields.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    };
    assert_eq!(of("transfer-encoding").count(), 0, "a coding that nobody decodes");
    assert!(of("host").count() <= 1 && (request.minor == 0 || of("host").count() == 1));
    let lengths: Vec<u64> = of("content-length")
        .map(|value| std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a number"))
        .collect();
    assert!(lengths.iter().all(|&one| one == request.content_length));
    assert!(!lengths.is_empty() || request.content_length == 0);
    let asks = |option: &str| {
        of("connection")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    assert_eq!(request.keep_alive, !asks("close") && (request.minor == 1 || asks("keep-alive")));
    assert_eq!(request.if_none_match, of("if-none-match").next_back());
}

fn refused(data: &[u8], why: BadRequest) {
    assert!((400..=505).contains(&why.status()) && parser::reason(why.status()) != "Unknown");
    // "As soon as it is certain": no more bytes make it a request.
    for more in [&b"\r\n\r\n"[..], b"\n", b" HTTP/1.1\r\nHost: a\r\n\r\n", &[b'a'; MAX_HEAD]] {
        assert!(parser::parse(&[data, more].concat()).is_err(), "{why:?}, but not with more bytes");
    }
}

/// The values of fields.
fn helpers(data: &[u8]) {
    let digits = !data.is_empty() && data.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(data).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    assert_eq!(parser::decimal(data), number);
    let tag = b"\"0123456789abcdef\"";
    if parser::matches_tag(data, tag) {
        assert!(data.contains(&b'*') || data.windows(tag.len()).any(|part| part == tag));
    }
}
