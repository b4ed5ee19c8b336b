//! The web server through a published port: documents, connections, errors, a graceful stop.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foraker_tests::bounds::{emulated, seconds};
use foraker_tests::http::{self, Connection};
use foraker_tests::launch::{Running, httpd};

fn serving(options: &[&str]) -> (Running, SocketAddr) {
    let (running, server) = httpd(options, &[]);
    http::wait_until_serving(server, Duration::from_secs(10));
    (running, server)
}

#[test]
fn serves_its_first_page() {
    let (running, server) = serving(&[]);
    let response = http::get(server, "/").expect("an answer");
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").is_some_and(|t| t.starts_with("text/html")), "{response:?}");
    assert!(String::from_utf8_lossy(&response.body).to_lowercase().contains("<html"), "{response:?}");
    let ended = running.stop();
    assert_eq!(ended.status, 0, "{ended}");
    let report = ended.report();
    let web = report.guest("web");
    assert!(web.counter("rx_frames") > 3 && web.counter("tx_frames") > 3, "{web:?}");
    assert!(web.ipv4.as_deref().is_some_and(|a| a.ends_with(".2")), "{web:?}");
}

#[test]
fn documents_of_every_size() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    let mut sizes = vec![0, 1, 100, 1459, 1460, 1461, 4096, 65_535, 65_536, 65_537, 1_000_000];
    if !emulated() {
        sizes.extend([10_000_000, 100_000_000]);
    }
    for size in sizes {
        let response =
            connection.get(&format!("/bytes/{size}")).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        assert_eq!((response.status, response.body.len()), (200, size));
    }
    let a = connection.get("/bytes/5000").expect("an answer");
    let b = http::get(server, "/bytes/5000").expect("an answer");
    assert_eq!(a.body, b.body, "the same document twice");
    assert_eq!(running.stop().status, 0);
}

#[test]
fn keeps_connections() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    for i in 0..if emulated() { 50 } else { 2000 } {
        let size = i % 300;
        let response = connection.get(&format!("/bytes/{size}")).expect("an answer");
        assert_eq!((response.status, response.body.len()), (200, size), "request {i}");
    }
    drop(connection);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn answers_pipelined_requests_in_order() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    let sizes: Vec<usize> = (0..100).map(|i| (i * 37) % 2500).collect();
    let requests: String =
        sizes.iter().map(|size| format!("GET /bytes/{size} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    // In pieces that end in the middle of requests.
    for piece in requests.as_bytes().chunks(333) {
        connection.send(piece).expect("sent");
    }
    for (i, size) in sizes.iter().enumerate() {
        let response = connection.response(false).unwrap_or_else(|e| panic!("answer {i}: {e}"));
        assert_eq!((response.status, response.body.len()), (200, *size), "answer {i}");
    }
    assert_eq!(running.stop().status, 0);
}

#[test]
fn a_request_in_single_bytes() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    for byte in b"GET /bytes/10 HTTP/1.1\r\nHost: slow\r\n\r\n" {
        connection.send(&[*byte]).expect("sent");
    }
    assert_eq!(connection.response(false).expect("an answer").body.len(), 10);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn head_has_no_body() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    connection.send(b"HEAD /bytes/1234 HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    let response = connection.response(true).expect("an answer");
    assert_eq!((response.status, response.header("content-length")), (200, Some("1234")));
    assert_eq!(connection.get("/bytes/7").expect("the next answer").body.len(), 7);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn closes_when_asked() {
    let (running, server) = serving(&[]);
    for request in ["GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
        let mut connection = Connection::open(server).expect("a connection");
        connection.send(request.as_bytes()).expect("sent");
        assert_eq!(connection.response(false).expect("an answer").status, 200);
        assert!(connection.is_closed(), "{request:?}");
    }
    assert_eq!(running.stop().status, 0);
}

#[test]
fn bad_requests_get_correct_errors() {
    let (running, server) = serving(&[]);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-Header: value\r\n".repeat(5000));
    let lines: [(&str, &[u16]); 10] = [
        ("GET /nothing-here HTTP/1.1\r\nHost: a\r\n\r\n", &[404]),
        ("GET /bytes/many HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 404]),
        ("GET /bytes/99999999999999999999999 HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 404, 413, 414]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", &[405, 501]),
        ("BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", &[405, 501]),
        ("complete nonsense\r\n\r\n", &[400]),
        ("GET / HTTP/9.9\r\nHost: a\r\n\r\n", &[400, 505]),
        ("GET  /  HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
        (&long, &[400, 414, 431]),
        (&many, &[400, 431]),
    ];
    for (request, allowed) in lines {
        let mut connection = Connection::open(server).expect("a connection");
        // The server may answer and close before it has read everything.
        let _ = connection.send(request.as_bytes());
        let shown = &request[..request.len().min(60)];
        match connection.response(false) {
            Ok(response) => assert!(allowed.contains(&response.status), "{shown:?}: {response:?}"),
            Err(e) => panic!("{shown:?}: {e}"),
        }
    }
    let binary: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let mut connection = Connection::open(server).expect("a connection");
    let _ = connection.send(&binary);
    let _ = connection.finish();
    let _ = connection.response(false);
    assert_eq!(http::get(server, "/").expect("it serves on").status, 200);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn thousands_of_connections() {
    let count = if emulated() { 100 } else { 3000 };
    let (running, server) = serving(&["--memory", "256M"]);
    let mut connections: Vec<Connection> = Vec::new();
    for i in 0..count {
        connections.push(Connection::open(server).unwrap_or_else(|e| panic!("connection {i}: {e}")));
    }
    for round in 0..2 {
        for connection in &mut connections {
            connection.send(b"GET /bytes/200 HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        }
        for (i, connection) in connections.iter_mut().enumerate() {
            let response =
                connection.response(false).unwrap_or_else(|e| panic!("round {round}, connection {i}: {e}"));
            assert_eq!((response.status, response.body.len()), (200, 200));
        }
    }
    drop(connections);
    assert_eq!(http::get(server, "/bytes/5").expect("it serves on").body.len(), 5);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn connections_that_are_dropped_do_no_harm() {
    let (running, server) = serving(&[]);
    for i in 0..if emulated() { 20 } else { 300 } {
        let mut connection = Connection::open(server).expect("a connection");
        match i % 3 {
            0 => {}
            1 => connection.send(b"GET /bytes/1000").expect("sent"),
            // Most of the answer is never read.
            _ => connection.send(b"GET /bytes/1000000 HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent"),
        }
    }
    assert_eq!(http::get(server, "/bytes/50").expect("it serves on").body.len(), 50);
    assert_eq!(running.stop().status, 0);
}

#[test]
fn sigterm_and_sigint_stop_it_gracefully() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut running, server) = serving(&[]);
        let mut idle = Connection::open(server).expect("a connection");
        assert_eq!(idle.get("/bytes/3").expect("an answer").status, 200);
        let started = Instant::now();
        running.signal(signal);
        let ended = running.wait(Duration::from_secs(10));
        assert_eq!(ended.status, 0, "signal {signal}: {ended}");
        assert!(
            started.elapsed() < seconds(4),
            "an idle connection does not hold it up: {:?}",
            started.elapsed()
        );
        let report = ended.report();
        assert_eq!(report.guest("web").end, "exit");
    }
}

#[test]
fn immediate_delivery_serves_as_well() {
    let (running, server) = serving(&["--immediate"]);
    let mut connection = Connection::open(server).expect("a connection");
    for _ in 0..if emulated() { 10 } else { 200 } {
        assert_eq!(connection.get("/bytes/2000").expect("an answer").body.len(), 2000);
    }
    assert_eq!(running.stop().status, 0);
}

#[test]
fn every_way_of_serving_rings() {
    for service in ["auto", "worker", "uplink"] {
        let (running, server) = serving(&["--service", service]);
        let mut connection = Connection::open(server).expect("a connection");
        for i in 0..if emulated() { 10 } else { 200 } {
            let response =
                connection.get("/bytes/30000").unwrap_or_else(|e| panic!("{service}, request {i}: {e}"));
            assert_eq!(response.body.len(), 30_000, "{service}");
        }
        assert_eq!(running.stop().status, 0, "{service}");
    }
}

/// A request finds the server at rest, and so does the next: each wakes it once, and the acknowledgement of the answer does not.
#[test]
fn a_request_wakes_a_server_once() {
    let (running, server) = serving(&[]);
    let mut connection = Connection::open(server).expect("a connection");
    const REQUESTS: u64 = 40;
    for _ in 0..REQUESTS {
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(connection.get("/bytes/100").expect("an answer").status, 200);
    }
    drop(connection);
    let ended = running.stop();
    assert_eq!(ended.status, 0, "{ended}");
    let (web, rest) = (ended.report(), 25);
    let exits = web.guest("web").counter("exits");
    // Start, first requests, stop; a machine that loses time may have answers sent again.
    let most = REQUESTS + rest + if emulated() { REQUESTS } else { 0 };
    assert!((REQUESTS..=most).contains(&exits), "{exits} exits for {REQUESTS} requests");
}
