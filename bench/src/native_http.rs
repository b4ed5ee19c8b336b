//! The native HTTP server that a guest's is measured against: one thread, epoll, keep-alive, pipelining.
//!
//! It is as fast as such a server is written: ready answers in memory and no allocation per request, one `recv` per
//! batch of requests and one `sendmsg` per batch of answers, no `epoll_ctl` while a client keeps up, `TCP_NODELAY`,
//! `accept4` without blocking. It does parse each request (`httparse`), as a server must.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::netns::Namespace;

/// Ports it listens on. Load that uses them in turn does not run out of local ports.
pub const PORTS: [u16; 4] = [80, 81, 82, 83];

const BACKLOG: libc::c_int = 4096;
const READ: usize = 64 << 10;
const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 32;
const VECTORS: usize = 64;
const EVENTS: usize = 512;

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

/// What is served: paths, each with the bytes of its whole response.
#[derive(Clone, Debug, Default)]
pub struct Documents(Vec<(String, Vec<u8>)>);

impl Documents {
    /// Adds a document whose response is `response`, byte for byte.
    pub fn add(&mut self, path: impl Into<String>, response: Vec<u8>) {
        self.0.push((path.into(), response));
    }

    /// Adds `/bytes/N` for each size, under a plain header.
    #[must_use]
    pub fn with_sizes(sizes: &[usize]) -> Documents {
        let mut documents = Documents::default();
        for &size in sizes {
            let mut response =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n")
                    .into_bytes();
            response.extend((0..size).map(|i| b'a' + (i % 26) as u8));
            documents.add(format!("/bytes/{size}"), response);
        }
        documents
    }

    fn find(&self, path: &str) -> Option<usize> {
        self.0.iter().position(|(p, _)| p == path)
    }
}

/// A server that runs in a namespace, ended when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: Ipv4Addr,
    stop: Arc<AtomicBool>,
    wake: OwnedFd,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Server {
    /// Starts it inside `namespace` on [`PORTS`].
    ///
    /// # Errors
    /// When a port is in use or no descriptor can be had.
    pub fn start(namespace: &Namespace, documents: Documents) -> Result<Server> {
        let address = namespace.address();
        let listeners = namespace.run(move || {
            PORTS.iter().map(|port| listen(SocketAddrV4::new(address, *port))).collect::<Result<Vec<_>>>()
        })??;
        // SAFETY: no preconditions; the result is checked before use.
        let wake =
            owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).context("eventfd")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut loop_ = Loop::new(listeners, wake.as_raw_fd(), documents, Arc::clone(&stop))?;
        let thread = namespace.spawn("native-http", move || loop_.run())?;
        Ok(Server { address, stop, wake, thread: Some(thread) })
    }

    /// Address of `path` on one of the ports, chosen by `turn`.
    #[must_use]
    pub fn url(&self, turn: usize, path: &str) -> String {
        format!("http://{}:{}{path}", self.address, PORTS[turn % PORTS.len()])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes of a live buffer to our eventfd.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Err(error)) | Err(error))) => eprintln!("bench: the native server failed: {error:#}"),
            Some(Err(_)) => eprintln!("bench: the native server panicked"),
            _ => {}
        }
    }
}

fn listen(address: SocketAddrV4) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    // The standard library's backlog is 128: too short for a thousand clients that come at once.
    // SAFETY: a live listening socket.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        return Err(io::Error::last_os_error()).context("listen");
    }
    Ok(listener)
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that a system call has just returned belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

struct Connection {
    socket: OwnedFd,
    /// The start of a request whose end has not come yet. Empty in the common case.
    partial: Vec<u8>,
    replies: VecDeque<Reply>,
    close: bool,
    /// Waits for room to send, and reads nothing meanwhile.
    blocked: bool,
}

/// An answer, or what remains of it.
struct Reply {
    document: usize,
    sent: usize,
}

struct Loop {
    epoll: OwnedFd,
    listeners: Vec<TcpListener>,
    stop: Arc<AtomicBool>,
    /// Documents, then the two answers to bad requests.
    documents: Documents,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

const WAKE: u64 = u64::MAX;
const LISTENERS: u64 = u64::MAX - PORTS.len() as u64;

enum After {
    Keep,
    Close,
}

impl Loop {
    fn new(
        listeners: Vec<TcpListener>,
        wake: RawFd,
        mut documents: Documents,
        stop: Arc<AtomicBool>,
    ) -> Result<Loop> {
        // SAFETY: no preconditions; the result is checked.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).context("epoll_create1")?;
        documents.add("", BAD_REQUEST.to_vec());
        documents.add("", NOT_FOUND.to_vec());
        let l = Loop {
            epoll,
            listeners,
            stop,
            documents,
            connections: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; READ],
        };
        l.control(libc::EPOLL_CTL_ADD, wake, libc::EPOLLIN, WAKE)?;
        for (i, listener) in l.listeners.iter().enumerate() {
            l.control(libc::EPOLL_CTL_ADD, listener.as_raw_fd(), libc::EPOLLIN, LISTENERS + i as u64)?;
        }
        Ok(l)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, events: libc::c_int, data: u64) -> Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: data };
        // SAFETY: both descriptors are open and the event is live.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error()).context("epoll_ctl");
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        while !self.stop.load(Ordering::Acquire) {
            // SAFETY: the array has room for EVENTS events.
            let n = unsafe {
                libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS as libc::c_int, -1)
            };
            let Ok(n) = usize::try_from(n) else {
                match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e).context("epoll_wait"),
                }
            };
            for event in &events[..n] {
                let data = event.u64;
                match data {
                    WAKE => {}
                    i if i >= LISTENERS => self.accept((i - LISTENERS) as usize)?,
                    i => self.serve(i as usize)?,
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        let listener = self.listeners[listener].as_raw_fd();
        loop {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            // SAFETY: a live listener; no address is asked for.
            let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
            let socket = match owned(fd) {
                Ok(socket) => socket,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => continue,
                Err(e) => return Err(e).context("accept4"),
            };
            let stream = std::net::TcpStream::from(socket);
            stream.set_nodelay(true)?;
            // SAFETY: the descriptor was just taken out of the stream.
            let socket = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), libc::EPOLLIN, slot as u64)?;
            self.connections[slot] = Some(Connection {
                socket,
                partial: Vec::new(),
                replies: VecDeque::with_capacity(4),
                close: false,
                blocked: false,
            });
        }
    }

    fn serve(&mut self, slot: usize) -> Result<()> {
        // Absent when an earlier event of the same batch closed it.
        let Some(mut connection) = self.connections[slot].take() else { return Ok(()) };
        let after = if connection.blocked { self.flush(&mut connection) } else { self.read(&mut connection) };
        match after {
            After::Close => self.free.push(slot),
            After::Keep => {
                let blocked = !connection.replies.is_empty();
                if blocked != connection.blocked {
                    let events = if blocked { libc::EPOLLOUT } else { libc::EPOLLIN };
                    self.control(libc::EPOLL_CTL_MOD, connection.socket.as_raw_fd(), events, slot as u64)?;
                    connection.blocked = blocked;
                }
                self.connections[slot] = Some(connection);
            }
        }
        Ok(())
    }

    fn read(&mut self, connection: &mut Connection) -> After {
        let fd = connection.socket.as_raw_fd();
        // SAFETY: the buffer is READ bytes long.
        let n = unsafe { libc::recv(fd, self.buffer.as_mut_ptr().cast(), READ, 0) };
        let n = match usize::try_from(n) {
            Ok(0) => return After::Close,
            Ok(n) => n,
            Err(_) => {
                return match io::Error::last_os_error().kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => After::Keep,
                    _ => After::Close,
                };
            }
        };
        if connection.partial.is_empty() {
            let used =
                parse(&self.documents, &self.buffer[..n], &mut connection.replies, &mut connection.close);
            connection.partial.extend_from_slice(&self.buffer[used..n]);
        } else {
            connection.partial.extend_from_slice(&self.buffer[..n]);
            let used =
                parse(&self.documents, &connection.partial, &mut connection.replies, &mut connection.close);
            connection.partial.drain(..used);
        }
        if connection.partial.len() > MAX_REQUEST {
            return After::Close;
        }
        self.flush(connection)
    }

    /// Sends as many answers as the socket takes.
    fn flush(&self, connection: &mut Connection) -> After {
        while !connection.replies.is_empty() {
            let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTORS];
            let mut count = 0;
            for (vector, reply) in vectors.iter_mut().zip(&connection.replies) {
                let rest = &self.documents.0[reply.document].1[reply.sent..];
                *vector = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
                count += 1;
            }
            // SAFETY: `msghdr` is plain old data, for which zeros are valid.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vectors.as_mut_ptr();
            message.msg_iovlen = count;
            // SAFETY: `count` vectors, each within a document, none of which changes meanwhile.
            let n = unsafe {
                libc::sendmsg(connection.socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
            };
            let Ok(mut n) = usize::try_from(n) else {
                return match io::Error::last_os_error().kind() {
                    io::ErrorKind::WouldBlock => After::Keep,
                    io::ErrorKind::Interrupted => continue,
                    _ => After::Close,
                };
            };
            while let Some(reply) = connection.replies.front_mut() {
                let rest = self.documents.0[reply.document].1.len() - reply.sent;
                if n < rest {
                    reply.sent += n;
                    break;
                }
                n -= rest;
                connection.replies.pop_front();
            }
        }
        if connection.close { After::Close } else { After::Keep }
    }
}

/// Queues an answer to each whole request in `input`; returns the bytes that they are.
fn parse(documents: &Documents, input: &[u8], replies: &mut VecDeque<Reply>, close: &mut bool) -> usize {
    let (bad_request, not_found) = (documents.0.len() - 2, documents.0.len() - 1);
    let mut used = 0;
    while used < input.len() && !*close {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&input[used..]) {
            Ok(httparse::Status::Complete(n)) => {
                used += n;
                let document = match (request.method, request.path) {
                    (Some("GET"), Some(path)) => documents.find(path).unwrap_or(not_found),
                    _ => {
                        *close = true;
                        bad_request
                    }
                };
                replies.push_back(Reply { document, sent: 0 });
                *close |= request.headers.iter().any(|h| {
                    h.name.eq_ignore_ascii_case("connection") && h.value.eq_ignore_ascii_case(b"close")
                });
            }
            Ok(httparse::Status::Partial) => break,
            Err(_) => {
                *close = true;
                replies.push_back(Reply { document: bad_request, sent: 0 });
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        let mut documents = Documents::with_sizes(&[0, 5]);
        documents.add("", BAD_REQUEST.to_vec());
        documents.add("", NOT_FOUND.to_vec());
        documents
    }

    fn answers(input: &[u8]) -> (Vec<usize>, usize, bool) {
        let (mut replies, mut close) = (VecDeque::new(), false);
        let used = parse(&documents(), input, &mut replies, &mut close);
        (replies.into_iter().map(|r| r.document).collect(), used, close)
    }

    #[test]
    fn pipelined_requests_are_answered_in_order_and_the_rest_is_kept() {
        let input = b"GET /bytes/5 HTTP/1.1\r\n\r\nGET /bytes/0 HTTP/1.1\r\nA: b\r\n\r\nGET /by";
        assert_eq!(answers(input), (vec![1, 0], input.len() - 7, false));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(answers(b"GET /none HTTP/1.1\r\n\r\n").0, [3]);
        let (replies, _, close) = answers(b"\0\0\r\n\r\n");
        assert_eq!((replies, close), (vec![2], true));
        let (replies, _, close) =
            answers(b"GET /bytes/5 HTTP/1.1\r\nConnection: close\r\n\r\nGET /bytes/0 HT");
        assert_eq!((replies, close), (vec![1], true));
    }

    #[test]
    fn a_document_is_its_header_and_its_bytes() {
        let response = String::from_utf8(documents().0[1].1.clone()).unwrap();
        assert!(response.contains("Content-Length: 5\r\n") && response.ends_with("\r\n\r\nabcde"));
    }
}
