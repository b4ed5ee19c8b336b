//! The servers of `probe net`.

use guest_libos::net::{Config, Error, TcpListener, TcpStream, UdpSocket, enable_stamps, stamps};
use guest_libos::{spawn, task, time};

/// TCP: reads and discards.
const SINK: u16 = 5001;
/// TCP: writes for ever.
const SOURCE: u16 = 5002;
/// UDP: sends back, with stamps.
const ECHO: u16 = 5003;

/// Serves until the guest is asked to stop.
pub(crate) async fn serve() -> Result<(), Error> {
    let sink = TcpListener::bind(SINK, Config::BULK)?;
    let source = TcpListener::bind(SOURCE, Config::BULK)?;
    let echo = UdpSocket::bind(ECHO)?;
    spawn(async move {
        loop {
            spawn(discard(sink.accept().await));
        }
    });
    spawn(async move {
        loop {
            spawn(produce(source.accept().await));
        }
    });
    spawn(send_back(echo));
    task::shutdown_requested().await;
    Ok(())
}

async fn discard(mut stream: TcpStream) {
    // What is taken is everything; 0 and an error are the end.
    while matches!(stream.read_with(|data| (data.len(), data.len())).await, Ok(1..)) {}
}

async fn produce(mut stream: TcpStream) {
    let fill = |room: &mut [u8]| {
        room.fill(b'x');
        (room.len(), ())
    };
    while stream.write_with(fill).await.is_ok() {}
}

/// Sends each datagram back with four stamps of the time-stamp counter behind its first eight bytes: the driver saw this
/// request; the driver had sent the answer before this one; this request came to this task; it is done with it.
async fn send_back(socket: UdpSocket) {
    enable_stamps();
    let mut packet = [0; 1472];
    while let Ok((length, from)) = socket.receive_from(&mut packet).await {
        let entry = time::tsc();
        let driver = stamps();
        let mut stamp = |slot: usize, value: u64| {
            let at = 8 + slot * 8;
            if at + 8 <= length
                && let Some(to) = packet.get_mut(at..at + 8)
            {
                to.copy_from_slice(&value.to_le_bytes());
            }
        };
        stamp(0, driver.received);
        stamp(1, driver.sent);
        stamp(2, entry);
        stamp(3, time::tsc());
        // An answer that cannot be sent is a lost packet, which the other side notices.
        let _ = socket.send_to(packet.get(..length).unwrap_or_default(), from).await;
    }
}
