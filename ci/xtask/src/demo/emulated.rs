//! The same demonstration where no `/dev/kvm` can be used: on a stock kernel in QEMU, with a port passed on to it.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Server, guest::find_address};
use crate::{
    interrupt, packages, process,
    qemu::{self, Forward, Machine, Outcome},
    terminal::{self, Style},
    workspace::Workspace,
};

/// Port inside at which `vmm` publishes the guest.
const INSIDE: u16 = 8080;
/// How long it may run, for a machine that nobody ends.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A web server in a virtual machine in an emulated machine.
pub(super) struct Emulated {
    machine: Option<JoinHandle<Result<Outcome>>>,
    started: Instant,
    address: Arc<Mutex<Option<Ipv4Addr>>>,
}

impl Emulated {
    /// Boots the machine; what it says is shown as it comes.
    pub(super) fn launch(workspace: &Workspace, port: u16) -> Result<Self> {
        packages::require(&[&packages::QEMU, &packages::BUSYBOX])?;
        let launch = format!("vmm launch --name web -p 0.0.0.0:{INSIDE}:80 /images/httpd");
        println!("\n  {}", terminal::paint(Style::Dim, &format!("(in QEMU) # {launch}")));
        let script = format!("ip link set eth0 up\nip addr add {}/24 dev eth0\n{launch}\n", Forward::ADDRESS);
        let machine = Machine {
            smp: 1,
            memory: "1G".to_owned(),
            limit: LIMIT,
            files: qemu::own_files(workspace)?,
            environment: Vec::new(),
            append: String::new(),
            script,
            forward: Some(Forward { here: port, inside: INSIDE }),
        };
        let address = Arc::new(Mutex::new(None));
        let (workspace, seen) = (workspace.clone(), Arc::clone(&address));
        let started = Instant::now();
        let machine = thread::spawn(move || {
            machine.run(&workspace, |line| {
                if let (Some(found), Ok(mut address)) = (find_address(line), seen.lock()) {
                    address.get_or_insert(found);
                }
                process::print_line(&format!("    {} {line}", terminal::paint(Style::Dim, "web|")));
                Ok(())
            })
        });
        Ok(Emulated { machine: Some(machine), started, address })
    }

    /// Waits for the end of the machine and says how it came.
    fn join(&mut self) -> Option<String> {
        Some(match self.machine.take()?.join() {
            Ok(Ok(outcome)) => format!("vmm ended with status {}", outcome.status),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the thread of the machine panicked".to_owned(),
        })
    }
}

impl Server for Emulated {
    fn age(&self) -> Duration {
        self.started.elapsed()
    }

    fn launch_word(&self) -> &'static str {
        "the emulated machine, its boot included"
    }

    fn ended(&mut self) -> Option<String> {
        match &self.machine {
            Some(machine) if !machine.is_finished() => None,
            Some(_) => self.join(),
            None => Some("the machine ended".to_owned()),
        }
    }

    fn address(&self) -> Option<Ipv4Addr> {
        self.address.lock().ok().and_then(|address| *address)
    }

    fn resident(&self) -> Option<u64> {
        None
    }

    fn stop(mut self: Box<Self>) {
        interrupt::raise();
        // It was ended from here: how is no news.
        let _ = self.join();
    }
}
