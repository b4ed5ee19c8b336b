//! The page as programs see it: who is answered, what the stream says, and that nothing is done for nobody.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../examples/show/synthetic.rs"]
#[allow(dead_code, reason = "shared with the example")]
mod synthetic;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foraker_ui::{Key, Options};
use serde_json::Value;
use synthetic::{HOSTILE, Synthetic};

/// Serves a source from a thread of its own, for as long as the test runs.
fn serve(guests: u64, changes: u32, writable: bool) -> (SocketAddr, Arc<Synthetic>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let source = Arc::new(Synthetic::new(guests, changes));
    let options = match writable {
        true => Options::writable(address, Key::random().unwrap()),
        false => Options::read_only(address),
    };
    let (shown, url) = (Arc::clone(&source), options.url());
    std::thread::spawn(move || foraker_ui::serve(listener, shown, options));
    (address, source, url)
}

/// Status, headers in lower case, body.
fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

/// The stream, event by event.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).unwrap(), address)
    }

    /// For one that does not read: its side of the kernel keeps little.
    fn open_small(address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::on(socket.into(), address)
    }

    fn on(mut stream: TcpStream, address: SocketAddr) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET /api/stream HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        Self(BufReader::new(stream))
    }

    /// The next one: its name and its data. Heads of chunks are no lines of an event.
    fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            }
        }
    }
}

#[test]
fn only_the_own_address_is_answered() {
    let (address, _, _) = serve(10, 0, false);
    let own = address.to_string();
    let (status, head, body) = ask(address, "GET", "/", &[("Host", &own)]);
    assert_eq!(status, 200);
    assert!(body.contains("<title>Foraker</title>"));
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
    assert!(!body.contains("<style") && !body.contains(" style=") && !body.contains("onclick"));
    for path in ["/", "/main.js", "/api/stream", "/api/guests/1"] {
        let (status, _, _) = ask(address, "GET", path, &[("Host", "evil.example")]);
        assert_eq!(status, 421, "{path}");
        let (status, _, _) = ask(address, "GET", path, &[("Host", &own), ("Origin", "http://evil.example")]);
        assert_eq!(status, 403, "{path}");
    }
}

#[test]
fn nothing_can_be_done_on_a_page_that_only_shows() {
    let (address, source, _) = serve(10, 0, false);
    let own = address.to_string();
    for action in ["start", "stop", "kill", "pause", "resume"] {
        for key in ["", "00000000000000000000000000000000"] {
            let path = format!("/api/guests/1/{action}");
            let (status, _, _) = ask(address, "POST", &path, &[("Host", &own), ("X-Foraker-Key", key)]);
            assert_eq!(status, 403, "{action}");
        }
    }
    assert!(source.acts.lock().unwrap().is_empty());
}

#[test]
fn actions_need_the_key_and_say_why_not() {
    let (address, source, url) = serve(1000, 0, true);
    source.frozen.store(true, Ordering::Relaxed);
    let own = address.to_string();
    let key = url.split_once("#key=").unwrap().1;
    let post = |path: &str, key: &str| {
        ask(
            address,
            "POST",
            path,
            &[("Host", &own), ("Origin", &format!("http://{own}")), ("X-Foraker-Key", key)],
        )
    };
    assert_eq!(post("/api/guests/1/kill", "").0, 403);
    assert!(source.acts.lock().unwrap().is_empty());
    assert_eq!(post("/api/guests/1/kill", key).0, 204);
    let (status, _, body) = post("/api/guests/1/resume", key);
    assert_eq!((status, body.as_str()), (409, "guest 1 is killed"));
    assert_eq!(post("/api/guests/99999/kill", key).0, 404);
    assert_eq!(post("/api/guests/1/format", key).0, 404);
    assert_eq!(source.acts.lock().unwrap().len(), 3);
}

#[test]
fn the_stream_tells_what_the_source_knows() {
    let (address, source, _) = serve(10_000, 2000, false);
    let mut events = Events::open(address);
    let (name, all) = events.next().unwrap();
    assert_eq!(name, "everything");
    let mut slots: HashMap<u64, u64> = (0..)
        .zip(all["slots"].as_str().unwrap().bytes())
        .map(|(slot, letter)| (slot, u64::from(letter - b'a')))
        .collect();
    assert_eq!(slots.len(), 10_000);
    let begun = Instant::now();
    let mut received = 0;
    loop {
        let (name, news) = events.next().unwrap();
        assert_eq!(name, "difference");
        received += 1;
        for new in news["new"].as_array().into_iter().flatten() {
            slots.insert(new[0].as_u64().unwrap(), new[2].as_u64().unwrap());
        }
        for change in news["changed"].as_array().into_iter().flatten() {
            slots.insert(change.as_u64().unwrap() / 16, change.as_u64().unwrap() % 16);
        }
        let mut counts = [0; 10];
        slots.values().for_each(|state| counts[*state as usize] += 1);
        assert_eq!(serde_json::json!(counts), news["moment"]["counts"], "after {received}");
        if received == 20 {
            source.frozen.store(true, Ordering::Relaxed);
        } else if received == 22 {
            assert_eq!(counts, source.counts());
            break;
        }
    }
    // Ten a second; a machine that has other things to do may be late, but never early.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1800), "{took:?}");
}

#[test]
fn who_does_not_read_is_sent_everything_anew() {
    let (address, _, _) = serve(10_000, 400_000, false);
    let mut slow = Events::open_small(address);
    let mut quick = Events::open(address);
    assert_eq!(slow.next().unwrap().0, "everything");
    // More is sent to the one that reads than anybody keeps for the one that does not.
    let mut sent = 0;
    while sent < 8 << 20 {
        sent += quick.next().unwrap().1.to_string().len();
    }
    let (mut before, mut kept) = (u64::MAX, 0);
    let jump = loop {
        let (name, data) = slow.next().unwrap();
        let time = data["moment"]["time"].as_u64().unwrap();
        if name == "everything" {
            break time.saturating_sub(before);
        }
        (before, kept) = (time, kept + data.to_string().len());
        assert!(kept < 4 << 20, "it is sent all that it has missed");
    };
    assert!(jump > 1000, "after {kept} bytes that were kept, {jump} ms were left out");
}

#[test]
fn nothing_is_done_for_nobody() {
    let (address, source, _) = serve(100, 10, false);
    let looks = || source.looks.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(looks(), 0);
    let mut events = Events::open(address);
    for _ in 0..5 {
        events.next().unwrap();
    }
    assert!(looks() >= 4);
    drop(events);
    std::thread::sleep(Duration::from_millis(600));
    let before = looks();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(looks(), before);
    // And it begins again.
    let mut events = Events::open(address);
    assert_eq!(events.next().unwrap().0, "everything");
    assert_eq!(events.next().unwrap().0, "difference");
}

#[test]
fn streams_are_bounded() {
    let (address, _, _) = serve(10, 0, false);
    let mut streams: Vec<Events> = (0..foraker_ui::MOST_WATCHERS).map(|_| Events::open(address)).collect();
    for stream in &mut streams {
        assert_eq!(stream.next().unwrap().0, "everything");
    }
    let (status, _, _) = ask(address, "GET", "/api/stream", &[("Host", &address.to_string())]);
    assert_eq!(status, 503);
}

#[test]
fn a_guest_is_told_harmlessly_and_its_console_goes_on() {
    let (address, _, _) = serve(100, 0, false);
    let own = address.to_string();
    let get = |path: String| {
        let (status, _, body) = ask(address, "GET", &path, &[("Host", &own)]);
        assert_eq!(status, 200, "{path}");
        assert!(!body.contains(['\u{202e}', '\u{2066}', '\u{9b}']) && !body.contains("\\u001b"), "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let told = get(format!("/api/guests/{HOSTILE}"));
    assert_eq!(told["name"], "<img src=x onerror=owned()>⟨ESC⟩[31m⟨U+202E⟩gnp.exe");
    let console = &told["console"];
    assert!(
        console["text"]
            .as_str()
            .unwrap()
            .contains("<script>owned()</script> <b>bold</b> &lt;⟨ESC⟩]0;owned⟨BEL⟩⟨ESC⟩[2J ⟨U+202E⟩")
    );
    let next = console["next"].as_u64().unwrap();
    std::thread::sleep(Duration::from_millis(900));
    let later = get(format!("/api/guests/{HOSTILE}?from={next}"));
    assert_eq!(later["console"]["from"], next);
    assert!(later["console"]["next"].as_u64().unwrap() > next);
    assert_eq!(ask(address, "GET", "/api/guests/5000", &[("Host", &own)]).0, 404);
    assert_eq!(ask(address, "GET", "/api/guests/x", &[("Host", &own)]).0, 400);
}
