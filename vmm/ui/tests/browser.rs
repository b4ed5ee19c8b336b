//! The page as people see it: in Chromium (Debian's package `chromium`), which says so visibly when it is not there.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../examples/show/synthetic.rs"]
#[allow(dead_code, reason = "shared with the example")]
mod synthetic;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_browser::Chromium;
use foraker_ui::{Action, Key, Options};
use synthetic::{HOSTILE, Synthetic};

/// One browser at a time: what they cost is measured, and two cores are not many.
static ALONE: Mutex<()> = Mutex::new(());

/// A source that is served, and a browser that looks at it.
struct Scene {
    source: Arc<Synthetic>,
    browser: Chromium,
    address: SocketAddr,
    url: String,
    _alone: MutexGuard<'static, ()>,
}

/// None if there is no browser.
fn begin(writable: bool, more: &[String]) -> Option<Scene> {
    let Some(program) = foraker_browser::find() else {
        // Past the test runner, which keeps what tests print to itself.
        let text =
            "\nSKIPPED, the page was not tested: there is no chromium; install Debian's package `chromium`\n";
        let _ = std::io::stderr().write_all(text.as_bytes());
        return None;
    };
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let source = Arc::new(Synthetic::new(10_000, 300));
    let options = match writable {
        true => Options::writable(address, Key::random().unwrap()),
        false => Options::read_only(address),
    };
    let (shown, url) = (Arc::clone(&source), options.url());
    std::thread::spawn(move || foraker_ui::serve(listener, shown, options));
    Some(Scene { source, browser: Chromium::start(&program, more), address, url, _alone: alone })
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid structure for the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The page is there, and everybody on it.
fn wait_for_guests(browser: &mut Chromium) {
    browser.until("globalThis.foraker?.drawn > 2 && foraker.model.slots.size === 10000");
}

const LEGEND: &str = "[...document.querySelectorAll('#legend button')].map((b) => Number(b.querySelector('.count').textContent.replaceAll(',', '')))";

#[test]
fn ten_thousand_guests_are_shown_live() {
    let Some(Scene { source, mut browser, url, .. }) = begin(false, &[]) else { return };
    browser.open(&url);
    wait_for_guests(&mut browser);

    let paint = browser.value("performance.getEntriesByName('first-contentful-paint')[0].startTime");
    let full = browser.value("performance.getEntriesByName('foraker-guests')[0].startTime");
    let (paint, full) = (paint.as_f64().unwrap(), full.as_f64().unwrap());

    // A page that was opened a moment ago is still busy with that.
    std::thread::sleep(Duration::from_secs(2));
    let (processor, busy, begun) = (processor_time(), browser.busy(), Instant::now());
    let drawn = browser.value("foraker.drawn").as_f64().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let drawn = browser.value("foraker.drawn").as_f64().unwrap() - drawn;
    let took = begun.elapsed().as_secs_f64();
    let server = (processor_time() - processor).as_secs_f64() / took;
    let page = (browser.busy() - busy) / took;
    let _ = writeln!(
        std::io::stderr(),
        "first paint {paint:.0} ms, all guests {full:.0} ms; {:.1} updates/s; server {:.1} % of a core, page {:.1} %",
        drawn / took,
        server * 100.0,
        page * 100.0
    );
    assert!(paint < 1000.0, "first paint after {paint} ms");
    // What is asked for is the first paint. How long the rest takes is mostly how busy the machine is: a second as a rule, never many.
    assert!(full < 5000.0, "all guests after {full} ms");
    assert!((45.0..=55.0).contains(&(drawn / took * 5.0)), "{drawn} updates in {took} s");
    assert!(server < 0.1, "the server takes {server} of a core");
    assert!(page < 0.4, "the page takes {page} of a core");

    source.frozen.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(browser.value(LEGEND), serde_json::json!(source.counts()));
    // And the squares are what the legend says.
    let squares = "foraker.model.states.map((_, n) => [...foraker.model.slots.values()].filter((s) => foraker.model.state[s] === n).length)";
    assert_eq!(browser.value(squares), serde_json::json!(source.counts()));
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[test]
fn a_guest_is_opened_by_mouse_keys_and_search() {
    let Some(Scene { mut browser, url, .. }) = begin(false, &[]) else { return };
    browser.open(&url);
    wait_for_guests(&mut browser);
    let place = browser.value("foraker.grid.where(4242)");
    browser.click(place["x"].as_f64().unwrap(), place["y"].as_f64().unwrap());
    browser.until("document.querySelector('#detail h2')?.textContent === 'hook-4242'");
    browser.until("document.querySelector('pre.console').textContent.includes('GET /')");
    let length = browser.value("document.querySelector('pre.console').textContent.length");
    browser.until(&format!("document.querySelector('pre.console').textContent.length > {length}"));
    // It follows, and there is nothing to press.
    browser.until("(({scrollTop, scrollHeight, clientHeight}) => scrollHeight - scrollTop - clientHeight < 30)(document.querySelector('pre.console'))");
    assert_eq!(browser.value("document.querySelectorAll('#detail .actions').length"), 0);
    assert_eq!(browser.value("document.getElementById('mode').textContent"), "read-only");

    browser.press("Escape");
    browser.until("document.getElementById('detail').hidden && document.activeElement.id === 'grid'");
    for key in ["Home", "ArrowRight", "ArrowRight", "ArrowDown", "Enter"] {
        browser.press(key);
    }
    browser.until("foraker.grid.chosen >= 0 && !document.getElementById('detail').hidden");
    browser.press("Escape");
    browser.value("(() => { const q = document.getElementById('query'); q.value = 'name:-77 owner:acme'; q.dispatchEvent(new Event('input')); })()");
    browser.until("document.querySelectorAll('#results-list button').length > 1");
    let all = "[...document.querySelectorAll('#results-list button')].every((b) => b.textContent.includes('-77') && b.textContent.endsWith('acme'))";
    assert_eq!(browser.value(all), true);
    browser.value("document.querySelector('#results-list button').click()");
    browser.until("document.querySelector('#detail h2').textContent.includes('-77')");
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[test]
fn hostile_text_is_text() {
    let Some(Scene { mut browser, url, .. }) = begin(false, &[]) else { return };
    browser.open(&url);
    wait_for_guests(&mut browser);
    browser.value("globalThis.owned = () => { globalThis.wasOwned = true; }");
    let place = browser.value(&format!("foraker.grid.where({HOSTILE})"));
    browser.click(place["x"].as_f64().unwrap(), place["y"].as_f64().unwrap());
    browser.until("document.querySelector('#detail h2')?.textContent === '<img src=x onerror=owned()>⟨ESC⟩[31m⟨U+202E⟩gnp.exe'");
    browser.until("document.querySelector('pre.console').textContent.includes('<script>owned()</script> <b>bold</b> &lt;⟨ESC⟩]0;owned⟨BEL⟩⟨ESC⟩[2J ⟨U+202E⟩esrever')");
    std::thread::sleep(Duration::from_millis(700));
    let nothing = "document.querySelectorAll('#detail script, #detail b:not(.console-bar b), #detail img, pre.console > :not(.gap)').length";
    assert_eq!(browser.value(nothing), 0);
    assert_eq!(browser.value("globalThis.wasOwned ?? false"), false);
    assert_eq!(browser.value("document.title"), "Foraker");
    let marks = r"/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/.test(document.body.textContent)";
    assert_eq!(browser.value(marks), false);
    // What could run text as a script is closed besides.
    let refused = "(() => { try { document.createElement('div').innerHTML = '<b>x</b>'; return 'set'; } catch (e) { return e.name; } })()";
    assert_eq!(browser.value(refused), "TypeError");
    assert_eq!(
        browser.value("(() => { try { return eval('1'); } catch (e) { return e.name; } })()"),
        "EvalError"
    );
    assert_eq!(browser.value("fetch('https://example.com/').then(() => 'sent', () => 'refused')"), "refused");
}

#[test]
fn a_name_that_leads_here_is_not_answered() {
    let rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1".to_owned();
    let Some(Scene { source, mut browser, address, .. }) = begin(true, &[rebound]) else { return };
    browser.open(&format!("http://evil.example:{}/", address.port()));
    browser.until("document.body?.textContent.includes('only under its own address')");
    let post = "fetch('/api/guests/1/kill', { method: 'POST', headers: { 'X-Foraker-Key': 'x' } }).then((a) => a.status)";
    assert_eq!(browser.value(post), 421);
    let read = "fetch('/api/guests/1').then((a) => a.status)";
    assert_eq!(browser.value(read), 421);
    // Nor may its page read or do anything under the right address.
    let own = format!("http://{address}");
    for ask in [
        format!("fetch('{own}/api/guests/1').then(() => 'read', () => 'refused')"),
        format!(
            "fetch('{own}/api/guests/1/kill', {{ method: 'POST', mode: 'no-cors' }}).then(() => 'refused', () => 'refused')"
        ),
    ] {
        assert_eq!(browser.value(&ask), "refused", "{ask}");
    }
    assert!(source.acts.lock().unwrap().is_empty());
}

#[test]
fn buttons_do_what_they_say_and_only_with_the_key() {
    let Some(Scene { source, mut browser, address, url, .. }) = begin(true, &[]) else { return };
    source.frozen.store(true, Ordering::Relaxed);
    // Without the key there are buttons, which say what is missing.
    browser.open(&format!("http://{address}/#guest=42"));
    browser.until("document.querySelectorAll('.actions button:enabled').length > 0");
    browser.value("document.querySelector('[data-action=stop]').click()");
    browser.until("document.querySelector('.said').textContent.includes('the key is missing')");
    assert!(source.acts.lock().unwrap().is_empty());

    browser.open("about:blank");
    browser.open(&url);
    wait_for_guests(&mut browser);
    assert_eq!(browser.value("location.hash"), "");
    browser.value("location.hash = 'guest=42'");
    browser.until("document.querySelectorAll('.actions button:enabled').length > 0");
    // Twice, as it cannot be taken back.
    browser.value("document.querySelector('[data-action=kill]').click()");
    std::thread::sleep(Duration::from_millis(300));
    assert!(source.acts.lock().unwrap().is_empty());
    browser.value("document.querySelector('[data-action=kill]').click()");
    browser.until("document.querySelector('.chip').textContent === 'killed'");
    assert_eq!(*source.acts.lock().unwrap(), [(42, Action::Kill)]);
    browser.until("document.querySelector('[data-action=kill]').disabled && !document.querySelector('[data-action=start]').disabled");
}
