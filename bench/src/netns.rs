//! Network namespaces: one for this program, and in it one behind a veth pair, where native servers run, so that
//! their packets cross a device as a guest's do.
//!
//! None has a name: it lives while this process holds its descriptor or a thread in it, and takes its devices along.
//! So nothing is left behind however the process ends; and as no route leads out of them, no load ever leaves
//! the machine, even when a server has died.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::{io, process};

use anyhow::{Context, Result, bail, ensure};

use crate::ethtool;

/// Subnets that this program uses: 10.98.0.0/24 and up for veth pairs, 10.98.128.0/24 and up for guests.
const NET: [u8; 2] = [10, 98];

/// The device inside the namespace.
const INSIDE: &str = "eth0";

/// Moves the calling thread, and what it starts from now on, into a namespace of its own: the "host" of every network
/// benchmark. Guests' TAP devices are made there, too.
///
/// # Errors
/// Without the right to do so, or without `ip`.
pub fn isolate() -> Result<()> {
    unshare()?;
    ip(&["link", "set", "lo", "up"])
}

fn unshare() -> Result<()> {
    // SAFETY: changes this thread's namespace only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error())
            .context("cannot make a network namespace (the network benchmarks need root)");
    }
    Ok(())
}

/// A namespace that is connected to the host's by a veth pair with MTU 1500.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
    host_device: String,
    subnet: u8,
}

impl Namespace {
    /// Makes the namespace, the pair and its addresses.
    ///
    /// # Errors
    /// Without the right to do so, without `ip`, or when no subnet is free.
    pub fn new() -> Result<Namespace> {
        let handle = thread::spawn(|| -> Result<File> {
            unshare()?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that makes the namespace panicked"))??;
        let subnet = free_subnet(0)?;
        let host_device = format!("fkb{}", process::id());
        let path = format!("/proc/{}/fd/{}", process::id(), handle.as_raw_fd());
        let namespace = Namespace { handle, host_device, subnet };
        let host = &namespace.host_device;
        ip(&[
            "link", "add", host, "mtu", "1500", "type", "veth", "peer", INSIDE, "mtu", "1500", "netns", &path,
        ])?;
        ip(&["addr", "add", &format!("{}/24", namespace.host()), "dev", host])?;
        ip(&["link", "set", host, "up"])?;
        let inside = format!("{}/24", namespace.address());
        namespace.run(move || {
            ip(&["link", "set", "lo", "up"])?;
            ip(&["addr", "add", &inside, "dev", INSIDE])?;
            ip(&["link", "set", INSIDE, "up"])
        })??;
        Ok(namespace)
    }

    /// The host's address on the pair.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.subnet, 1)
    }

    /// The address inside.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(NET[0], NET[1], self.subnet, 2)
    }

    /// Starts a thread inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no thread started.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let handle = self.handle.try_clone().context("cannot duplicate the namespace's descriptor")?;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // SAFETY: changes this thread's namespace only.
                if unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error()).context("cannot enter the network namespace");
                }
                Ok(work())
            })
            .context("cannot start a thread")
    }

    /// Runs `work` inside and waits for it.
    ///
    /// # Errors
    /// As [`Namespace::spawn`].
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.spawn("namespace", work)?
            .join()
            .map_err(|_| anyhow::anyhow!("a thread in the namespace panicked"))?
    }

    /// Switches segmentation offload at both ends of the pair.
    ///
    /// # Errors
    /// As [`ethtool::set_segmentation_offload`].
    pub fn set_segmentation_offload(&self, on: bool) -> Result<()> {
        ethtool::set_segmentation_offload(&self.host_device, on)?;
        self.run(move || ethtool::set_segmentation_offload(INSIDE, on))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The kernel would do it with the namespace, a little later.
        let removed = ip(&["link", "del", &self.host_device]);
        if let Err(error) = removed {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Has the host's TCP forget what it remembers of earlier connections to this address: a new one would start with the window that another
/// congestion control, or another state of offloads, has left.
pub fn forget_metrics(address: Ipv4Addr) {
    // There may be nothing to forget.
    let _ = Command::new("ip").args(["tcp_metrics", "delete", &address.to_string()]).output();
}

/// Writes guests' ethernet addresses into this namespace's table for good, as whoever runs ten thousand of them on one host does (or raises
/// `net.ipv4.neigh.default.gc_thresh3`, which is the whole host's): the kernel keeps 1,024 that it has learned, and asks for the others
/// again and again.
///
/// # Errors
/// When there is no route to one, or `ip` fails.
pub fn know_neighbours(guests: &[Ipv4Addr]) -> Result<()> {
    let output = Command::new("ip").args(["-o", "-4", "addr", "show"]).output().context(NO_IP)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Lines as `2: fk0    inet 10.100.0.1/16 ...`; each cell has a subnet of 16 bits.
    let subnet = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (device, address) = (fields.next()?.to_owned(), fields.nth(1)?);
        let address: Ipv4Addr = address.strip_suffix("/16")?.parse().ok()?;
        let [a, b, ..] = address.octets();
        Some(([a, b], device))
    };
    let subnets: HashMap<[u8; 2], String> = text.lines().filter_map(subnet).collect();
    let mut lines = String::new();
    for guest in guests {
        let [a, b, c, d] = guest.octets();
        let device = subnets.get(&[a, b]).with_context(|| format!("no device leads to {guest}"))?;
        // The VMM makes a guest's ethernet address of its IPv4 address.
        let ethernet = format!("06:46:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        writeln!(lines, "neigh replace {guest} lladdr {ethernet} dev {device} nud permanent")?;
    }
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context(NO_IP)?;
    child.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "`ip -batch -` failed");
    Ok(())
}

/// The third byte of a free 10.98.x.0/24, from `from` on.
fn free_subnet(from: u8) -> Result<u8> {
    let output = Command::new("ip").args(["-o", "-4", "addr", "show"]).output().context(NO_IP)?;
    ensure!(output.status.success(), "`ip -o -4 addr show` failed");
    let addresses = String::from_utf8_lossy(&output.stdout);
    (from..from.saturating_add(100))
        .find(|n| !addresses.contains(&format!(" {}.{}.{n}.", NET[0], NET[1])))
        .with_context(|| format!("every subnet from {}.{}.{from}.0/24 on is in use", NET[0], NET[1]))
}

/// Subnets for guests, each one new, so that connections which linger from an earlier guest do not use up ports.
#[derive(Debug, Default)]
pub struct GuestSubnets(u8);

impl GuestSubnets {
    /// The next one, as `(subnet, address of the first guest)`.
    ///
    /// # Errors
    /// When none is free.
    pub fn take(&mut self) -> Result<(String, Ipv4Addr)> {
        let n = free_subnet(128 + self.0)?;
        self.0 = (n - 128 + 1) % 28;
        Ok((format!("{}.{}.{n}.0/24", NET[0], NET[1]), Ipv4Addr::new(NET[0], NET[1], n, 2)))
    }
}

const NO_IP: &str = "cannot run `ip`; install it with: apt-get install iproute2";

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context(NO_IP)?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
