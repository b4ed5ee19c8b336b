//! The load generator for HTTP: `wrk`, one thread, and a strict reading of what it prints.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// What `wrk` reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests answered in the whole run.
    pub requests: u64,
    /// Requests answered per second.
    pub per_second: f64,
}

/// Makes sure that `wrk` is there; installs it when this process may.
///
/// # Errors
/// When it is missing and could not be installed; says how to.
pub fn ensure_installed() -> Result<()> {
    if Command::new("wrk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
        return Ok(());
    }
    // SAFETY: no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root {
        eprintln!("bench: installing the package wrk");
        let install =
            || Command::new("apt-get").args(["install", "-y", "-q", "wrk"]).stdout(Stdio::null()).status();
        let _ = Command::new("apt-get").args(["update", "-q"]).stdout(Stdio::null()).status();
        if install().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    bail!("`wrk` is missing; install it with: apt-get install wrk")
}

/// Loads `url` over `connections` connections for `seconds`.
///
/// # Errors
/// When `wrk` cannot be run, or reports a single failed connection, timeout or wrong status.
pub fn load(url: &str, connections: u32, seconds: u32) -> Result<Load> {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s", url])
        .stdin(Stdio::null())
        .output()
        .context("cannot run `wrk`; install it with: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk {url}: {} {text}", String::from_utf8_lossy(&output.stderr).trim());
    parse(&text).with_context(|| format!("wrk -c{connections} {url}"))
}

/// Loads `path` of several servers at once, each over `connections` connections from a thread of its own. A client waits for `think`
/// milliseconds between an answer and its next request.
///
/// # Errors
/// As [`load`].
pub fn load_many(
    servers: &[Ipv4Addr],
    port: u16,
    path: &str,
    connections: usize,
    think: u32,
    seconds: u32,
) -> Result<Load> {
    let first = servers.first().context("no server")?;
    let hosts: Vec<String> = servers.iter().map(|a| format!("\"{a}\"")).collect();
    // Each thread gets the next address; `wrk` itself knows one only.
    let script = format!(
        "local hosts = {{{}}}\nlocal n = 0\nfunction setup(thread)\n  n = n + 1\n  \
         thread.addr = wrk.lookup(hosts[n], \"{port}\")[1]\nend\n{}",
        hosts.join(", "),
        if think > 0 { format!("function delay()\n  return {think}\nend\n") } else { String::new() },
    );
    let file = std::env::temp_dir().join(format!("bench-{}.lua", std::process::id()));
    std::fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;
    let (threads, all) = (servers.len(), servers.len() * connections);
    let output = Command::new("wrk")
        .args([
            &format!("-t{threads}"),
            &format!("-c{all}"),
            &format!("-d{seconds}s"),
            "--timeout",
            "10s",
            "-s",
        ])
        .arg(&file)
        .arg(format!("http://{first}:{port}{path}"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run `wrk`; install it with: apt-get install wrk")?;
    let _ = std::fs::remove_file(&file);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {} {text}", String::from_utf8_lossy(&output.stderr).trim());
    parse(&text).with_context(|| format!("wrk -c{all} over {threads} servers"))
}

fn parse(text: &str) -> Result<Load> {
    let line = |key: &str| text.lines().map(str::trim).find(|l| l.starts_with(key));
    if let Some(errors) = line("Socket errors:") {
        bail!("{errors}");
    }
    if let Some(errors) = line("Non-2xx or 3xx responses:") {
        bail!("{errors}");
    }
    let per_second = line("Requests/sec:")
        .and_then(|l| l.rsplit(' ').next()?.parse().ok())
        .with_context(|| format!("wrk printed no rate: {text}"))?;
    let requests = text
        .lines()
        .find_map(|l| l.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk printed no number of requests: {text}"))?;
    ensure!(requests > 0, "not a single request was answered");
    Ok(Load { requests, per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 1s test @ http://10.98.0.2/bytes/100
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   346.32us  145.02us   4.02ms   88.68%
    Req/Sec   185.71k    10.31k  201.12k    72.73%
  203170 requests in 1.10s, 33.13MB read
Requests/sec: 184712.35
Transfer/sec:     30.12MB
";

    #[test]
    fn a_clean_run_is_read() {
        assert_eq!(parse(GOOD).unwrap(), Load { requests: 203_170, per_second: 184_712.35 });
    }

    #[test]
    fn any_error_makes_the_run_worthless() {
        for line in
            ["  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 12"]
        {
            let text = GOOD.replace("Requests/sec:", &format!("{line}\nRequests/sec:"));
            assert!(parse(&text).unwrap_err().to_string().contains(line.trim()));
        }
        assert!(parse("").is_err());
        assert!(parse(&GOOD.replace("203170", "0")).is_err());
    }
}
