//! `vmm debug`, `vmm dump` and `vmm trace`: looking into a guest.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use foraker_api::client::{encode, query};
use foraker_api::{Client, GuestDetail, Traced};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::clients::{Debug, Dump, Trace};
use crate::clients::connect;
use crate::format::{Format, bytes, inert};

/// Longest line of a trace, bytes: what is longer is none.
const LONGEST_LINE: usize = 4096;

/// `vmm debug`.
pub(crate) fn debug(debug: &Debug) -> anyhow::Result<u8> {
    if let Some(address) = debug.listen {
        return listen(debug, address);
    }
    if let Some(image) = &debug.exec {
        return start_gdb(debug, image);
    }
    let mut client = connect(&debug.socket)?;
    if io::stdin().is_terminal() || io::stdout().is_terminal() {
        // Nobody speaks gdb's protocol by hand.
        let detail = client.guest(&debug.guest)?;
        println!("{}", command_for_people(debug, &detail));
        return Ok(0);
    }
    // gdb and this have one terminal: Ctrl-C there is for gdb.
    // SAFETY: no handler is replaced.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    relay(attach(client, &debug.guest)?, io::stdin(), io::stdout())?;
    Ok(0)
}

/// Stops the guest for a debugger.
fn attach(client: Client, guest: &str) -> anyhow::Result<UnixStream> {
    Ok(client.change(&format!("/guests/{}/debug", encode(guest)), "gdb-remote")?)
}

/// What gdb is told to run: this program, as it was run.
fn target(debug: &Debug) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find the own program")?;
    let mut words = vec![program.display().to_string(), "debug".to_owned()];
    words.extend(debug.socket.words().context("cannot find the socket")?);
    words.push(debug.guest.clone());
    let quoted: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    Ok(format!("target remote | {}", quoted.join(" ")))
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=+@%,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn command_for_people(debug: &Debug, detail: &GuestDetail) -> String {
    let image = inert(&detail.guest.image);
    match target(debug) {
        Ok(target) => format!(
            "gdb -ex {} FILE\n\nFILE is the image {image} (SHA-256 {}).",
            quoted(&target),
            inert(&detail.digest)
        ),
        Err(e) => format!("{e}"),
    }
}

/// Becomes gdb.
fn start_gdb(debug: &Debug, image: &Path) -> anyhow::Result<u8> {
    // What is wrong is said here, not by gdb.
    File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    let detail = connect(&debug.socket)?.guest(&debug.guest)?;
    if detail.guest.state.is_over() {
        bail!("guest {} has ended: it is {}", inert(&debug.guest), detail.guest.state);
    }
    let failed = Command::new("gdb").arg("-ex").arg(target(debug)?).arg(image).exec();
    Err(anyhow::Error::new(failed).context("cannot run gdb: install it"))
}

/// Waits for one gdb, which then debugs the guest.
fn listen(debug: &Debug, address: SocketAddr) -> anyhow::Result<u8> {
    if !address.ip().is_loopback() {
        bail!(
            "{address} can be reached from elsewhere, and whoever reaches it does with the guest what he wants: listen on 127.0.0.1 or [::1], and come through `ssh -L`"
        );
    }
    let mut client = connect(&debug.socket)?;
    // One that is not there is told of before anybody waits.
    let guest = client.guest(&debug.guest)?.guest;
    if guest.state.is_over() {
        bail!("guest {} has ended: it is {}", inert(&debug.guest), guest.state);
    }
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("cannot find out the port")?;
    println!("target remote {address}");
    let (gdb, _) = listener.accept().context("nobody came")?;
    // One only.
    drop(listener);
    let stream = attach(client, &debug.guest)?;
    // Packets are short, and each is waited for.
    gdb.set_nodelay(true).context("cannot use the connection")?;
    let to_gdb = gdb.try_clone().context("cannot copy a descriptor")?;
    let closing = gdb.try_clone().context("cannot copy a descriptor")?;
    relay(stream, gdb, to_gdb)?;
    // A gdb that still reads sees the end.
    let _ = closing.shutdown(std::net::Shutdown::Both);
    Ok(0)
}

/// Passes bytes on between a guest and gdb, until the guest's side is closed.
fn relay(
    mut guest: UnixStream,
    mut from_gdb: impl Read + Send + 'static,
    mut to_gdb: impl Write,
) -> anyhow::Result<()> {
    let mut to_guest = guest.try_clone().context("cannot copy a descriptor")?;
    std::thread::Builder::new()
        .name("gdb".to_owned())
        .spawn(move || {
            // However it ends: gdb has left, and so the guest is to go on.
            let _ = io::copy(&mut from_gdb, &mut to_guest);
            let _ = to_guest.shutdown(std::net::Shutdown::Write);
        })
        .context("cannot start a thread")?;
    let mut piece = [0; 16 << 10];
    let mut pass = || -> io::Result<()> {
        loop {
            let read = match guest.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            to_gdb.write_all(piece.get(..read).unwrap_or_default())?;
            to_gdb.flush()?;
        }
    };
    match pass() {
        Err(e) if !matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(e).context("the connection broke")
        }
        _ => Ok(()),
    }
}

/// Where a dump goes: to a file beside its name until it is complete, so that what was there before is replaced by nothing less.
enum Output {
    Standard(io::Stdout),
    /// What is there and is no file, such as a pipe or `/dev/null`.
    Other(File),
    File {
        file: BufWriter<File>,
        part: Part,
        name: PathBuf,
    },
}

/// A file that is gone when it was not completed.
struct Part(Option<PathBuf>);

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Output {
    fn open(name: &Path) -> anyhow::Result<Output> {
        if name == Path::new("-") {
            if io::stdout().is_terminal() {
                bail!("a dump is nothing for a terminal: name a file with --output");
            }
            return Ok(Output::Standard(io::stdout()));
        }
        if name.is_dir() {
            bail!("{} is a folder: name a file with --output", name.display());
        }
        if std::fs::metadata(name).is_ok_and(|there| !there.is_file()) {
            let other = File::options().write(true).open(name);
            return Ok(Output::Other(other.with_context(|| format!("cannot write {}", name.display()))?));
        }
        let mut part = name.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        // It holds whatever the guest held: its user's alone.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&part);
        let file = file.with_context(|| format!("cannot write {}", name.display()))?;
        Ok(Output::File { file: BufWriter::new(file), part: Part(Some(part)), name: name.to_owned() })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Output::Standard(output) => output.write_all(bytes),
            Output::Other(other) => other.write_all(bytes),
            Output::File { file, .. } => file.write_all(bytes),
        }
    }

    fn complete(self) -> io::Result<()> {
        match self {
            Output::Standard(mut output) => output.flush(),
            Output::Other(_) => Ok(()),
            Output::File { mut file, mut part, name } => {
                file.flush()?;
                if let Some(path) = &part.0 {
                    std::fs::rename(path, name)?;
                }
                part.0 = None;
                Ok(())
            }
        }
    }
}

/// `vmm dump`.
pub(crate) fn dump(dump: &Dump) -> anyhow::Result<u8> {
    let mut client = connect(&dump.socket)?;
    let name = match &dump.output {
        Some(name) => name.clone(),
        None => format!("core.{}", client.guest(&dump.guest)?.guest.id).into(),
    };
    let mut output = Output::open(&name)?;
    let path = query(
        &format!("/guests/{}/core", encode(&dump.guest)),
        &[("most", Some(dump.max_size.to_string())), ("kept", dump.kept.then(|| "true".to_owned()))],
    );
    let bar = ProgressBar::hidden();
    let (mut size, mut failed) = (0, None);
    client.download(
        &path,
        |length| {
            if let Some(length) = length.filter(|_| io::stderr().is_terminal()) {
                bar.set_length(length);
                if let Ok(style) =
                    ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}")
                {
                    bar.set_style(style);
                }
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            }
        },
        |piece| {
            size += piece.len() as u64;
            bar.set_position(size);
            match output.write(piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        },
    )?;
    bar.finish_and_clear();
    let written = failed.map_or(Ok(()), Err).and_then(|()| output.complete());
    written.with_context(|| format!("cannot write {}", name.display()))?;
    eprintln!("{}: {}", name.display(), bytes(size));
    Ok(0)
}

/// `vmm trace`.
pub(crate) fn trace(trace: &Trace) -> anyhow::Result<u8> {
    let path = query(
        &format!("/guests/{}/trace", encode(&trace.guest)),
        &[
            ("milliseconds", trace.time.map(|ms| ms.to_string())),
            ("count", trace.count.map(|count| count.to_string())),
        ],
    );
    let mut output = BufWriter::new(io::stdout().lock());
    let (mut rest, mut failed) = (Vec::new(), None);
    connect(&trace.socket)?.stream(&path, |bytes| {
        rest.extend_from_slice(bytes);
        let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = rest.drain(..whole).collect();
        let mut all = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let printed = all.try_for_each(|line| print(&mut output, &trace.format, line));
        let printed = printed.and_then(|()| output.flush().context("cannot write to the output"));
        match printed {
            Ok(()) if rest.len() <= LONGEST_LINE => ControlFlow::Continue(()),
            Ok(()) => {
                failed = Some(anyhow::anyhow!("what comes is no trace"));
                ControlFlow::Break(())
            }
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(0), Err)
}

/// A line of a trace, as was asked for.
fn print(output: &mut impl Write, format: &Format, line: &[u8]) -> anyhow::Result<()> {
    let traced: Traced = serde_json::from_slice(line).context("what comes is no trace")?;
    match format {
        Format::Table => {
            let (seconds, rest) = (traced.at_ns / 1_000_000_000, traced.at_ns % 1_000_000_000);
            let (kind, what) = (traced.kind.name(), inert(&traced.what));
            writeln!(output, "{seconds:>6}.{rest:09}  core {:<2}  {kind:<9}  {what}", traced.core)?;
        }
        Format::Json => {
            serde_json::to_writer(&mut *output, &traced)?;
            writeln!(output)?;
        }
        Format::Template(text) => {
            let environment = minijinja::Environment::new();
            let template = environment.template_from_str(text)?;
            let text = template.render(minijinja::value::Serde(&traced));
            writeln!(output, "{}", text.context("the template does not suit")?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        assert_eq!(quoted("/run/vmm.sock"), "/run/vmm.sock");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's; $(x)"), "'it'\\''s; $(x)'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_line_of_a_trace_is_inert_whatever_comes() {
        let mut text = Vec::new();
        let line = br#"{"at_ns":1000000042,"core":3,"kind":"exit","what":"\u001b[31mhypercall idle"}"#;
        print(&mut text, &Format::Table, line).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "     1.000000042  core 3   exit       \u{fffd}[31mhypercall idle\n");
        assert!(print(&mut Vec::new(), &Format::Table, b"{}").is_err());
    }

    #[test]
    fn a_dump_that_breaks_off_leaves_what_was_there() {
        let folder = std::env::temp_dir().join(format!("foraker-dump-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let name = folder.join("core.1");
        std::fs::write(&name, b"before").unwrap();
        let mut output = Output::open(&name).unwrap();
        output.write(b"half").unwrap();
        drop(output);
        assert_eq!(std::fs::read(&name).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        let mut output = Output::open(&name).unwrap();
        output.write(b"whole").unwrap();
        output.complete().unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"whole");
        // A device stays one.
        let null = folder.join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        let mut output = Output::open(&null).unwrap();
        output.write(b"nothing").unwrap();
        output.complete().unwrap();
        assert!(null.is_symlink());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
