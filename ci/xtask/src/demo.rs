//! `cargo xtask demo`: the first command of a newcomer. It builds, launches the web server with a published port,
//! fetches a page through it, says what happened, and keeps serving.

mod emulated;
mod guest;

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    http, images,
    interrupt::Guard,
    packages, process,
    terminal::{self, Style},
    test,
    workspace::Workspace,
};
use emulated::Emulated;
use guest::Guest;

/// The port that people expect a demonstration at.
const USUAL_PORT: u16 = 8080;
/// How long the guest may take until it serves.
const LIMIT: Duration = Duration::from_secs(90);
/// Lines of the page that are shown, and characters of each.
const EXCERPT: (usize, usize) = (12, 100);

#[derive(Args)]
pub(crate) struct Options {
    /// End after the page was fetched; the exit status says whether it was
    #[arg(long)]
    once: bool,
    /// Port of this machine at which the server is published [default: 8080, or a free one]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Run on a stock kernel in QEMU even if this machine's /dev/kvm can be used
    #[arg(long)]
    emulated: bool,
}

/// A web server that was launched, here or in emulation.
trait Server {
    /// Since what [`Server::launch_word`] names.
    fn age(&self) -> Duration;
    /// Of what.
    fn launch_word(&self) -> &'static str;
    /// How it ended, if it has.
    fn ended(&mut self) -> Option<String>;
    /// The guest's own address, if its console has named one.
    fn address(&self) -> Option<Ipv4Addr>;
    /// Resident memory of the process, bytes, where that says something.
    fn resident(&self) -> Option<u64>;
    /// Ends it and shows what is left to say.
    fn stop(self: Box<Self>);
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    println!("\n{}\n", terminal::paint(Style::Bold, "Foraker: a web server in a virtual machine of its own"));
    let usable = test::usable_kvm();
    if let Err(reason) = &usable {
        terminal::note(&format!("{reason}: the guest runs on a stock kernel in QEMU, many times slower"));
    }
    packages::require(&[&packages::BINUTILS, &packages::CURL])?;
    let port = choose_port(options.port)?;

    let started = Instant::now();
    let vmm = workspace.build_vmm()?;
    done("vmm", &format!("built in {}", terminal::time(started.elapsed())));
    let started = Instant::now();
    let built = images::build(workspace, &workspace.generated("images"), None)?;
    done("images", &format!("{} built in {}", built.len(), terminal::time(started.elapsed())));

    let guard = Guard::new();
    let mut server: Box<dyn Server> = if usable.is_ok() && !options.emulated {
        let image = workspace.generated("images").join("httpd");
        let shown = image.strip_prefix(&workspace.root).unwrap_or(&image).display().to_string();
        let publish = format!("127.0.0.1:{port}:80");
        println!(
            "\n  {}",
            terminal::paint(Style::Dim, &format!("$ vmm launch --name web -p {publish} {shown}"))
        );
        let mut command = Command::new(&vmm);
        command.args(["launch", "--json", "--name", "web", "-p", &publish]).arg(&image);
        Box::new(Guest::launch(command)?)
    } else {
        Box::new(Emulated::launch(workspace, port)?)
    };
    let outcome = show(server.as_mut(), &guard, port);
    if outcome.is_ok() && !options.once {
        let address = format!("http://localhost:{port}/");
        println!("\n  Point a browser at {}", terminal::paint(Style::Accent, &address));
        println!("  {}", terminal::paint(Style::Dim, "Ctrl-C ends it"));
        while !guard.came() && server.ended().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    server.stop();
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for the server, fetches the page, shows what happened.
fn show(server: &mut dyn Server, guard: &Guard, port: u16) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let first_byte = loop {
        if guard.came() {
            bail!("interrupted");
        }
        if let Some(how) = server.ended() {
            bail!("{how} before the guest served");
        }
        if http::get(port, "/", Duration::from_secs(2)).is_ok() {
            break server.age();
        }
        if Instant::now() > deadline {
            bail!("the guest did not serve within {}", terminal::time(LIMIT));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    done(
        "first page",
        &format!("{} after the launch of {}", terminal::time(first_byte), server.launch_word()),
    );
    let page = fetch(port)?;
    done(
        "fetched",
        &format!("{}: HTTP {}, {} bytes in {}", page.client, page.status, page.body.len(), page.time),
    );
    println!();
    for line in excerpt(&String::from_utf8_lossy(&page.body)) {
        println!("    {} {line}", terminal::paint(Style::Dim, "|"));
    }
    println!();
    if page.status != 200 {
        bail!("the page was answered with status {}", page.status);
    }
    if let Some(address) = server.address() {
        done("guest", &format!("its own address is {address}, published at localhost:{port}"));
    }
    if let Some(resident) = server.resident() {
        done("memory", &format!("{} for the process, VMM and guest", terminal::bytes(resident)));
    }
    Ok(())
}

/// A line of what has been done.
fn done(what: &str, text: &str) {
    println!("  {} {what:<11} {text}", terminal::paint(Style::Good, "✓"));
}

/// The port that was asked for, the usual one, or a free one.
fn choose_port(wanted: Option<u16>) -> Result<u16> {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|l| l.local_addr());
    if let Some(port) = wanted {
        free(port).with_context(|| format!("port {port} cannot be used: choose another with --port"))?;
        return Ok(port);
    }
    match free(USUAL_PORT) {
        Ok(_) => Ok(USUAL_PORT),
        Err(_) => Ok(free(0).context("no port is free")?.port()),
    }
}

/// The page, as a client got it.
struct Page {
    client: &'static str,
    status: u16,
    body: Vec<u8>,
    time: String,
}

/// With `curl` if it is there.
fn fetch(port: u16) -> Result<Page> {
    const SEPARATOR: &str = "\n@@";
    if process::find("curl").is_none() {
        let started = Instant::now();
        let http::Response { status, body } = http::get(port, "/", Duration::from_secs(20))?;
        return Ok(Page { client: "built-in client", status, body, time: terminal::time(started.elapsed()) });
    }
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"]);
    curl.args(["--write-out", &format!("{SEPARATOR}%{{http_code}} %{{time_total}}")]);
    let output = process::quiet(curl.arg(format!("http://localhost:{port}/")))?;
    let (body, facts) = output.rsplit_once(SEPARATOR).context("curl printed no status")?;
    let (status, seconds) = facts.split_once(' ').context("curl printed no time")?;
    let time = terminal::time(Duration::try_from_secs_f64(seconds.parse()?)?);
    Ok(Page { client: "curl", status: status.parse()?, body: body.as_bytes().to_vec(), time })
}

/// The beginning of a page, without its markup.
fn excerpt(page: &str) -> Vec<String> {
    let (lines, width) = EXCERPT;
    let all: Vec<String> = page.lines().map(text_of).filter(|line| !line.is_empty()).collect();
    let mut shown: Vec<String> =
        all.iter().take(lines).map(|line| line.chars().take(width).collect()).collect();
    if all.len() > lines {
        shown.push("...".to_owned());
    }
    shown
}

/// What a line of a page says between its tags.
fn text_of(line: &str) -> String {
    let mut text = String::new();
    let mut tag = false;
    for c in line.chars() {
        match c {
            '<' => {
                tag = true;
                text.push(' ');
            }
            '>' if tag => tag = false,
            c if !tag => text.push(if c.is_control() { ' ' } else { c }),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_avoided_or_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = format!("{:#}", choose_port(Some(port)).unwrap_err());
        assert!(error.contains(&format!("port {port}")) && error.contains("--port"), "{error}");
        let _usual = TcpListener::bind((Ipv4Addr::LOCALHOST, USUAL_PORT));
        assert_ne!(choose_port(None).unwrap(), USUAL_PORT);
    }

    #[test]
    fn an_excerpt_is_short_and_harmless() {
        let page = format!("<h1>a</h1>\n\n\x1b[31mb\n{}\n{}", "x".repeat(500), "line\n".repeat(50));
        let shown = excerpt(&page);
        assert_eq!(shown[..2], ["a", "[31mb"]);
        assert_eq!(text_of("<tr><th>exits</th><td>12</td></tr>"), "exits 12");
        assert_eq!(shown.len(), EXCERPT.0 + 1);
        assert!(shown.iter().all(|line| line.chars().count() <= EXCERPT.1));
        assert_eq!(excerpt("one"), ["one"]);
    }
}
