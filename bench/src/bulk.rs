//! TCP bulk transfer in one direction, with the same client against a native server and against a guest.
//!
//! Both servers have the same two ports: one reads and discards, one writes for ever. What counts is what the
//! receiving side's TCP has taken: bytes read, or, towards the server, bytes acknowledged (`TCP_INFO`), so that what
//! merely waits in a buffer of the sender is not counted.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::netns::{self, Namespace};

/// The server reads and discards.
pub const SINK_PORT: u16 = 5001;
/// The server writes for ever.
pub const SOURCE_PORT: u16 = 5002;

/// Bytes of one read or write.
const CHUNK: usize = 128 << 10;
/// Not counted: slow start.
const WARM_UP: Duration = Duration::from_millis(200);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From this program to the server.
    ToServer,
    /// From the server to this program.
    FromServer,
}

/// Starts a native server inside `namespace`. Its threads end with the process: they wait for connections that
/// nobody makes any more.
///
/// # Errors
/// When a port is in use.
pub fn start_native(namespace: &Namespace) -> Result<()> {
    let address = namespace.address();
    for (port, serve) in [(SINK_PORT, sink as fn(TcpStream) -> io::Result<()>), (SOURCE_PORT, source)] {
        let listener = namespace.run(move || TcpListener::bind(SocketAddrV4::new(address, port)))??;
        namespace.spawn("native-bulk", move || {
            for stream in listener.incoming().flatten() {
                // Ends with an error when the client is done.
                let _ = serve(stream);
            }
        })?;
    }
    Ok(())
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let buffer = vec![b'x'; CHUNK];
    loop {
        stream.write_all(&buffer)?;
    }
}

/// Moves bytes one way for `duration` after a warm-up. Returns Gbit/s of payload. This side's TCP uses `congestion` control, if that is named.
///
/// # Errors
/// When the connection cannot be made or breaks, or the kernel does not have the congestion control.
pub fn measure(
    server: Ipv4Addr,
    direction: Direction,
    congestion: Option<&str>,
    duration: Duration,
) -> Result<f64> {
    let port = match direction {
        Direction::ToServer => SINK_PORT,
        Direction::FromServer => SOURCE_PORT,
    };
    let address = SocketAddrV4::new(server, port);
    netns::forget_metrics(server);
    let mut stream = connect(address, congestion).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut buffer = vec![b'x'; CHUNK];
    let mut read_bytes = 0u64;
    let mut advance = |until: Instant| -> Result<(Instant, u64)> {
        while Instant::now() < until {
            match direction {
                Direction::ToServer => stream.write_all(&buffer).context("the server stopped reading")?,
                Direction::FromServer => {
                    let n = stream.read(&mut buffer).context("the server stopped writing")?;
                    ensure!(n > 0, "the server closed the connection");
                    read_bytes += n as u64;
                }
            }
        }
        let total = match direction {
            Direction::ToServer => acknowledged(&stream)?,
            Direction::FromServer => read_bytes,
        };
        Ok((Instant::now(), total))
    };
    let (start, before) = advance(Instant::now() + WARM_UP)?;
    let (end, after) = advance(start + duration)?;
    let rate = (after - before) as f64 * 8.0 / (end - start).as_secs_f64() / 1e9;
    drop(stream);
    // Let the other side notice before the next run.
    thread::sleep(Duration::from_millis(20));
    Ok(rate)
}

fn connect(address: SocketAddrV4, congestion: Option<&str>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(name) = congestion {
        // Before the connection is made: the pacing that one algorithm switches on stays on with the next.
        socket.set_tcp_congestion(name.as_bytes())?;
    }
    socket.connect_timeout(&address.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// `struct tcp_info` of Linux, as far as the count of acknowledged bytes (Linux 4.1).
const TCP_INFO_BYTES_ACKED: usize = 120;

fn acknowledged(stream: &TcpStream) -> Result<u64> {
    let mut info = [0u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the buffer has the length that is passed.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("TCP_INFO");
    }
    ensure!(length as usize >= TCP_INFO_BYTES_ACKED + 8, "this kernel does not count acknowledged bytes");
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&info[TCP_INFO_BYTES_ACKED..TCP_INFO_BYTES_ACKED + 8]);
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_bytes_are_those_that_were_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 5000]).unwrap();
        let mut buffer = [0; 5000];
        server.read_exact(&mut buffer).unwrap();
        let give_up = Instant::now() + Duration::from_secs(5);
        // The count includes the SYN on kernels of all ages.
        while acknowledged(&client).unwrap() < 5000 && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(1));
        }
        assert!((5000..=5001).contains(&acknowledged(&client).unwrap()));
    }
}
