//! `vmm doctor`: what this host can do, and what to mend.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use foraker_cell::{Cell, Config, End, GuestSpec, LoadedImage, NetworkConfig};
use serde::Serialize;

use crate::args::Doctor;
use crate::launch::wait_readable;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    /// `ok`, `warning` (works, but not at its best) or `problem` (does not work).
    state: &'static str,
    found: String,
    /// What to do about it.
    advice: Option<&'static str>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: "ok", found: found.into(), advice: None }
    }

    fn bad(
        what: &'static str,
        state: &'static str,
        found: impl Into<String>,
        advice: Option<&'static str>,
    ) -> Finding {
        Finding { what, state, found: found.into(), advice }
    }
}

/// Runs `vmm doctor`: status 0 when guests can run, else 1.
pub(crate) fn run(options: &Doctor) -> anyhow::Result<u8> {
    let findings = [processor(), kernel(), kvm(), network(), descriptors(), memory()];
    let broken = findings.iter().any(|f| f.state == "problem");
    if options.json {
        println!("{}", serde_json::json!({ "healthy": !broken, "findings": findings }));
    } else {
        for f in &findings {
            let mark = match f.state {
                "ok" => "ok     ",
                "warning" => "warning",
                _ => "PROBLEM",
            };
            println!("{mark}  {:<12} {}", f.what, f.found);
            if let Some(advice) = f.advice {
                println!("                      -> {advice}");
            }
        }
    }
    Ok(u8::from(broken))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn processor() -> Finding {
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']).to_owned();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!("{count} x {model}");
    if info.contains("constant_tsc") || info.contains("tsc_known_freq") || info.contains("tsc_reliable") {
        Finding::ok("processor", text)
    } else {
        let advice = Some("the time-stamp counter may change its speed: guests' time may drift");
        Finding::bad("processor", "warning", text, advice)
    }
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("Linux {release}");
    if version >= (6, 1) {
        Finding::ok("kernel", text)
    } else {
        Finding::bad("kernel", "problem", text, Some("use Linux 6.1 or later"))
    }
}

/// Not only whether `/dev/kvm` is there, but whether a guest runs.
fn kvm() -> Finding {
    let backend =
        ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().find(|m| Path::new("/sys/module").join(m).exists());
    let backend = backend.unwrap_or("built-in KVM");
    match run_a_guest() {
        Ok(microseconds) => {
            Finding::ok("/dev/kvm", format!("{backend}: a guest ran and ended within {microseconds} us"))
        }
        Err(e) => Finding::bad("/dev/kvm", "problem", format!("{backend}: {e}"), None),
    }
}

fn run_a_guest() -> Result<u128, String> {
    let image = LoadedImage::smallest();
    let config = Config::new(1, 4 << 20, libc::STDERR_FILENO);
    let mut cell = Cell::new(&config).map_err(|e| e.to_string())?;
    let started = Instant::now();
    let guest = cell
        .start(&GuestSpec { memory: 1 << 20, ..GuestSpec::new(image, "doctor") })
        .map_err(|e| e.to_string())?;
    while !guest.has_ended() && started.elapsed().as_secs() < 10 {
        wait_readable(cell.ended().as_raw_fd(), 1000);
    }
    let took = started.elapsed().as_micros();
    cell.stop();
    match guest.end() {
        Some(End::Exited(42)) => Ok(took),
        other => Err(format!("a guest that should have ended with status 42 ended with {other:?}")),
    }
}

fn network() -> Finding {
    let config =
        Config { network: Some(NetworkConfig::default()), ..Config::new(1, 4 << 20, libc::STDERR_FILENO) };
    match Cell::new(&config) {
        Ok(cell) => {
            let (name, address, bits) =
                cell.network().unwrap_or_else(|| (String::new(), [0, 0, 0, 0].into(), 0));
            Finding::ok("network", format!("TAP device {name} with {address}/{bits} was made and removed"))
        }
        Err(e) => {
            let advice = Some("guests without a network run all the same; or give a TAP device with --tap");
            Finding::bad("network", "warning", e.to_string(), advice)
        }
    }
}

fn descriptors() -> Finding {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let text = format!("{} descriptors, at most {}", limit.rlim_cur, limit.rlim_max);
    if limit.rlim_max >= 4096 {
        Finding::ok("descriptors", text)
    } else {
        Finding::bad("descriptors", "warning", text, Some("each guest needs three: raise it with ulimit -Hn"))
    }
}

fn memory() -> Finding {
    let info = read("/proc/meminfo");
    let kib: u64 = info
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    // A small idle guest costs about 0.7 MiB, the kernel's part included.
    Finding::ok("memory", format!("{} MiB available: room for about {} small guests", kib >> 10, kib / 700))
}
