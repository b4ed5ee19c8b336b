//! The command `vmm`.

mod apply;
mod args;
mod cells;
mod clients;
mod debug;
mod describe;
mod doctor;
mod format;
mod launch;
mod lists;
mod logger;
mod networks;
mod page;
mod report;
mod serve;
mod signals;
mod stats;
mod top;

use foraker_api::{Action, units};

use std::process::ExitCode;

use args::Command;

/// Exit status: the command line, the host or the VMM is at fault, not a guest.
pub(crate) const STATUS_HOST: u8 = 125;

fn main() -> ExitCode {
    // One heap for all threads: they allocate next to nothing while guests run, and a heap for each costs time at every start.
    // SAFETY: no other thread exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let parsed = args::parse(std::env::args_os());
    if !matches!(parsed, Ok(Command::Launch(_) | Command::Serve(_) | Command::Launcher(_) | Command::Cell(_)))
    {
        // Whoever reads what a client prints may stop: `vmm ps | head`. What holds guests has to go on.
        // SAFETY: no other thread exists yet, and no handler is replaced.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let command = match parsed {
        Ok(command) => command,
        Err(args::Refused::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(args::Refused::Usage(line)) => return fail(&line),
    };
    let result = match command {
        Command::Launch(launch) => launch::run(&launch),
        Command::Doctor(doctor) => doctor::run(&doctor),
        Command::Serve(serve) => serve::run(&serve),
        Command::Run(run) => clients::run(&run),
        Command::Ps(ps) => lists::guests(&ps),
        Command::Logs(logs) => lists::logs(&logs),
        Command::Attach(one) => lists::attach(&one),
        Command::Start(act) => clients::act(&act, Action::Start),
        Command::Stop(act) => clients::act(&act, Action::Stop),
        Command::Kill(act) => clients::act(&act, Action::Kill),
        Command::Pause(act) => clients::act(&act, Action::Pause),
        Command::Resume(act) => clients::act(&act, Action::Resume),
        Command::Rm(rm) => clients::remove(&rm),
        Command::Inspect(guests) => lists::inspect(&guests),
        Command::Stats(stats) => stats::run(&stats),
        Command::Top(top) => top::run(&top),
        Command::Events(events) => lists::events(&events),
        Command::Debug(debug) => debug::debug(&debug),
        Command::Dump(dump) => debug::dump(&dump),
        Command::Trace(trace) => debug::trace(&trace),
        Command::Wait(guests) => lists::wait(&guests),
        Command::Images(list) => lists::images(&list),
        Command::Image(image) => clients::images(&image),
        Command::Owner(owner) => clients::owners(&owner),
        Command::Gatekeeper(gatekeeper) => clients::gatekeeper(&gatekeeper),
        Command::Network(network) => clients::networks(&network),
        Command::Apply(apply) => apply::run(&apply),
        Command::System(system) => lists::system(&system),
        Command::Completion { shell } => describe::completion(shell),
        Command::Man { folder } => describe::manual(&folder),
        Command::Launcher(launcher) => cells::run_launcher(launcher),
        Command::Cell(cell) => cells::run_cell(&cell),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => fail(&one_line(&e)),
    }
}

/// An error and its causes, each said once, without the host's numbers for them.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    while let Some((before, after)) = line.split_once(" (os error ") {
        let after = after.split_once(')').map_or("", |(_, after)| after);
        line = format!("{before}{after}");
    }
    line
}

fn fail(line: &str) -> ExitCode {
    eprintln!("vmm: {line}");
    ExitCode::from(STATUS_HOST)
}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_are_one_line_that_says_everything_once() {
        let cause = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = anyhow::Error::new(cause)
            .context("cannot read: No such file or directory (os error 2)")
            .context("x");
        assert_eq!(super::one_line(&error), "x: cannot read: No such file or directory");
    }
}
