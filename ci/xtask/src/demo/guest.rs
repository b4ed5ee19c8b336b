//! The launched guest: its console is shown as it comes, its address is read from it, its report at the end.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Server;
use crate::{
    process,
    terminal::{self, Style},
};

/// How long the guest may take to end when it is asked to; the VMM itself ends it after 5 s.
const GRACE: Duration = Duration::from_secs(10);

/// A running `vmm launch`.
pub(super) struct Guest {
    child: Child,
    started: Instant,
    /// Standard output: the report.
    output: Option<JoinHandle<String>>,
    /// The guest's address, once its console has named it.
    address: Arc<Mutex<Option<Ipv4Addr>>>,
}

/// What `vmm launch --json` says at the end, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Report {
    guests: Vec<GuestReport>,
}

#[derive(Debug, Deserialize)]
struct GuestReport {
    end: String,
    #[serde(default)]
    counters: Counters,
    ipv4: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counters {
    exits: u64,
    rx_frames: u64,
    tx_frames: u64,
}

impl Guest {
    pub(super) fn launch(mut command: Command) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        // Its own group does not get the terminal's Ctrl-C: it is asked to stop once, by `stop`.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| process::cannot_start(&command))?;
        let address = Arc::new(Mutex::new(None));
        if let Some(console) = child.stderr.take() {
            let address = Arc::clone(&address);
            thread::spawn(move || show_console(BufReader::new(console), &address));
        }
        let output = child.stdout.take().map(|mut output| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = output.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        Ok(Guest { child, started, output, address })
    }

    /// Asks it to stop, waits, and returns its report.
    fn report(&mut self) -> Result<Report> {
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            bail!("vmm did not end within {}", terminal::time(GRACE));
        }
        let output = self.output.take().context("the output was read before")?.join();
        let output = output.map_err(|_| anyhow::anyhow!("reading the output failed"))?;
        report(&output)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Server for Guest {
    fn age(&self) -> Duration {
        self.started.elapsed()
    }

    fn launch_word(&self) -> &'static str {
        "the process"
    }

    fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("vmm ended with status {}", process::code(status))),
            Err(error) => Some(format!("vmm was lost ({error})")),
        }
    }

    fn address(&self) -> Option<Ipv4Addr> {
        self.address.lock().ok().and_then(|address| *address)
    }

    fn resident(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    }

    fn stop(mut self: Box<Self>) {
        match self.report() {
            Ok(report) => report.print(),
            Err(error) => terminal::note(&format!("{error:#}")),
        }
    }
}

impl Drop for Guest {
    /// Nothing stays behind, whatever went wrong.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn show_console(console: impl BufRead, address: &Mutex<Option<Ipv4Addr>>) {
    for line in console.lines().map_while(Result::ok) {
        if let (Some(found), Ok(mut address)) = (find_address(&line), address.lock()) {
            address.get_or_insert(found);
        }
        process::print_line(&format!("    {} {line}", terminal::paint(Style::Dim, "web|")));
    }
}

/// The first private address in a line.
pub(super) fn find_address(line: &str) -> Option<Ipv4Addr> {
    let parts = line.split(|c: char| !c.is_ascii_digit() && c != '.');
    parts.filter_map(|part| part.trim_matches('.').parse::<Ipv4Addr>().ok()).find(Ipv4Addr::is_private)
}

/// The report is the last line of the output.
fn report(output: &str) -> Result<Report> {
    let last = output.trim_end().lines().last().context("vmm ended without a report")?;
    serde_json::from_str(last).with_context(|| format!("vmm's last line is no report: {last}"))
}

impl Report {
    /// Shows what became of the guest.
    fn print(&self) {
        println!();
        for guest in &self.guests {
            let Counters { exits, rx_frames, tx_frames } = guest.counters;
            let address = guest.ipv4.as_deref().unwrap_or("no address");
            println!(
                "  The guest at {address} has ended ({}): {exits} exits, {rx_frames} frames received, {tx_frames} sent",
                guest.end
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_a_console_line() {
        let found = |line| find_address(line).map(|a| a.to_string());
        assert_eq!(found("listening on http://10.99.0.2:80/").as_deref(), Some("10.99.0.2"));
        assert_eq!(found("version 1.2.3 at 0.0.0.0, address 10.99.3.2.").as_deref(), Some("10.99.3.2"));
        assert_eq!(found("nothing of 1.2.3 kind"), None);
    }

    #[test]
    fn the_report_is_the_last_line() {
        let output = "noise\n{\"guests\":[{\"name\":\"web\",\"end\":\"exit\",\"status\":0,\"counters\":{\"exits\":12,\"more\":1},\"ipv4\":\"10.99.0.2\"}]}\n";
        let report = report(output).unwrap();
        assert_eq!(report.guests[0].counters.exits, 12);
        assert_eq!(report.guests[0].ipv4.as_deref(), Some("10.99.0.2"));
        assert!(super::report("").is_err());
        assert!(super::report("not JSON").is_err());
    }

    #[test]
    fn a_guest_that_is_dropped_does_not_run_on() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 60"]);
        let guest = Guest::launch(command).unwrap();
        let folder = format!("/proc/{}", guest.child.id());
        drop(guest);
        assert!(!std::path::Path::new(&folder).exists());
    }

    #[test]
    fn it_is_asked_to_stop_and_its_report_is_read() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "trap 'echo \"{\\\"guests\\\":[]}\"; exit 0' TERM; while :; do sleep 0.05; done"]);
        let mut guest = Guest::launch(command).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(guest.ended().is_none());
        assert!(guest.report().unwrap().guests.is_empty());
        assert_eq!(guest.ended().as_deref(), Some("vmm ended with status 0"));
    }
}
