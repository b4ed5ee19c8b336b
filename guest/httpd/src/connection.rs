//! A connection: requests in, answers out, one after the other.
//!
//! Requests are parsed where they were received; answers to requests that came together leave together.

use crate::answer::{Body, Decision, MOST_BODY};
use crate::server::Server;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use guest_libos::http;
use guest_libos::net::{Error, TcpStream};
use guest_libos::task::{Shutdown, Sleep};
use guest_libos::time::Instant;

/// How long the other side may take no byte of an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// How long what still comes is read after the last answer, so that it is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it.
const LINGER_BYTES: usize = 4 << 20;

/// What is known of the next request.
enum Next {
    Answer(Decision),
    /// More of the head has to come.
    Partial,
    /// The other side is done.
    End,
}

/// Why waiting ended.
enum Wait {
    Ready(Next),
    TimedOut,
    Stopping,
}

pub(crate) struct Connection<'a> {
    server: &'a Server,
    stream: TcpStream,
    /// A head that came in several pieces.
    pieces: Vec<u8>,
    /// What is written before the body.
    out: Vec<u8>,
    sleep: Sleep,
    shutdown: Shutdown,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(server: &'a Server, stream: TcpStream) -> Self {
        let (sleep, shutdown) = (Sleep::until(Instant::now()), guest_libos::task::shutdown_requested());
        Connection { server, stream, pieces: Vec::new(), out: Vec::new(), sleep, shutdown }
    }

    /// Serves the connection until it ends.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        loop {
            // The whole head has to come within this time, in however many pieces.
            self.sleep.reset(Instant::now() + self.server.idle);
            let decision = match self.next().await? {
                Wait::Ready(Next::Answer(decision)) => decision,
                Wait::Ready(Next::Partial | Next::End) => return Ok(()),
                Wait::Stopping | Wait::TimedOut if self.pieces.is_empty() => return Ok(()),
                Wait::Stopping => Decision::fail(503),
                Wait::TimedOut => Decision::fail(408),
            };
            let answer = decision.answer(self.server, &mut self.out);
            let keep_alive = answer.keep_alive;
            self.send(answer.body).await?;
            if !keep_alive {
                return self.finish().await;
            }
            if decision.content_length > 0 && !self.skip(decision.content_length).await? {
                return Ok(());
            }
        }
    }

    /// Waits for the next request and decides what to answer.
    async fn next(&mut self) -> Result<Wait, Error> {
        poll_fn(|context| {
            loop {
                match self.poll_request(context) {
                    Poll::Ready(Ok(Next::Partial)) => {}
                    Poll::Ready(Ok(next)) => return Poll::Ready(Ok(Wait::Ready(next))),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => break,
                }
            }
            if Pin::new(&mut self.sleep).poll(context).is_ready() {
                return Poll::Ready(Ok(Wait::TimedOut));
            }
            if Pin::new(&mut self.shutdown).poll(context).is_ready() {
                return Poll::Ready(Ok(Wait::Stopping));
            }
            Poll::Pending
        })
        .await
    }

    fn poll_request(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, Error>> {
        let Connection { server, stream, pieces, .. } = self;
        stream.poll_read_with(context, |data| {
            if data.is_empty() {
                return (0, Next::End);
            }
            if pieces.is_empty() {
                // The common case: the whole head is there, in one piece.
                match parse(server, data) {
                    (0, Next::Partial) => {
                        pieces.extend_from_slice(data);
                        (data.len(), Next::Partial)
                    }
                    done => done,
                }
            } else {
                let before = pieces.len();
                let room = http::MAX_HEAD.saturating_sub(before);
                let taken = data.len().min(room);
                pieces.extend_from_slice(&data[..taken]);
                match parse(server, pieces) {
                    (0, Next::Partial) => (taken, Next::Partial),
                    (length, next) => {
                        pieces.clear();
                        // What was taken beyond the head stays in the socket.
                        (length.saturating_sub(before), next)
                    }
                }
            }
        })
    }

    /// Writes what is in `out`, and the body.
    async fn send(&mut self, body: Body) -> Result<(), Error> {
        match body {
            Body::Static(bytes) => self.send_with(bytes).await?,
            Body::Text(text) => self.send_with(text.as_bytes()).await?,
            Body::Generated(length) => {
                self.send_with(&[]).await?;
                let mut left = length;
                while left > 0 {
                    let piece = self.server.pattern();
                    let piece = &piece[..usize::try_from(left).unwrap_or(usize::MAX).min(piece.len())];
                    write(&mut self.stream, &mut self.sleep, piece).await?;
                    left -= piece.len() as u64;
                }
            }
        }
        Ok(())
    }

    async fn send_with(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // Small bodies go with the head in one piece, larger ones without a copy.
        let rest = if bytes.len() <= 2048 {
            self.out.extend_from_slice(bytes);
            &[]
        } else {
            bytes
        };
        write(&mut self.stream, &mut self.sleep, &self.out).await?;
        self.out.clear();
        write(&mut self.stream, &mut self.sleep, rest).await
    }

    /// Reads a body that nobody wants; false if it does not come.
    async fn skip(&mut self, length: u64) -> Result<bool, Error> {
        let mut left = length.min(MOST_BODY);
        self.sleep.reset(Instant::now() + self.server.idle);
        while left > 0 {
            let Connection { stream, sleep, .. } = self;
            let skipped = poll_fn(|context| {
                let read = stream.poll_read_with(context, |data| {
                    let taken = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    (taken, taken)
                });
                match read {
                    Poll::Pending => Pin::new(&mut *sleep).poll(context).map(|()| Ok(0)),
                    ready => ready,
                }
            })
            .await?;
            if skipped == 0 {
                return Ok(false);
            }
            left -= skipped as u64;
        }
        Ok(true)
    }

    /// Ends the connection after an answer: what the other side still sends is read for a while, as unread data would
    /// turn the end into a reset, which could overtake the answer.
    async fn finish(mut self) -> Result<(), Error> {
        self.stream.shutdown();
        let mut seen = 0;
        let drain = async {
            while seen < LINGER_BYTES {
                match self.stream.read_with(|data| (data.len(), data.len())).await {
                    Ok(n @ 1..) => seen += n,
                    _ => break,
                }
            }
        };
        // The other side may keep its direction open as long as it likes; the library OS deals with the rest.
        let _ = guest_libos::task::timeout(LINGER, drain).await;
        Ok(())
    }
}

/// Parses the head at the start of `data`: bytes used, and what to answer. (0, `Partial`) if it is not complete.
fn parse(server: &Server, data: &[u8]) -> (usize, Next) {
    match http::parse(data) {
        Ok(None) => (0, Next::Partial),
        Ok(Some((length, request))) => (length, Next::Answer(Decision::on(server, &request))),
        // Nothing that follows can be trusted to be a request.
        Err(why) => (data.len(), Next::Answer(Decision::refuse(why))),
    }
}

/// Writes all of `data`; the other side must take some of it every minute.
async fn write(stream: &mut TcpStream, sleep: &mut Sleep, mut data: &[u8]) -> Result<(), Error> {
    let mut waited = false;
    while !data.is_empty() {
        let written = poll_fn(|context| match stream.poll_write(context, data) {
            Poll::Pending => {
                if !waited {
                    waited = true;
                    sleep.reset(Instant::now() + WRITE_PATIENCE);
                }
                Pin::new(&mut *sleep).poll(context).map(|()| Err(Error::TimedOut))
            }
            ready => ready,
        })
        .await?;
        waited = false;
        data = &data[written..];
    }
    Ok(())
}
