//! The classic small services: echo (RFC 862) over TCP and UDP, discard (RFC 863), and a character generator (RFC 864)
//! that sends as fast as it can.
//!
//! Arguments: `echo=PORT`, `discard=PORT`, `chargen=PORT` (7, 9 and 19 if not given; 0 for none).
#![no_std]
#![no_main]

use core::net::SocketAddr;
use guest_libos::net::{self, Config, Error, TcpListener, TcpStream, UdpSocket};
use guest_libos::{println, spawn, task};

guest_libos::entry!(async main, net: true, memory: 32 << 20);

/// Most connections of one service at a time: their buffers are large.
const CONNECTIONS: usize = 64;

/// What the generator sends, again and again: printable characters in lines of 72, each a character further.
static PATTERN: [u8; 64 * 1024] = pattern();

const fn pattern() -> [u8; 64 * 1024] {
    let mut bytes = [0; 64 * 1024];
    let mut i = 0;
    while i < bytes.len() {
        let (line, column) = (i / 74, i % 74);
        bytes[i] = match column {
            72 => b'\r',
            73 => b'\n',
            _ => b' ' + ((line + column) % 95) as u8,
        };
        i += 1;
    }
    bytes
}

async fn echo(mut stream: TcpStream) -> Result<(), Error> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}

async fn discard(mut stream: TcpStream) -> Result<(), Error> {
    while stream.read_with(|data| (data.len(), data.len())).await? != 0 {}
    Ok(())
}

async fn generate(mut stream: TcpStream) -> Result<(), Error> {
    loop {
        stream.write_all(&PATTERN).await?;
    }
}

async fn echo_udp(socket: UdpSocket) -> Result<(), Error> {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.receive_from(&mut buffer).await?;
        match socket.send_to(&buffer[..length], from).await {
            // Nobody there any more: the next one.
            Ok(()) | Err(Error::Unreachable | Error::Invalid) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Serves `port` until the guest is asked to stop.
fn serve<F>(name: &'static str, port: u16, handler: fn(TcpStream) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>> + 'static,
{
    let listener = TcpListener::bind(port, Config { backlog: CONNECTIONS, ..Config::BULK })?;
    println!("{name}: tcp port {port}");
    spawn(async move {
        loop {
            let stream = listener.accept().await;
            // A connection that ends badly concerns nobody else.
            spawn(async move { handler(stream).await.unwrap_or(()) });
        }
    });
    Ok(())
}

fn port(name: &str, default: u16) -> Result<u16, &'static str> {
    let mut given = guest_libos::args().skip(1).filter_map(|argument| argument.split_once('='));
    match given.find(|(key, _)| *key == name) {
        Some((_, value)) => value.parse().map_err(|_| "a port is a number up to 65535"),
        None => Ok(default),
    }
}

async fn main() -> i32 {
    match start() {
        Ok(()) => {
            task::shutdown_requested().await;
            0
        }
        Err(e) => {
            println!("echo: {e}");
            1
        }
    }
}

fn start() -> Result<(), &'static str> {
    let (echo_port, discard_port, chargen_port) =
        (port("echo", 7)?, port("discard", 9)?, port("chargen", 19)?);
    let address = net::ipv4().ok_or("this guest has no network device")?;
    if echo_port != 0 {
        serve("echo", echo_port, echo).map_err(|_| "cannot listen")?;
        let socket = UdpSocket::bind(echo_port).map_err(|_| "cannot open the UDP port")?;
        spawn(async move { echo_udp(socket).await.unwrap_or(()) });
        println!("echo: udp {}", SocketAddr::new(address.into(), echo_port));
    }
    if discard_port != 0 {
        serve("discard", discard_port, discard).map_err(|_| "cannot listen")?;
    }
    if chargen_port != 0 {
        serve("chargen", chargen_port, generate).map_err(|_| "cannot listen")?;
    }
    Ok(())
}
