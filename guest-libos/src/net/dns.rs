//! The DNS client: names to addresses, by the name server in the virtual registers.

use super::error::Error;
use super::{neighbor, with, with_running};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::{IpAddr, Ipv4Addr};
use core::task::Poll;
use core::time::Duration;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::dns::{GetQueryResultError, QueryHandle, Socket, StartQueryError};
use smoltcp::wire::{DnsQueryType, IpAddress};

/// Questions on their way at a time.
const QUERIES: usize = 16;
/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The first address of `name`; an address in text stands for itself.
///
/// # Errors
/// [`Error::NoSuchName`], [`Error::NoNameServer`], [`Error::TimedOut`], [`Error::Exhausted`] when too many questions
/// are on their way, and those of sending.
pub async fn resolve(name: &str, family: Family) -> Result<IpAddr, Error> {
    resolve_all(name, family).await?.first().copied().ok_or(Error::NoSuchName)
}

/// All addresses of `name` of a kind, at most 16. There is no TCP to ask again with: what a truncated answer holds is taken.
///
/// # Errors
/// As for [`resolve`].
pub async fn resolve_all(name: &str, family: Family) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = name.parse() {
        return Ok(alloc::vec![address]);
    }
    let server = Ipv4Addr::from(crate::registers().net.dns4);
    if server.is_unspecified() {
        return Err(Error::NoNameServer);
    }
    neighbor(server.into()).await?;
    let query_type = match family {
        Family::V4 => DnsQueryType::A,
        Family::V6 => DnsQueryType::Aaaa,
    };
    let (socket, handle) = with(|stack| {
        let socket = *stack.dns.get_or_insert_with(|| {
            let queries: Vec<_> = (0..QUERIES).map(|_| None).collect();
            stack.others.add(Socket::new(&[IpAddress::from(IpAddr::V4(server))], queries))
        });
        let query = stack.others.get_mut::<Socket<'_>>(socket).start_query(
            stack.interface.context(),
            name,
            query_type,
        );
        stack.others_dirty = true;
        match query {
            Ok(handle) => Ok((socket, handle)),
            Err(StartQueryError::NoFreeSlot) => Err(Error::Exhausted),
            Err(_) => Err(Error::NoSuchName),
        }
    })??;
    let query = Query { socket, handle: Some(handle) };
    let answer = crate::task::timeout(PATIENCE, query.answer()).await;
    answer.unwrap_or(Err(Error::TimedOut))
}

/// A question on its way. Dropping it takes it back.
struct Query {
    socket: SocketHandle,
    handle: Option<QueryHandle>,
}

impl Query {
    async fn answer(mut self) -> Result<Vec<IpAddr>, Error> {
        poll_fn(|context| {
            let Some(handle) = self.handle else { return Poll::Ready(Err(Error::NoSuchName)) };
            let answer = with(|stack| {
                let socket = stack.others.get_mut::<Socket<'_>>(self.socket);
                match socket.get_query_result(handle) {
                    Ok(addresses) => {
                        Poll::Ready(Ok(addresses.iter().map(|&address| address.into()).collect()))
                    }
                    Err(GetQueryResultError::Failed) => Poll::Ready(Err(Error::NoSuchName)),
                    Err(GetQueryResultError::Pending) => {
                        socket.register_query_waker(handle, context.waker());
                        Poll::Pending
                    }
                }
            });
            let answer = answer.unwrap_or_else(|e| Poll::Ready(Err(e)));
            if answer.is_ready() {
                self.handle = None;
            }
            answer
        })
        .await
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            with_running(|stack| stack.others.get_mut::<Socket<'_>>(self.socket).cancel_query(handle));
        }
    }
}
