//! The live page with ten thousand guests that are not there: what it looks like, and what it costs.
//!
//! ```console
//! $ cargo run --release -p foraker-ui --example show -- 127.0.0.1:8080 [--guests N] [--changes N] [--writable]
//! ```

#[allow(dead_code, reason = "shared with the tests")]
mod synthetic;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use foraker_ui::{Key, Options};
use synthetic::Synthetic;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut address, mut guests, mut changes, mut writable) =
        ("127.0.0.1:8080".to_owned(), 10_000, 300, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number =
            || arguments.next().ok_or("a number is missing")?.parse::<u32>().map_err(|_| "no number");
        match argument.as_str() {
            "--guests" => guests = number()?,
            "--changes" => changes = number()?,
            "--writable" => writable = true,
            _ => address = argument,
        }
    }
    let address: SocketAddr = address.parse()?;
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let options =
        if writable { Options::writable(address, Key::random()?) } else { Options::read_only(address) };
    println!("{guests} guests, {changes} changes of state in each second: {}", options.url());
    foraker_ui::serve(listener, Arc::new(Synthetic::new(guests.into(), changes)), options)?;
    Ok(())
}
