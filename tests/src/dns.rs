//! A name server on the host's side of a guest's network, which also answers as no server should.
//!
//! Its messages are read and written by `hickory-proto`, which shares nothing with the client in the library OS.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};
use socket2::{Domain, Protocol, Socket, Type};

/// The port of name servers.
const PORT: u16 = 53;
/// How often the server looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(20);

/// A datagram of an answer, by where it comes from.
#[derive(Clone, Debug)]
pub enum Datagram {
    /// The server's port.
    Server(Vec<u8>),
    /// Another port of the server's address.
    Elsewhere(Vec<u8>),
}

/// What was asked: the message, and how often its name was asked for before.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The message.
    pub message: Message,
    /// Questions for the same name before this one.
    pub before: usize,
}

impl Asked {
    /// The one question.
    ///
    /// # Panics
    /// There is none, or there are several.
    #[must_use]
    pub fn question(&self) -> &Query {
        let [question] = self.message.queries.as_slice() else { panic!("{:?}", self.message) };
        question
    }

    /// The name, without the dot behind it.
    #[must_use]
    pub fn name(&self) -> String {
        self.question().name().to_ascii().trim_end_matches('.').to_owned()
    }

    /// An answer with these records.
    #[must_use]
    pub fn answer(&self, records: impl IntoIterator<Item = Record>) -> Message {
        let mut answer = Message::new(self.message.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = self.message.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(self.question().clone());
        answer.add_answers(records);
        answer
    }

    /// An answer without records that says why.
    #[must_use]
    pub fn refusal(&self, code: ResponseCode) -> Message {
        let mut answer = self.answer([]);
        answer.metadata.response_code = code;
        answer
    }
}

/// A message's bytes.
///
/// # Panics
/// They are no message.
#[must_use]
pub fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that can be written")
}

/// A name.
///
/// # Panics
/// It is none.
#[must_use]
pub fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).expect("a name")
}

fn record(of: &str, data: RData) -> Record {
    Record::from_rdata(name(of), 60, data)
}

/// A record of an IPv4 address.
#[must_use]
pub fn a(of: &str, [a, b, c, d]: [u8; 4]) -> Record {
    record(of, RData::A(A::new(a, b, c, d)))
}

/// A record of an IPv6 address.
///
/// # Panics
/// The address is none.
#[must_use]
pub fn aaaa(of: &str, address: &str) -> Record {
    record(of, RData::AAAA(AAAA(address.parse().expect("an address"))))
}

/// A record that says that one name stands for another.
#[must_use]
pub fn cname(of: &str, target: &str) -> Record {
    record(of, RData::CNAME(CNAME(name(target))))
}

/// The server.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Asked>>>,
}

impl Server {
    /// Starts it. The address need not be one of the host's yet: a launch brings it.
    ///
    /// # Panics
    /// Something else listens there, or this process has no right to.
    #[must_use]
    pub fn start(
        address: Ipv4Addr,
        mut answer: impl FnMut(&Asked) -> Vec<Datagram> + Send + 'static,
    ) -> Server {
        let (server, elsewhere) = (bind(address, PORT), bind(address, 0));
        server.set_read_timeout(Some(PAUSE)).expect("a time limit");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut all: Vec<Asked> = Vec::new();
            let mut counts: HashMap<String, usize> = HashMap::new();
            let mut buffer = [0; 2048];
            while !flag.load(Ordering::SeqCst) {
                let Ok((length, from)) = server.recv_from(&mut buffer) else { continue };
                let message = Message::from_vec(&buffer[..length]).expect("a question that can be read");
                let mut asked = Asked { message, before: 0 };
                let count = counts.entry(asked.name()).or_default();
                asked.before = *count;
                *count += 1;
                for datagram in answer(&asked) {
                    let sent = match &datagram {
                        Datagram::Server(bytes) => server.send_to(bytes, from),
                        Datagram::Elsewhere(bytes) => elsewhere.send_to(bytes, from),
                    };
                    sent.expect("an answer that can be sent");
                }
                all.push(asked);
            }
            all
        });
        Server { stop, thread: Some(thread) }
    }

    /// Ends it; everything that it was asked.
    ///
    /// # Panics
    /// It met a question that it could not read.
    #[must_use]
    pub fn finish(mut self) -> Vec<Asked> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("finished once").join().expect("the server does not panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket at an address that may be the host's only later.
fn bind(address: Ipv4Addr, port: u16) -> UdpSocket {
    let to = SocketAddrV4::new(address, port);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("a socket");
    socket.set_freebind_v4(true).expect("a free bind");
    socket.bind(&to.into()).unwrap_or_else(|e| panic!("{to}: {e}"));
    socket.into()
}
