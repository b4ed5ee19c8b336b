//! What can go wrong on the network.

/// Why an operation of the network failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// This guest has no network device.
    NoDevice,
    /// There is no way to this address, or nobody answers for it.
    Unreachable,
    /// Nobody listens there.
    Refused,
    /// The other side, or a timeout, ended the connection.
    Reset,
    /// The connection was closed for this direction.
    Closed,
    /// No answer in time.
    TimedOut,
    /// The port is in use.
    InUse,
    /// An argument is outside its range: port 0, an empty buffer, a datagram that is too long.
    Invalid,
    /// The name does not exist, or the name server said no.
    NoSuchName,
    /// No name server is configured.
    NoNameServer,
    /// A limit of this guest is reached.
    Exhausted,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Error::NoDevice => "this guest has no network device",
            Error::Unreachable => "address unreachable",
            Error::Refused => "connection refused",
            Error::Reset => "connection reset",
            Error::Closed => "connection closed",
            Error::TimedOut => "timed out",
            Error::InUse => "port in use",
            Error::Invalid => "invalid argument",
            Error::NoSuchName => "no such name",
            Error::NoNameServer => "no name server configured",
            Error::Exhausted => "limit reached",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io_async::Error for Error {
    fn kind(&self) -> embedded_io_async::ErrorKind {
        use embedded_io_async::ErrorKind;
        match self {
            Error::NoDevice => ErrorKind::Unsupported,
            Error::Unreachable => ErrorKind::NotConnected,
            Error::Refused => ErrorKind::ConnectionRefused,
            Error::Reset => ErrorKind::ConnectionReset,
            Error::Closed => ErrorKind::BrokenPipe,
            Error::TimedOut => ErrorKind::TimedOut,
            Error::InUse => ErrorKind::AddrInUse,
            Error::Invalid => ErrorKind::InvalidInput,
            Error::NoSuchName | Error::NoNameServer => ErrorKind::NotFound,
            Error::Exhausted => ErrorKind::OutOfMemory,
        }
    }
}
