//! The traits of `embedded-nal-async`, so that crates written for them find a network here.

use super::dns::{Family, resolve};
use super::error::Error;
use super::tcp::TcpStream;
use core::net::{IpAddr, SocketAddr};
use embedded_nal_async::{AddrType, Dns, TcpConnect};

/// This guest's network, for crates that want it as a value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl TcpConnect for Network {
    type Error = Error;
    type Connection<'a> = TcpStream;

    async fn connect(&self, remote: SocketAddr) -> Result<TcpStream, Error> {
        TcpStream::connect(remote.ip(), remote.port()).await
    }
}

impl Dns for Network {
    type Error = Error;

    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, Error> {
        match kind {
            AddrType::IPv4 => resolve(host, Family::V4).await,
            AddrType::IPv6 => resolve(host, Family::V6).await,
            AddrType::Either => match resolve(host, Family::V4).await {
                Err(Error::NoSuchName) => resolve(host, Family::V6).await,
                found => found,
            },
        }
    }

    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, Error> {
        Err(Error::NoSuchName)
    }
}
