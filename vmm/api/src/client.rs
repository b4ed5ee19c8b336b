//! Asks a daemon, over its Unix socket or from another machine. Calls return when the answer is there: whoever asks has nothing else to do meanwhile.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::endpoint::Endpoint;
use crate::guest::{Action, Bulk, Create, Created, Done, Filter, Guest, GuestDetail};
use crate::image::Image;
use crate::page::Page;
use crate::problem::Problem;
use crate::system::Cell;

/// Longest text of an error that is no problem of ours, bytes.
const LONGEST_TEXT: usize = 300;
/// Most bytes of an answer that is held in memory as a whole.
const MOST_ANSWER: usize = 1 << 30;

/// Why there is no good answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}", unreachable(at, source))]
    Unreachable {
        /// Where.
        at: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The daemon says no.
    #[error("{0}")]
    Problem(Problem),
    /// A file that was to be sent cannot be read.
    #[error("cannot read the image: {0}")]
    File(io::Error),
    /// What comes is no answer.
    #[error("the supervisor went away or answered something else: {0}")]
    Broken(String),
}

impl ClientError {
    /// The status of the daemon's answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Problem(problem) => Some(problem.status),
            _ => None,
        }
    }
}

/// What to do depends on where one was to be.
fn unreachable(at: &Endpoint, source: &io::Error) -> String {
    let advice = match at {
        Endpoint::Socket(_) => "start one with `vmm serve`, or name its --socket",
        Endpoint::Remote(_) => {
            "it has to be one with --listen, and both ends' certificates have to be of the other's ca.pem"
        }
    };
    format!("no supervisor answers on {at}: {advice} ({source})")
}

fn broken(e: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(e.to_string())
}

/// A connection to a daemon, opened again when that is needed.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    at: Endpoint,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// Percent-encodes a part of a path or a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A path with the parts of a query that have something to say.
#[must_use]
pub fn query(path: &str, parts: &[(&str, Option<String>)]) -> String {
    let said = parts.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value.as_ref()?))));
    let said: Vec<_> = said.collect();
    if said.is_empty() { path.to_owned() } else { format!("{path}?{}", said.join("&")) }
}

impl Client {
    /// Connects to a daemon on this machine.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Client::connect_to(&Endpoint::Socket(path.to_path_buf()))
    }

    /// Connects.
    ///
    /// # Errors
    /// Nobody listens, or it is somebody else.
    pub fn connect_to(at: &Endpoint) -> Result<Client, ClientError> {
        let unreachable = |source| ClientError::Unreachable { at: at.clone(), source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(unreachable)?;
        let mut client = Client { runtime, at: at.clone(), sender: None };
        client.open()?;
        Ok(client)
    }

    fn open(&mut self) -> Result<(), ClientError> {
        let opened = self.runtime.block_on(async {
            let stream = self.at.open().await?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            // Ends with the connection; its errors are those of the requests on it.
            tokio::spawn(async move { drop(connection.with_upgrades().await) });
            Ok(sender)
        });
        let unreachable = |source| ClientError::Unreachable { at: self.at.clone(), source };
        self.sender = Some(opened.map_err(unreachable)?);
        Ok(())
    }

    fn send(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(path);
        let body = match body {
            Some((kind, bytes)) => {
                request = request.header(header::CONTENT_TYPE, kind);
                bytes
            }
            None => Bytes::new(),
        };
        self.exchange(request, body)
    }

    fn exchange(&mut self, request: Builder, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let usable = match &mut self.sender {
            Some(sender) => self.runtime.block_on(sender.ready()).is_ok(),
            None => false,
        };
        if !usable {
            self.open()?;
        }
        let request = request.header(header::HOST, self.at.host()).body(Full::new(body)).map_err(broken)?;
        let sender = self.sender.as_mut().ok_or_else(|| broken("no connection"))?;
        let answer = self.runtime.block_on(sender.send_request(request)).map_err(broken)?;
        if answer.status().is_success() || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = self.whole(answer)?;
        Err(ClientError::Problem(serde_json::from_slice(&bytes).unwrap_or_else(|_| stranger(status, &bytes))))
    }

    fn whole(&mut self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let limited = http_body_util::Limited::new(answer.into_body(), MOST_ANSWER);
        let collected = self.runtime.block_on(limited.collect());
        collected.map(http_body_util::Collected::to_bytes).map_err(broken)
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(broken)?;
        let answer = self.send(method, path, body.map(|b| ("application/json", Bytes::from(b))))?;
        let bytes = self.whole(answer)?;
        // What has no content says so to those who expect none.
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(broken)
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.ask(&Method::GET, path, None::<&()>)
    }

    /// Has something done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.ask(&Method::POST, path, body)
    }

    /// Settles something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn put<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.ask(&Method::PUT, path, Some(body))
    }

    /// Removes something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&mut self, path: &str) -> Result<(), ClientError> {
        self.send(&Method::DELETE, path, None).map(drop)
    }

    /// Reads an answer that is text.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn text(&mut self, path: &str) -> Result<Vec<u8>, ClientError> {
        let answer = self.send(&Method::GET, path, None)?;
        self.whole(answer).map(|bytes| bytes.to_vec())
    }

    /// Reads an answer as it comes, until it ends or `take` has enough.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stream(
        &mut self,
        path: &str,
        take: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.download(path, |_| (), take)
    }

    /// The same of an answer that may say of how many bytes it is: that is told first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn download(
        &mut self,
        path: &str,
        begin: impl FnOnce(Option<u64>),
        mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let mut body = self.send(&Method::GET, path, None)?.into_body();
        begin(body.size_hint().exact());
        while let Some(frame) = self.runtime.block_on(body.frame()) {
            if let Ok(bytes) = frame.map_err(broken)?.into_data()
                && take(&bytes).is_break()
            {
                // What would still come is in the way of the next request.
                self.sender = None;
                break;
            }
        }
        Ok(())
    }

    /// Has the connection change to another protocol, which is spoken on the stream that is returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change(mut self, path: &str, protocol: &str) -> Result<StdStream, ClientError> {
        let request = Request::builder()
            .uri(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol);
        let answer = self.exchange(request, Bytes::new())?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken("it does not change to another protocol"));
        }
        let changed = self.runtime.block_on(hyper::upgrade::on(answer)).map_err(broken)?;
        let (ours, theirs) = StdStream::pair().map_err(broken)?;
        theirs.set_nonblocking(true).map_err(broken)?;
        // Whatever the connection goes through, its bytes have to be carried by somebody.
        let carry = move || {
            self.runtime.block_on(async {
                let mut near = UnixStream::from_std(theirs)?;
                tokio::io::copy_bidirectional(&mut near, &mut TokioIo::new(changed)).await
            })
        };
        std::thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || carry().map(drop).unwrap_or_default())
            .map_err(broken)?;
        Ok(ours)
    }

    /// Sends a file.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn upload<T: DeserializeOwned>(&mut self, path: &str, bytes: Vec<u8>) -> Result<T, ClientError> {
        let body = Some(("application/octet-stream", Bytes::from(bytes)));
        let answer = self.send(&Method::POST, path, body)?;
        let bytes = self.whole(answer)?;
        serde_json::from_slice(&bytes).map_err(broken)
    }

    /// Every item of a collection, page by page. `path` may have a query.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn all<T: DeserializeOwned>(&mut self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut page: Page<T> = self.get(path)?;
        let mut items = page.items;
        while let Some(after) = page.next {
            let more = if path.contains('?') { '&' } else { '?' };
            page = self.get(&format!("{path}{more}after={}", encode(&after)))?;
            items.append(&mut page.items);
        }
        Ok(items)
    }

    /// Has guests run.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create(&mut self, create: &Create) -> Result<Created, ClientError> {
        self.post("/guests", Some(create))
    }

    /// The guests that meet a filter without ids.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guests(&mut self, filter: &Filter) -> Result<Vec<Guest>, ClientError> {
        let states: Vec<_> = filter.states.iter().map(|s| s.name()).collect();
        let path = query(
            "/guests",
            &[
                ("name", filter.name.clone()),
                ("owner", filter.owner.clone()),
                ("image", filter.image.clone()),
                ("label", filter.label.clone()),
                ("state", (!states.is_empty()).then(|| states.join(","))),
            ],
        );
        self.all(&path)
    }

    /// Everything about a guest, by its id or its name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guest(&mut self, id: &str) -> Result<GuestDetail, ClientError> {
        self.get(&format!("/guests/{}", encode(id)))
    }

    /// Does something to a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn act(&mut self, id: &str, action: Action) -> Result<Guest, ClientError> {
        self.post(&format!("/guests/{}/{}", encode(id), action.name()), None::<&()>)
    }

    /// Does something to many guests. Returns to how many.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn act_on_all(&mut self, bulk: &Bulk) -> Result<usize, ClientError> {
        self.post("/guests/actions", Some(bulk)).map(|done: Done| done.count)
    }

    /// The cells.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn cells(&mut self) -> Result<Vec<Cell>, ClientError> {
        self.all("/cells")
    }

    /// How many guests of a range of ids neither run nor have ended after so many milliseconds at most.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn open_of(&mut self, first: u64, last: u64, milliseconds: u32) -> Result<usize, ClientError> {
        let path = format!("/guests/settled?first={first}&last={last}&milliseconds={milliseconds}");
        self.get(&path).map(|done: Done| done.count)
    }

    /// Has the daemon keep the image in a file, under a name if one is given; it is sent only if it is not there. Returns its digest.
    ///
    /// # Errors
    /// See [`ClientError`]; also when the file cannot be read.
    pub fn hand_over(&mut self, file: &Path, name: Option<&str>) -> Result<String, ClientError> {
        let bytes = std::fs::read(file).map_err(ClientError::File)?;
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        match self.get::<Image>(&format!("/images/{digest}")) {
            Ok(there) => {
                if let Some(name) = name.filter(|name| there.names.iter().all(|n| n != name)) {
                    self.name_image(name, &digest)?;
                }
                Ok(digest)
            }
            Err(e) if e.status() == Some(404) => self.keep_image(bytes, name).map(|image| image.digest),
            Err(e) => Err(e),
        }
    }

    /// Gives an image that is there a name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn name_image(&mut self, name: &str, image: &str) -> Result<Image, ClientError> {
        let meaning = std::collections::BTreeMap::from([("image", image)]);
        self.put(&format!("/images/{}", encode(name)), &meaning)
    }

    /// Has the daemon keep an image, under a name if one is given.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn keep_image(&mut self, bytes: Vec<u8>, name: Option<&str>) -> Result<Image, ClientError> {
        self.upload(&query("/images", &[("name", name.map(str::to_owned))]), bytes)
    }
}

/// An error of somebody else, for instance of whatever else listens there.
fn stranger(status: StatusCode, bytes: &[u8]) -> Problem {
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(LONGEST_TEXT)).unwrap_or_default());
    let title = status.canonical_reason().unwrap_or("error");
    Problem::new(status.as_u16(), title, text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_say_what_there_is_to_say() {
        assert_eq!(query("/guests", &[("name", None)]), "/guests");
        let parts = [("name", Some("a b&c".to_owned())), ("owner", None), ("label", Some("x=1".to_owned()))];
        assert_eq!(query("/guests", &parts), "/guests?name=a%20b%26c&label=x%3D1");
    }

    #[test]
    fn nobody_there_is_said_with_what_to_do() {
        let error = Client::connect(Path::new("/nowhere/at-all.sock")).unwrap_err();
        assert!(error.to_string().contains("start one with `vmm serve`"), "{error}");
    }
}
