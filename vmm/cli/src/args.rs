//! The command line.

pub(crate) mod clients;
mod serve;
mod socket;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::units;
use clients::{
    Act, Apply, Debug, Dump, Events, Gatekeeper, Guests, Image, List, Logs, Network, One, Owner, Ps, Rm, Run,
    Stats, System, Top, Trace,
};
use foraker_api::{GuestSpec, NetworkOptions, Port, ProcessorOptions};
pub(crate) use serve::{AdmissionOrder, Budget, CellProcess, LauncherProcess, Serve};
pub(crate) use socket::{Listening, Socket};

/// An isolation kernel: every network service in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, disable_help_subcommand = true)]
struct Whole {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run guests in the foreground, without a daemon, until they end.
    ///
    /// Several guests are separated by a lone `+`; options of the launch itself stand before the first image:
    ///   vmm launch -p 8080:80 images/httpd + --name hi images/hello
    ///
    /// The exit status is the guest's own (0 to 119; the first that is not 0 when there are several), 120 after a fault, 121 when a guest was
    /// ended by a limit, a timeout or a signal, 125 when the host or the command line is at fault, 130 after a second Ctrl-C.
    #[command(verbatim_doc_comment)]
    Launch(Box<Launch>),
    /// Say what this host can do, and what to mend.
    Doctor(Doctor),
    /// Run the supervisor, which holds guests in cells, until it is asked to stop.
    Serve(Serve),
    /// Run a guest under the supervisor.
    ///
    /// In the foreground, with its console, until it ends: the exit status is that of `vmm launch`, and Ctrl-C asks it to end. With --detach its id is
    /// printed when it runs.
    Run(Box<Run>),
    /// List guests.
    Ps(Ps),
    /// Print what a guest wrote to its console.
    Logs(Logs),
    /// Follow a guest's console until it ends or Ctrl-C.
    Attach(One),
    /// Run guests again that have ended.
    Start(Act),
    /// Ask guests to end.
    Stop(Act),
    /// End guests.
    Kill(Act),
    /// Hold guests: their state stays, they do not run.
    Pause(Act),
    /// Have guests that are held run on.
    Resume(Act),
    /// Forget guests that have ended, with their logs.
    Rm(Rm),
    /// Print everything about guests, as JSON.
    Inspect(Guests),
    /// Print what guests use, every second.
    Stats(Stats),
    /// Show what the guests that are busiest use, live.
    Top(Top),
    /// Print what happens, as it happens.
    Events(Events),
    /// Have gdb debug a guest that runs: it stands from then on, and goes on when gdb leaves.
    ///
    /// Three ways:
    ///   gdb -ex 'target remote | vmm debug GUEST' IMAGE
    ///   vmm debug GUEST --exec IMAGE
    ///   vmm debug GUEST --listen 127.0.0.1:1234, and in a gdb on this host: target remote :1234
    #[command(verbatim_doc_comment)]
    Debug(Debug),
    /// Write a guest's memory and registers to a file that `gdb IMAGE FILE` opens. A guest that runs is held meanwhile, and goes on.
    Dump(Dump),
    /// Print what happens to a guest, as it happens: exits, interrupts and packets, with its time.
    Trace(Trace),
    /// Wait until guests have ended, and print their statuses.
    Wait(Guests),
    /// List images.
    Images(List),
    /// Have the supervisor keep images.
    #[command(subcommand)]
    Image(Image),
    /// Settle what owners may have, and list them.
    #[command(subcommand)]
    Owner(Owner),
    /// Settle what all guests may have together.
    #[command(subcommand)]
    Gatekeeper(Gatekeeper),
    /// Make networks, and list them.
    #[command(subcommand)]
    Network(Network),
    /// Make owners, networks and guests be as a file says.
    Apply(Apply),
    /// About the supervisor itself.
    #[command(subcommand)]
    System(System),
    /// Print the completion script of a shell.
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// The folder
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Start cells. For the supervisor alone: its requests are the standard input.
    #[command(hide = true)]
    Launcher(LauncherProcess),
    /// Run a cell. For the launcher alone: its channel is the standard input.
    #[command(hide = true)]
    Cell(CellProcess),
}

/// `vmm launch`.
#[derive(Debug, Args)]
pub(crate) struct Launch {
    #[command(flatten)]
    pub(crate) cell: CellOptions,
    #[command(flatten)]
    pub(crate) first: GuestOptions,
    /// The guests after the first.
    #[arg(skip)]
    pub(crate) more: Vec<GuestOptions>,
}

/// Options of the launch as a whole.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of the launch")]
pub(crate) struct CellOptions {
    /// Print a report as one JSON object on the last line of standard output; consoles go to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// End the guests after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Worker threads [default: one for each processor, at most one for each core of the guests]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Use an existing TAP device
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,
    /// Subnet of the guests, such as 10.20.30.0/24 [default: the first free one of 10.99.0.0/16]
    #[arg(long, value_name = "A.B.C.D/N", value_parser = subnet)]
    pub(crate) subnet: Option<(Ipv4Addr, u8)>,
    /// Record every frame in a file for Wireshark or tcpdump
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Record in a file when frames pass each point of the VMM, for the benchmarks
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) trace: Option<PathBuf>,
    /// Who serves the rings
    #[arg(long, value_enum, default_value_t = Service::Auto)]
    pub(crate) service: Service,
    /// How much the VMM says about itself
    #[arg(long, value_enum, default_value_t = LogLevel::Warn)]
    pub(crate) log_level: LogLevel,
}

/// Options of one guest.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of a guest")]
pub(crate) struct GuestOptions {
    /// Name of the guest [default: the image's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Memory, such as 16M [default: what the image says, or 16M]
    #[arg(long, short, value_name = "SIZE", value_parser = units::size)]
    pub(crate) memory: Option<u64>,
    /// Back its heap with pages of 2 MiB: for a guest that is always busy [default: what the image says]
    #[arg(long, overrides_with = "small_pages")]
    pub(crate) large_pages: bool,
    /// Back its heap with pages of 4 KiB: it costs what it touches
    #[arg(long)]
    pub(crate) small_pages: bool,
    /// Cores [default: what the image says, or 1]
    #[arg(long, short, value_name = "N")]
    pub(crate) cores: Option<u32>,
    /// Most processors that it may use, such as 0.5 [default: all]
    #[arg(long, value_name = "N", value_parser = units::permille)]
    pub(crate) cpus: Option<u32>,
    /// Its share of the processors beside other guests, in proportion to theirs [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) cpu_shares: Option<u32>,
    /// Processors that are kept for it: it has them before all others, who have them while it rests [default: none]
    #[arg(long, value_name = "N", value_parser = units::permille)]
    pub(crate) provision_cpus: Option<u32>,
    /// Memory that is kept for it: under a supervisor, what it has of it is not asked back, and what it has lent comes when it asks [default: none]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) provision_memory: Option<u64>,
    /// How finely its time on a processor is cut
    #[arg(long, value_enum, default_value_t)]
    pub(crate) grain: Grain,
    /// Give it a network [default: what the image says]
    #[arg(long, overrides_with = "no_net")]
    pub(crate) net: bool,
    /// Give it no network
    #[arg(long)]
    pub(crate) no_net: bool,
    /// Its IPv4 address [default: the next free one of the subnet]
    #[arg(long, value_name = "A.B.C.D")]
    pub(crate) ip: Option<Ipv4Addr>,
    /// Name of its network: guests of different networks do not reach each other [default: the one of those without a name]
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,
    /// Its name server's IPv4 address [default: the first of the host's /etc/resolv.conf that is no loopback address]
    #[arg(long, value_name = "A.B.C.D")]
    pub(crate) dns: Option<Ipv4Addr>,
    /// Pass connections to a port of the host on to the guest
    #[arg(long, short, value_name = "[ADDRESS:]HOST:GUEST", value_parser = publish)]
    pub(crate) publish: Vec<Port>,
    /// Set a variable in the guest's environment
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<String>,
    /// Bytes per second that it may receive
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) rx_bandwidth: Option<u64>,
    /// Bytes per second that it may send
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) tx_bandwidth: Option<u64>,
    /// Frames per second that it may send
    #[arg(long, value_name = "N")]
    pub(crate) tx_packets: Option<u64>,
    /// Bytes per second that it may write to its console
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) console_bandwidth: Option<u64>,
    /// Deliver each interrupt at once, by forcing the guest out (for comparison)
    #[arg(long)]
    pub(crate) immediate: bool,
    /// Image (an ELF file linked with the library OS), then the guest's arguments
    #[arg(value_name = "IMAGE [ARGUMENT]...", required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl GuestOptions {
    /// Image: an ELF file linked with the library OS.
    pub(crate) fn image(&self) -> &Path {
        Path::new(self.command.first().map_or("", String::as_str))
    }

    /// What a guest of an image is to be, apart from whose it is.
    pub(crate) fn spec(&self, image: &str) -> GuestSpec {
        let one_of = |yes: bool, no: bool| if no { Some(false) } else { yes.then_some(true) };
        GuestSpec {
            name: self.name.as_ref().map(|name| name.trim().to_owned()),
            memory: self.memory,
            memory_provision: self.provision_memory,
            large_pages: one_of(self.large_pages, self.small_pages),
            cores: self.cores,
            processor: ProcessorOptions {
                shares: self.cpu_shares,
                limit: self.cpus,
                provision: self.provision_cpus,
                grain: self.grain.into(),
            },
            network: NetworkOptions {
                enabled: one_of(self.net, self.no_net),
                name: self.network.clone(),
                ipv4: self.ip,
                dns: self.dns,
                rx_bandwidth: self.rx_bandwidth,
                tx_bandwidth: self.tx_bandwidth,
                tx_packets: self.tx_packets,
                publish: self.publish.clone(),
            },
            arguments: self.command.get(1..).unwrap_or_default().to_vec(),
            environment: clients::map(&self.env),
            console_bandwidth: self.console_bandwidth,
            immediate: self.immediate,
            ..GuestSpec::of(image)
        }
    }

    /// Options end at the image; what looks like one in its place is a mistake.
    fn checked(self) -> Result<GuestOptions, Refused> {
        match self.command.first() {
            Some(image) if image.starts_with('-') => {
                Err(Refused::Usage(format!("there is no option '{image}' (see --help)")))
            }
            _ => Ok(self),
        }
    }
}

/// `vmm doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How finely a guest's time on a processor is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grain {
    /// Fine until it computes for 30 ms without resting
    #[default]
    Auto,
    /// Turns of 100 ms, interrupted by those with fine ones
    Coarse,
    /// Turns of 1 ms, soon after it wakes
    Fine,
}

impl From<Grain> for foraker_api::Grain {
    fn from(grain: Grain) -> Self {
        match grain {
            Grain::Auto => Self::Auto,
            Grain::Coarse => Self::Coarse,
            Grain::Fine => Self::Fine,
        }
    }
}

/// Who serves the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// Whoever suits the load
    Auto,
    /// Workers, when guests exit
    Worker,
    /// The uplink's thread, while guests look
    Uplink,
}

/// Levels of the VMM's own messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing
    Off,
    /// What failed
    Error,
    /// What may be wrong
    Warn,
    /// What happens
    Info,
    /// Details
    Debug,
    /// Everything
    Trace,
}

impl LogLevel {
    /// The same in the words of the `log` crate.
    pub(crate) fn filter(self) -> log::LevelFilter {
        match self {
            LogLevel::Off => log::LevelFilter::Off,
            LogLevel::Error => log::LevelFilter::Error,
            LogLevel::Warn => log::LevelFilter::Warn,
            LogLevel::Info => log::LevelFilter::Info,
            LogLevel::Debug => log::LevelFilter::Debug,
            LogLevel::Trace => log::LevelFilter::Trace,
        }
    }
}

/// Why a command line is not carried out.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Help or the version was asked for.
    Help(String),
    /// One line that says what is wrong.
    Usage(String),
}

#[derive(Debug, Parser)]
#[command(name = "vmm launch ... +", no_binary_name = true)]
struct Another {
    #[command(flatten)]
    guest: GuestOptions,
}

/// Parses the command line of the process.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, Refused> {
    let args: Vec<OsString> = args.collect();
    let is_launch = args.get(1).is_some_and(|a| a == "launch");
    let mut groups = args.split(|a| is_launch && a == "+");
    let first = groups.next().unwrap_or_default();
    let mut command = match is_launch.then(|| launch_alone(first)).flatten() {
        Some(launch) => Command::Launch(Box::new(launch)),
        None => {
            let matches = Whole::command().try_get_matches_from(first).map_err(refused)?;
            Whole::from_arg_matches(&matches).map_err(refused)?.command
        }
    };
    if let Command::Run(run) = &command {
        run.guest.clone().checked()?;
    }
    if let Command::Launch(launch) = &mut command {
        launch.first.clone().checked()?;
        for group in groups {
            launch.more.push(Another::try_parse_from(group).map_err(refused)?.guest.checked()?);
        }
    }
    Ok(command)
}

/// A launch whose command line is right. To describe the other forty verbs to clap takes a good part of the time until a guest runs, and is of use only where
/// something is wrong.
fn launch_alone(args: &[OsString]) -> Option<Launch> {
    let launch = Launch::augment_args(clap::Command::new("launch"));
    let matches = clap::Command::new("vmm").subcommand(launch).try_get_matches_from(args).ok()?;
    Launch::from_arg_matches(matches.subcommand_matches("launch")?).ok()
}

/// The whole command line, for what describes it.
pub(crate) fn described() -> clap::Command {
    Whole::command()
}

/// Clap's message as one line, without its list of usages.
fn refused(e: clap::Error) -> Refused {
    use clap::error::ErrorKind;
    let text = e.to_string();
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Refused::Help(text);
    }
    if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Refused::Usage("nothing to do: try `vmm launch IMAGE`, or `vmm --help`".to_owned());
    }
    let message = text.split("\n\nUsage:").next().unwrap_or(&text);
    let message = message.split("\n\nFor more information").next().unwrap_or(message);
    let words: Vec<_> = message.trim_start_matches("error: ").split_whitespace().collect();
    Refused::Usage(format!("{} (see --help)", words.join(" ")))
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .filter(|d| !d.is_zero())
        .ok_or_else(|| format!("'{text}' is not a number of seconds above 0"))
}

fn subnet(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let refuse =
        || format!("'{text}' is not a subnet: write an address and 8 to 30 bits, such as 10.20.30.0/24");
    let (address, bits) = text.split_once('/').ok_or_else(refuse)?;
    let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
    let bits: u8 = bits.parse().map_err(|_| refuse())?;
    let host_part = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
    if !(8..=30).contains(&bits) || address.to_bits() & host_part != 0 {
        return Err(refuse());
    }
    Ok((address, bits))
}

fn publish(text: &str) -> Result<Port, String> {
    let refuse = || format!("'{text}' is not a published port: write HOST:GUEST, such as 8080:80");
    let text = match text.rsplit_once('/') {
        None => text,
        Some((ports, "tcp")) => ports,
        Some((_, other)) => return Err(format!("cannot publish {other}: only TCP ports are published")),
    };
    let (host, guest) = text.rsplit_once(':').ok_or_else(refuse)?;
    let guest: u16 = guest.parse().ok().filter(|p| *p > 0).ok_or_else(refuse)?;
    let (address, port) = match host.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
        Some((address, port)) => {
            (address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| refuse())?, port)
        }
    };
    let port: u16 = port.parse().map_err(|_| refuse())?;
    Ok(Port { host: SocketAddr::new(address, port), guest })
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("'{text}' is not a variable: write NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Command, Refused> {
        parse(text.split_whitespace().map(OsString::from))
    }

    fn launch(text: &str) -> Launch {
        match line(text) {
            Ok(Command::Launch(l)) => *l,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn guests_are_separated_and_keep_their_arguments() {
        let l = launch("vmm launch --json -p 8080:80 -m 4M a --x -- y + --name b2 b + c -p 1");
        assert!(l.cell.json);
        assert_eq!(l.first.publish, [Port { host: "127.0.0.1:8080".parse().unwrap(), guest: 80 }]);
        assert_eq!((l.first.memory, l.first.image()), (Some(4 << 20), Path::new("a")));
        assert_eq!(l.first.spec("a").arguments, ["--x", "--", "y"]);
        assert_eq!(l.more.len(), 2);
        assert_eq!(l.more[0].name.as_deref(), Some("b2"));
        assert_eq!(l.more[1].spec("c").arguments, ["-p", "1"]);
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for bad in [
            "vmm",
            "vmm launch",
            "vmm launch --memory lots a",
            "vmm launch -p 80 a",
            "vmm launch -p 1:2/udp a",
            "vmm launch --subnet 10.0.0.1/24 a",
            "vmm launch -e =x a",
            "vmm launch --timeout -1 a",
            "vmm launch --dns localhost a",
            "vmm fly",
            "vmm launch a + ",
            "vmm launch --bogus a",
            "vmm launch a + --json b",
            "vmm launch --cores x a",
            "vmm run --cpus 0.0001 a",
            "vmm run --priority 256 a",
            "vmm owner set",
            "vmm owner set x --weight 0",
            "vmm owner",
            "vmm run --bogus a",
            "vmm run --restart sometimes a",
            "vmm run --count 0 a",
            "vmm ps --filter colour=red",
            "vmm serve --socket-mode 999",
            "vmm stop",
            "vmm trace 1 --for soon",
            "vmm trace 1 --count 0",
            "vmm debug 1 --listen 1234",
            "vmm debug 1 --listen 127.0.0.1:1 --exec x",
            "vmm dump 1 --max-size much",
        ] {
            match line(bad) {
                Err(Refused::Usage(l)) => assert!(!l.contains('\n') && l.len() > 10, "{bad}: {l}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        assert!(matches!(line("vmm --help"), Err(Refused::Help(_))));
        assert!(matches!(line("vmm launch --help"), Err(Refused::Help(_))));
    }

    #[test]
    fn published_ports() {
        let p = publish("0.0.0.0:8080:80/tcp").unwrap();
        assert_eq!((p.host, p.guest), ("0.0.0.0:8080".parse().unwrap(), 80));
        assert_eq!(publish("[::1]:8080:80").unwrap().host, "[::1]:8080".parse().unwrap());
        assert!(publish("8080:0").is_err() && publish("x:80").is_err() && publish("70000:80").is_err());
    }
}
