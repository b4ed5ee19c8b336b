//! A guest that greets everyone who connects.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use guest_libos::net::{Config, Error, TcpListener, TcpStream};
use guest_libos::task::{self, Either};
use guest_libos::{boot, println, spawn};

guest_libos::entry!(async main, net: true);

async fn greet(mut stream: TcpStream, number: u64) -> Result<(), Error> {
    let text = format!("Hello, visitor {number}! This is {}.\n", boot::name());
    stream.write_all(text.as_bytes()).await?;
    stream.close().await;
    Ok(())
}

async fn main() -> Result<(), Error> {
    let listener = TcpListener::bind(2000, Config::DEFAULT)?;
    println!("{} greets at port {}", boot::name(), listener.port());
    let mut stop = task::shutdown_requested();
    let mut number = 0;
    loop {
        match task::select(&mut stop, listener.accept()).await {
            Either::First(()) => break,
            Either::Second(stream) => {
                number += 1;
                // A task for each connection; what goes wrong with one concerns no other.
                spawn(async move { greet(stream, number).await.unwrap_or(()) });
            }
        }
    }
    println!("greeted {number} visitors");
    Ok(())
}
