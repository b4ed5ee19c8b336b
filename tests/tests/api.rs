//! The control API and what stands behind it: everything that people and programs can ask of a supervisor, and what becomes of bad requests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use foraker_tests::api::{self, ask};
use foraker_tests::bounds::{emulated, eventually, seconds};
use foraker_tests::http;
use foraker_tests::launch::image;
use foraker_tests::supervisor::Serve;
use serde_json::{Value, json};

const SMALL: [&str; 3] = ["--small-pages", "-m", "2M"];

fn state(serve: &Serve, guest: &str) -> String {
    let answer = ask(&serve.socket, "GET", &format!("/guests/{guest}"), None);
    answer.json()["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_guest_is_paused_resumed_stopped_started_and_forgotten() {
    let serve = Serve::start("verbs", 1, "10.150");
    let httpd = image("httpd").display().to_string();
    assert_eq!(serve.ask(&[&["run", "-d", "--name", "web"], &SMALL[..], &[&httpd]].concat()).stdout, "1\n");
    let address = serve.guests()[0].ipv4.expect("an address");
    let server = std::net::SocketAddr::from((address, 80));
    http::wait_until_serving(server, seconds(10));
    // Twice is as good as once.
    for _ in 0..2 {
        assert_eq!(serve.ask(&["pause", "web"]).stdout, "web\n");
        assert_eq!(state(&serve, "web"), "paused");
    }
    let silent =
        http::Connection::open_within(server, Duration::from_millis(300)).and_then(|mut c| c.get("/"));
    assert!(silent.is_err(), "a paused guest answers: {silent:?}");
    assert_eq!(serve.ask(&["resume", "web"]).status, 0);
    http::wait_until_serving(server, seconds(10));
    assert_eq!(serve.ask(&["stop", "web"]).status, 0);
    assert_eq!(serve.ask(&["wait", "web"]).stdout, "0\n");
    let paused = serve.ask(&["pause", "web"]);
    assert!(paused.status == 125 && paused.stderr.contains("does not run: it is exited"), "{paused}");
    let log = serve.ask(&["logs", "web"]).stdout;
    assert!(log.contains("httpd: stopped"), "{log}");
    assert_eq!(serve.ask(&["start", "web"]).status, 0);
    assert!(eventually(seconds(10), || state(&serve, "1") == "running"));
    let kept = serve.ask(&["rm", "web"]);
    assert!(kept.status == 125 && kept.stderr.contains("has not ended"), "{kept}");
    assert_eq!(serve.ask(&["rm", "--force", "web"]).status, 0);
    assert!(eventually(seconds(10), || serve.guests().is_empty()), "{:?}", serve.guests());
    assert_eq!(ask(&serve.socket, "GET", "/guests/1/log", None).status, 404);
    // Its image goes when nobody needs it.
    assert_eq!(serve.ask(&["image", "rm", "httpd"]).status, 0);
    assert_eq!(ask(&serve.socket, "GET", "/images", None).json()["items"], json!([]));
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn run_in_the_foreground_is_launch_with_a_daemon() {
    let serve = Serve::start("foreground", 1, "10.151");
    let (hello, hostile) = (image("hello").display().to_string(), image("hostile").display().to_string());
    let ran = serve.ask(&["run", "--rm", &hello]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran}");
    assert!(ran.stdout.starts_with("hello from hello"), "{ran}");
    let faulted = serve.ask(&["run", &hostile, "null-write"]);
    assert_eq!(faulted.status, 120, "{faulted}");
    assert!(faulted.stderr.contains("page fault (#PF)"), "{faulted}");
    assert!(faulted.stderr.contains("in hostile::instruction::write_byte"), "{faulted}");
    let detail = ask(&serve.socket, "GET", "/guests/2", None).json();
    assert_eq!((&detail["state"], &detail["fault"]["mnemonic"]), (&json!("faulted"), &json!("#PF")));
    assert_eq!(detail["fault"]["function"], "hostile::instruction::write_byte");
    assert!(eventually(seconds(20), || serve.guests().iter().all(|g| g.id != 1)), "--rm forgets it");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn collections_have_pages_filters_and_forms() {
    let serve = Serve::start("pages", 1, "10.152");
    let probe = image("probe").display().to_string();
    let run = |more: &[&str]| {
        serve.ask(&[&["run", "-d", "--no-net"], &SMALL[..], more, &[&probe, "idle"]].concat())
    };
    assert_eq!(run(&["--count", "7", "--name", "a", "--label", "tier=web"]).status, 0);
    assert_eq!(run(&["--owner", "other", "--name", "b"]).status, 0);
    let list = |query: &str| ask(&serve.socket, "GET", &format!("/guests{query}"), None).json();
    let ids = |page: &Value| -> Vec<u64> {
        page["items"].as_array().expect("items").iter().filter_map(|g| g["id"].as_u64()).collect()
    };
    let first = list("?limit=3");
    assert_eq!((ids(&first), &first["next"]), (vec![1, 2, 3], &json!("3")));
    let second = list("?limit=5&after=3");
    assert_eq!(ids(&second), [4, 5, 6, 7, 8]);
    assert!(ids(&list("?after=8")).is_empty());
    assert_eq!(ids(&list("?owner=other")), [8]);
    assert_eq!(ids(&list("?label=tier%3Dweb")), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(ids(&list("?name=a-4")), [4]);
    assert!(ids(&list("?state=paused,killed")).is_empty());
    let template = serve.ask(&["ps", "--format", "{{ id }}/{{ name }}", "--filter", "owner=other"]);
    assert_eq!(template.stdout, "8/b\n");
    assert_eq!(serve.ask(&["ps", "-q", "--filter", "label=tier"]).stdout.lines().count(), 7);
    // What is done to many is done to those that a filter takes.
    let bulk = json!({"action": "kill", "filter": {"owner": "default"}});
    assert_eq!(ask(&serve.socket, "POST", "/guests/actions", Some(&bulk)).json(), json!({"count": 7}));
    assert!(eventually(seconds(10), || ids(&list("?state=killed")).len() == 7));
    assert_eq!(serve.ask(&["system", "prune"]).stdout, "7\n");
    assert_eq!(serve.ask(&["ps", "-aq"]).stdout, "8\n");
    assert_eq!(serve.stop().status, 0);
}

/// What a daemon has acknowledged is there again, however it died, and what it ran comes back as it is to.
#[test]
fn a_killed_daemon_loses_nothing() {
    /// Guests that are there at most when a round begins.
    const MOST: usize = 300;
    // A hundred take some minutes: `ROUNDS=100 cargo nextest run -p foraker-tests --test api a_killed_daemon`.
    let asked = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok());
    let rounds = asked.unwrap_or(if emulated() { 2 } else { 10 });
    let mut serve = Serve::start("durable", 2, "10.153");
    let probe = image("probe").display().to_string();
    assert_eq!(serve.ask(&["owner", "set", "team", "--weight", "3", "--max-guests", "500"]).status, 0);
    assert_eq!(serve.ask(&["network", "create", "blue", "--owner", "team"]).status, 0);
    let guest =
        |more: &'static [&str]| [&["run", "-d", "--no-net"], &SMALL[..], more, &[&probe, "idle"]].concat();
    let always = serve.ask(&guest(&["--count", "20", "--restart", "always", "--name", "stays"]));
    assert_eq!(always.status, 0, "{always}");
    let mut expected: Vec<u64> = (1..=20).collect();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        // Acknowledged, and then the process dies at some moment while more is asked of it.
        let run = serve.ask(&guest(&["--no-wait", "--restart", "always"]));
        expected.push(run.stdout.trim().parse().expect("an id"));
        let (socket, image) = (serve.socket.clone(), probe.clone());
        let asker = std::thread::spawn(move || {
            let mut taken = Vec::new();
            let body = json!({"guest": {"image": "probe", "arguments": ["idle"], "restart": "always",
                "memory": 2 << 20, "large_pages": false, "network": {"enabled": false}}});
            let text = body.to_string();
            let request = format!(
                "POST /guests HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            while taken.len() < 40
                && let Ok(answer) = api::send(&socket, request.as_bytes())
            {
                // Half of an answer is none.
                let Ok(created) = serde_json::from_slice::<Value>(&answer.body) else { break };
                assert_eq!(answer.status, 201, "{image}: {}", answer.text());
                taken.push(created["first"].as_u64().expect("an id"));
            }
            taken
        });
        std::thread::sleep(Duration::from_millis(3 + 7 * round % 60));
        let killed = Instant::now();
        serve = serve.killed_and_started_again();
        let answers = killed.elapsed();
        expected.extend(asker.join().expect("no panic"));
        let there =
            || -> Vec<(u64, String)> { serve.guests().into_iter().map(|g| (g.id, g.phase)).collect() };
        let missing = || {
            let there = there();
            expected
                .iter()
                .filter(|id| !there.contains(&(**id, "running".to_owned())))
                .copied()
                .collect::<Vec<_>>()
        };
        assert!(
            eventually(seconds(10), || missing().is_empty()),
            "round {round}: {:?} do not run",
            missing()
        );
        let back = killed.elapsed();
        println!(
            "round {round}: killed, it answers after {answers:?}, and {} guests run after {back:?}",
            expected.len()
        );
        slowest = slowest.max(back);
        if expected.len() > MOST {
            // The oldest go, so that each round is about as large.
            let gone: Vec<_> = expected.drain(..expected.len() - MOST).map(|id| id.to_string()).collect();
            let gone: Vec<_> = gone.iter().map(String::as_str).collect();
            assert_eq!(serve.ask(&[&["rm", "--force"], &gone[..]].concat()).status, 0);
        }
    }
    println!("{rounds} rounds: all guests ran within {slowest:?} of the death of the daemon");
    // Where other tests run beside it, what it takes says nothing.
    let bound = seconds(if asked.is_some() { 2 } else { 10 });
    assert!(slowest < bound, "{slowest:?}");
    let owner = ask(&serve.socket, "GET", "/owners/team", None).json();
    assert_eq!(
        (&owner["settings"]["weight"], &owner["settings"]["most"]["guests"]),
        (&json!(3), &json!(500))
    );
    assert_eq!(ask(&serve.socket, "GET", "/networks/blue", None).json()["owner"], "team");
    // What somebody stopped stays stopped, and ids are not given twice.
    let (killed, removed) = (expected[0], expected[1]);
    assert_eq!(serve.ask(&["kill", &killed.to_string()]).status, 0);
    assert_eq!(serve.ask(&["rm", "--force", &removed.to_string()]).status, 0);
    serve = serve.killed_and_started_again();
    let guests = serve.guests();
    let of = |id| guests.iter().find(|g| g.id == id).map(|g| g.phase.clone());
    let (first, second) = (of(killed), of(removed));
    assert!(first.as_ref().is_some_and(|phase| phase != "running"), "{first:?}");
    assert!(second.is_none(), "{second:?}");
    let next: u64 = serve.ask(&guest(&[])).stdout.trim().parse().expect("an id");
    assert!(guests.iter().all(|g| g.id < next), "{next} was given before");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn who_ended_with_an_orderly_stop_comes_back_only_if_always_wanted() {
    let serve = Serve::start("order", 1, "10.160");
    let probe = image("probe").display().to_string();
    for restart in ["no", "on-failure", "always"] {
        let ran = serve
            .ask(&[&["run", "-d", "--no-net", "--restart", restart], &SMALL[..], &[&probe, "idle"]].concat());
        assert_eq!(ran.status, 0, "{ran}");
    }
    let again = serve.stopped_and_started_again();
    let phases = || again.guests().into_iter().map(|g| g.phase).collect::<Vec<_>>();
    assert!(eventually(seconds(10), || phases()[2] == "running"), "{:?}", phases());
    assert_eq!(phases()[..2], ["exit 0", "exit 0"]);
    assert!(again.running.stderr().contains("3 guests: 1 start or wait again"), "{}", again.running.stderr());
    assert_eq!(again.stop().status, 0);
}

#[test]
fn a_configuration_is_applied_read_back_and_applied_again() {
    let serve = Serve::start("apply", 1, "10.155");
    let folder = std::env::temp_dir().join(format!("foraker-{}-apply", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("node.toml");
    let text = |memory: &str| {
        format!(
            "[owners.shop]\nweight = 2\nmost = {{ memory = \"1G\" }}\n[networks.back]\nowner = \"shop\"\n\
             [guests.idle]\nimage = \"{}\"\narguments = [\"idle\"]\nowner = \"shop\"\ncount = 3\nmemory = \"{memory}\"\n\
             large_pages = false\nrestart = \"always\"\nnetwork = {{ enabled = false }}\n",
            image("probe").display()
        )
    };
    let name = file.display().to_string();
    let apply = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).expect("written");
        serve.ask(&[&["apply", "-f", &name], more].concat()).stdout
    };
    assert!(apply(&text("2M"), &[]).starts_with("3 guests made, 0 replaced"));
    assert!(apply(&text("2M"), &[]).starts_with("0 guests made, 0 replaced, 3 unchanged"));
    assert!(apply(&text("3M"), &[]).starts_with("0 guests made, 3 replaced"));
    let config = serve.ask(&["system", "config"]).stdout;
    let read: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!((&read["guests"]["idle"]["count"], &read["owners"]["shop"]["weight"]), (&json!(3), &json!(2)));
    assert!(apply(&config, &[]).starts_with("0 guests made, 0 replaced, 3 unchanged"));
    assert!(
        apply("[owners.shop]\nweight = 2\nmost = { memory = \"1G\" }\n", &["--prune"]).contains("3 removed")
    );
    let wrong = serve.ask(&["apply", "-f", "/nowhere.toml"]);
    assert!(wrong.status == 125 && wrong.stderr.contains("/nowhere.toml"), "{wrong}");
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn events_are_heard_in_order_and_after_a_break() {
    let serve = Serve::start("events", 1, "10.156");
    let hello = image("hello").display().to_string();
    assert_eq!(serve.ask(&["run", &hello]).status, 0);
    let past = |query: &str| ask(&serve.socket, "GET", &format!("/events?past=true{query}"), None).text();
    let all = past("&after=0&kind=guest.");
    let kinds: Vec<_> =
        all.lines().filter_map(|l| l.strip_prefix("event: ")).filter(|k| *k != "gap").collect();
    assert_eq!(kinds, ["guest.create", "guest.start", "guest.end"], "{all}");
    let ids: Vec<u64> = all.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect();
    let rest = past(&format!("&after={}&kind=guest.", ids[1]));
    assert!(rest.contains("guest.end") && !rest.contains("guest.start") && !rest.contains("gap"), "{rest}");
    // Whoever listens hears what comes.
    let mut listener = UnixStream::connect(&serve.socket).expect("a connection");
    listener.set_read_timeout(Some(seconds(10))).expect("a limit");
    let request = format!("GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {}\r\n\r\n", ids[2]);
    listener.write_all(request.as_bytes()).expect("sent");
    assert_eq!(serve.ask(&["owner", "set", "new"]).status, 0);
    let (mut heard, mut buffer) = (String::new(), [0; 4096]);
    while !heard.contains("owner.set") {
        let n = listener.read(&mut buffer).unwrap_or_else(|e| panic!("{e}: {heard}"));
        heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(!heard.contains("guest."), "{heard}");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn logs_are_bounded_and_outlive_guests() {
    let serve = Serve::start_with("logs", 1, "10.157", &["--log-size", "16K"]);
    let hostile = image("hostile").display().to_string();
    let flood = serve.ask(&["run", "-d", "--name", "flood", &hostile, "console-flood"]);
    assert_eq!(flood.status, 0, "{flood}");
    std::thread::sleep(seconds(1));
    assert_eq!(serve.ask(&["kill", "flood"]).status, 0);
    assert!(eventually(seconds(10), || state(&serve, "flood") == "killed"));
    let log = ask(&serve.socket, "GET", "/guests/flood/log?bytes=1000000", None);
    assert!(!log.body.is_empty() && log.body.len() <= 16 << 10, "{} bytes", log.body.len());
    assert_eq!(serve.ask(&["logs", "--tail", "2", "flood"]).stdout.lines().count(), 2);
    assert_eq!(serve.stop().status, 0);
}

/// Whatever is sent, the answer is an answer, and no guest and no other client notices.
#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let serve = Serve::start("bad", 1, "10.158");
    let httpd = image("httpd").display().to_string();
    assert_eq!(serve.ask(&[&["run", "-d"], &SMALL[..], &[&httpd]].concat()).status, 0);
    let server = std::net::SocketAddr::from((serve.guests()[0].ipv4.expect("an address"), 80));
    http::wait_until_serving(server, seconds(10));
    let create = |guest: Value| json!({"guest": guest});
    for (method, path, body, status) in [
        ("GET", "/nothing", None, 404),
        ("GET", "/guests/nobody", None, 404),
        ("PATCH", "/guests", None, 405),
        ("GET", "/guests?limit=0", None, 422),
        ("GET", "/guests?colour=red", None, 422),
        ("GET", "/guests?state=asleep", None, 422),
        ("GET", "/guests/%ff", None, 400),
        ("POST", "/guests", Some(json!({})), 422),
        ("POST", "/guests", Some(json!([1])), 422),
        ("POST", "/guests", Some(create(json!({"image": "nothing"}))), 404),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "name": "a b"}))), 422),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "memory": -1}))), 422),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "colour": 1}))), 422),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "owner": "a/b"}))), 422),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "network": {"name": "none"}}))), 404),
        ("POST", "/guests", Some(json!({"count": 2_000_000, "guest": {"image": "httpd"}})), 422),
        ("POST", "/guests", Some(json!({"guest": [null, "httpd"]})), 422),
        ("POST", "/guests", Some(create(json!({"image": "httpd", "processor": []}))), 422),
        ("POST", "/guests/actions", Some(json!({"action": "kill", "filter": []})), 422),
        ("PUT", "/config", Some(json!({"owners": {"a/b": {}}})), 422),
        ("POST", "/guests/1/fly", None, 404),
        ("PUT", "/owners/a%20b", Some(json!({})), 422),
        ("PUT", "/owners/a", Some(json!({"weight": 0})), 422),
        ("DELETE", "/owners/nobody", None, 404),
        ("DELETE", "/images/httpd", None, 409),
        ("DELETE", "/guests/1", None, 409),
    ] {
        let answer = ask(&serve.socket, method, path, body.as_ref());
        assert_eq!(answer.status, status, "{method} {path} {body:?}: {}", answer.text());
        assert!(answer.is_a_problem(), "{method} {path}: {}\n{}", answer.head, answer.text());
    }
    // From the last to the first there is nobody.
    assert_eq!(ask(&serve.socket, "GET", "/guests/settled?first=2&last=1", None).json(), json!({"count": 0}));
    // What is known to be wrong before the body has come is said all the same, and the connection goes on.
    let mut stream = UnixStream::connect(&serve.socket).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    let head = "PUT /config?colour=red HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    std::thread::sleep(Duration::from_millis(50));
    let rest = "{}GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(rest.as_bytes()).expect("sent");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    assert!(answers.starts_with("HTTP/1.1 422 ") && answers.contains("HTTP/1.1 200 "), "{answers}");
    // What is no HTTP at all, ten thousand times.
    let requests = if emulated() { 500 } else { 10_000 };
    let since = Instant::now();
    for n in 0..requests {
        let bytes: &[u8] = match n % 8 {
            0 => b"\0\x01\x02\xff\r\n\r\n",
            1 => b"GET / HTTP/9.9\r\n\r\n",
            2 => b"POST /guests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{\"a\":",
            3 => b"GET /guests HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            4 => b"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nConnection: close\r\nContent-Length: 4\r\n\r\nELF!",
            5 => b"POST /guests HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\nConnection: close\r\n\r\nzz\r\n",
            6 => b"PUT /config HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
            _ => b"GET /guests/%00%ff/../1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        };
        if let Ok(answer) = api::send(&serve.socket, bytes) {
            assert!((400..500).contains(&answer.status), "{n}: {}", answer.head);
        }
    }
    println!("{requests} bad requests in {:?}", since.elapsed());
    // Heads and bodies without end, and clients that never say anything.
    let silent: Vec<_> =
        (0..200).map(|_| UnixStream::connect(&serve.socket).expect("a connection")).collect();
    let long = [b"GET /".as_slice(), &vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat();
    let answer = api::send(&serve.socket, &long);
    assert!(answer.as_ref().map_or(true, |a| (400..500).contains(&a.status)), "{answer:?}");
    let length = 17 << 20;
    let mut large = format!("PUT /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    large.resize(large.len() + length, b' ');
    let answer = api::send(&serve.socket, &large);
    assert!(answer.as_ref().map_or(true, |a| a.status == 413), "{answer:?}");
    drop(silent);
    assert_eq!(http::get(server, "/hello.txt").expect("an answer").status, 200);
    assert_eq!(ask(&serve.socket, "GET", "/health", None).json()["healthy"], true);
    assert_eq!(serve.guests().len(), 1, "{:?}", serve.guests());
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let serve = Serve::start("metrics", 1, "10.159");
    let hello = image("hello").display().to_string();
    assert_eq!(serve.ask(&["run", &hello]).status, 0);
    let metrics = ask(&serve.socket, "GET", "/metrics", None);
    assert_eq!(metrics.status, 200);
    let text = metrics.text();
    for line in [
        "foraker_guests{state=\"exited\"} 1",
        "foraker_cell_up{cell=\"0\"} 1",
        "foraker_console_lines_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
    assert!(!text.contains("guest=\""), "guests are not told apart unless that is asked for");
    let checked =
        Command::new("promtool").args(["check", "metrics"]).stdin(std::process::Stdio::piped()).spawn();
    match checked {
        Ok(mut promtool) => {
            promtool.stdin.take().expect("its input").write_all(text.as_bytes()).expect("written");
            assert!(promtool.wait().expect("it ends").success());
        }
        Err(_) if emulated() => println!("not checked here: there is no promtool in an emulated machine"),
        Err(e) => panic!("promtool cannot be run ({e}): `cargo xtask test` installs it"),
    }
    assert_eq!(serve.stop().status, 0);
}
