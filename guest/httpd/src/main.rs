//! A web server: a small site from the image, generated content of any size, and a page about the guest itself.
//!
//! Argument: the port (80). Environment: `IDLE_SECONDS` (30), how long a request may take to arrive; `BACKLOG`,
//! `RECEIVE_BUFFER` and `SEND_BUFFER` as in `net::Config`, in bytes; `CONNECTIONS`, the most at a time; `SPIN=1`, for measurements: it spins
//! instead of idling while a timer is set.
#![no_std]
#![no_main]

extern crate alloc;

mod answer;
mod connection;
mod server;
mod site;

use alloc::rc::Rc;
use connection::Connection;
use core::time::Duration;
use guest_libos::net::{self, Config, TcpListener};
use guest_libos::task::{self, Either};
use guest_libos::{env, println, registers, spawn};
use server::Server;

guest_libos::entry!(async main, net: true, memory: 16 << 20);

/// How long answers on their way may take when the guest is asked to stop.
const GRACE: Duration = Duration::from_secs(4);

fn number(name: &str, default: usize) -> usize {
    match env(name).map(str::parse) {
        Some(Ok(value)) => value,
        Some(Err(_)) => {
            println!("httpd: {name} is not a number; {default} is used");
            default
        }
        None => default,
    }
}

async fn main() -> i32 {
    let port = guest_libos::args().nth(1).unwrap_or("80");
    let Ok(port) = port.parse() else {
        println!("httpd: {port} is not a port");
        return 2;
    };
    let config = Config {
        receive_buffer: number("RECEIVE_BUFFER", Config::DEFAULT.receive_buffer),
        send_buffer: number("SEND_BUFFER", Config::DEFAULT.send_buffer),
        backlog: 0,
        client_speaks_first: true,
    };
    // Three quarters of the heap may go to connections; beside its buffers, one takes about two kibibytes.
    let heap = registers().memory_end.saturating_sub(registers().heap_start) as usize;
    let fitting = heap / 4 * 3 / (config.receive_buffer + config.send_buffer + 2048);
    let most = number("CONNECTIONS", fitting.max(1));
    let config = Config { backlog: number("BACKLOG", (most / 2).clamp(1, 4096)), ..config };
    let listener = match TcpListener::bind(port, config) {
        Ok(listener) => listener,
        Err(e) => {
            println!("httpd: cannot listen on port {port}: {e}");
            return 1;
        }
    };
    guest_libos::hypercall::ready();
    // Not before: others start from there, with addresses of their own.
    if let Some(address) = net::ipv4() {
        println!("httpd: http://{address}:{port}/ (up to {most} connections)");
    }

    task::spin_while_timed(number("SPIN", 0) != 0);
    let server = Rc::new(Server::new(Duration::from_secs(number("IDLE_SECONDS", 30) as u64)));
    accept(&server, listener, most).await;

    // Answers on their way are finished; idle connections end by themselves.
    let finished = async {
        while server.connections.get() > 0 {
            task::sleep(Duration::from_millis(5)).await;
        }
    };
    let left = match task::timeout(GRACE, finished).await {
        Ok(()) => 0,
        Err(_) => server.connections.get(),
    };
    println!("httpd: stopped ({left} connections cut off)");
    0
}

/// Takes connections until the guest is asked to stop. At the limit it waits: the backlog holds some, and the rest try
/// again.
async fn accept(server: &Rc<Server>, listener: TcpListener, most: usize) {
    let mut stop = task::shutdown_requested();
    loop {
        while server.connections.get() >= most && !server.is_stopping() {
            task::sleep(Duration::from_millis(1)).await;
        }
        let stream = match task::select(&mut stop, listener.accept()).await {
            Either::First(()) => return,
            Either::Second(stream) => stream,
        };
        let server = Rc::clone(server);
        server.connections.set(server.connections.get() + 1);
        spawn(async move {
            // What goes wrong on a connection concerns that connection only.
            let _ = Connection::new(&server, stream).run().await;
            server.connections.set(server.connections.get() - 1);
        });
    }
}
