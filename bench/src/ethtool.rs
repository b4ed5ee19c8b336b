//! Switching a device's segmentation offload (`SIOCETHTOOL`), as `ethtool -K` does.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_GGSO: u32 = 0x23;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(device: &str, command: u32, data: u32) -> Result<u32> {
    ensure!(device.len() < libc::IFNAMSIZ, "{device}: the name of a device has at most 15 bytes");
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: `ifreq` is plain old data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names a device and points to a value of the size that these commands use; both live on.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("SIOCETHTOOL on {device}"));
    }
    Ok(value.data)
}

/// Turns segmentation offload of TCP on `device` (a device of the calling thread's network namespace) on or off, in
/// the device and in the stack above it. Without it, nothing larger than the MTU crosses the device: receive
/// coalescing is off in both states, as it is by default.
///
/// # Errors
/// When there is no such device, it does not take the command, or does not do as told.
pub fn set_segmentation_offload(device: &str, on: bool) -> Result<()> {
    let wanted = u32::from(on);
    ethtool(device, ETHTOOL_SGRO, 0)?;
    ethtool(device, ETHTOOL_SGSO, wanted)?;
    ethtool(device, ETHTOOL_STSO, wanted)?;
    let (tso, gso) = (ethtool(device, ETHTOOL_GTSO, 0)?, ethtool(device, ETHTOOL_GGSO, 0)?);
    ensure!((tso, gso) == (wanted, wanted), "{device} did not switch its segmentation offload");
    Ok(())
}
