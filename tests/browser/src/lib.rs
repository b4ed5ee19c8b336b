//! A browser without a window, driven through the DevTools protocol on a pipe. What it cannot do is a panic: it is for tests and benchmarks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where the browser is, if it is installed.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .flat_map(|path| ["chromium", "chromium-browser", "google-chrome"].map(|name| path.join(name)))
        .find(|path| path.is_file())
}

/// A browser with one page.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    profile: PathBuf,
    session: Option<String>,
    number: u64,
    /// Errors of the page, as the browser reports them.
    pub errors: Vec<String>,
}

impl Chromium {
    /// Starts it with an empty profile; `more`: further arguments.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(program: &Path, more: &[String]) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("foraker-ui-{}-{number}", std::process::id()));
        // The browser reads commands from descriptor 3 and answers on 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(program)
            .args(["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"])
            // As root there is no sandbox, and containers have little shared memory. The only pages are this test's own.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,800"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(more)
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut browser =
            Self { child, input, output, profile, session: None, number: 0, errors: Vec::new() };
        let target = browser.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Performance"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Panics
    /// It refuses, or has ended.
    pub fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).expect("the browser is there");
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).expect("the browser is there");
            assert_eq!(bytes.pop(), Some(0), "the browser ended");
            let heard: Value = serde_json::from_slice(&bytes).expect("JSON");
            match heard["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Log.entryAdded") => {
                    self.errors.push(heard["params"].to_string())
                }
                _ if heard["id"] == self.number => {
                    assert!(heard["error"].is_null(), "{method}: {}", heard["error"]);
                    return heard["result"].clone();
                }
                _ => {}
            }
        }
    }

    /// Opens an address.
    pub fn open(&mut self, url: &str) {
        self.ask("Page.navigate", &json!({ "url": url }));
    }

    /// The value of an expression in the page.
    ///
    /// # Panics
    /// There is none.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true,
            // The policy of the page counts here too.
            "allowUnsafeEvalBlockedByCSP": false });
        let answer = self.ask("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// It is not true in 20 seconds.
    pub fn until(&mut self, expression: &str) {
        let begun = Instant::now();
        while self.value(expression) != true {
            assert!(begun.elapsed() < Duration::from_secs(20), "never true: {expression}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves the mouse to a place and clicks.
    pub fn click(&mut self, x: f64, y: f64) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", &event);
        }
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.ask("Input.dispatchKeyEvent", &json!({ "type": kind, "key": key, "code": key }));
        }
    }

    /// Processor time of the page's process so far, seconds.
    ///
    /// # Panics
    /// The browser does not say.
    pub fn busy(&mut self) -> f64 {
        let metrics = self.ask("Performance.getMetrics", &json!({}));
        let metrics = metrics["metrics"].as_array().expect("metrics");
        let task = metrics.iter().find(|metric| metric["name"] == "ProcessTime").expect("a metric");
        task["value"].as_f64().expect("a number")
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // It may have ended already. Its helpers end when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
