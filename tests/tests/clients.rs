//! Real clients: `curl` and `wrk`. These tests need both programs, and run on the host only.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use foraker_tests::bounds::emulated;
use foraker_tests::http;
use foraker_tests::launch::{Running, httpd};

const LIMIT: Duration = Duration::from_secs(10);

fn serving(options: &[&str]) -> (Running, SocketAddr) {
    let (running, server) = httpd(options, &[]);
    http::wait_until_serving(server, LIMIT);
    (running, server)
}

/// Whether the programs can be expected: inside an emulated machine there is nothing but the tests.
fn absent() -> bool {
    if emulated() {
        println!("not here: there is neither curl nor wrk in an emulated machine");
    }
    emulated()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|e| panic!("{program} cannot be run ({e}): `cargo xtask test` installs it"))
}

fn curl(arguments: &[&str]) -> (String, bool) {
    let output = run("curl", &[&["--silent", "--show-error", "--max-time", "20"][..], arguments].concat());
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

/// A number that wrk reports, for instance `Requests/sec:`.
fn figure(text: &str, name: &str) -> f64 {
    let found = text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// wrk for a short time; it must not see one error.
fn wrk(server: SocketAddr, path: &str, connections: usize) -> f64 {
    let url = format!("http://{server}{path}");
    let output = run("wrk", &["-t1", "-c", &connections.to_string(), "-d2s", "--timeout", "10s", &url]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "{connections} connections: {text}"
    );
    figure(&text, "Requests/sec:")
}

#[test]
fn curl_fetches_pages() {
    if absent() {
        return;
    }
    let (running, server) = serving(&[]);
    let page = format!("http://{server}/");
    let (text, good) = curl(&["--fail", "--include", &page]);
    assert!(good && text.starts_with("HTTP/1.1 200"), "{text}");
    let (text, good) = curl(&[
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{size_download}",
        &format!("{page}bytes/1000000"),
    ]);
    assert_eq!((text.as_str(), good), ("200 1000000", true));
    let (text, _) =
        curl(&["--output", "/dev/null", "--write-out", "%{http_code}", &format!("{page}nothing-here")]);
    assert_eq!(text, "404");
    let (_, good) = curl(&["--fail", &format!("{page}nothing-here")]);
    assert!(!good);
    let (text, good) = curl(&["--head", &page]);
    assert!(good && text.starts_with("HTTP/1.1 200"), "{text}");
    let (text, _) = curl(&["--data", "a=b", "--output", "/dev/null", "--write-out", "%{http_code}", &page]);
    assert!(["405", "501"].contains(&text.as_str()), "{text}");
    assert_eq!(running.stop().status, 0);
}

#[test]
fn curl_keeps_its_connection() {
    if absent() {
        return;
    }
    let (running, server) = serving(&[]);
    let urls: Vec<String> = (0..20).map(|i| format!("http://{server}/bytes/{i}")).collect();
    let mut arguments = vec!["--write-out", "%{num_connects} %{http_code}\\n"];
    for url in &urls {
        arguments.extend(["--output", "/dev/null", url.as_str()]);
    }
    let (text, good) = curl(&arguments);
    let lines: Vec<&str> = text.lines().collect();
    assert!(good && lines.len() == 20, "{text}");
    assert_eq!(lines[0], "1 200");
    assert!(lines[1..].iter().all(|line| *line == "0 200"), "{text}");
    assert_eq!(running.stop().status, 0);
}

#[test]
fn curl_speaks_http_1_0() {
    if absent() {
        return;
    }
    let (running, server) = serving(&[]);
    let (text, good) = curl(&[
        "--http1.0",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        &format!("http://{server}/"),
    ]);
    assert_eq!((text.as_str(), good), ("200", true));
    assert_eq!(running.stop().status, 0);
}

#[test]
fn wrk_sees_no_error() {
    if absent() {
        return;
    }
    let (running, server) = serving(&["--memory", "256M"]);
    for (path, connections) in
        [("/bytes/100", 1), ("/bytes/100", 64), ("/bytes/100000", 16), ("/bytes/100", 500)]
    {
        let rate = wrk(server, path, connections);
        println!("{path} with {connections} connections: {rate} requests per second");
        assert!(rate > 50.0, "{path} with {connections} connections: {rate} requests per second");
    }
    let ended = running.stop();
    assert_eq!(ended.status, 0, "{ended}");
    let report = ended.report();
    let web = report.guest("web");
    assert_eq!(
        web.dropped("forged_source") + web.dropped("malformed") + web.dropped("bad_offload"),
        0,
        "{web:?}"
    );
}

#[test]
fn wrk_reaches_the_guest_without_the_published_port() {
    if absent() {
        return;
    }
    let (running, published) = serving(&["--subnet", "10.98.14.0/24"]);
    let direct: SocketAddr = "10.98.14.2:80".parse().expect("an address");
    let (through, straight) = (wrk(published, "/bytes/100", 16), wrk(direct, "/bytes/100", 16));
    println!("through the published port {through}, straight {straight} requests per second");
    assert!(straight > 50.0 && through > 50.0);
    assert_eq!(running.stop().status, 0);
}
