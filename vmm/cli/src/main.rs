//! The command `vmm`.

mod args;
mod doctor;
mod launch;
mod logger;
mod manifest;
mod report;
mod signals;
mod units;

use std::process::ExitCode;

use args::Command;

/// Exit status: the command line, the host or the VMM is at fault, not a guest.
pub(crate) const STATUS_HOST: u8 = 125;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os()) {
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
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(e) => fail(&format!("{e:#}")),
    }
}

fn fail(line: &str) -> ExitCode {
    eprintln!("vmm: {line}");
    ExitCode::from(STATUS_HOST)
}
