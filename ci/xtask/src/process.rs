//! Other programs: run, capture, stream, with errors that show the command that failed.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::interrupt::Guard;

/// The command as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    // Cargo hands on its full path, which says nothing.
    let cargo = program.file_name().filter(|name| *name == "cargo");
    let mut text = quote(cargo.unwrap_or(program.as_os_str()));
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&quote(argument));
    }
    text
}

/// An argument, quoted for a shell when it has to be.
pub(crate) fn quote(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Runs to the end; output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| cannot_start(command))?;
    check(command, status)
}

/// Runs to the end and returns what it printed to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| cannot_start(command))?;
    check(command, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end without output of its own; what it printed is part of the error.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed with {}: {}", show(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed with {status}", show(command));
    }
    Ok(())
}

/// What to say when a program cannot be started at all.
pub(crate) fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.get_program().to_string_lossy())
}

/// How a streamed program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status (128 + n for signal n).
    Status(i32),
    /// It was killed because its time was over.
    Timeout,
    /// It was killed because this program was asked to end.
    Interrupted,
}

/// Longest line that is handed on in one piece, bytes.
const LINE_MAX: u64 = 16 << 10;

/// Runs to the end within `limit` and hands each line of both outputs, without its end, to `line`.
///
/// The program gets a group of its own, so that at the limit its children end with it.
///
/// # Errors
/// When it cannot be started, or when `line` fails (the program is ended then).
pub(crate) fn stream(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str) -> Result<()>,
) -> Result<End> {
    use std::os::unix::process::CommandExt;
    let deadline = Instant::now() + limit;
    // Its own group does not get the terminal's Ctrl-C.
    let guard = Guard::new();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let (sender, lines) = mpsc::sync_channel(1024);
    let outputs = [
        child.stdout.take().map(|o| Box::new(o) as Box<dyn Read + Send>),
        child.stderr.take().map(|o| Box::new(o) as Box<dyn Read + Send>),
    ];
    for output in outputs.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || forward(output, &sender));
    }
    drop(sender);
    let mut ended: Option<Instant> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(text) => {
                if let Err(error) = line(&text) {
                    end_group(&mut child);
                    return Err(error);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // A child that outlives the program may hold the pipe open; it is not waited for.
                if ended.is_none() && child.try_wait()?.is_some() {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|at| at.elapsed() > Duration::from_secs(2)) {
                    break;
                }
            }
        }
        if guard.came() {
            end_group(&mut child);
            return Ok(End::Interrupted);
        }
        if Instant::now() > deadline {
            end_group(&mut child);
            return Ok(End::Timeout);
        }
    }
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Status(code(status)));
        }
        thread::sleep(Duration::from_millis(5));
    }
    end_group(&mut child);
    Ok(End::Timeout)
}

fn forward(output: Box<dyn Read + Send>, lines: &mpsc::SyncSender<String>) {
    let mut reader = BufReader::new(output);
    loop {
        let mut bytes = Vec::new();
        match (&mut reader).take(LINE_MAX).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        if lines.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
            return;
        }
    }
}

/// Ends a program that was started as the head of its own group, and its children, and reaps it.
fn end_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// An exit status as a shell gives it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Prints a line to standard output at once, even into a pipe.
pub(crate) fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody can be told when standard output is gone.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Where a program stands in `PATH`, if it does.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn quotes_what_a_shell_would_split() {
        assert_eq!(quote(OsStr::new("-p")), "-p");
        assert_eq!(quote(OsStr::new("")), "''");
        assert_eq!(quote(OsStr::new("a b")), "'a b'");
        assert_eq!(quote(OsStr::new("it's")), r"'it'\''s'");
    }

    #[test]
    fn streams_lines_of_both_outputs_and_the_status() {
        let mut lines = Vec::new();
        let mut command = shell("echo one; echo two >&2; printf three; exit 7");
        let end = stream(&mut command, Duration::from_secs(20), |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        lines.sort();
        assert_eq!(end.unwrap(), End::Status(7));
        assert_eq!(lines, ["one", "three", "two"]);
    }

    #[test]
    fn ends_what_takes_too_long_with_its_children() {
        let started = Instant::now();
        let end = stream(&mut shell("sleep 60 & sleep 60"), Duration::from_millis(300), |_| Ok(()));
        assert_eq!(end.unwrap(), End::Timeout);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn errors_name_the_command() {
        let error = run(&mut shell("exit 3")).unwrap_err().to_string();
        assert!(error.contains("/bin/sh -c 'exit 3'") && error.contains("exit status: 3"), "{error}");
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/program"));
    }
}
